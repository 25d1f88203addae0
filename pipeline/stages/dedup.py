"""Stage `dedup`: every text once, the best version of it, with evidence for each one that went.

In: filtered document shards. Out: shards of the same names with cluster_id, cluster_size and family_id as columns;
dropped/ with the reasons exact_duplicate and near_duplicate; evidence/ with the kept counterpart of each dropped
document; signatures/ (shingles.py), which are remembered a shard. Steps: signatures in worker processes, candidates
and clusters in DuckDB, verification on the text (verification.py), shards written again without the dropped rows.
Best is the most words, then bytes, then source_priority, then page id.
"""

import dataclasses
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.stages.engine import Done, Failed, n_usable_cores
from pipeline.stages.near_duplicates import (
    find_candidates,
    load_signatures,
    open_database,
    settle,
)
from pipeline.stages.records import CORPUS, DROPPED, EVIDENCE, FILTERED, PREVIEW_CHARACTERS, Counts, Shards
from pipeline.stages.shards import (
    DROPPED_FOLDER,
    EVIDENCE_FOLDER,
    read_table,
    replacing,
    shard_paths,
    write_rows,
    write_table,
)
from pipeline.stages.shingles import SIGNATURES, Shingler, signature_columns
from pipeline.stages.store import Outcome, Stage, Work, map_shards
from pipeline.stages.verification import verify

SIGNATURES_FOLDER = "signatures"
SIGNATURES_VERSION = 1  # raise with any change to shingles.py that changes a hash
SCRATCH = ".scratch"  # the database and the shingles of candidates, gone when the stage ends
MEMORY_MB = 2048  # of DuckDB, beyond which it spills

OUTCOME_COLUMNS = "row, rank = kept_rank AS is_kept, near, kept_id, kept_page_id, family_id, similarity,"


@dataclass(frozen=True, kw_only=True, slots=True)
class DedupConfig:
    shingle_words: Annotated[int, "words a shingle, 1 or more; FineWeb 5"] = 5
    bands: Annotated[int, "MinHash bands, 1 or more; FineWeb 14"] = 14
    rows: Annotated[int, "MinHash values a band, 1 or more; FineWeb 8"] = 8
    sample_one_in: Annotated[int, "one shingle in so many is compared for containment, 1 or more"] = 4
    min_similarity: Annotated[float, "Jaccard index of shingles from which a document goes, above 0 to 1"] = 0.8
    min_containment: Annotated[
        float, "share of its shingles in a longer document from which it goes, above 0 to 1"
    ] = 0.9
    family_overlap: Annotated[
        float, "shared part of the smaller document that keeps both on one side of a split, above 0 to 1"
    ] = 0.2  # editions of a play in old and new spelling share a quarter of their 5-grams
    source_priority: Annotated[tuple[str, ...], "of equally long copies that of the first source here stays"] = ()
    seed: Annotated[int, "of the MinHash functions, 0 or more"] = 1

    def __post_init__(self) -> None:
        for name in ("shingle_words", "bands", "rows", "sample_one_in"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is below 1")
        for name in ("min_similarity", "min_containment", "family_overlap"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is outside 0 (not included) to 1")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} is below 0")


@dataclass(frozen=True, slots=True)
class SignatureItem:
    path: Path
    settings: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ShingleItem:
    """Rows of a shard whose shingles are written to `target`, one set after the other."""

    path: Path
    rows: tuple[int, ...]
    n_words: int
    target: Path


def dedup(cfg: DedupConfig, inputs: tuple[Shards], work: Work) -> Outcome:
    scratch = work.directory / SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)  # of a build that was killed
    make_signatures(cfg, inputs, work)
    database = open_database(scratch, n_threads=n_usable_cores(), memory_mb=MEMORY_MB)
    try:
        paths = shard_paths(inputs[0].directory)
        n_candidates, n_compared = judge(cfg, database, work, paths)
        counts = Counts()
        for shard, path in enumerate(paths):
            counts.add(_write_shard(cfg, database, shard, path, work.directory))
            work.progress(shard + 1, len(paths), "shards")
        measures = {"candidate_pairs": n_candidates, "compared_pairs": n_compared, **_measures(database)}
    finally:
        database.close()
        shutil.rmtree(scratch)
    kept = tuple(path.name for path in paths)
    return Outcome(rows=counts.kept, counts=counts, measures=measures, content=kept)


DEDUP = Stage(name="dedup", version=1, function=dedup, handle=Shards, libraries=("rensa",))


def make_signatures(cfg: DedupConfig, inputs: tuple[Shards], work: Work) -> None:
    """signatures/ below the output; thresholds are no part of what a shard is remembered by."""
    settings = {
        "n_words": cfg.shingle_words,
        "n_bands": cfg.bands,
        "n_rows": cfg.rows,
        "one_in": cfg.sample_one_in,
        "seed": cfg.seed,
    }
    libraries = json.loads(work.recipe)[2]
    recipe = json.dumps(["signatures", SIGNATURES_VERSION, libraries, settings], sort_keys=True)
    map_shards(
        dataclasses.replace(work, directory=work.directory / SIGNATURES_FOLDER, recipe=recipe),
        inputs,
        read=lambda path: [SignatureItem(path, settings)],
        function=signatures_of_shard,
        write=_write_signatures,
        unit="documents",
    )


def signatures_of_shard(item: SignatureItem) -> pa.Table:
    """Runs in a worker process."""
    table = read_table(item.path, columns=["id", "page_id", "source", "n_words", "text"])
    texts = (text.as_py() for text in table["text"])
    columns = {
        **{name: table[name] for name in ("id", "page_id", "source", "n_words")},
        "n_bytes": pc.call_function("binary_length", [table["text"]]).cast(pa.int64()),
        **signature_columns(texts, **item.settings),
    }
    return pa.table(columns, schema=SIGNATURES)


def judge(cfg: DedupConfig, database: Any, work: Work, paths: list[Path]) -> tuple[int, int]:
    """Fill the table `outcomes`; the numbers of candidate pairs and of verified ones."""
    n_documents = load_signatures(database, work.directory / SIGNATURES_FOLDER)
    n_candidates = find_candidates(database, cfg)
    shingles = _shingles_of_candidates(cfg, database, work, paths)
    found = verify(database, shingles, cfg, lambda rank: work.progress(rank, n_documents, "ranks"))
    settle(database, found)
    return n_candidates, found.n_compared


def shingles_of_rows(item: ShingleItem) -> None:
    """Runs in a worker process."""
    texts = read_table(item.path, columns=["text"])["text"]
    shingler = Shingler(item.n_words)
    with replacing(item.target) as part, part.open("wb") as file:
        for row in item.rows:
            shingler.shingles(texts[row].as_py()).tofile(file)


def _shingles_of_candidates(
    cfg: DedupConfig, database: Any, work: Work, paths: list[Path]
) -> Mapping[int, np.ndarray]:
    """Rank -> sorted shingles, mapped from files: only texts that have a candidate are read."""
    wanted = database.execute("SELECT shard, row, rank, n_shingles FROM wanted ORDER BY shard, row").fetchall()
    by_shard: dict[int, list[tuple[int, int, int]]] = {}
    for shard, row, rank, n_shingles in wanted:
        by_shard.setdefault(shard, []).append((row, rank, n_shingles))
    folder = work.directory / SCRATCH
    items = [
        ShingleItem(paths[shard], tuple(row for row, _, _ in rows), cfg.shingle_words, folder / f"{shard}.u64")
        for shard, rows in by_shard.items()
    ]
    for item, answer in zip(items, work.engine.map(shingles_of_rows, items) if items else (), strict=True):
        _checked(answer, item.path)
    shingles = {}
    for item, rows in zip(items, by_shard.values(), strict=True):
        flat = np.memmap(item.target, np.uint64, "r")
        ends = np.cumsum([n_shingles for _, _, n_shingles in rows])
        for (_, rank, n_shingles), end in zip(rows, ends.tolist(), strict=True):
            shingles[rank] = flat[end - n_shingles : end]
    return shingles


def _write_signatures(part: Path, items: list[SignatureItem], answers: list[Done | Failed]) -> Counts:
    table = _checked(answers[0], items[0].path)
    write_table(part / "kept.parquet", table)
    return Counts(rows_in=table.num_rows, kept=table.num_rows)


def _checked(answer: Done | Failed, path: Path) -> Any:
    if isinstance(answer, Failed):  # a document cannot be at fault here: it is text that earlier stages passed
        raise RuntimeError(f"{path}: {answer.reason} while its documents were compared: {answer.detail}")
    return answer.value


def _write_shard(cfg: DedupConfig, database: Any, shard: int, path: Path, directory: Path) -> Counts:
    query = f"SELECT {OUTCOME_COLUMNS} containment, bands_shared, cluster_size FROM outcomes WHERE shard = $shard"
    outcomes = database.sql(f"{query} ORDER BY row", params={"shard": shard}).to_arrow_table()
    table = read_table(path, FILTERED).select(FILTERED.names)
    is_kept = outcomes["is_kept"]
    kept = table.filter(is_kept)
    columns = {"cluster_id": "kept_page_id", "cluster_size": "cluster_size", "family_id": "family_id"}
    for name, column in columns.items():
        kept = kept.append_column(CORPUS.field(name), outcomes[column].filter(is_kept).cast(CORPUS.field(name).type))
    write_table(directory / path.name, kept.cast(CORPUS))
    counts = Counts(rows_in=table.num_rows, kept=kept.num_rows)
    is_dropped = pc.call_function("invert", [is_kept])
    pairs = list(_dropped_pairs(cfg, table.filter(is_dropped), outcomes.filter(is_dropped).to_pylist()))
    for dropped, _ in pairs:
        counts.drop(dropped["reason"])
    if pairs:
        write_rows(directory / DROPPED_FOLDER / path.name, [dropped for dropped, _ in pairs], DROPPED)
        write_rows(directory / EVIDENCE_FOLDER / path.name, [evidence for _, evidence in pairs], EVIDENCE)
    return counts


def _dropped_pairs(
    cfg: DedupConfig, table: pa.Table, outcomes: list[dict[str, Any]]
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """A row of DROPPED and one of EVIDENCE for each dropped document."""
    for document, outcome in zip(table.to_pylist(), outcomes, strict=True):
        measured = {name: outcome[name] for name in ("similarity", "containment", "bands_shared")}
        rule = "similarity" if outcome["similarity"] >= cfg.min_similarity else "containment"
        yield (
            {
                **{name: document[name] for name in ("id", "page_id", "source", "url")},
                "stage": DEDUP.name,
                "reason": "near_duplicate" if outcome["near"] else "exact_duplicate",
                "score": outcome[rule],
                "preview": document["text"][:PREVIEW_CHARACTERS],
            },
            {
                "kept_id": outcome["kept_id"],
                "dropped_id": document["id"],
                "kept_page_id": outcome["kept_page_id"],
                "dropped_page_id": document["page_id"],
                **measured,
            },
        )


def _measures(database: Any) -> dict[str, float]:
    largest, n_families = database.execute(
        "SELECT coalesce(max(cluster_size), 0), count(DISTINCT family_id) FROM outcomes"
    ).fetchone()
    measures = {"largest_cluster": largest, "families": n_families}
    removed = database.execute(
        "SELECT source, avg((rank <> kept_rank)::INT) FROM outcomes JOIN signatures USING (shard, row)"
        " GROUP BY source ORDER BY source"
    ).fetchall()
    return measures | {f"removed_fraction_{source}": fraction for source, fraction in removed}
