"""Dedup: what it finds and what it takes wrongly, beside brute force and beside datatrove 0.10.1 and text-dedup.

In: nothing, or --data DIR (several): folders of Parquet shards with the columns url and text, as `clean` and `filter`
leave them, or of .txt files. Out: tables in Markdown.
- planted: bench/planted_duplicates.py on texts of --data (or made-up ones), --seeds of them: recall by true Jaccard
  index and by kind, precision, wrong removals by kind of template; the same for every peer that is installed.
- brute force: --brute documents of --data, every pair's Jaccard index and containment by sets of tuples.
- editions: every pair of one work, by name or by overlap, of the sources whose name holds --editions (shakespeare).
- speed: signatures in MB/s of one core, and the whole stage on --documents texts, beside the peers, which run in
  this process (datatrove, from the extra `bench`) or as --text-dedup PYTHON, an interpreter that has text-dedup 0.4.
A peer that is not there is skipped with a line. Texts that --data has too few of are made up.

    python -m bench.dedup --data data/store/filter/FINGERPRINT --documents 100000
"""

import argparse
import random
import re
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bench.dedup_peers import Peer, datatrove_signatures, peers
from bench.planted_duplicates import (
    Grams,
    Score,
    ZipfWriter,
    bin_of,
    containment,
    grams_of,
    jaccard,
    planted_set,
    score,
)
from pipeline.corpus.dedup.signatures import SignatureItem, signatures_of_shard
from pipeline.corpus.dedup.stage import DEDUP, DedupConfig
from pipeline.corpus.signals.quality import quality_signals
from pipeline.store.engine import LocalProcesses
from pipeline.store.records import EVIDENCE, FILTERED, Shards
from pipeline.store.shards import EVIDENCE_FOLDER, read_table, shard_paths, text_digest, write_rows
from pipeline.store.store import Outcome, Stage, Store, Work

SHARD_ROWS = 5000
BLOCK = 250  # documents between two changes of side
SPACELESS = re.compile("([\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff])")
NEAR = 0.5  # pairs below are not looked at by brute force, unless one holds the other
MB = 1e6


@dataclass(frozen=True, slots=True)
class Named:
    """One text of --data."""

    url: str
    source: str
    text: str


@dataclass(frozen=True, slots=True)
class Removal:
    kept: str
    similarity: float
    containment: float


def read_data(folders: Sequence[Path]) -> Iterator[Named]:
    for folder in folders:
        for path in sorted(folder.glob("*.parquet")):
            has = pq.read_schema(path).names
            columns = [name for name in ("url", "source", "text") if name in has]
            for i, row in enumerate(pq.read_table(path, columns=columns).to_pylist()):
                yield Named(row.get("url", f"{path}#{i}"), row.get("source", path.stem), row["text"])
        for path in sorted(folder.rglob("*.txt")):
            yield Named(str(path), folder.name, path.read_text("utf-8", errors="replace"))


def filtered_rows(texts: Mapping[str, str], *, measured: bool) -> Iterator[dict[str, Any]]:
    """Rows of FILTERED; with `measured` the signals that the choice among copies reads."""
    neutral = {field.name: None if field.nullable else _neutral(field.type) for field in FILTERED}
    for name, text in texts.items():
        signals = quality_signals(text)[0] if measured else {"n_words": len(text.split())}
        words = " ".join(text.casefold().split())
        yield (
            neutral
            | signals
            | {
                "id": text_digest(words),
                "page_id": name,
                "source": "bench",
                "url": name,
                "text": text,
            }
        )


def _neutral(kind: pa.DataType) -> Any:
    if pa.types.is_nested(kind):
        return []
    return "" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else pa.scalar(0).cast(kind).as_py()


def written(store: Store, texts: Mapping[str, str], *, measured: bool) -> Shards:
    """The texts as `filter` leaves documents."""

    def write(cfg: object, inputs: tuple[()], work: Work) -> Outcome:
        rows: list[dict[str, Any]] = []
        n_shards = 0
        for row in filtered_rows(texts, measured=measured):
            rows.append(row)
            if len(rows) == SHARD_ROWS:
                write_rows(work.directory / f"{n_shards:05d}.parquet", rows, FILTERED)
                rows, n_shards = [], n_shards + 1
        write_rows(work.directory / f"{n_shards:05d}.parquet", rows, FILTERED)
        return Outcome(rows=len(texts))

    stage = Stage(name="filter", version=1, function=write, handle=Shards)
    return store.build(stage, {"key": text_digest(*texts, *texts.values())}).handle


def ours(texts: Mapping[str, str], cfg: DedupConfig) -> dict[str, Removal]:
    """What the stage removes."""
    with tempfile.TemporaryDirectory(prefix="gristmill-bench-") as folder:
        store = Store(root=Path(folder), engine=LocalProcesses())
        built = store.build(DEDUP, cfg, written(store, texts, measured=True))
        return {
            row["dropped_page_id"]: Removal(row["kept_page_id"], row["similarity"], row["containment"])
            for path in shard_paths(built.handle.directory, EVIDENCE_FOLDER)
            for row in read_table(path, EVIDENCE).to_pylist()
        }


def planted_tables(args: argparse.Namespace, data: Sequence[Named], others: Sequence[Peer]) -> None:
    tools: dict[str, Callable[[Mapping[str, str]], Mapping[str, str | None]]] = {
        "here": lambda texts: {name: one.kept for name, one in ours(texts, DedupConfig()).items()},
        **{peer.name: peer.removed for peer in others},
    }
    scores = {name: Score() for name in tools}
    n_texts = 0
    for seed in range(1, args.seeds + 1):
        rng = random.Random(seed)
        stock = [one.text for one in rng.sample(data, len(data))]
        planted = planted_set(seed, args.copies, stock)
        n_texts += len(planted.texts)
        for name, tool in tools.items():
            score(planted, tool(planted.texts), scores[name])
    kind = "texts of --data" if data else "made-up texts"
    print(f"\n#### planted: {args.seeds} seeds, {n_texts:,} documents, {kind}\n")
    rows = [
        ["precision", *(f"{one.precision:.4f} of {one.n_removed:,}" for one in scores.values())],
        ["recall, Jaccard 0.8 and above", *(f"{one.recall(0.8):.3f}" for one in scores.values())],
        ["recall, Jaccard 0.7 to 0.8", *(f"{one.recall(0.7, 0.8):.3f}" for one in scores.values())],
    ]
    first = scores["here"]
    rows += [
        [f"found, {name}", *(_share(one.by_bin[name]) for one in scores.values())] for name in sorted(first.by_bin)
    ]
    rows += [
        [f"found, {name}", *(_share(one.by_kind[name]) for one in scores.values())] for name in sorted(first.by_kind)
    ]
    rows += [
        [f"wrongly removed, {name}", *(_share(one.wrong_by_kind[name]) for one in scores.values())]
        for name in sorted(first.wrong_by_kind)
        if any(one.wrong_by_kind[name][0] for one in scores.values())
    ]
    print_table(["", *scores], rows)
    for name, one in scores.items():
        if args.verbose:
            print(f"\n{name}: {one.wrong[:20]}\n{[text for text in one.missed if text >= '0.7'][:20]}")


def _share(counts: Sequence[int]) -> str:
    return f"{counts[0]} of {counts[1]}"


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")


def brute_force(args: argparse.Namespace, data: Sequence[Named]) -> None:
    """All pairs of --brute documents, whose words in spaceless scripts are characters, as `dedup` counts them."""
    texts: dict[str, str] = {}
    seen: set[str] = set()
    for one in random.Random(1).sample(data, len(data)):
        key = " ".join(one.text.casefold().split())
        if key not in seen and len(texts) < args.brute:
            texts[f"{len(texts)} {one.url}"] = one.text
            seen.add(key)
    started = time.perf_counter()
    grams = {name: grams_of(SPACELESS.sub(r" \1 ", text)) for name, text in texts.items()}
    pairs = list(_alike(grams))
    seconds = time.perf_counter() - started
    removed = ours(texts, DedupConfig())
    by_bin: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for one, other in pairs:
        value = jaccard(grams[one], grams[other])
        small, large = sorted((one, other), key=lambda name: len(grams[name]))
        names = [bin_of(value)]
        if value < 0.7 and containment(grams[small], grams[large]) >= 0.9:
            names.append("contained, 0.9 and above")
        for name in names:
            by_bin[name][0] += one in removed or other in removed
            by_bin[name][1] += 1
    limits = DedupConfig()
    unlike = [name for name, one in removed.items() if not _is_alike(grams[name], grams[one.kept], limits)]
    print(f"\n#### brute force: {len(texts):,} documents, {len(pairs):,} pairs alike, {seconds:.0f} s\n")
    print_table(["Jaccard", "one of the two was removed"], [[name, _share(by_bin[name])] for name in sorted(by_bin)])
    print(f"\n{len(removed)} removed; similarity or containment not as claimed: {len(unlike)}")
    if args.verbose:
        print(*unlike[:20], sep="\n")
        missed = [pair for pair in pairs if not set(pair) & removed.keys()]
        print(*(pair for pair in missed if jaccard(grams[pair[0]], grams[pair[1]]) >= 0.7), sep="\n")


def _is_alike(one: Grams, kept: Grams, limits: DedupConfig) -> bool:
    margin = 0.02  # words at the borders of signs are counted a little differently
    return (
        jaccard(one, kept) >= limits.min_similarity - margin
        or containment(one, kept) >= limits.min_containment - margin
    )


def _alike(grams: Mapping[str, Grams]) -> Iterator[tuple[str, str]]:
    """Every pair with a Jaccard index of NEAR or one of which holds 0.8 of the other: no hashes."""
    names = list(grams)
    holders: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, name in enumerate(names):
        shared = Counter(j for gram in grams[name] for j in holders.get(gram, ()))
        for j, n in shared.items():
            small = min(len(grams[name]), len(grams[names[j]]))
            if n >= 0.8 * small or n / (len(grams[name]) + len(grams[names[j]]) - n) >= NEAR:
                yield names[j], name
        for gram in grams[name]:
            holders[gram].append(i)


def editions(args: argparse.Namespace, data: Sequence[Named]) -> None:
    """Every pair of one name or with a family's overlap: Jaccard, containment, and what became of it."""
    texts = {one.url: one.text for one in data if args.editions in one.source or args.editions in one.url}
    if not texts:
        print(f"\nno text of a source with `{args.editions}` in --data: no table of editions")
        return
    removed = ours(texts, DedupConfig())
    grams = {name: grams_of(text) for name, text in texts.items()}
    rows = []
    names = sorted(texts)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            small, large = sorted((one, other), key=lambda name: len(grams[name]))
            held = containment(grams[small], grams[large])
            if _work(one) == _work(other) or held >= DedupConfig().family_overlap:
                found = [f"{_file(name)} removed" for name in (one, other) if name in removed]
                what = ", ".join(found) or ("one family" if held >= DedupConfig().family_overlap else "unrelated")
                value = jaccard(grams[one], grams[other])
                rows.append([_file(one), _file(other), f"{value:.3f}", f"{held:.3f}", what])
    print(f"\n#### editions: {len(texts)} texts, {len(removed)} removed\n")
    print_table(["one", "other", "Jaccard", "containment", "result"], rows)


def _file(url: str) -> str:
    return url.rsplit("/", 1)[-1]


def _work(url: str) -> str:
    """`othello_gut.txt`, `othello_gut_f.txt` -> othello: the name without the mark of the edition."""
    return re.sub(r"(_gut)?(_f)?\.\w+$", "", _file(url))


def stage_speed(texts: Mapping[str, str], others: Sequence[Peer]) -> None:
    """The whole stage on the same texts, each in a process group of its own turn."""
    megabytes = sum(len(text.encode()) for text in texts.values()) / MB
    print(f"\n#### whole stage: {len(texts):,} documents, {megabytes:.0f} MB\n")
    rows = []
    with tempfile.TemporaryDirectory(prefix="gristmill-bench-") as folder:
        store = Store(root=Path(folder), engine=LocalProcesses())
        handle = written(store, texts, measured=False)
        started = time.perf_counter()
        built = store.build(DEDUP, DedupConfig(), handle)
        seconds = time.perf_counter() - started
        rows.append(["here", f"{seconds:.1f}", f"{megabytes / seconds:.2f}", 1, len(texts) - built.handle.rows])
    for peer in others:
        started = time.perf_counter()
        removed = peer.removed(texts)
        own = peer.seconds or time.perf_counter() - started
        rows.append([peer.name, f"{own:.1f}", f"{megabytes / own:.2f}", f"{own / seconds:.1f}", len(removed)])
    print_table(["", "seconds", "MB/s", "times ours", "removed"], rows)


def signature_speed(args: argparse.Namespace, data: Sequence[Named], others: Sequence[Peer]) -> None:
    """Processor time of all threads for the same texts, both sides in turn; ours reads and writes Parquet as well."""
    texts = corpus(args.signatures, data)
    blocks = [dict(list(texts.items())[i : i + BLOCK]) for i in range(0, len(texts), BLOCK)]
    theirs = datatrove_signatures() if any(peer.name == "datatrove" for peer in others) else None
    spent = {"here": 0.0, "datatrove": 0.0}
    with tempfile.TemporaryDirectory(prefix="gristmill-bench-") as folder:
        store = Store(root=Path(folder), engine=LocalProcesses())
        paths = [shard_paths(written(store, block, measured=False).directory)[0] for block in blocks]
        item = {"n_words": 5, "n_bands": 14, "n_rows": 8, "one_in": 4, "seed": 1}
        signatures_of_shard(SignatureItem(paths[0], item))  # loads what is loaded once
        for block, path in zip(blocks, paths, strict=True):
            started = time.process_time()
            signatures_of_shard(SignatureItem(path, item))
            spent["here"] += time.process_time() - started
            started = time.process_time()
            for text in block.values() if theirs else ():
                theirs(text)  # pyright: ignore[reportOptionalCall]
            spent["datatrove"] += time.process_time() - started
    megabytes = sum(len(text.encode()) for text in texts.values()) / MB
    print(f"\n#### signatures, 14 x 8 of word 5-grams: {len(texts):,} documents, {megabytes:.1f} MB\n")
    rows = [
        [name, f"{seconds:.2f}", f"{megabytes / seconds:.2f}", f"{seconds / spent['here']:.1f}"]
        for name, seconds in spent.items()
        if seconds > 0.001
    ]
    print_table(["", "seconds of one core", "MB/s per core", "times ours"], rows)


def corpus(n: int, data: Sequence[Named]) -> dict[str, str]:
    """`n` texts: those of --data that are no books, then made-up ones; one in ten is a copy with edits."""
    rng = random.Random(1)
    writer = ZipfWriter(rng)
    texts: dict[str, str] = {}
    stock = [one.text for one in data if len(one.text) < 100_000]
    while len(texts) < n:
        text = stock.pop() if stock else writer.paragraphs(rng.randrange(60, 240))
        texts[f"t{len(texts)}"] = text
        if len(texts) % 10 == 9:
            own = text.split(" ")
            for place in rng.sample(range(len(own)), len(own) // 50):
                own[place] = rng.choice(writer.words)
            texts[f"t{len(texts)}"] = " ".join(own)
    return dict(list(texts.items())[:n])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--copies", type=int, default=600, help="planted a seed; 0 = no planted set")
    parser.add_argument("--brute", type=int, default=5000, help="documents; 0 = no brute force")
    parser.add_argument("--editions", default="shakespeare")
    parser.add_argument("--documents", type=int, default=0, help="of the comparison of speed; 0 = none")
    parser.add_argument("--signatures", type=int, default=500, help="documents whose signatures are timed")
    parser.add_argument("--text-dedup", type=Path, help="a Python that has text-dedup")
    parser.add_argument("--alone", action="store_true", help="without the peers")
    parser.add_argument("--verbose", action="store_true", help="show what was missed and wrong")
    args = parser.parse_args()
    data = list(read_data(args.data))
    others = [] if args.alone else peers(args.text_dedup)
    if args.copies:
        planted_tables(args, data, others)
    if args.brute and data:
        brute_force(args, data)
    if data:
        editions(args, data)
    if args.signatures:
        signature_speed(args, data, others)
    if args.documents:
        texts = corpus(args.documents, data)
        stage_speed(texts, others)


if __name__ == "__main__":
    sys.exit(main())
