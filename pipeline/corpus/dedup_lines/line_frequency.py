"""Counts the documents of a site that contain each line, and finds the lines that may be removed for their number.

In: document shards. Out: lines/<shard>, the distinct lines of every site of a shard with their counts, and
lines/sites/<shard>, its number of documents per site, both computed in worker processes and cached per shard; then a
file with the repeated lines of all sites, added up in DuckDB. Tables contain hashes, never text.
"""

import dataclasses
import errno
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import xxhash

from pipeline.corpus.dedup_lines.repeated_lines import layout_of, site_of, units_of
from pipeline.store.database import open_database
from pipeline.store.engine import Done, Failed, value_of
from pipeline.store.records import Counts, Shards
from pipeline.store.shards import duckdb_files, read_table, shard_paths, write_table
from pipeline.store.store import Work, map_shards

LINES_FOLDER = "lines"
SITES_FOLDER = "sites"  # below lines/
COUNTING = "its repeated lines were counted"  # part of the error message if a worker of dedup_lines fails
LINES_VERSION = 1  # raise it with any change to repeated_lines.py that changes a key
MOST_PLACES = 2  # average occurrences in a document that contains the line; a line with more is content
LINES = pa.schema(
    [
        pa.field("site", pa.uint64(), nullable=False),  # hash of its name
        pa.field("line", pa.uint64(), nullable=False),  # hash of the normalised line or paragraph
        pa.field("documents", pa.int64(), nullable=False),  # of the shard and the site that contain it
        pa.field("places", pa.int64(), nullable=False),  # its occurrences in them
    ]
)
SITES = pa.schema(
    [
        pa.field("site", pa.uint64(), nullable=False),
        pa.field("documents", pa.int64(), nullable=False),
    ]
)
REPEATED_LINES = pa.schema(
    [
        pa.field("site", pa.uint64(), nullable=False),
        pa.field("line", pa.uint64(), nullable=False),
        pa.field("documents", pa.int64(), nullable=False),
        pa.field("site_documents", pa.int64(), nullable=False),
    ]
)
SITES_SUMMED = """
CREATE TABLE sites AS SELECT site, CAST(sum(documents) AS BIGINT) AS site_documents
FROM read_parquet($files, hive_partitioning = false) GROUP BY site
"""
LINES_SUMMED = """
CREATE TABLE repeated AS SELECT site, line, documents, site_documents FROM (
    SELECT site, line, CAST(sum(documents) AS BIGINT) AS documents, CAST(sum(places) AS BIGINT) AS places
    FROM read_parquet($files, hive_partitioning = false)
    SEMI JOIN (SELECT site FROM sites WHERE site_documents >= $min_documents) USING (site)
    GROUP BY site, line HAVING sum(documents) >= $min_documents
) JOIN sites USING (site)
WHERE documents >= $min_fraction * site_documents AND places <= $most_places * documents
"""


class FrequencyLimits(Protocol):
    @property
    def min_documents(self) -> int: ...
    @property
    def min_fraction(self) -> float: ...
    @property
    def min_edge_fraction(self) -> float: ...


@dataclass(frozen=True, slots=True)
class LinesItem:
    path: Path


def count_lines(inputs: tuple[Shards], work: Work) -> None:
    """Writes lines/ below the output; the cache key of a shard contains no setting of the stage."""
    map_shards(
        dataclasses.replace(
            work, directory=work.directory / LINES_FOLDER, recipe=json.dumps(["lines", LINES_VERSION])
        ),
        inputs,
        read=lambda path: [LinesItem(path)],
        function=lines_of_shard,
        write=_write_lines,
        unit="documents",
    )


def lines_of_shard(item: LinesItem) -> tuple[pa.Table, pa.Table]:
    """Runs in a worker process: rows of LINES and of SITES, sorted."""
    table = read_table(item.path, columns=["source", "url", "media_type", "code_language", "text"])
    n_documents: Counter[int] = Counter()
    holders: dict[int, Counter[int]] = {}
    places: dict[int, Counter[int]] = {}
    columns = (table[name].to_pylist() for name in ("source", "url", "media_type", "code_language"))
    for source, url, media_type, code_language, text in zip(*columns, table["text"], strict=True):
        site = key_of_site(site_of(url, source))
        n_documents[site] += 1
        layout = layout_of(media_type, code_language)
        keys = [unit.key for unit in units_of(text.as_py(), layout) if unit.key is not None]
        places.setdefault(site, Counter()).update(keys)
        holders.setdefault(site, Counter()).update(set(keys))
    return _lines_table(holders, places), _sites_table(n_documents)


@contextmanager
def opened_database(folder: Path, *, n_threads: int, memory_mb: int) -> Iterator[Any]:
    """Like database.open_database, but a full disk raises an OSError."""
    with _no_room_as_os_error(), open_database(folder, n_threads=n_threads, memory_mb=memory_mb) as database:
        yield database


def find_repeated(cfg: FrequencyLimits, database: Any, folder: Path, target: Path) -> int:
    """Fill the table `sites`, and the file `target` with rows of REPEATED_LINES. Returns the number of rows."""
    if not (files := shard_paths(folder)):
        database.register("sites", pa.table({"site": [], "site_documents": []}))
        write_table(target, REPEATED_LINES.empty_table())
        return 0
    database.execute(SITES_SUMMED, {"files": duckdb_files(shard_paths(folder, SITES_FOLDER))})
    limits = {
        "min_documents": cfg.min_documents,
        "min_fraction": min(cfg.min_edge_fraction, cfg.min_fraction),
        "most_places": MOST_PLACES,
    }
    database.execute(LINES_SUMMED, {"files": duckdb_files(files), **limits})
    repeated = database.sql("SELECT * FROM repeated ORDER BY site, line").to_arrow_table()
    write_table(target, repeated.cast(REPEATED_LINES))
    return repeated.num_rows


def key_of_site(name: str) -> int:
    return xxhash.xxh3_64_intdigest(name.encode(errors="surrogatepass"))


@contextmanager
def _no_room_as_os_error() -> Iterator[None]:
    """DuckDB raises its own kind of error for a full disk; `Store.build` expects an OSError."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        if "No space left on device" not in str(error):
            raise
        raise OSError(errno.ENOSPC, f"no space left on disk for the database: {error}") from error


def _lines_table(holders: dict[int, Counter[int]], places: dict[int, Counter[int]]) -> pa.Table:
    parts = []
    for site, of_site in sorted(holders.items()):
        lines = np.fromiter(of_site, np.uint64, len(of_site))
        counts = [np.fromiter(map(counter.__getitem__, of_site), np.int64) for counter in (of_site, places[site])]
        order = np.argsort(lines)
        columns = [np.full_like(lines, site), lines[order], *(column[order] for column in counts)]
        parts.append(pa.table(dict(zip(LINES.names, columns, strict=True)), schema=LINES))
    return pa.concat_tables(parts).combine_chunks() if parts else LINES.empty_table()


def _sites_table(n_documents: Counter[int]) -> pa.Table:
    rows = sorted(n_documents.items())
    columns = {"site": [site for site, _ in rows], "documents": [n for _, n in rows]}
    return pa.table(columns, schema=SITES)


def _write_lines(part: Path, items: list[LinesItem], answers: list[Done | Failed]) -> Counts:
    lines, sites = value_of(answers[0], items[0].path, COUNTING)
    write_table(part / "kept.parquet", lines)
    write_table(part / f"{SITES_FOLDER}.parquet", sites)
    return Counts()
