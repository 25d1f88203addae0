"""Personal data: recall, precision and speed of find_pii, beside datatrove's formatter where its venv is given.

In: --data DIR with pii.json (presidio-research's form), --store DIR with document shards (Parquet, column `text`) for
real look-alikes and for speed, --n values a kind, --seed, --peer PYTHON of an environment that has datatrove. Out:
tables. A value counts as found when a span of its kind overlaps it; `exact` when start and end are equal. Precision:
share of spans of the kind that overlap a value of the kind, over all texts of the table, the look-alikes among them.

    python -m bench.pii --data ../data --store data/store/clean --n 300 --seed 101
"""

import argparse
import json
import random
import re
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow.parquet as pq

from bench.pii_samples import Sample, look_alikes, samples
from pipeline.corpus.signals.pii import FINDERS, PII_KINDS, find_pii

OURS = {
    "CREDIT_CARD": "credit_card",
    "PHONE_NUMBER": "phone",
    "EMAIL_ADDRESS": "email",
    "IBAN_CODE": "iban",
    "US_SSN": "us_ssn",
    "IP_ADDRESS": "ip_address",
}
# What is certainly no personal data in real text, whatever stands in it
CERTAIN = {
    "version": re.compile(r"(?i)\b(?:version|versions|release|released in)\s+v?\d+(?:\.\d+){1,3}\b"),
    "pinned version": re.compile(r"[A-Za-z_]\w+[=<>~]=\d+(?:\.\d+){1,3}\b"),
    "date": re.compile(r"\b(?:19|20)\d\d-\d\d-\d\d(?:[ T]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?\b"),
    "digest": re.compile(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{12,64}\b"),
    "uuid": re.compile(r"\b[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\b"),
    "isbn": re.compile(r"(?i)\bisbn[ :\-0-9x]{10,24}"),
    "ticket": re.compile(r"(?:#|\[ticket:)\d{3,7}\b"),
    "years": re.compile(r"\b1\d{3}\s?[-\u2013]\s?(?:1|20)\d{2,3}\b"),
    "decimal": re.compile(r"(?<![\w.])-?\d+\.\d{4,}(?![\w.])"),
    "numbers": re.compile(r"\b\d{1,6}(?:[,;\t ]+\d{1,6}){4,}\b"),
    "local address": re.compile(r"\b(?:127\.0\.0\.1|0\.0\.0\.0|localhost|10\.\d+\.\d+\.\d+|192\.168\.\d+\.\d+)\b"),
    "time": re.compile(r"\b\d\d:\d\d:\d\d(?:\.\d+)?\b"),
}
WIDTH = 60  # characters beside a real look-alike that come with it


Match = tuple[int, int]  # start and end in characters


def labelled(path: Path) -> list[Sample]:
    texts = json.loads(path.read_text(encoding="utf-8"))
    return [
        Sample(
            text["full_text"],
            tuple(
                (span["start_position"], span["end_position"], OURS[span["entity_type"]])
                for span in text["spans"]
                if span["entity_type"] in OURS
            ),
            str(text["template_id"]),
        )
        for text in texts
    ]


def refilled(texts: Iterable[Sample], times: int, seed: int) -> list[Sample]:
    """The labelled texts with other values in the places of their spans: new numbers in phrases of others."""
    rng = random.Random(seed)
    filled = []
    for text in [text for text in texts if text.spans] * times:
        parts, spans, at, n = [], [], 0, 0
        for start, end, kind in sorted(text.spans):
            value = next(iter(samples(kind, 1, rng.randrange(10**9))))
            begin, finish, _ = value.spans[0]
            parts += (text.text[at:start], value.text[begin:finish])
            n += start - at
            spans.append((n, n + finish - begin, kind))
            n, at = n + finish - begin, end
        filled.append(Sample("".join((*parts, text.text[at:])), tuple(spans), text.group, True))
    return filled


def documents(store: Path) -> list[str]:
    texts: dict[str, None] = {}
    for path in sorted(store.rglob("*.parquet")):
        schema = pq.read_schema(path)
        if "text" in schema.names:
            texts.update(dict.fromkeys(pq.read_table(path, columns=["text"])["text"].to_pylist()))
    return list(texts)


def real_look_alikes(texts: Iterable[str], n: int, seed: int) -> list[tuple[str, Match]]:
    """`n` places, spread evenly over the certain patterns, each with the text around it."""
    found: dict[str, list[tuple[str, Match]]] = defaultdict(list)
    for text in texts:
        for name, pattern in CERTAIN.items():
            for match in pattern.finditer(text):
                start = max(0, match.start() - WIDTH)
                around = text[start : match.end() + WIDTH]
                found[name].append((around, (match.start() - start, match.end() - start)))
    rng = random.Random(seed)
    unique = {name: sorted(set(places)) for name, places in sorted(found.items())}
    for places in unique.values():
        rng.shuffle(places)
    chosen: list[tuple[str, Match]] = []
    while len(chosen) < n and any(unique.values()):
        for places in unique.values():
            if places and len(chosen) < n:
                chosen.append(places.pop())
    return chosen


def print_scores(title: str, texts: Iterable[Sample]) -> None:
    n, found, exact, right, wrong = (Counter() for _ in range(5))
    for sample in texts:
        spans = find_pii(sample.text)
        for start, end, kind in sample.spans:
            hits = [s for s in spans if s.kind == kind and s.start < end and start < s.end]
            n[kind] += 1
            found[kind] += bool(hits)
            exact[kind] += any((s.start, s.end) == (start, end) for s in hits)
        for s in spans:
            hit = any(s.kind == kind and s.start < end and start < s.end for start, end, kind in sample.spans)
            (right if hit else wrong)[s.kind] += 1
    print(f"\n{title}\n{'kind':12} {'n':>5} {'recall':>7} {'exact':>7} {'precision':>9} {'wrong':>6}")
    for kind in PII_KINDS:
        if n[kind] or wrong[kind]:
            total = max(1, right[kind] + wrong[kind])
            m = max(1, n[kind])
            print(
                f"{kind:12} {n[kind]:5} {found[kind] / m:7.3f} {exact[kind] / m:7.3f} {right[kind] / total:9.3f}"
                f" {wrong[kind]:6}"
            )


def print_groups(texts: Iterable[Sample]) -> None:
    """Recall by form of the value, where it is below 1, and with and without a word beside it."""
    found, n = Counter(), Counter()
    for sample in texts:
        spans = find_pii(sample.text)
        for start, end, kind in sample.spans:
            hit = any(s.kind == kind and s.start < end and start < s.end for s in spans)
            for group in (sample.group, "with a word" if sample.named else "without a word"):
                n[kind, group] += 1
                found[kind, group] += hit
    below = [
        f"{kind} {group} {found[kind, group]}/{total}"
        for (kind, group), total in sorted(n.items())
        if found[kind, group] < total
    ]
    print("recall below 1: " + "; ".join(below))


def seconds_of(function, texts: list[str]) -> float:
    start = time.process_time()
    for text in texts:
        for _ in function(text):
            pass
    return time.process_time() - start


PEER = """
import sys, time, json
from datatrove.pipeline.formatters import PIIFormatter
texts = json.load(open(sys.argv[1]))
formatter = PIIFormatter()
start = time.process_time()
for text in texts:
    formatter.format(text)
print(time.process_time() - start)
"""


def print_speed(texts: list[str], peer: str | None) -> None:
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    rounds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "texts.json"
        path.write_text(json.dumps(texts), encoding="utf-8")
        for _ in range(3):  # in turns: what else the machine does falls on all alike
            rounds["find_pii"].append(seconds_of(find_pii, texts))
            if peer:
                answer = subprocess.run([peer, "-c", PEER, path], capture_output=True, encoding="utf-8", check=True)
                rounds["datatrove PIIFormatter (e-mail, IP)"].append(float(answer.stdout))
    for kind, finder in FINDERS.items():
        rounds[f"  {kind}"].append(seconds_of(finder, texts))
    print(f"\nspeed on {len(texts)} documents, {megabytes:.1f} MB, best of three, MB/s of one core")
    for name, seconds in rounds.items():
        print(f"{name:38} {megabytes / min(seconds):9.1f}")


def print_real_look_alikes(texts: list[str], n: int, seed: int) -> None:
    places = real_look_alikes(texts, n, seed)
    wrong: list[str] = []
    for around, (start, end) in places:
        wrong += [
            f"{s.kind}: {around[s.start : s.end]!r}" for s in find_pii(around) if s.start < end and start < s.end
        ]
    print(f"\n{len(places)} certain look-alikes of real documents: {len(wrong)} flagged")
    for line in wrong[:20]:
        print("  ", line)


def counted(texts: list[str]) -> Iterator[str]:
    counts = Counter(span.kind for text in texts for span in find_pii(text))
    yield from (f"{kind} {counts[kind]}" for kind in PII_KINDS if counts[kind])


def main() -> None:
    parser = argparse.ArgumentParser(description="Recall, precision and speed of find_pii")
    parser.add_argument("--data", type=Path, required=True, help="folder with pii.json")
    parser.add_argument("--store", type=Path, help="folder with document shards")
    parser.add_argument("--n", type=int, default=300, help="generated values a kind")
    parser.add_argument("--seed", type=int, default=101)
    parser.add_argument("--peer", help="Python of an environment with datatrove")
    options = parser.parse_args()
    texts = labelled(options.data / "pii.json")
    print_scores("pii.json", texts)
    print_scores("pii.json, the half with templates of odd number", [text for text in texts if int(text.group) % 2])
    print_scores("pii.json with generated values in its places, three times", refilled(texts, 3, options.seed))
    values = [sample for kind in PII_KINDS for sample in samples(kind, options.n, options.seed)]
    negatives = look_alikes(options.n, options.seed)
    print_scores(f"generated, seed {options.seed}, and {len(negatives)} look-alikes", [*values, *negatives])
    print_groups(values)
    if options.store:
        real = documents(options.store)
        print_real_look_alikes(real, options.n, options.seed)
        print("in these documents: " + ", ".join(counted(real)))
        print_speed(real, options.peer)


if __name__ == "__main__":
    main()
