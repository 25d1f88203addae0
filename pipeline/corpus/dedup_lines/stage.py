"""Stage `dedup_lines`: removes lines and paragraphs that many documents of one site contain.

In: the output of `dedup`, so that copies of a document do not make a line look frequent. Out: shards of the same
names with texts without the menus, footers and notices that extraction missed, with id and n_words of the new text;
dropped/ with the reasons only_repeated_lines and exact_duplicate (the remaining text is the text of another
document); evidence/ (records.REPEATED) with each removed line and the number of documents of its site that contain
it; lines/, the lines of every shard, cached per shard.

Steps: hash every line in worker processes; count documents by site and line in DuckDB, which spills to disk; compute
in worker processes which ids the documents have without the repeated lines, so that DuckDB finds those that became
equal; write the shards. repeated_lines.py decides what may be removed where. Llama 3 (arXiv:2407.21783 section 3.1.1)
removes lines that occur more than 6 times in a bucket of 30 M documents, and reports that this removes menus and
cookie notices, but good frequent text as well; hence the counts here are per site, and a line must occur in a share
of the site's documents.
"""

import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Ge

from pipeline.corpus.dedup_lines.line_frequency import COUNTING, LINES_FOLDER, SITES_FOLDER, count_lines
from pipeline.corpus.dedup_lines.line_removal import (
    REPEATED_LINES,
    STAGE,
    Equal,
    LinesTally,
    RemovalItem,
    documents_left,
    rewritten,
)
from pipeline.store.database import open_database
from pipeline.store.engine import n_usable_cores, value_of
from pipeline.store.records import Counts, Shards
from pipeline.store.settings import Count, Natural, Share, check_values
from pipeline.store.shards import duckdb_files, shard_paths, write_table
from pipeline.store.store import UNICODE, Outcome, Stage, Work

R = TypeVar("R")
SCRATCH = ".scratch"  # the database and the repeated lines, deleted when the stage ends
MEMORY_MB = 768  # memory of DuckDB, beyond which it spills to disk
MOST_PLACES = 2  # average occurrences in a document that contains the line; a line with more is content
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
DOCUMENTS = """
CREATE TABLE documents (
    shard BIGINT, row BIGINT, id VARCHAR, page_id VARCHAR, site UBIGINT, cluster_size BIGINT, is_changed BOOLEAN
)
"""
# Of equal texts the one that lost nothing is kept, then the one with the largest cluster, then the first page.
EQUAL = """
SELECT shard, row, place, size, n_equal, kept_page_id, site_documents FROM (
    SELECT shard, row, site, row_number() OVER best AS place, first_value(page_id) OVER best AS kept_page_id,
        CAST(sum(cluster_size) OVER (PARTITION BY id) AS BIGINT) AS size, count(*) OVER (PARTITION BY id) AS n_equal
    FROM documents SEMI JOIN (
        SELECT id FROM documents GROUP BY id HAVING count(*) > 1 AND bool_or(is_changed)
    ) USING (id)
    WINDOW best AS (PARTITION BY id ORDER BY is_changed, cluster_size DESC, page_id, shard, row)
) JOIN sites USING (site) ORDER BY shard, row
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class DedupLinesConfig:
    min_documents: Annotated[
        int, Ge(2), "Remove a line only if at least this many documents of its site contain it."
    ] = 6
    min_fraction: Annotated[
        Share,
        "Remove a line of min_characters or more only if at least this share of its site's documents contain it.",
    ] = 0.5
    min_edge_fraction: Annotated[
        Share,
        "Remove a line at the beginning or end of a document only if at least this share of its site's documents"
        " contains it there.",
    ] = 0.25
    min_characters: Annotated[
        Count, "Shorter lines are removed only in a block of repeated lines at the beginning or end of a document."
    ] = 40
    max_characters: Annotated[Count, "Lines and paragraphs with more characters than this are never removed."] = 2000
    min_words: Annotated[Natural, "Drop a document as only_repeated_lines if fewer words than this remain."] = 10

    def __post_init__(self) -> None:
        check_values(self)
        if self.max_characters < self.min_characters:
            raise ValueError(f"max_characters={self.max_characters} is below min_characters={self.min_characters}")


def dedup_lines(cfg: DedupLinesConfig, inputs: tuple[Shards], work: Work) -> Outcome:
    scratch = work.directory / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)  # left by a build that was killed
    count_lines(inputs, work)
    paths = shard_paths(inputs[0].directory)
    try:
        with open_database(scratch, n_threads=n_usable_cores(), memory_mb=MEMORY_MB) as database:
            n_repeated, tallies = _removed(cfg, database, paths, work) if paths else (0, [])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    counts, before, after = Counts(), Counter[str](), Counter[str]()
    for tally in tallies:
        counts.add(tally.counts)
        before.update(tally.before)
        after.update(tally.after)
    removed = {source: (n - after[source]) / n if n else 0.0 for source, n in sorted(before.items())}
    measures = {
        "repeated_lines": n_repeated,
        "removed_lines": sum(tally.n_lines for tally in tallies),
        "changed_documents": sum(tally.n_changed for tally in tallies),
        **{f"removed_fraction_{source}": share for source, share in removed.items()},  # of its characters
    }
    kept = tuple(path.name for path in paths)
    return Outcome(rows=counts.kept, counts=counts, measures=measures, content=kept)


DEDUP_LINES = Stage(name=STAGE, version=1, function=dedup_lines, handle=Shards, libraries=(UNICODE,))


def find_repeated(cfg: DedupLinesConfig, database: Any, folder: Path, target: Path) -> int:
    """Fill the table `sites`, and the file `target` with rows of REPEATED_LINES. Returns the number of rows."""
    database.execute(SITES_SUMMED, {"files": duckdb_files(shard_paths(folder, SITES_FOLDER))})
    limits = {
        "min_documents": cfg.min_documents,
        "min_fraction": min(cfg.min_edge_fraction, cfg.min_fraction),
        "most_places": MOST_PLACES,
    }
    database.execute(LINES_SUMMED, {"files": duckdb_files(shard_paths(folder)), **limits})
    repeated = database.sql("SELECT * FROM repeated ORDER BY site, line").to_arrow_table()
    write_table(target, repeated.cast(REPEATED_LINES))
    return repeated.num_rows


def _removed(cfg: DedupLinesConfig, database: Any, paths: Sequence[Path], work: Work) -> tuple[int, list[LinesTally]]:
    """Write the output; returns the number of repeated lines, and what happened to each shard."""
    repeated = work.directory / SCRATCH / "repeated.parquet"
    n_repeated = find_repeated(cfg, database, work.directory / LINES_FOLDER, repeated)
    items = [RemovalItem(path, work.directory, repeated, cfg) for path in paths]
    database.execute(DOCUMENTS)
    for shard, left in enumerate(_answers(documents_left, items, work)):
        database.register("documents_left", left)
        database.execute("INSERT INTO documents SELECT $shard, * FROM documents_left", {"shard": shard})
    equals = defaultdict(list)  # documents that differed by their menus only
    for shard, *equal in database.execute(EQUAL).fetchall():
        equals[shard].append(Equal(*equal))
    items = [replace(item, equals=tuple(equals[shard])) for shard, item in enumerate(items)]
    return n_repeated, list(_answers(rewritten, items, work))


def _answers(function: Callable[[RemovalItem], R], items: Sequence[RemovalItem], work: Work) -> Iterator[R]:
    for n_done, (item, answer) in enumerate(zip(items, work.engine.map(function, items), strict=True), 1):
        yield value_of(answer, item.path, COUNTING)
        work.progress(n_done, len(items), "shards")
