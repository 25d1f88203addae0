"""Which documents may repeat which: candidates from signatures in DuckDB, and what became of every document.

In: signature shards (shingles.py). Out: the table `candidates`; once those are verified (verification.py) the table
`outcomes`: of each document the one it is kept as (itself, where it is kept), similarity, cluster size and family.
Steps: rank all documents, best first; equal ids are exact copies; texts that share a band, or enough of the sample,
are candidate pairs.

Tables hold ranks and hashes, never text. Buckets cost what they hold: a text is paired with the first and the nearest
ones of its bucket only.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.stages.shards import read_table, shard_paths
from pipeline.stages.shingles import SIGNATURES
from pipeline.stages.verification import FAMILY, VERDICT, Limits, Verified

BAND_NEIGHBOURS = 8  # a text is paired with so many at the top of its bucket, and so many before itself
SAMPLE_NEIGHBOURS = 4  # as above, for the hashes of the sample, of which there are many more
COMMON = 50  # a shingle in more texts than this is boilerplate and makes no candidates
MAX_CANDIDATES = 32  # pairs a text is verified with, those that share most
SAMPLE_MARGIN = 0.7  # a pair is verified from this part of the limits on: a sample of a few hashes is off by as much
INSERT_BYTES = 64_000_000  # signatures that enter the database in one go

RANKED = """
CREATE TABLE documents AS SELECT shard, row, id, page_id, n_shingles, row_number() OVER (
    ORDER BY n_words DESC, n_bytes DESC, coalesce(list_position($priority, source), 1000000000), page_id, shard, row
) AS rank FROM signatures;
CREATE TABLE texts AS SELECT id, min(rank) AS rank FROM documents GROUP BY id;
CREATE TABLE uniques AS
    SELECT rank, bands, sample, len(sample) AS n_sample
    FROM texts JOIN documents USING (id, rank) JOIN signatures USING (shard, row);
"""
# One kind of key at a time: several large sorts in one query do not share the memory limit well.
PAIRED = """
CREATE OR REPLACE TABLE keys AS SELECT rank, unnest({column}) AS key FROM uniques;
CREATE OR REPLACE TABLE buckets AS
    SELECT key, rank, row_number() OVER (PARTITION BY key ORDER BY rank) AS place
    FROM keys SEMI JOIN (SELECT key FROM keys GROUP BY key HAVING count(*) BETWEEN 2 AND {largest}) USING (key);
CREATE OR REPLACE TABLE {column}_pairs AS
    SELECT other.rank AS kept, mine.rank AS rank, count(*) AS shared
    FROM (
        SELECT key, rank, unnest(CASE
            WHEN place <= 2 * {near} THEN range(1, place)
            ELSE list_concat(range(1, {near} + 1), range(place - {near}, place))
        END) AS place FROM buckets
    ) AS mine JOIN buckets AS other USING (key, place)
    GROUP BY ALL;
"""
CANDIDATES = """
CREATE TABLE candidates AS
    SELECT kept, rank, coalesce(b.shared, 0) AS bands_shared, coalesce(s.shared, 0) AS sample_shared
    FROM bands_pairs AS b FULL JOIN sample_pairs AS s USING (kept, rank)
    JOIN uniques AS u USING (rank) JOIN uniques AS k ON k.rank = kept
    WHERE bands_shared > 0 OR sample_shared >= $share * least(u.n_sample, k.n_sample)
    QUALIFY row_number() OVER (
        PARTITION BY rank ORDER BY bands_shared DESC, sample_shared DESC, kept
    ) <= $most;
CREATE TABLE wanted AS
    SELECT shard, row, rank, n_shingles FROM documents
    SEMI JOIN (SELECT rank FROM candidates UNION SELECT kept FROM candidates) USING (rank);
CREATE TABLE relatives AS
    SELECT kept, rank FROM sample_pairs JOIN uniques AS u USING (rank) JOIN uniques AS k ON k.rank = kept
    WHERE shared >= $overlap * least(u.n_sample, k.n_sample);
"""
OUTCOMES = """
CREATE TABLE outcomes AS
    SELECT d.shard, d.row, d.rank, k.rank AS kept_rank, k.id AS kept_id, k.page_id AS kept_page_id,
        coalesce(f.page_id, k.page_id) AS family_id,
        coalesce(v.similarity, 1.0) AS similarity, coalesce(v.containment, 1.0) AS containment,
        coalesce(v.bands_shared, 0) AS bands_shared, v.rank IS NOT NULL AS near,
        count(*) OVER (PARTITION BY k.rank) AS cluster_size
    FROM documents AS d JOIN texts AS t USING (id)
    LEFT JOIN verdicts AS v ON v.rank = t.rank
    JOIN documents AS k ON k.rank = coalesce(v.kept, t.rank)
    LEFT JOIN families ON families.rank = k.rank
    LEFT JOIN documents AS f ON f.rank = families.family;
"""


def open_database(folder: Path, *, n_threads: int, memory_mb: int) -> Any:
    """A DuckDB database that spills below `folder`; neither limit changes a result."""
    import duckdb

    settings = {
        "threads": n_threads,
        "memory_limit": f"{memory_mb}MB",
        "temp_directory": str(folder / "spill"),
        "preserve_insertion_order": False,
    }
    folder.mkdir(parents=True, exist_ok=True)
    return duckdb.connect(str(folder / "dedup.duckdb"), config=settings)


def load_signatures(database: Any, directory: Path) -> int:
    """Fill the table `signatures` from the shards of `directory`, in the order of their names."""
    waiting = [_numbered(SIGNATURES.empty_table(), 0)]
    n_documents = n_waiting = 0
    for shard, path in enumerate(shard_paths(directory)):
        waiting.append(_numbered(read_table(path, SIGNATURES), shard))
        n_documents += waiting[-1].num_rows
        n_waiting += waiting[-1].nbytes
        if n_waiting >= INSERT_BYTES:
            insert_rows(database, "signatures", pa.concat_tables(waiting))
            waiting, n_waiting = [], 0
    if waiting:
        insert_rows(database, "signatures", pa.concat_tables(waiting))
    return n_documents


def find_candidates(database: Any, limits: Limits) -> int:
    """Fill the tables `documents`, `candidates`, `wanted` and `relatives`; the number of candidate pairs."""
    _run(database, RANKED, priority=list(limits.source_priority))
    _run(database, PAIRED.format(column="bands", largest=2**62, near=BAND_NEIGHBOURS))
    _run(database, PAIRED.format(column="sample", largest=COMMON, near=SAMPLE_NEIGHBOURS))
    share = SAMPLE_MARGIN * min(limits.min_similarity, limits.min_containment)
    _run(database, CANDIDATES, share=share, most=MAX_CANDIDATES, overlap=limits.family_overlap)
    return database.execute("SELECT count(*) FROM candidates").fetchone()[0]


def settle(database: Any, found: Verified) -> None:
    """Fill the table `outcomes` from the verdicts."""
    insert_rows(database, "verdicts", pa.Table.from_pylist(list(found.verdicts.values()), schema=VERDICT))
    insert_rows(database, "families", pa.Table.from_pylist(found.families(), schema=FAMILY))
    _run(database, OUTCOMES)


def insert_rows(database: Any, name: str, table: pa.Table) -> None:
    """Append to the table `name`, which is made when there is none."""
    database.register("incoming", table)
    database.execute(f"CREATE TABLE IF NOT EXISTS {name} AS SELECT * FROM incoming LIMIT 0")
    database.execute(f"INSERT INTO {name} SELECT * FROM incoming")
    database.unregister("incoming")


def _numbered(table: pa.Table, shard: int) -> pa.Table:
    rows = np.arange(table.num_rows, dtype=np.int64)
    return table.append_column("shard", pa.array(np.full_like(rows, shard))).append_column("row", pa.array(rows))


def _run(database: Any, statements: str, **values: object) -> None:
    for statement in filter(str.strip, statements.split(";")):
        named = {name: value for name, value in values.items() if f"${name}" in statement}
        database.execute(statement, named or None)
