"""Stage `dedup_lines`: removes lines and paragraphs that many documents of one site contain.

In: the output of `dedup`, so that copies of a document do not make a line look frequent. Out: shards of the same
names with texts without the menus, footers and notices that extraction missed, with id and n_words of the new text;
dropped/ with the reasons only_repeated_lines and exact_duplicate (the remaining text is the text of another
document); evidence/ (records.REPEATED) with each removed line and the number of documents of its site that contain
it; lines/, the lines of every shard, cached per shard.

Steps: hash every line in worker processes; count documents by site and line in DuckDB, which spills to disk; rewrite
the shards in a scratch folder, again in worker processes; move them into the output without documents that became
equal. repeated_lines.py decides what may be removed where. Llama 3 (arXiv:2407.21783 section 3.1.1) removes lines
that occur more than 6 times in a bucket of 30 M documents, and reports that this removes menus and cookie notices,
but good frequent text as well; hence the counts here are per site, and a line must occur in a share of the site's
documents.
"""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge

from pipeline.corpus.dedup_lines.line_frequency import (
    COUNTING,
    LINES_FOLDER,
    count_lines,
    find_repeated,
    opened_database,
)
from pipeline.corpus.dedup_lines.line_removal import (
    STAGE,
    Equal,
    EqualsItem,
    LinesTally,
    RemovalItem,
    place_shard,
    rewritten,
    without_equals,
)
from pipeline.store.engine import n_usable_cores, value_of
from pipeline.store.records import Counts, Shards
from pipeline.store.settings import Count, Natural, Share, check_values
from pipeline.store.shards import duckdb_files, shard_paths
from pipeline.store.store import Outcome, Stage, Work

SCRATCH = ".scratch"  # the database and the results of workers, deleted when the stage ends
LEFT_FOLDER, REWRITTEN_FOLDER = "left", "rewritten"  # below it
MEMORY_MB = 768  # memory of DuckDB, beyond which it spills to disk
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
DOCUMENTS = """
CREATE TABLE documents AS SELECT row, id, page_id, site, cluster_size, is_changed,
    CAST(parse_filename(filename, true) AS BIGINT) AS shard
FROM read_parquet($files, hive_partitioning = false, filename = true)
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class DedupLinesConfig:
    min_documents: Annotated[
        int, Ge(2), "Remove a line only if at least this many documents of its site contain it."
    ] = 6
    min_fraction: Annotated[
        Share, "Remove a long line only if at least this share of its site's documents contains it."
    ] = 0.5
    min_edge_fraction: Annotated[
        Share,
        "Remove a line at the beginning or end of a document only if at least this share of its site's documents"
        " contains it there.",
    ] = 0.25
    min_characters: Annotated[
        Count, "Lines with fewer characters are removed only in a run at the beginning or end of a document."
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
        with opened_database(scratch, n_threads=n_usable_cores(), memory_mb=MEMORY_MB) as database:
            n_repeated = find_repeated(cfg, database, work.directory / LINES_FOLDER, scratch / "repeated.parquet")
            tallies = _rewrite(cfg, paths, work)
            tallies += _drop_equals(database, paths, work)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    counts, measures = _summed(tallies)
    kept = tuple(path.name for path in paths)
    return Outcome(rows=counts.kept, counts=counts, measures={"repeated_lines": n_repeated, **measures}, content=kept)


DEDUP_LINES = Stage(name=STAGE, version=1, function=dedup_lines, handle=Shards)


def _rewrite(cfg: DedupLinesConfig, paths: Sequence[Path], work: Work) -> list[LinesTally]:
    scratch = work.directory / SCRATCH
    items = [
        RemovalItem(path, scratch / "repeated.parquet", _left(scratch, shard), scratch / REWRITTEN_FOLDER, cfg)
        for shard, path in enumerate(paths)
    ]
    tallies = []
    for item, answer in zip(items, work.engine.map(rewritten, items) if items else (), strict=True):
        tallies.append(value_of(answer, item.path, COUNTING))
        work.progress(len(tallies), len(items), "shards")
    return tallies


def _drop_equals(database: Any, paths: Sequence[Path], work: Work) -> list[LinesTally]:
    """Drop documents that differed only in their menus and are now equal. Writes the output.

    A worker of a killed build may still be writing, so no file is read here that such a worker could have written in
    a different state.
    """
    if not paths:
        return []
    scratch = work.directory / SCRATCH
    files = [_left(scratch, shard) for shard in range(len(paths))]
    database.execute(DOCUMENTS, {"files": duckdb_files(files)})
    found = database.execute(EQUAL).fetchall()
    equals: dict[int, list[Equal]] = {}
    sizes: dict[int, dict[int, int]] = {}
    for shard, row, place, size, n_equal, kept_page_id, site_documents in found:
        if place > 1:
            equals.setdefault(shard, []).append(Equal(row, kept_page_id, n_equal, site_documents))
        else:
            sizes.setdefault(shard, {})[row] = size
    for path in paths:
        place_shard(scratch / REWRITTEN_FOLDER, path.name, work.directory)
    items = [
        EqualsItem(
            scratch / REWRITTEN_FOLDER / paths[shard].name,
            work.directory,
            tuple(equals.get(shard, ())),
            sizes.get(shard, {}),
        )
        for shard in sorted({*equals, *sizes})
    ]
    answers = work.engine.map(without_equals, items) if items else ()
    return [value_of(answer, item.path, COUNTING) for item, answer in zip(items, answers, strict=True)]


def _left(scratch: Path, shard: int) -> Path:
    return scratch / LEFT_FOLDER / f"{shard:08d}.parquet"


def _summed(tallies: Sequence[LinesTally]) -> tuple[Counts, dict[str, float]]:
    """Total counts and measures. removed_fraction_<source> counts characters of removed lines and of dropped
    documents."""
    counts = Counts()
    characters: Counter[str] = Counter()
    gone: Counter[str] = Counter()
    for tally in tallies:
        counts.add(tally.counts)
        characters.update(tally.characters)
        gone.update(tally.gone)
    removed = {
        f"removed_fraction_{source}": gone[source] / n if n else 0.0 for source, n in sorted(characters.items())
    }
    lines = {
        "removed_lines": sum(tally.n_lines for tally in tallies),
        "changed_documents": sum(tally.n_changed for tally in tallies),
    }
    return counts, {**lines, **removed}
