"""Metadata of a materialisation in the Dagster UI: results first, then counts and samples, cost, and location.

In: the builds of an asset, the last of which is its output. Out: a MaterializeResult with the handle as value and its
digest as data version, so that the UI marks assets that were built from other content as stale. Dagster plots every
number over time, so only values that may change between runs are numbers; constants are text. Metadata is kept for
ever, even after `gristmill forget --purge`, so a sample of rows contains no text of a page.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.laws import REMOVED
from pipeline.corpus.report.card_markdown import LONGEST_CELL, plain
from pipeline.corpus.source_loss import removed_fractions
from pipeline.corpus.split.stage import SPLIT
from pipeline.corpus.tokens.tokenize import TOKENIZE
from pipeline.store.disk import size_text
from pipeline.store.layout import Layout
from pipeline.store.outputs import read_curve, read_results
from pipeline.store.records import Checkpoint, Handle, Report, Shards, TokenizerFile
from pipeline.store.shards import read_table, shard_paths
from pipeline.store.store import Built
from pipeline.tracking.pictures import as_markdown, curve_png, data_url, histogram_png
from pipeline.tracking.server import run_link
from pipeline.training.bases import BASE

LENGTHS = "n_words"  # column of document shards for the histogram
CONSTANTS = {"epochs", "flops", "parameters", "sample_bytes", "tokens", "train_examples", "vocab_size"}
TEXTS_OF_DATA = ("samples", "mistakes")  # Markdown files that quote documents or examples: only their paths are kept
SAMPLE_ROWS = 5
SAMPLED = ("split", "source", "label", "url", "media_type", "language", "n_words", "cluster_size", "licence")
SIGNIFICANT_DIGITS = 4
LINE_CHARACTERS = 60  # width of a Markdown text that fits into the column of values
DIALOG_CHARACTERS = 1000  # length from which the UI shows a Markdown text in a scrolling dialog instead of the column


def materialised(layout: Layout, *builds: Built) -> dg.MaterializeResult[Any]:
    """The result of an asset after `builds`, in this order."""
    handle = builds[-1].handle
    metadata = {**_results(builds[-1]), **_counts(builds), **_measures(builds), **_table(handle), **_texts(builds)}
    return dg.MaterializeResult(
        value=handle,
        data_version=dg.DataVersion(handle.digest),
        metadata={
            name: _value(name, value)
            for name, value in {**metadata, **_cost(builds), **_place(layout, builds[-1])}.items()
        },
    )


def _results(built: Built) -> dict[str, Any]:
    """Results of an evaluation, a report or a training; intervals and baselines are in the text of a report."""
    handle = built.handle
    if not isinstance(handle, Report):
        measures = built.record["measures"] if isinstance(handle, Checkpoint) else {}
        return {name: value for name, value in measures.items() if name.startswith(("validation_", "training_"))}
    return {result["metric"]: result["value"] for result in read_results(handle.directory)}


def _counts(builds: Sequence[Built]) -> dict[str, Any]:
    """Number of rows, under the name of what they are, and dropped rows by reason."""
    handle = builds[-1].handle
    name = {TokenizerFile: "vocabulary_size", Checkpoint: "steps", Report: "evaluated_items"}.get(type(handle))
    counted = [counts for built in builds if (counts := built.counts) is not None]
    metadata: dict[str, Any] = {name: f"{handle.rows:,}"} if name else {"dagster/row_count": handle.rows}
    if handle.stage == BASE.name:  # which has no steps; its parameters are among the measures
        metadata = {}
    if counted:
        metadata |= {
            "rows_in": counted[0].rows_in,
            "rows_out": counted[-1].kept,
            "rows_dropped": sum(sum(counts.dropped.values()) for counts in counted),
            "rows": _markdown(counts_table(builds)),
        }
    return metadata


def _measures(builds: Sequence[Built]) -> dict[str, Any]:
    """Numbers that the stages measured. What a corpus removed from a source is summed over its stages."""
    measures = {name: value for built in builds for name, value in built.record["measures"].items()}
    if builds[-1].handle.stage == SPLIT.name:
        measures |= {f"{REMOVED}_{name}": lost for name, lost in removed_fractions(builds[-1].handle).items()}
    if builds[-1].handle.stage == TOKENIZE.name:  # the table of the mixture has the same numbers for every source
        of_source = tuple(name.removeprefix("share") for name in measures if name.startswith("share_"))
        measures = {name: value for name, value in measures.items() if not name.endswith(of_source)}
    return measures


def _table(handle: Handle) -> dict[str, Any]:
    """Schema, address and sample of the shards of a table."""
    if not isinstance(handle, Shards):
        return {}
    metadata: dict[str, Any] = {"dagster/uri": handle.directory.as_uri()}
    if paths := shard_paths(handle.directory):
        schema = pq.read_schema(paths[0])
        metadata["sample"] = _markdown(sample_table(paths))
    else:
        with pa.memory_map(str(min(handle.directory.rglob("*.arrow")))) as file:
            schema = pa.ipc.open_file(file).schema
    columns = [
        dg.TableColumn(field.name, str(field.type), constraints=dg.TableColumnConstraints(nullable=field.nullable))
        for field in schema
    ]
    return metadata | {"dagster/column_schema": dg.TableSchema(columns)}


def _texts(builds: Sequence[Built]) -> dict[str, Any]:
    """Reports, and pictures of what this materialisation built; those of unchanged outputs were shown before."""
    handle, new = builds[-1].handle, not builds[-1].unchanged
    metadata: dict[str, Any] = {}
    if new and isinstance(handle, Shards) and (lengths := document_lengths(handle)) is not None:
        png = histogram_png(lengths, "words per document")
        metadata["length_histogram"] = dg.MetadataValue.md(as_markdown(png, "words per document"))
    if new and isinstance(handle, Checkpoint) and (curve := read_curve(handle.directory)):
        metadata["loss_curve"] = dg.MetadataValue.md(as_markdown(curve_png(curve), "loss by step"))
    if isinstance(handle, Report | TokenizerFile | Shards):
        metadata |= dict(_texts_and_figures(handle, new))
    return metadata


def _cost(builds: Sequence[Built]) -> dict[str, Any]:
    made = [built for built in builds if not built.unchanged]
    seconds = sum(built.record["seconds"] for built in builds)
    n_bytes = sum(built.record["bytes"] for built in builds)
    counts = builds[0].counts
    return {
        "unchanged": not made,
        "seconds": sum(built.record["seconds"] for built in made),  # of this materialisation
        **({"rows_per_second": counts.rows_in / max(seconds, 1e-3)} if counts and made else {}),
        "built": f"{builds[-1].record['finished_at']}, in {seconds:,.1f} seconds",
        "size": f"{size_text(n_bytes)} ({n_bytes:,} bytes)",
    }


def _place(layout: Layout, built: Built) -> dict[str, Any]:
    handle = built.handle
    metadata: dict[str, Any] = {}
    if isinstance(handle, Checkpoint | Report):
        metadata["mlflow"] = dg.MetadataValue.url(run_link(layout, handle.fingerprint))
    return metadata | {
        "fingerprint": handle.fingerprint,
        "path": dg.MetadataValue.path(str(handle.directory)),
    }


def _texts_and_figures(handle: Handle, with_pictures: bool) -> Iterator[tuple[str, Any]]:
    """The texts of a report with their figures included, then the other figures."""
    left = {f"figures/{path.name}": path for path in sorted(handle.directory.glob("figures/*.png"))}
    for path in sorted(handle.directory.glob("*.md")):
        if path.stem in TEXTS_OF_DATA:
            yield path.stem, dg.MetadataValue.path(str(path))
            continue
        text = path.read_text("utf-8")
        for name in [name for name in left if f"]({name})" in text]:
            picture = left.pop(name)
            address = data_url(picture.read_bytes()) if with_pictures else picture.as_uri()
            text = text.replace(f"]({name})", f"]({address})")
        yield path.stem, _markdown(text)
    for path in left.values() if with_pictures else ():
        yield f"{path.stem}_figure", dg.MetadataValue.md(as_markdown(path.read_bytes(), path.stem))


def counts_table(builds: Sequence[Built]) -> str:
    """Rows in, out and dropped by reason, one block per stage, as Markdown."""
    return "\n".join(["| stage | rows | |", "|---|---:|---|", *_count_lines(builds)])


def _count_lines(builds: Sequence[Built]) -> Iterator[str]:
    for built in builds:
        if (counts := built.counts) is None:
            continue
        yield f"| {built.handle.stage} | {counts.rows_in:,} | in |"
        for reason, rows in sorted(counts.dropped.items(), key=lambda item: (-item[1], item[0])):
            yield f"| | {rows:,} | dropped: {reason} |"
        yield f"| | {counts.kept:,} | out |"


def sample_table(paths: Sequence[Path]) -> str:
    """A few rows, spread over the first shard, without texts: `gristmill trace` shows the text of a URL."""
    names = [name for name in SAMPLED if name in pq.read_schema(paths[0]).names]
    table = read_table(paths[0], columns=names)
    places = sorted({i * table.num_rows // SAMPLE_ROWS for i in range(min(SAMPLE_ROWS, table.num_rows))})
    rows = table.take(pa.array(places, pa.int64()))  # typed: a shard may be empty
    lines = [f"| {' | '.join(_cell(row[name]) for name in names)} |" for row in rows.to_pylist()]
    return "\n".join([f"| {' | '.join(names)} |", f"|{'---|' * len(names)}", *lines])


def _cell(value: Any) -> str:
    text = " ".join(str("" if value is None else value).split())
    return plain(text if len(text) <= LONGEST_CELL else f"...{text[3 - LONGEST_CELL :]}")


def document_lengths(handle: Shards) -> np.ndarray | None:
    """Words of every document; None for shards without documents."""
    paths = shard_paths(handle.directory)
    if not paths or LENGTHS not in pq.read_schema(paths[0]).names:
        return None
    return np.concatenate([pq.read_table(path, columns=[LENGTHS])[LENGTHS].to_numpy() for path in paths])


def _markdown(text: str) -> dg.MarkdownMetadataValue:
    """A text wider than the column would be cut at its edge; padding with blanks moves it into the dialog."""
    wide = max(map(len, text.splitlines()), default=0) > LINE_CHARACTERS
    return dg.MetadataValue.md(text.ljust(DIALOG_CHARACTERS) if wide else text)


def _value(name: str, value: Any) -> Any:
    """Numbers with few digits, which Dagster plots; constants as text, which it does not plot."""
    if isinstance(value, np.generic):
        value = value.item()
    if name in CONSTANTS and isinstance(value, int | float):
        return f"{value:,.{SIGNIFICANT_DIGITS}g}" if isinstance(value, float) else f"{value:,}"
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value
