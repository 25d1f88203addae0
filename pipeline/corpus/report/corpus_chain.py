"""The outputs of the stages that made a corpus, opened as tables of a DuckDB database.

In: the handles of the assets `documents` and `corpus`. Out: a `CorpusChain` with the folder of every stage from the
sources on, and a database with a view of each stage whose output still exists, `dropped` (stage, source, reason,
page_id, url) of all of them, and a view of the evidence of each stage that writes some, under its name in
store/chain.py. The database reads only the columns it needs and spills to disk, so a corpus may be larger than
memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.store.chain import corpus_links, link_of, output_of, schema
from pipeline.store.database import open_database
from pipeline.store.lineage import Folder, Record, lineage
from pipeline.store.records import Handle
from pipeline.store.shards import DROPPED_FOLDER, EVIDENCE_FOLDER, duckdb_files, shard_paths

MEMORY_MB = 2048  # memory of DuckDB, beyond which it spills to disk
DROPPED_COLUMNS = "source, reason, page_id, url"
NO_DROPPED = (
    "CREATE VIEW dropped AS SELECT '' AS stage, '' AS source, '' AS reason, '' AS page_id, '' AS url WHERE false"
)

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusChain:
    """Folders by stage in the order of the stages; `missing` are those that have been removed."""

    folders: Mapping[str, Sequence[Folder]]
    missing: Sequence[Folder]
    records: Mapping[Folder, Record]

    def there(self, stage: str) -> bool:
        """Whether all outputs of a stage for this corpus still exist."""
        return bool(self.folders.get(stage)) and not any(folder.stage == stage for folder in self.missing)

    def without(self, stage: str) -> bool:
        """Whether this corpus was made without that stage; False if unknown, because the chain has gaps."""
        return not self.folders.get(stage) and not self.missing

    def identity(self) -> tuple[str, ...]:
        """What a report depends on besides the content of its inputs, which does not show what was dropped."""
        missing = tuple(f"missing {folder.stage} {folder.fingerprint}" for folder in self.missing)
        there = (folder for folders in self.folders.values() for folder in folders)
        return (*(f"{folder.stage} {folder.fingerprint}" for folder in there), *missing)


def read_chain(documents: Handle, corpus: Handle) -> CorpusChain:
    """Raises ValueError unless `documents` is an output of `filter`, and `corpus` one of `split` made from it."""
    last = output_of("documents")
    for handle, stage in ((documents, last), (corpus, output_of("corpus"))):
        if handle.stage != stage:
            raise ValueError(f"{handle.directory} is an output of `{handle.stage}`, expected one of `{stage}`")
    stages = [link.name for link in corpus_links()]
    up_to_documents, after_documents = stages[: stages.index(last) + 1], stages[stages.index(last) + 1 :]
    before = {folder: record for folder, record in lineage([documents]).items() if folder.stage in up_to_documents}
    after = {folder: record for folder, record in lineage([corpus]).items() if folder.stage in after_documents}
    for folder, record in after.items():
        made_of = next((one for one in (record or {}).get("inputs", ()) if one["stage"] == last), None)
        if made_of is not None and made_of["digest"] != documents.digest:
            raise ValueError(
                f"{corpus.directory} was made from other documents (digest {made_of['digest']}, by {folder.stage})"
                f" than {documents.directory} (digest {documents.digest}); materialise `corpus` first"
            )
    found = {**before, **after}
    ordered = sorted(found, key=lambda folder: (stages.index(folder.stage), folder.fingerprint))
    there = [folder for folder in ordered if found[folder] is not None]
    return CorpusChain(
        folders={stage: own for stage in stages if (own := [one for one in there if one.stage == stage])},
        missing=[folder for folder in ordered if found[folder] is None],
        records={folder: record for folder, record in found.items() if record is not None},
    )


@contextmanager
def opened(chain: CorpusChain, scratch: Path, n_threads: int) -> Iterator[Any]:
    """A database with one view per stage."""
    with open_database(scratch, n_threads=n_threads, memory_mb=MEMORY_MB) as database:
        dropped = []
        for stage, folders in chain.folders.items():
            paths = [path for folder in folders for path in shard_paths(folder.directory)]
            if not chain.there(stage):
                continue
            if paths:
                database.execute(f"CREATE VIEW {stage} AS SELECT * FROM {_shards(paths)}")
            else:
                database.register(stage, schema(link_of(stage).writes).empty_table())
            paths = [path for folder in folders for path in shard_paths(folder.directory, DROPPED_FOLDER)]
            if paths:
                dropped.append(f"SELECT '{stage}' AS stage, {DROPPED_COLUMNS} FROM {_shards(paths)}")
        database.execute(f"CREATE VIEW dropped AS {' UNION ALL '.join(dropped)}" if dropped else NO_DROPPED)
        for link in (link for link in corpus_links() if link.evidence):
            folders = chain.folders.get(link.name, ())
            paths = [path for folder in folders for path in shard_paths(folder.directory, EVIDENCE_FOLDER)]
            if paths:
                database.execute(f"CREATE VIEW {link.view} AS SELECT * FROM {_shards(paths)}")
            else:
                database.register(link.view, schema(link.evidence).empty_table())
        yield database


def rows(database: Any, query: str, **values: Any) -> list[Row]:
    """Every row of the result; the query determines the order."""
    answer = database.execute(query, values)
    names = [column[0] for column in answer.description]
    return [dict(zip(names, row, strict=True)) for row in answer.fetchall()]


def _shards(paths: Sequence[Path]) -> str:
    files = ", ".join("'" + file.replace("'", "''") + "'" for file in duckdb_files(paths))
    return f"read_parquet([{files}], hive_partitioning = false)"
