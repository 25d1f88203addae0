"""What a materialisation says in the Dagster UI: counts, reasons, sizes, speed, pictures, a link to MLflow.

In: the builds of an asset, the last of which is its output. Out: a MaterializeResult with the handle as value and its
digest as data version, so that the UI calls stale what was made from other content. Numbers are plain numbers, which
the UI plots over time.
"""

from collections.abc import Iterator
from typing import Any

import dagster as dg
import numpy as np
import pyarrow.parquet as pq

from pipeline.store.layout import Layout
from pipeline.store.outputs import read_curve, read_results, result_metrics
from pipeline.store.records import Checkpoint, Handle, Report, Shards, TokenizerFile
from pipeline.store.shards import shard_paths
from pipeline.store.store import Built
from pipeline.tracking.pictures import as_markdown, curve_png, data_url, histogram_png
from pipeline.tracking.server import run_url

LENGTHS = "n_words"  # column of document shards that the histogram shows


def materialised(layout: Layout, *builds: Built) -> dg.MaterializeResult[Any]:
    """The result of an asset that went through `builds`, in this order."""
    handle = builds[-1].handle
    return dg.MaterializeResult(
        value=handle,
        data_version=dg.DataVersion(handle.digest),
        metadata={name: _value(value) for name, value in _metadata(layout, builds).items()},
    )


def _metadata(layout: Layout, builds: tuple[Built, ...]) -> dict[str, Any]:
    handle, last = builds[-1].handle, builds[-1]
    made = [built for built in builds if not built.unchanged]
    seconds = sum(built.record["seconds"] for built in builds)
    metadata: dict[str, Any] = {
        "dagster/row_count": handle.rows,
        "unchanged": not made,
        "seconds": sum(built.record["seconds"] for built in made),  # of this materialisation
        "seconds_when_built": seconds,
        "bytes": sum(built.record["bytes"] for built in builds),
        "fingerprint": handle.fingerprint,
        "built_at": last.record["finished_at"],
        "path": dg.MetadataValue.path(str(handle.directory)),
    }
    counted = [(built, counts) for built in builds if (counts := built.counts) is not None]
    if counted:
        rows_in = counted[0][1].rows_in
        metadata |= {
            "rows_in": rows_in,
            "rows_out": counted[-1][1].kept,
            "rows_dropped": sum(sum(counts.dropped.values()) for _, counts in counted),
            "rows_per_second": rows_in / max(seconds, 1e-3),
            "rows": dg.MetadataValue.md(counts_table(builds)),
        }
    metadata |= {name: value for built in builds for name, value in built.record["measures"].items()}
    return metadata | _of_kind(layout, handle)


def _of_kind(layout: Layout, handle: Handle) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    if isinstance(handle, Shards) and (lengths := document_lengths(handle)) is not None:
        png = histogram_png(lengths, "words a document")
        metadata["length_histogram"] = dg.MetadataValue.md(as_markdown(png, "words a document"))
    if isinstance(handle, Checkpoint) and (curve := read_curve(handle.directory)):
        metadata["loss_curve"] = dg.MetadataValue.md(as_markdown(curve_png(curve), "loss by step"))
    if isinstance(handle, Report):
        metadata |= dict(result_metrics(read_results(handle.directory)))
    if isinstance(handle, Report | TokenizerFile | Shards):
        metadata |= dict(_texts_and_figures(handle))
    if isinstance(handle, Checkpoint | Report):
        url = run_url(layout, handle.fingerprint)
        metadata["mlflow"] = dg.MetadataValue.url(url) if url else "waits for the MLflow server"
    return metadata


def _texts_and_figures(handle: Handle) -> Iterator[tuple[str, Any]]:
    """The texts of a report with the figures that they show inside, then the figures that none shows."""
    left = {f"figures/{path.name}": path for path in sorted(handle.directory.glob("figures/*.png"))}
    for path in sorted(handle.directory.glob("*.md")):
        text = path.read_text()
        for name in [name for name in left if f"]({name})" in text]:
            text = text.replace(f"]({name})", f"]({data_url(left.pop(name).read_bytes())})")
        yield path.stem, dg.MetadataValue.md(text)
    for path in left.values():
        yield f"{path.stem}_figure", dg.MetadataValue.md(as_markdown(path.read_bytes(), path.stem))


def counts_table(builds: tuple[Built, ...]) -> str:
    """Rows in, out and dropped by reason, a block a stage, as Markdown."""
    return "\n".join(["| stage | rows | |", "|---|---:|---|", *_count_lines(builds)])


def _count_lines(builds: tuple[Built, ...]) -> Iterator[str]:
    for built in builds:
        if (counts := built.counts) is None:
            continue
        yield f"| {built.handle.stage} | {counts.rows_in:,} | in |"
        for reason, rows in sorted(counts.dropped.items(), key=lambda item: (-item[1], item[0])):
            yield f"| | {rows:,} | dropped: {reason} |"
        yield f"| | {counts.kept:,} | out |"


def document_lengths(handle: Shards) -> np.ndarray | None:
    """Words of every document, None for shards that hold no documents."""
    paths = shard_paths(handle.directory)
    if not paths or LENGTHS not in pq.read_schema(paths[0]).names:
        return None
    return np.concatenate([pq.read_table(path, columns=[LENGTHS])[LENGTHS].to_numpy() for path in paths])


def _value(value: Any) -> Any:
    """numpy's numbers as Python's, which is all that Dagster takes."""
    return value.item() if isinstance(value, np.generic) else value
