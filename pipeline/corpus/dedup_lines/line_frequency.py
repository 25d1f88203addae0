"""For every site in a shard, counts the documents of the site and, for each line, the documents that contain it.

In: document shards. Out: lines/<shard>, the distinct lines of every site with their counts, and lines/sites/<shard>,
the number of documents per site. Both are computed in worker processes and cached per shard. They contain hashes,
never text.
"""

import dataclasses
import json
from array import array
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from pipeline.corpus.dedup_lines.repeated_lines import layout_of, site_of, units_of
from pipeline.store.engine import Done, Failed, value_of
from pipeline.store.parts import map_shards
from pipeline.store.records import Counts, Shards
from pipeline.store.shards import read_table, write_table
from pipeline.store.store import Work

LINES_FOLDER = "lines"
SITES_FOLDER = "sites"  # below lines/
COUNTING = "its repeated lines were counted"  # part of the error message if a worker of dedup_lines fails
LINES_VERSION = 1  # raise it with any change to repeated_lines.py that changes a key
LINES = pa.schema(
    [
        pa.field("site", pa.uint64(), nullable=False),  # hash of its name
        pa.field("line", pa.uint64(), nullable=False),  # hash of the normalised line or paragraph
        pa.field("documents", pa.int64(), nullable=False),  # documents of the shard and the site that contain it
        pa.field("places", pa.int64(), nullable=False),  # its occurrences in them
    ]
)
SITES = pa.schema(
    [
        pa.field("site", pa.uint64(), nullable=False),
        pa.field("documents", pa.int64(), nullable=False),
    ]
)


def count_lines(inputs: tuple[Shards], work: Work) -> None:
    """Write lines/ below the output; no setting of the stage is part of a shard's cache key."""
    map_shards(
        dataclasses.replace(
            work,
            directory=work.directory / LINES_FOLDER,
            recipe=json.dumps(["lines", LINES_VERSION, dict(work.libraries)]),
        ),
        inputs,
        read=lambda path: [path],
        function=lines_of_shard,
        write=_write_lines,
        unit="documents",
    )


def lines_of_shard(path: Path) -> tuple[pa.Table, pa.Table]:
    """Rows of LINES and of SITES, sorted. Runs in a worker process."""
    table = read_table(path, columns=["source", "url", "media_type", "code_language", "text"])
    n_documents: Counter[int] = Counter()
    rows = {"site": array("Q"), "line": array("Q"), "places": array("q")}  # one per document and line
    columns = (table[name].to_pylist() for name in ("source", "url", "media_type", "code_language"))
    for source, url, media_type, code_language, text in zip(*columns, table["text"], strict=True):
        site = key_of_site(site_of(url, source))
        n_documents[site] += 1
        units = units_of(text.as_py(), layout_of(media_type, code_language))
        places = Counter(unit.key for unit in units if unit.key is not None)
        rows["site"].extend([site] * len(places))
        rows["line"].extend(places.keys())
        rows["places"].extend(places.values())
    grouped = pa.table({name: np.array(values) for name, values in rows.items()}).group_by(["site", "line"])
    lines = grouped.aggregate([("places", "count"), ("places", "sum")])
    lines = lines.select(["site", "line", "places_count", "places_sum"]).rename_columns(LINES.names).cast(LINES)
    sites = pa.table({"site": list(n_documents), "documents": list(n_documents.values())}, schema=SITES)
    return lines.sort_by([("site", "ascending"), ("line", "ascending")]), sites.sort_by("site")


def key_of_site(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode(errors="surrogatepass"))


def _write_lines(part: Path, items: list[Path], answers: list[Done | Failed]) -> Counts:
    lines, sites = value_of(answers[0], items[0], COUNTING)
    write_table(part / "kept.parquet", lines)
    write_table(part / f"{SITES_FOLDER}.parquet", sites)
    return Counts()
