"""The stages that made a corpus, opened as tables of a DuckDB database.

In: the handles that `filter` and `split` left. Out: a `Chain` with the folder of every stage from the sources on, and
a database with a view of each stage (STAGES) that is still there, `dropped` (stage, source, reason, page_id, url) of
all of them, and the evidence `repeated` (of dedup_lines) and `contamination` (of decontaminate). The database reads
columns as it needs them and spills to disk, so that a corpus may be larger than memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.store.database import open_database
from pipeline.store.lineage import Folder, Record, lineage
from pipeline.store.records import (
    CONTAMINATION,
    CORPUS,
    DOCUMENT,
    FILTERED,
    PAGE,
    REPEATED,
    SIGNALS,
    SPLIT_CORPUS,
    Handle,
)
from pipeline.store.shards import DROPPED_FOLDER, EVIDENCE_FOLDER, duckdb_files, shard_paths

SCHEMAS = {
    "collect": PAGE,
    "clean": DOCUMENT,
    "signals": SIGNALS,
    "filter": FILTERED,
    "dedup": CORPUS,
    "dedup_lines": CORPUS,
    "decontaminate": CORPUS,
    "split": SPLIT_CORPUS,
}
STAGES = tuple(SCHEMAS)
UP_TO_FILTER, AFTER_FILTER = STAGES[:4], STAGES[4:]
MEMORY_MB = 2048  # of DuckDB, beyond which it spills
EVIDENCE_OF = {"dedup_lines": ("repeated", REPEATED), "decontaminate": ("contamination", CONTAMINATION)}
DROPPED_COLUMNS = "source, reason, page_id, url"
NO_DROPPED = (
    "CREATE VIEW dropped AS SELECT '' AS stage, '' AS source, '' AS reason, '' AS page_id, '' AS url WHERE false"
)

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Chain:
    """Folders by stage in the order of the stages; `missing` are those that were removed since."""

    folders: Mapping[str, Sequence[Folder]]
    missing: Sequence[Folder]
    records: Mapping[Folder, Record]

    def there(self, stage: str) -> bool:
        """Whether everything that a stage made for this corpus can still be read."""
        return bool(self.folders.get(stage)) and not any(folder.stage == stage for folder in self.missing)

    def without(self, stage: str) -> bool:
        """Whether this corpus was made without that stage. Of a chain with gaps nobody knows."""
        return not self.folders.get(stage) and not self.missing

    def identity(self) -> tuple[str, ...]:
        """What a report depends on beside the content of its inputs: a drop leaves no trace in what was kept."""
        missing = tuple(f"missing {folder.stage} {folder.fingerprint}" for folder in self.missing)
        there = (folder for stage in STAGES for folder in self.folders.get(stage, ()))
        return (*(f"{folder.stage} {folder.fingerprint}" for folder in there), *missing)


def read_chain(documents: Handle, corpus: Handle) -> Chain:
    """ValueError when `documents` is not what `filter` left, `corpus` not what `split` left, or made of others."""
    for handle, stage in ((documents, "filter"), (corpus, "split")):
        if handle.stage != stage:
            raise ValueError(f"{handle.directory} is an output of `{handle.stage}`, expected one of `{stage}`")
    before = {folder: record for folder, record in lineage([documents]).items() if folder.stage in UP_TO_FILTER}
    after = {folder: record for folder, record in lineage([corpus]).items() if folder.stage in AFTER_FILTER}
    for folder, record in after.items():
        made_of = next((one for one in (record or {}).get("inputs", ()) if one["stage"] == "filter"), None)
        if made_of is not None and made_of["digest"] != documents.digest:
            raise ValueError(
                f"{corpus.directory} was made from other documents (digest {made_of['digest']}, by {folder.stage})"
                f" than {documents.directory} (digest {documents.digest}); materialise `corpus` first"
            )
    found = {**before, **after}
    in_order = sorted(found, key=lambda folder: (STAGES.index(folder.stage), folder.fingerprint))
    there = [folder for folder in in_order if found[folder] is not None]
    return Chain(
        folders={stage: own for stage in STAGES if (own := [one for one in there if one.stage == stage])},
        missing=[folder for folder in in_order if found[folder] is None],
        records={folder: record for folder, record in found.items() if record is not None},
    )


@contextmanager
def opened(chain: Chain, scratch: Path, n_threads: int) -> Iterator[Any]:
    """A database with a view a stage."""
    with open_database(scratch, n_threads=n_threads, memory_mb=MEMORY_MB) as database:
        dropped = []
        for stage, folders in chain.folders.items():
            paths = [path for folder in folders for path in shard_paths(folder.directory)]
            if not chain.there(stage):
                continue
            if paths:
                database.execute(f"CREATE VIEW {stage} AS SELECT * FROM {_shards(paths)}")
            else:
                database.register(stage, SCHEMAS[stage].empty_table())
            paths = [path for folder in folders for path in shard_paths(folder.directory, DROPPED_FOLDER)]
            if paths:
                dropped.append(f"SELECT '{stage}' AS stage, {DROPPED_COLUMNS} FROM {_shards(paths)}")
        database.execute(f"CREATE VIEW dropped AS {' UNION ALL '.join(dropped)}" if dropped else NO_DROPPED)
        for stage, (view, schema) in EVIDENCE_OF.items():
            folders = chain.folders.get(stage, ())
            paths = [path for folder in folders for path in shard_paths(folder.directory, EVIDENCE_FOLDER)]
            if paths:
                database.execute(f"CREATE VIEW {view} AS SELECT * FROM {_shards(paths)}")
            else:
                database.register(view, schema.empty_table())
        yield database


def rows(database: Any, query: str, **values: Any) -> list[Row]:
    """Every row of the answer; a query says itself in which order."""
    answer = database.execute(query, values)
    names = [column[0] for column in answer.description]
    return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]


def _shards(paths: Sequence[Path]) -> str:
    files = ", ".join("'" + file.replace("'", "''") + "'" for file in duckdb_files(paths))
    return f"read_parquet([{files}], hive_partitioning = false)"
