"""Stage `dedup`: keeps the best version of every text, with evidence for each document that is dropped.

In: filtered document shards; then, if there are any, earlier outputs of `dedup`: an accepted corpus, which new
documents must not repeat. Out: shards of the same names with cluster_id, cluster_size and family_id as columns;
dropped/ with the reasons exact_duplicate and near_duplicate; evidence/ with the kept counterpart of each dropped
document; signatures/ (signatures.py), which are cached per shard, and index/ (accepted.py), which makes this output
an accepted corpus for later ones. Steps: signatures in worker processes, candidates and clusters in DuckDB,
verification on the text (verification.py), shards rewritten without the dropped rows. The best version is the one
with the highest quality (survivors.py), then the most words, the most bytes, the source_priority, the page id.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pyarrow.compute as pc
from annotated_types import Ge

from pipeline.corpus.dedup.accepted import check_index, view_accepted, write_index, write_recipe
from pipeline.corpus.dedup.near_duplicates import (
    explained,
    find_candidates,
    load_signatures,
    settle,
)
from pipeline.corpus.dedup.signatures import (
    SIGNATURES,
    SIGNATURES_FOLDER,
    ShardPositions,
    checked,
    make_signatures,
    positions_of,
    signature_recipe,
)
from pipeline.corpus.dedup.verification import verify
from pipeline.corpus.dedup.windows import wanted_rows, write_windows
from pipeline.store.database import open_database
from pipeline.store.engine import n_usable_cores
from pipeline.store.records import CORPUS, EVIDENCE, FILTERED, Counts, Shards, dropped_rows
from pipeline.store.settings import Count, Natural, Share, check_values
from pipeline.store.shards import DROPPED_FOLDER, EVIDENCE_FOLDER, read_table, shard_paths, write_table
from pipeline.store.store import NOT_IDENTITY, UNICODE, Outcome, Stage, Work

SCRATCH = ".scratch"  # the database and the windows of candidates, deleted when the stage ends


@dataclass(frozen=True, kw_only=True, slots=True)
class DedupConfig:
    shingle_words: Annotated[Count, "Number of words per shingle (FineWeb uses 5)."] = 5
    bands: Annotated[Count, "Number of MinHash bands (FineWeb uses 14)."] = 14
    rows: Annotated[Count, "Number of MinHash values per band (FineWeb uses 8)."] = 8
    sample_one_in: Annotated[
        Count, "Compare only one in N shingles when searching for documents that contain another document."
    ] = 4
    min_similarity: Annotated[
        Share, "Of two documents whose shingle sets have at least this Jaccard index, drop the one of lower quality."
    ] = 0.7
    min_containment: Annotated[
        Share, "Drop a document if a longer one contains at least this share of its shingles."
    ] = 0.9
    min_own_words: Annotated[
        Count,
        "A run of at least this many consecutive words that the kept document does not contain counts as a unique"
        " passage.",
    ] = 15
    max_own_share: Annotated[
        Share, "Keep a near-duplicate if one unique passage makes up a larger share of its words than this."
    ] = 0.05
    family_overlap: Annotated[
        Share,
        "Put two documents into the same split if they share at least this fraction of the smaller one's shingles.",
    ] = 0.2  # editions of a play in old and new spelling share a quarter of their 5-grams
    source_priority: Annotated[
        tuple[str, ...],
        "Sources in order of preference: of equally good and long copies, the one from the first source is kept.",
    ] = ()
    seed: Annotated[Natural, "Seed for the MinHash functions."] = 1
    memory_mb: Annotated[
        int, Ge(64), "Memory in megabytes that DuckDB may use before it spills to disk. Does not change the result."
    ] = field(default=768, metadata=NOT_IDENTITY)
    threads: Annotated[Natural, "Number of DuckDB threads; 0 uses all CPU cores. Does not change the result."] = (
        field(default=0, metadata=NOT_IDENTITY)
    )

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, slots=True)
class ShardItem:
    """A shard to write, and the outcomes of its rows in their order."""

    path: Path
    outcomes: pa.Table
    directory: Path


def dedup(cfg: DedupConfig, inputs: tuple[Shards, ...], work: Work) -> Outcome:
    """`inputs`: the documents, then any number of earlier outputs, whose documents are not changed."""
    scratch = work.directory / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)  # left by a build that was killed
    settings = _signature_settings(cfg)
    recipe = signature_recipe(settings, work.libraries)
    for handle in inputs[1:]:
        check_index(handle, recipe)
    make_signatures(inputs[:1], work, settings, recipe)
    paths = shard_paths(inputs[0].directory)
    scratch.mkdir(exist_ok=True)
    try:
        with explained(cfg.memory_mb):
            threads = cfg.threads or n_usable_cores()
            with open_database(scratch, n_threads=threads, memory_mb=cfg.memory_mb) as database:
                layout = _load(database, work.directory, scratch)
                accepted = view_accepted(database, inputs[1:])
                measures = judge(cfg, database, work, paths, layout, accepted)
                counts = _write_shards(database, work, paths, layout)
    finally:
        shutil.rmtree(scratch)
    write_recipe(work.directory, recipe)
    kept = tuple(path.name for path in paths)
    return Outcome(rows=counts.kept, counts=counts, measures=measures, content=kept)


DEDUP = Stage(name="dedup", version=3, function=dedup, handle=Shards, libraries=("duckdb", "rensa", UNICODE))


def _signature_settings(cfg: DedupConfig) -> Mapping[str, int]:
    """The settings that determine a signature; thresholds do not."""
    return {
        "n_words": cfg.shingle_words,
        "n_bands": cfg.bands,
        "n_rows": cfg.rows,
        "one_in": cfg.sample_one_in,
        "seed": cfg.seed,
    }


def _load(database: Any, directory: Path, scratch: Path) -> ShardPositions:
    signatures = shard_paths(directory, SIGNATURES_FOLDER)
    if not signatures:  # DuckDB cannot read an empty list of files
        signatures = [scratch / "none.parquet"]
        write_table(signatures[0], SIGNATURES.empty_table())
    layout = positions_of(signatures)
    load_signatures(database, layout)
    return layout


def judge(
    cfg: DedupConfig, database: Any, work: Work, paths: list[Path], layout: ShardPositions, accepted: ShardPositions
) -> dict[str, float]:
    """Fill the table `outcomes`. Returns the measures to plot over time."""
    n_candidates = find_candidates(
        database, cfg, memory_mb=cfg.memory_mb, done=lambda query, queries: work.progress(query, queries, "queries")
    )
    own = database.sql("SELECT position, rank, n_windows FROM wanted WHERE rank > 0 ORDER BY position")
    others = database.sql(
        "SELECT a.position, rank, n_windows FROM wanted JOIN accepted_named AS a USING (rank) ORDER BY a.position"
    )
    wanted = [
        *wanted_rows(own.to_arrow_table(), layout.starts[: len(paths)], paths),
        *wanted_rows(others.to_arrow_table(), accepted.starts, accepted.paths),
    ]
    windows = write_windows(
        wanted,
        cfg.shingle_words,
        work.directory / SCRATCH,
        work.engine,
        lambda shard: work.progress(shard, len(wanted), "texts"),
    )
    try:
        found = verify(database, windows, cfg, lambda rank: work.progress(rank, layout.n_rows, "ranks"))
    finally:
        windows.close()
    settle(database, found)
    return {"candidate_pairs": n_candidates, "compared_pairs": found.n_compared, **_measures(database)}


def _write_shards(database: Any, work: Work, paths: list[Path], layout: ShardPositions) -> Counts:
    def items() -> Any:
        for shard, path in enumerate(paths):
            low, high = layout.rows(shard)
            query = (
                "SELECT * EXCLUDE (position) FROM outcomes WHERE position BETWEEN $low AND $high ORDER BY position"
            )
            outcomes = database.sql(query, params={"low": low, "high": high - 1}).to_arrow_table()
            yield ShardItem(path, outcomes, work.directory)

    counts = Counts()
    work.progress(0, len(paths), "shards")
    for shard, answer in enumerate(work.engine.map(written_shard, items()) if paths else ()):
        counts.add(checked(answer, paths[shard]))
        work.progress(shard + 1, len(paths), "shards")
    return counts


def written_shard(item: ShardItem) -> Counts:
    """Writes one shard. Runs in a worker process."""
    table, outcomes = read_table(item.path, FILTERED).select(FILTERED.names), item.outcomes
    is_kept = outcomes["is_kept"]
    kept = table.filter(is_kept)
    columns = {"cluster_id": "kept_page_id", "cluster_size": "cluster_size", "family_id": "family_id"}
    for name, column in columns.items():
        kept = kept.append_column(CORPUS.field(name), outcomes[column].filter(is_kept).cast(CORPUS.field(name).type))
    write_table(item.directory / item.path.name, kept.cast(CORPUS))
    write_index(item.directory, item.path.name, is_kept.to_numpy())
    counts = Counts(rows_in=table.num_rows, kept=kept.num_rows)
    is_dropped = pc.call_function("invert", [is_kept])
    outcomes = outcomes.filter(is_dropped)
    if outcomes.num_rows:
        dropped = _dropped(table.filter(is_dropped), outcomes)
        for one in dropped["reason"].value_counts().to_pylist():
            counts.drop(one["values"], one["counts"])
        write_table(item.directory / DROPPED_FOLDER / item.path.name, dropped)
        evidence = _evidence(dropped, outcomes)
        write_table(item.directory / EVIDENCE_FOLDER / item.path.name, evidence)
    return counts


def _dropped(table: pa.Table, outcomes: pa.Table) -> pa.Table:
    """One row of DROPPED per dropped document."""
    is_exact = pc.call_function("equal", [outcomes["rule"], pa.scalar("exact")])
    is_contained = pc.call_function("equal", [outcomes["rule"], pa.scalar("containment")])
    reasons = _either(is_exact, pa.scalar("exact_duplicate"), pa.scalar("near_duplicate"))
    scores = _either(is_contained, outcomes["containment"], outcomes["similarity"])
    return dropped_rows(table, DEDUP.name, reasons, scores)


def _evidence(dropped: pa.Table, outcomes: pa.Table) -> pa.Table:
    """One row of EVIDENCE per dropped document, in the order of `dropped`."""
    columns = {
        **{name: outcomes[name] for name in ("kept_id", "kept_page_id", "rule", "similarity", "containment")},
        "bands_shared": outcomes["bands_shared"].cast(pa.int32()),
        "dropped_id": dropped["id"],
        "dropped_page_id": dropped["page_id"],
    }
    return pa.table({name: columns[name] for name in EVIDENCE.names}, schema=EVIDENCE)


def _either(condition: pa.ChunkedArray, one: Any, other: Any) -> pa.ChunkedArray:
    return pc.call_function("if_else", [condition, one, other])


def _measures(database: Any) -> dict[str, float]:
    ((largest, n_families),) = database.execute(
        "SELECT coalesce(max(cluster_size), 0), count(DISTINCT family_id) FROM outcomes"
    ).fetchall()
    measures = {"largest_cluster": largest, "families": n_families}
    removed = database.execute(
        "SELECT source, avg((NOT is_kept)::INT) FROM outcomes JOIN documents USING (position)"
        " GROUP BY source ORDER BY source"
    ).fetchall()
    return measures | {f"removed_fraction_{source}": fraction for source, fraction in removed}
