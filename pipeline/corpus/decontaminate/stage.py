"""Stage `decontaminate`: removes the texts of evaluations from the corpus, with evidence.

In: deduplicated document shards, then the examples of every task, of which the validation and test splits are used.
Out: shards of the same names; dropped/ with the reason contaminated; evidence/ (records.CONTAMINATION); hits/, which
are cached per shard. Steps: index the runs of words of the examples (evaluation_runs.py); find them in every
document; ignore runs that many documents contain; cut what is found out of the text (cuts.py), or drop the document.

Runs of 13 words, runs in more than 10 documents ignored as stock phrases, 200 characters cut on both sides, pieces
below 200 characters removed, documents in more than 10 pieces dropped: arXiv:2005.14165, appendix C. An example is
found by the share or the number of its runs, so that a quotation from it has no effect, and an embedded one is found.
"""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa

from pipeline.corpus.decontaminate.cuts import CutLimits, pieces_without
from pipeline.corpus.decontaminate.evaluation_runs import (
    Item,
    RunIndex,
    Scanner,
    blocks,
    evaluation_items,
    run_index,
    spans_of_words,
)
from pipeline.corpus.text_repair import normalised
from pipeline.corpus.words import SIGN, words_of
from pipeline.store.engine import Done, Failed, value_of
from pipeline.store.parts import map_shards
from pipeline.store.records import CONTAMINATION, CORPUS, DROPPED, PREVIEW_CHARACTERS, Counts, Shards, dropped_row
from pipeline.store.settings import Count, Natural, Share, check_values
from pipeline.store.shards import (
    DROPPED_FOLDER,
    EVIDENCE_FOLDER,
    link_or_copy,
    read_table,
    shard_paths,
    text_digest,
    write_rows,
    write_table,
)
from pipeline.store.store import UNICODE, Outcome, Stage, Work

HITS_FOLDER = "hits"
HITS_VERSION = 1  # raise it with any change to evaluation_runs.py that changes the runs found in a document
SCRATCH = ".scratch"  # the index, deleted when the stage ends
ITEMS = "items.parquet"
COUNTING = "counting.npy"
ROUNDING = 1e-9  # 0.7 * 10 is not 7 in floating point
REASON = "contaminated"
LOOKING = "examples were looked for"  # part of the error message if a worker fails
HITS = pa.schema([pa.field("row", pa.int64(), nullable=False), pa.field("run", pa.int64(), nullable=False)])


@dataclass(frozen=True, kw_only=True, slots=True)
class DecontaminateConfig:
    n_words: Annotated[
        Count,
        "Length in words of the n-grams of evaluation examples that are searched for (GPT-3 uses 13); a shorter"
        " example must occur as a whole.",
    ] = 13
    min_words: Annotated[
        Count,
        "An n-gram is searched for only if it has at least this many different words that contain a letter;"
        " examples with fewer such words are ignored.",
    ] = 6  # of random runs of 6 words 1 in 1,000 occurs in 20 MB of other text, of 5 words 1 in 170
    min_share: Annotated[
        Share, "An example counts as found if a document has at least this share of its n-grams, or min_hits of them."
    ] = 0.5
    min_hits: Annotated[
        Count, "An example also counts as found if a document has at least this many of its n-grams (Marin uses 8)."
    ] = 8
    max_documents: Annotated[
        Count, "N-grams that occur in more documents than this are stock phrases and are ignored (GPT-3 uses 10)."
    ] = 10
    margin: Annotated[
        Natural, "Number of characters to cut before and after each n-gram that was found (GPT-3 uses 200)."
    ] = 200
    min_piece: Annotated[Count, "Drop pieces between cuts that have fewer characters than this (GPT-3 uses 200)."] = (
        200
    )
    max_pieces: Annotated[
        Count, "Drop a document as contaminated if more pieces than this remain (GPT-3 uses 10)."
    ] = 10

    def __post_init__(self) -> None:
        check_values(self)
        if self.min_words > self.n_words:
            raise ValueError(
                f"min_words={self.min_words} is above n_words={self.n_words}, so no run can have that many"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DecontaminateRecipe:
    """Everything that determines the output of `decontaminate`; `tasks` names the examples that follow the corpus."""

    config: DecontaminateConfig = field(default_factory=DecontaminateConfig)
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ScanItem:
    """A shard whose words are looked up in the index below `index`."""

    path: Path
    index: Path
    config: DecontaminateConfig


@dataclass(frozen=True, slots=True)
class RewriteItem:
    """A shard that contains runs, the table of its runs, and the output folder."""

    path: Path
    hits: Path
    index: Path
    directory: Path
    config: DecontaminateConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class FoundExamples:
    """Examples found in one text: rows of the evidence without the columns of the document, and their spans."""

    evidence: list[dict[str, Any]]
    spans: list[tuple[int, int]]  # in characters, sorted
    score: float  # the largest share of an example that was found


@dataclass(kw_only=True, slots=True)
class CutTally:
    """Counts for the documents of a shard."""

    counts: Counts
    n_cut: int = 0  # documents
    n_characters: int = 0  # removed from kept documents
    n_common: int = 0  # documents that contain only stock phrases
    items: set[int] = field(default_factory=set)


def decontaminate(recipe: DecontaminateRecipe, inputs: tuple[Shards, ...], work: Work) -> Outcome:
    corpus, *examples = inputs
    if len(recipe.tasks) != len(examples):
        raise ValueError(f"decontaminate has the examples of {len(examples)} tasks but the names {recipe.tasks}")
    scratch = work.directory / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)  # left by a build that was killed
    cfg, items = recipe.config, evaluation_items(examples, recipe.tasks)
    index = write_index(cfg, items, scratch)
    if len(index.ngrams):
        find_hits(cfg, index, corpus, work)
    counting, n_common = _counting(cfg, index, work)
    np.save(scratch / COUNTING, counting)
    tally = _write_shards(cfg, shard_paths(corpus.directory), work)
    shutil.rmtree(scratch)
    measures = {
        "evaluation_examples": len(items),
        "examples_too_short": int(np.count_nonzero(index.sizes == 0)),
        "evaluation_runs": len(index.ngrams),
        "common_runs": n_common,
        "contaminating_examples": len(tally.items),
        "cut_documents": tally.n_cut,
        "removed_characters": tally.n_characters,
        "documents_passed_as_common": tally.n_common,
    }
    kept = tuple(path.name for path in shard_paths(work.directory))
    return Outcome(rows=tally.counts.kept, counts=tally.counts, measures=measures, content=kept)


DECONTAMINATE = Stage(name="decontaminate", version=2, function=decontaminate, handle=Shards, libraries=(UNICODE,))


def write_index(cfg: DecontaminateConfig, items: Sequence[Item], folder: Path) -> RunIndex:
    index = run_index((item.text for item in items), cfg.n_words, cfg.min_words)
    folder.mkdir(parents=True, exist_ok=True)
    index.save(folder)
    names = {"task": "task", "example_id": "example_id", "example_split": "split"}
    columns = {
        column: pa.array([getattr(item, name) for item in items], pa.string()) for column, name in names.items()
    }
    write_table(folder / ITEMS, pa.table(columns))
    return index


def find_hits(cfg: DecontaminateConfig, index: RunIndex, corpus: Shards, work: Work) -> None:
    """Writes hits/ below the output: for every shard the runs of the index that its documents contain."""
    recipe = json.dumps([HITS_FOLDER, HITS_VERSION, dict(work.libraries), cfg.n_words, cfg.min_words, index.digest()])
    folder = work.directory / SCRATCH
    map_shards(
        dataclasses.replace(work, directory=work.directory / HITS_FOLDER, recipe=recipe),
        [corpus],
        read=lambda path: [ScanItem(path, folder, cfg)],
        function=hits_of_shard,
        write=_write_hits,
        unit="documents",
    )


def hits_of_shard(item: ScanItem) -> tuple[int, pa.Table]:
    """Number of documents and a table of HITS, with each run once per document. Runs in a worker process."""
    scanner = Scanner(RunIndex.load(item.index), item.config.n_words, item.config.min_words)
    texts = read_table(item.path, columns=["text"])["text"]
    rows, runs = scanner.runs_of_all(text.as_py() for text in texts)
    return len(texts), pa.table([rows, runs], schema=HITS)


def _write_hits(part: Path, items: list[ScanItem], answers: list[Done | Failed]) -> Counts:
    n_rows, hits = value_of(answers[0], items[0].path, LOOKING)
    write_table(part / "kept.parquet", hits)
    return Counts(rows_in=n_rows, kept=n_rows)


def _counting(cfg: DecontaminateConfig, index: RunIndex, work: Work) -> tuple[np.ndarray, int]:
    """Mask of the runs that are used, because few documents contain them, and the number of the others."""
    n_documents = np.zeros(len(index.ngrams), np.int64)
    for path in shard_paths(work.directory, HITS_FOLDER):
        runs = read_table(path, HITS)["run"].to_numpy()
        n_documents += np.bincount(runs, minlength=len(n_documents))
    counting = n_documents <= cfg.max_documents
    return counting, int(np.count_nonzero(~counting))


def contaminating(
    cfg: DecontaminateConfig, index: RunIndex, runs: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Examples of which a document with `runs` (distinct) has too much, the shared runs and the share of each."""
    items, shared = np.unique(index.owners_of(runs)[1], return_counts=True)
    share = shared / index.sizes[items]
    found = (shared >= cfg.min_hits) | (share >= cfg.min_share - ROUNDING)
    return items[found], shared[found], share[found]


def _write_shards(cfg: DecontaminateConfig, paths: Sequence[Path], work: Work) -> CutTally:
    """Writes all shards; those in which nothing was found are links to the input."""
    total, items = CutTally(counts=Counts()), []
    for path in paths:
        hits = work.directory / HITS_FOLDER / path.name
        if hits.exists() and read_table(hits, HITS).num_rows:
            items.append(RewriteItem(path, hits, work.directory / SCRATCH, work.directory, cfg))
        else:
            n_rows = read_table(path, columns=["page_id"]).num_rows
            link_or_copy(path, work.directory / path.name)
            total.counts.add(Counts(rows_in=n_rows, kept=n_rows))
    answers = work.engine.map(rewrite_shard, items) if items else ()
    for done, (item, answer) in enumerate(zip(items, answers, strict=True), 1):
        tally: CutTally = value_of(answer, item.path, LOOKING)
        total.counts.add(tally.counts)
        total.n_cut += tally.n_cut
        total.n_characters += tally.n_characters
        total.n_common += tally.n_common
        total.items |= tally.items
        work.progress(done, len(items), "shards")
    return total


def rewrite_shard(item: RewriteItem) -> CutTally:
    """Writes a shard without the texts that were found in its documents. Runs in a worker process."""
    table = read_table(item.path, CORPUS).select(CORPUS.names)
    hits = read_table(item.hits, HITS)
    rows, runs = hits["row"].to_numpy(), hits["run"].to_numpy()
    judge = CutJudge(item.config, item.index)
    tally = CutTally(counts=Counts(rows_in=table.num_rows))
    kept, dropped, evidence = {}, [], []
    found_in, starts = np.unique(rows, return_index=True)
    for row, own in zip(found_in.tolist(), np.split(runs, starts[1:]), strict=True):
        if not len(contaminating(item.config, judge.index, own[judge.counting[own]])[0]):
            tally.n_common += len(contaminating(item.config, judge.index, own)[0]) > 0
            continue
        document = table.slice(row, 1).to_pylist()[0]
        new, of_document = judge.without(document, tally)
        evidence += of_document
        if new is None:
            score = max(one["example_share"] for one in of_document)
            dropped.append((row, dropped_row(document, DECONTAMINATE.name, REASON, score)))
        else:
            kept[row] = new
    for _, one in dropped:
        tally.counts.drop(one["reason"])
    tally.counts.kept = table.num_rows - len(dropped)
    if not evidence:
        link_or_copy(item.path, item.directory / item.path.name)
        return tally
    write_table(item.directory / item.path.name, _with_rows(table, kept, {row for row, _ in dropped}))
    write_rows(item.directory / EVIDENCE_FOLDER / item.path.name, evidence, CONTAMINATION)
    if dropped:
        write_rows(item.directory / DROPPED_FOLDER / item.path.name, [one for _, one in dropped], DROPPED)
    return tally


class CutJudge:
    """Finds the examples in a document, and cuts them out of it."""

    def __init__(self, cfg: DecontaminateConfig, folder: Path) -> None:
        self.cfg, self.index, self.counting = cfg, RunIndex.load(folder), np.load(folder / COUNTING, mmap_mode="r")
        self.items = read_table(folder / ITEMS)
        self.scanner = Scanner(self.index, cfg.n_words, cfg.min_words)

    def without(
        self, document: dict[str, Any], tally: CutTally
    ) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """`document` without what was found, or None if too little would remain, and the evidence."""
        text = document["text"]
        found, items = self.found(text)
        assert found is not None  # because it has hits
        tally.items |= items
        limits = CutLimits(self.cfg.margin, self.cfg.min_piece, self.cfg.max_pieces)
        pieces = pieces_without(text, found.spans, limits)
        shorter = "\n\n".join(text[start:end] for start, end in pieces)
        new = None
        # words on both sides of a cut could form an example, although nobody would write such a text
        if pieces and self.found(shorter)[0] is None:
            new = document | {"id": _id(shorter), "text": shorter, "n_words": _n_words(shorter)}
            tally.n_cut += 1
            tally.n_characters += len(text) - len(shorter)
        names = {name: document[name] for name in ("id", "page_id")}
        new_id = new["id"] if new else None
        left = [{"start": start, "end": end} for start, end in pieces] if new else []
        return new, [{**names, "new_id": new_id, **one, "left": left} for one in found.evidence]

    def found(self, text: str) -> tuple[FoundExamples | None, set[int]]:
        """What is found in `text`, None if nothing is, and the items."""
        places, runs, n_words = self.scanner.runs(text)
        counts = self.counting[runs]
        places, runs = places[counts], runs[counts]
        items, shared, share = contaminating(self.cfg, self.index, np.unique(runs))
        if not len(items):
            return None, set()
        hits, owners = self.index.owners_of(runs)
        own = np.isin(owners, items)
        hits, owners = hits[own], owners[own]
        order = np.lexsort((places[hits], owners))
        first, last = places[hits][order], places[hits][order] + self.index.lengths[runs[hits]][order] - 1
        bounds = np.searchsorted(owners[order], items)
        spans = spans_of_words(text, first, last)
        # runs of an item have equal length, so a run either ends before the next one begins or overlaps it
        fresh = np.append(True, (first[1:] > last[:-1]) | (np.diff(owners[order]) > 0))
        covered = last - first + 1
        covered[~fresh] = (last[1:] - last[:-1])[~fresh[1:]]
        columns = self.items.take(pa.array(items)).to_pylist()
        evidence = [
            {
                **columns[k],
                "n_shared": int(shared[k]),
                "example_share": float(share[k]),
                "document_share": float(covered[bound:end].sum() / n_words),
                "start": spans[bound][0],
                "end": spans[bound][1],
                "preview": text[slice(*spans[bound])][:PREVIEW_CHARACTERS],
            }
            for k, (bound, end) in enumerate(zip(bounds, [*bounds[1:], len(first)], strict=True))
        ]
        return FoundExamples(evidence=evidence, spans=sorted(set(spans)), score=float(share.max())), set(
            items.tolist()
        )


def _id(text: str) -> str:
    """The id as for all documents, block by block: a list of the words of a long text takes ten times its size."""
    parts = (normalised(text[start:end]) for start, end in blocks(text))
    return text_digest(" ".join(part for part in parts if part))


def _n_words(text: str) -> int:
    of_blocks = (words_of(text[start:end].split()).kinds & SIGN for start, end in blocks(text))
    return sum(int(np.count_nonzero(kinds == 0)) for kinds in of_blocks)


def _with_rows(table: pa.Table, new: dict[int, dict[str, Any]], without: set[int]) -> pa.Table:
    """`table` with its rows replaced by those in `new`, and without the rows in `without`."""
    stays = [row for row in range(table.num_rows) if row not in without]
    places = {row: table.num_rows + i for i, row in enumerate(new)}
    rows = pa.concat_tables([table, pa.Table.from_pylist(list(new.values()), schema=CORPUS)])
    return rows.take(pa.array([places.get(row, row) for row in stays], pa.int64()))
