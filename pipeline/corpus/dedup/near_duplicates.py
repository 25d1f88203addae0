"""Finds candidate pairs of near duplicates from signatures in DuckDB, and records the outcome of every document.

In: signature shards (signatures.py) of the documents and, if there is one, of an accepted corpus (accepted.py). Out:
the tables `candidates`, `relatives`, `repeated` (sampled hashes that several texts have) and `wanted`; after the
candidates are verified (verification.py) the table `outcomes`: for each document the one that represents it (itself
if it is kept), similarity, cluster size and family. Steps: rank all documents, best first; equal ids with equal
content are exact copies; texts that share a band, or enough of the sample, are candidate pairs.

Tables contain ranks and hashes, never text. Signatures stay in their files; their hashes are processed in as many
passes as the memory limit requires, one range of hash values per pass. A text is paired only with the first and the
nearest members of its bucket, so the cost is linear in the size of a bucket. Ranks of accepted documents are at most
0.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from pipeline.corpus.dedup.signatures import ShardPositions
from pipeline.corpus.dedup.verification import PairLimits, Verified
from pipeline.store.shards import duckdb_files

BAND_NEIGHBOURS = 8  # a text is paired with this many at the top of its bucket, and with this many just before it
SAMPLE_NEIGHBOURS = 4  # as above, for the hashes of the sample, of which there are many more
COMMON = 50  # a shingle in more texts than this is boilerplate and makes no candidates
MAX_CANDIDATES = 32  # pairs verified per text: those that share most
SAMPLE_MARGIN = 0.7  # pairs are verified from this fraction of the limits on, the error of a sample of few hashes
KEY_BYTES = 120  # of memory per hash while it is looked up in other texts

DOCUMENTS = """
CREATE TABLE documents AS SELECT position, id, page_id, source, content, quality, n_shingles, row_number() OVER (
    ORDER BY quality DESC, n_words DESC, n_bytes DESC, coalesce(list_position($priority, source), 1000000000),
        page_id, id, content, position
) AS rank FROM signed;
"""
TEXTS = """
CREATE TABLE accepted AS SELECT rank, id, content FROM accepted_signed SEMI JOIN documents USING (id, content);
CREATE TABLE texts AS
    SELECT id, content, min(d.rank) AS first, coalesce(min(a.rank), first) AS rank
    FROM documents AS d LEFT JOIN accepted AS a USING (id, content) GROUP BY id, content;
CREATE TABLE uniques AS
    SELECT position, d.rank, s.n_windows, s.n_shingles, s.n_sample,
        row_number() OVER (ORDER BY s.n_shingles DESC, d.rank) AS longer
    FROM texts AS t JOIN documents AS d ON d.rank = t.rank JOIN signed AS s USING (position);
CREATE TABLE repeated (key UBIGINT, n_texts UTINYINT);
"""
# `place`: ranks for bands; for the sample the longest first, so that an excerpt meets the text that it comes from.
# Lists are taken apart before the join: the other way round DuckDB 2.0.0 fails on a million rows with an internal
# error ("dict-surviving cache").
PAIRED = """
CREATE OR REPLACE TABLE keys AS
    SELECT {place} AS place, key
    FROM (SELECT position, unnest({column}) AS key FROM signed) JOIN uniques USING (position)
    WHERE key % {passes} = {number};
INSERT INTO keys SELECT rank, key FROM (SELECT rank, unnest({column}) AS key FROM accepted_signed)
    SEMI JOIN keys USING (key);
CREATE OR REPLACE TABLE counts AS SELECT key, count(*) AS n FROM keys GROUP BY key HAVING n > 1;
INSERT INTO repeated SELECT key, least(n, 255) FROM counts WHERE '{column}' = 'sample';
CREATE OR REPLACE TABLE buckets AS
    SELECT key, place, row_number() OVER (PARTITION BY key ORDER BY place) AS nth
    FROM keys SEMI JOIN (SELECT key FROM counts WHERE n <= {largest}) USING (key);
INSERT INTO {column}_shared
    SELECT other.place, mine.place, count(*)
    FROM (
        SELECT key, place, unnest(CASE
            WHEN nth <= 2 * {near} THEN range(1, nth)
            ELSE list_concat(range(1, {near} + 1), range(nth - {near}, nth))
        END) AS nth FROM buckets WHERE place > 0
    ) AS mine JOIN buckets AS other USING (key, nth)
    GROUP BY ALL;
"""
SHARED = """
CREATE TABLE bands_pairs AS
    SELECT one AS kept, other AS rank, sum(n)::BIGINT AS shared FROM bands_shared GROUP BY ALL;
CREATE TABLE sample_pairs AS
    WITH pairs AS (SELECT one, other, sum(n)::BIGINT AS shared FROM sample_shared GROUP BY ALL)
    SELECT least(o.rank, coalesce(p.rank, one)) AS kept, greatest(o.rank, coalesce(p.rank, one)) AS rank, shared
    FROM pairs JOIN uniques AS o ON o.longer = other LEFT JOIN uniques AS p ON p.longer = one;
CREATE TABLE sides AS SELECT rank, position, n_windows, n_shingles, n_sample FROM uniques;
INSERT INTO sides SELECT rank, NULL, n_windows, n_shingles, n_sample FROM accepted_signed
    SEMI JOIN (SELECT kept AS rank FROM bands_pairs UNION SELECT kept FROM sample_pairs) USING (rank);
"""
CANDIDATES = """
CREATE TABLE candidates AS
    SELECT kept, rank, coalesce(b.shared, 0) AS bands_shared, coalesce(s.shared, 0) AS sample_shared
    FROM bands_pairs AS b FULL JOIN sample_pairs AS s USING (kept, rank)
    JOIN sides AS r USING (rank) JOIN sides AS k ON k.rank = kept
    WHERE bands_shared > 0 OR sample_shared >= $share * least(r.n_sample, k.n_sample)
    QUALIFY $most >= least(
        row_number() OVER (PARTITION BY rank ORDER BY bands_shared DESC, sample_shared DESC, kept),
        row_number() OVER (  -- an excerpt may be the better text of a pair, and yet be the one that is dropped
            PARTITION BY CASE WHEN kept > 0 AND k.n_shingles < r.n_shingles THEN kept ELSE rank END
            ORDER BY bands_shared DESC, sample_shared DESC, kept, rank
        )
    );
CREATE TABLE wanted AS
    SELECT rank, position, n_windows FROM sides
    SEMI JOIN (SELECT rank FROM candidates UNION SELECT kept FROM candidates) USING (rank);
CREATE TABLE relatives AS
    SELECT kept, rank FROM sample_pairs JOIN sides AS r USING (rank) JOIN sides AS k ON k.rank = kept
    WHERE shared >= $overlap * least(r.n_sample, k.n_sample);
"""
OUTCOMES = """
CREATE TABLE named AS SELECT rank, id, page_id, page_id AS family_id FROM documents;
INSERT INTO named SELECT rank, id, page_id, family_id FROM accepted_named SEMI JOIN (
    SELECT rank FROM texts UNION SELECT kept FROM verdicts UNION SELECT family FROM families
) USING (rank);
CREATE TABLE outcomes AS
    SELECT d.position, d.rank = k.rank AS is_kept, k.id AS kept_id, k.page_id AS kept_page_id,
        coalesce(f.family_id, k.page_id) AS family_id, coalesce(v.rule, 'exact') AS rule,
        coalesce(v.similarity, 1.0) AS similarity, coalesce(v.containment, 1.0) AS containment,
        coalesce(v.bands_shared, 0) AS bands_shared, count(*) OVER (PARTITION BY k.rank) AS cluster_size
    FROM documents AS d JOIN texts AS t USING (id, content)
    LEFT JOIN verdicts AS v ON v.rank = t.rank
    JOIN named AS k ON k.rank = coalesce(v.kept, t.rank)
    LEFT JOIN families ON families.rank = k.rank
    LEFT JOIN named AS f ON f.rank = families.family;
"""


@contextmanager
def explained(memory_mb: int) -> Iterator[None]:
    """Turns DuckDB's error for too little memory into one with advice."""
    import duckdb

    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise ValueError(
            f"memory_mb={memory_mb} of `dedup` is too little for this corpus; set a larger one"
            f" ({str(error).splitlines()[0]})"
        ) from error


def load_signatures(database: Any, layout: ShardPositions) -> None:
    """Create the view `signed`: all signatures of `layout`, each with its position."""
    view_files(database, "signed", layout, "start + file_row_number AS position, *")


def view_files(database: Any, name: str, layout: ShardPositions, columns: str) -> None:
    """Create the view `name` over Parquet files; `start` is the number of rows in the files before them."""
    starts = pa.table({"file": pa.array(range(len(layout.paths)), pa.int64()), "start": pa.array(layout.starts)})
    insert_rows(database, f"{name}_files", starts)
    files = ", ".join("'" + path.replace("'", "''") + "'" for path in duckdb_files(layout.paths))
    database.execute(
        f"CREATE VIEW {name} AS SELECT {columns} FROM read_parquet([{files}]) JOIN {name}_files ON file = file_index"
    )


def find_candidates(
    database: Any,
    limits: PairLimits,
    *,
    memory_mb: int,
    done: Callable[[int, int], None] = lambda query, queries: None,
) -> int:
    """Fill `documents`, `candidates`, `wanted`, `relatives` and `repeated`. Returns the number of candidates.

    The views of signatures (load_signatures, accepted.py) must exist. `done` is called before each query with its
    number and the number of queries.
    """
    n_bands, n_sample = database.execute(
        "SELECT coalesce(sum(len(bands)), 0), coalesce(sum(n_sample), 0) FROM signed"
    ).fetchall()[0]
    share = SAMPLE_MARGIN * min(limits.min_similarity, limits.min_containment)
    queries: list[tuple[str, dict[str, Any]]] = [
        *_queries(DOCUMENTS, priority=list(limits.source_priority)),
        *_queries(TEXTS),
        *_paired("bands", "rank", n_bands, memory_mb, largest=2**62, near=BAND_NEIGHBOURS),
        *_paired("sample", "longer", n_sample, memory_mb, largest=COMMON, near=SAMPLE_NEIGHBOURS),
        *_queries(SHARED),
        *_queries(CANDIDATES, share=share, most=MAX_CANDIDATES, overlap=limits.family_overlap),
    ]
    for number, (query, values) in enumerate(queries):
        done(number, len(queries))
        database.execute(query, values or None)
    return database.execute("SELECT count(*) FROM candidates").fetchall()[0][0]


def settle(database: Any, found: Verified) -> None:
    """Fill the table `outcomes` from the verdicts."""
    insert_rows(database, "verdicts", found.verdicts)
    insert_rows(database, "families", found.families())
    for query, _ in _queries(OUTCOMES):
        database.execute(query)


def insert_rows(database: Any, name: str, table: pa.Table) -> None:
    """Append to the table `name`, which is created if it does not exist."""
    database.register("incoming", table)
    database.execute(f"CREATE TABLE IF NOT EXISTS {name} AS SELECT * FROM incoming LIMIT 0")
    database.execute(f"INSERT INTO {name} SELECT * FROM incoming")
    database.unregister("incoming")


def _paired(
    column: str, place: str, n_keys: int, memory_mb: int, *, largest: int, near: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Queries that count the hashes of one kind that texts share, in as many passes as the memory limit requires."""
    passes = 1 + int(n_keys) * KEY_BYTES // (memory_mb * 1_000_000)
    yield f"CREATE TABLE {column}_shared (one BIGINT, other BIGINT, n BIGINT)", {}
    for number in range(passes):
        yield from _queries(
            PAIRED.format(
                column=column,
                place=place,
                passes=passes,
                number=number,
                largest=largest,
                near=near,
            )
        )


def _queries(statements: str, **values: object) -> Iterator[tuple[str, dict[str, Any]]]:
    for statement in filter(str.strip, statements.split(";")):
        yield statement, {name: value for name, value in values.items() if f"${name}" in statement}
