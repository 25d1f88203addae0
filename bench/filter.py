"""Filter: decisions and speed beside datatrove 0.10.1 (extra `bench`), on the same documents, in one run.

In: --store DIR of document shards as `clean` leaves them; --data DIR with extraction/html; --pages DIR of other HTML,
in any language and depth (taken here: the manual debian-reference of Debian in de, es, fr, it, ja, pt, zh-cn,
unpacked by `dpkg-deb -x`). Documents of the store and of --pages that are longer than a web page are cut at blank
lines into pieces of about 6,000 characters. --n of all these are drawn with --seed. Out: tables in Markdown: share of
equal decisions by filter and together, every unequal one with its cause, and time by core, both sides alternating in
blocks of documents. datatrove splits every language by its English tokenizer here, as its filters do by default.

    python -m bench.filter --store data/store/clean --data ../data --pages debian-reference --n 2000
"""

import argparse
import gzip
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.clean.html_text import html_text
from pipeline.corpus.collect.source_rules import RULE_SETS
from pipeline.corpus.filter.rules import as_datatrove, judge
from pipeline.corpus.filter.stage import FilterConfig, FilterRecipe, filter_shard
from pipeline.corpus.signals.language import language_of
from pipeline.corpus.signals.pii import find_pii
from pipeline.corpus.signals.quality import quality_signals
from pipeline.corpus.signals.stage import signals_of
from pipeline.corpus.signals.toxicity import toxicity_signals
from pipeline.corpus.text_repair import repair
from pipeline.corpus.word_splitting import split_chunk
from pipeline.store.records import DOCUMENT, SIGNALS
from pipeline.store.shards import text_digest, write_table

PIECE = 6_000  # characters, about a web page
LONG = 60_000  # what is longer is cut
BLOCK = 50  # documents between two changes of side
TOGETHER = ("gopher_repetition", "gopher_quality", "c4", "fineweb")  # in FineWeb's order


@dataclass(frozen=True, slots=True)
class Text:
    origin: str
    name: str
    text: str


@dataclass(slots=True)
class Side:
    """What one side said and how long it took."""

    seconds: float = 0.0
    answers: list[Any] = field(default_factory=list)

    def run(self, function: Callable[[str], Any], texts: list[Text]) -> None:
        started = time.perf_counter()
        self.answers += [function(one.text) for one in texts]
        self.seconds += time.perf_counter() - started


def pieces(one: Text) -> Iterator[Text]:
    if len(one.text) <= LONG:
        yield one
        return
    part: list[str] = []
    for i, paragraph in enumerate(one.text.split("\n\n")):
        part.append(paragraph)
        if sum(map(len, part)) >= PIECE:
            yield Text(one.origin, f"{one.name}#{i}", "\n\n".join(part))
            part = []
    if part:
        yield Text(one.origin, f"{one.name}#end", "\n\n".join(part))


def of_store(directory: Path) -> Iterator[Text]:
    for path in sorted(directory.rglob("*.parquet")):
        if "parts" not in path.parts and "dropped" not in path.parts:
            for row in pq.read_table(path, columns=["source", "url", "text"]).to_pylist():
                yield Text(row["source"], row["url"], row["text"])


def of_pages(directory: Path, origin: str) -> Iterator[Text]:
    for path in sorted([*directory.rglob("*.html"), *directory.rglob("*.html.gz")]):
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if text := repair(html_text(raw.decode("utf-8", "replace")).text):
            language = language_of(text)[0]
            yield Text(origin if language == "en" else f"{origin}, {language}", path.name, text)


def drawn(args: argparse.Namespace) -> list[Text]:
    """`args.n` texts: all web pages, a quarter in other languages, the rest from the store."""
    rng = random.Random(args.seed)
    web = list(of_pages(args.data / "extraction" / "html", "web page")) if args.data else []
    foreign = [piece for one in of_pages(args.pages, "manual") for piece in pieces(one)] if args.pages else []
    stored = [piece for one in of_store(args.store) for piece in pieces(one)]
    foreign = rng.sample(foreign, min(len(foreign), args.n // 4))
    rest = max(0, args.n - len(web) - len(foreign))
    texts = [*web, *foreign, *rng.sample(stored, min(len(stored), rest))]
    rng.shuffle(texts)
    return texts[: args.n]


def their_filters() -> dict[str, Any]:
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    return {
        "gopher_quality": GopherQualityFilter(),
        "gopher_repetition": GopherRepetitionFilter(),
        "c4": C4QualityFilter(filter_no_terminal_punct=False),
        "fineweb": FineWebQualityFilter(),
        "c4, terminal punctuation": C4QualityFilter(),
    }


def their_answer(one: Any, document: Any) -> str | None:
    """The reason for which their filter drops a document."""
    try:
        answer = one.filter(document)
    except ZeroDivisionError:  # a text without words, which their runner counts as dropped
        return "no words"
    return None if answer is True else answer[1] if isinstance(answer, tuple) else "dropped"


def their_verdicts(filters: dict[str, Any]) -> Callable[[str], dict[str, str | None]]:
    from datatrove.data import Document

    def verdicts(text: str) -> dict[str, str | None]:
        return {name: their_answer(one, Document(text=text, id="")) for name, one in filters.items()}

    return verdicts


def their_chain(filters: dict[str, Any]) -> Callable[[str], str | None]:
    """The four one after the other, C4 changing the text for the next, until one drops it."""
    from datatrove.data import Document

    def verdict(text: str) -> str | None:
        document = Document(text=text, id="")
        return next((reason for name in TOGETHER if (reason := their_answer(filters[name], document))), None)

    return verdict


def our_reasons(answers: list[Any], sets: tuple[str, ...], cfg: FilterConfig) -> tuple[np.ndarray, np.ndarray]:
    return judge(_columns(answers), cfg, (), sets)


def _columns(answers: list[Any]) -> dict[str, np.ndarray]:
    rows = [quality for quality, _ in answers]
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    columns |= {"language": np.full(len(rows), "en"), "language_confidence": np.ones(len(rows))}
    return columns | {name: np.full(len(rows), np.nan) for name in ("profane_word_fraction", "adult_word_fraction")}


def compare(name: str, texts: list[Text], ours: np.ndarray, values: np.ndarray, theirs: list[str | None]) -> str:
    unequal = [i for i, reason in enumerate(theirs) if (reason is None) != (ours[i] is None)]
    share = 1 - len(unequal) / len(texts)
    for i in unequal:
        print(
            f"  {name}: {texts[i].origin}: {texts[i].name}: datatrove {theirs[i]}, here {ours[i]} ({values[i]:.4g})"
        )
        print(f"    {cause(texts[i].text)}")
    dropped = sum(reason is not None for reason in theirs)
    return f"| {name} | {len(texts):,} | {dropped:,} | {len(unequal)} | {100 * share:.2f} % |"


def cause(text: str) -> str:
    """The chunks that the two sides split into different words, or what else differs."""
    import spacy

    english = spacy.blank("en")
    different = []
    for chunk in dict.fromkeys(text.split()):
        theirs = [word.text for word in english(chunk)]
        if theirs != split_chunk(chunk):
            different.append(f"{chunk[:40]!r} is {len(theirs)} words there, {len(split_chunk(chunk))} here")
    return "; ".join(different[:4]) or "the same words; see the values"


def speed_of_signals(texts: list[Text]) -> None:
    megabytes = sum(len(one.text) for one in texts) / 1e6
    print("\n| signals, one core | documents/s | million characters/s |\n|---|---|---|")
    parts: dict[str, Callable[[str], Any]] = {
        "quality (all four rule sets)": quality_signals,
        "language": language_of,
        "personal data": find_pii,
        "toxicity": lambda text: toxicity_signals(text, "en"),
        "the whole stage": signals_of,
    }
    for name, function in parts.items():
        side = Side()
        side.run(function, texts)
        print(f"| {name} | {len(texts) / side.seconds:,.0f} | {megabytes / side.seconds:.2f} |")


def speed_of_filter(texts: list[Text]) -> None:
    """Rows a second of the stage `filter`, read, judged, masked and written, one core."""
    plain = {f.name: None if f.nullable else 0 if f.type == pa.int32() else "x" for f in DOCUMENT}
    documents = [
        plain | {"id": text_digest(one.text), "page_id": str(i), "source": "mill", "url": one.name, "text": one.text}
        for i, one in enumerate(texts)
    ]
    measured = []
    for i, one in enumerate(texts):
        row = signals_of(one.text)
        row["edits"] = [{"start": start, "end": end, "kind": kind} for start, end, kind in row["edits"]]
        measured.append({"page_id": str(i), "failure": None, **row})
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("documents.parquet", "signals.parquet", "kept.parquet")]
        write_table(paths[0], pa.Table.from_pylist(documents, schema=DOCUMENT))
        write_table(paths[1], pa.Table.from_pylist(measured, schema=SIGNALS))
        print("\n| filter, one core | documents/s | million characters/s |\n|---|---|---|")
        for rules in (("gopher_quality",), RULE_SETS):
            started = time.perf_counter()
            kept, _ = filter_shard(FilterRecipe(config=FilterConfig(rules=rules)), paths[0], paths[1])
            write_table(paths[2], kept)
            seconds = time.perf_counter() - started
            megabytes = sum(len(one.text) for one in texts) / 1e6
            print(f"| {', '.join(rules)} | {len(texts) / seconds:,.0f} | {megabytes / seconds:.1f} |")


def speed_of_rules(texts: list[Text], n_rows: int = 1_000_000) -> None:
    """Rows a second of the comparison alone, which is all that a changed limit costs beside reading and writing."""
    columns = _columns([quality_signals(one.text) for one in texts[:200]])
    index = np.resize(np.arange(min(200, len(texts))), n_rows)
    many = {name: column[index] for name, column in columns.items()}
    started = time.perf_counter()
    judge(many, FilterConfig(rules=RULE_SETS), ("en",), RULE_SETS)
    print(f"\nComparison alone, all rule sets: {n_rows / (time.perf_counter() - started):,.0f} rows/s")


def beside_datatrove(texts: list[Text]) -> None:
    filters = their_filters()
    split_once = their_verdicts({name: filters[name] for name in TOGETHER})
    chain = their_chain(filters)
    ours, each, chained = Side(), Side(), Side()
    for function in (split_once, quality_signals):
        function(texts[0].text)  # loads what is loaded once
    for start in range(0, len(texts), BLOCK):
        block = texts[start : start + BLOCK]
        runs = [(ours, quality_signals), (each, split_once), (chained, chain)]
        for side, function in runs if start // BLOCK % 2 else reversed(runs):
            side.run(function, block)
    terminal = their_verdicts({"c4": filters["c4, terminal punctuation"]})
    print("\nUnequal decisions:\n")
    lines = []
    for name in RULE_SETS:
        reasons, values = our_reasons(ours.answers, (name,), as_datatrove())
        lines.append(compare(name, texts, reasons, values, [answer[name] for answer in each.answers]))
    reasons, values = our_reasons(ours.answers, ("c4",), as_datatrove(terminal_punctuation=True))
    lines.append(
        compare("c4, terminal punctuation", texts, reasons, values, [terminal(one.text)["c4"] for one in texts])
    )
    reasons, values = our_reasons(ours.answers, RULE_SETS, as_datatrove())
    lines.append(compare("the four together, as FineWeb", texts, reasons, values, chained.answers))
    print("\n| filter | documents | dropped by datatrove | unequal | equal |\n|---|---|---|---|---|")
    print("\n".join(lines))
    print("\n| one core | seconds | documents/s | ratio |\n|---|---|---|---|")
    for name, side in (
        ("here, all four", ours),
        ("datatrove, all four", each),
        ("datatrove, until one drops", chained),
    ):
        rate, ratio = len(texts) / side.seconds, side.seconds / ours.seconds
        print(f"| {name} | {side.seconds:.1f} | {rate:,.0f} | {ratio:.1f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pages", type=Path)
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--alone", action="store_true", help="without datatrove")
    args = parser.parse_args()
    texts = drawn(args)
    origins: dict[str, list[int]] = {}
    for one in texts:
        origins.setdefault(one.origin, []).append(len(one.text))
    print("| documents from | number | median characters |\n|---|---|---|")
    for origin, sizes in sorted(origins.items()):
        print(f"| {origin} | {len(sizes)} | {int(np.median(sizes)):,} |")
    if not args.alone:
        beside_datatrove(texts)
    speed_of_signals(texts)
    speed_of_filter(texts)
    speed_of_rules(texts)


if __name__ == "__main__":
    main()
