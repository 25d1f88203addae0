"""The index of an accepted corpus (documents that earlier outputs of `dedup` kept), to compare new documents with.

In: finished outputs of `dedup` whose signatures have the same settings as those of the new documents. Out: DuckDB
views over their files; nothing is copied. The folder index/ of an output lists, for each shard, which rows of its
signatures were kept, in their order. Ranks of accepted documents are negative: -1 is the last one.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.corpus.dedup.near_duplicates import view_files
from pipeline.corpus.dedup.signatures import SIGNATURES_FOLDER, ShardPositions, positions_of
from pipeline.store.errors import CorruptShard
from pipeline.store.records import Shards
from pipeline.store.shards import shard_paths, write_table, write_text

INDEX_FOLDER = "index"
RECIPE = "signatures.json"  # the settings of the signatures in the same folder
INDEX = pa.schema([pa.field("row", pa.int64(), nullable=False)])
NONE = """
CREATE VIEW accepted_signed AS SELECT NULL::BIGINT AS rank, * FROM signed LIMIT 0;
CREATE VIEW accepted_named AS SELECT NULL::BIGINT AS rank, NULL::BIGINT AS position, NULL::VARCHAR AS id,
    NULL::VARCHAR AS page_id, NULL::VARCHAR AS family_id LIMIT 0;
"""
SOME = """
CREATE VIEW accepted_signed AS SELECT * FROM accepted_all SEMI JOIN accepted_kept USING (rank);
CREATE VIEW accepted_named AS SELECT rank, position, id, page_id, family_id
    FROM accepted_shards JOIN accepted_kept USING (file, nth);
"""


def write_index(directory: Path, shard: str, is_kept: np.ndarray) -> None:
    rows = pa.array(np.flatnonzero(is_kept).astype(np.int64))
    write_table(directory / INDEX_FOLDER / shard, pa.table([rows], schema=INDEX))


def write_recipe(directory: Path, recipe: str) -> None:
    write_text(directory / INDEX_FOLDER / RECIPE, recipe)


def view_accepted(database: Any, accepted: Sequence[Shards]) -> ShardPositions:
    """Create the views `accepted_signed` and `accepted_named`. Returns the layout of the documents in them."""
    documents = positions_of(path for handle in accepted for path in shard_paths(handle.directory))
    if not documents.paths:
        database.execute(NONE)
        return documents
    signatures = positions_of(
        path for handle in accepted for path in shard_paths(handle.directory, SIGNATURES_FOLDER)
    )
    kept = positions_of(path for handle in accepted for path in shard_paths(handle.directory, INDEX_FOLDER))
    if not len(signatures.paths) == len(kept.paths) == len(documents.paths) or kept.starts != documents.starts:
        raise CorruptShard(f"{accepted[0].directory}: index/ does not fit its shards; delete the folder and rerun")
    n = signatures.n_rows
    view_files(database, "accepted_all", signatures, f"start + file_row_number - {n} AS rank, *")
    columns = f"file, file_row_number AS nth, start + row - {n} AS rank"
    view_files(database, "accepted_kept", dataclasses.replace(signatures, paths=kept.paths), columns)
    columns = "file, file_row_number AS nth, start + file_row_number AS position, id, page_id, family_id"
    view_files(database, "accepted_shards", documents, columns)
    database.execute(SOME)
    return documents


def check_index(handle: Shards, recipe: str) -> None:
    """Raises ValueError when the signatures of `handle` have other settings than `recipe`."""
    path = handle.directory / INDEX_FOLDER / RECIPE
    if not path.exists():
        raise ValueError(
            f"{handle.directory} has no index/{RECIPE}: it was made by an older version of `dedup`; build it again"
        )
    if (made := path.read_text("utf-8")) != recipe:
        raise ValueError(
            f"{handle.directory} cannot be an index: its signatures were made as {made}, those of the new documents"
            f" as {recipe}; run `dedup` with the same shingle_words, bands, rows, sample_one_in and seed"
        )
