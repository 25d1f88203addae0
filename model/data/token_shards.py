"""Token shards: the one Arrow schema for tokens, its writer and its memory-mapped reader.

In: documents as arrays of token ids. Out: Arrow IPC files, uncompressed, one row per document, which training reads
with no copy: the flat values of the list column are the token stream, its offsets the document borders.

A folder of token shards holds train/, validation/ and test/ with NNNNN.arrow files, and tokens.json:
vocab_size, end_of_text (the id that opens every document), tokenizer (digest), and per split documents, tokens
and bytes of text. Every document starts with the end-of-text token, so that its first word is predicted too.
In train/ a document may stand several times, as the weights of the sources want it; tokens.json counts it as often.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

SPLITS = ("train", "validation", "test")
DESCRIPTION = "tokens.json"


def token_schema(vocab_size: int) -> pa.Schema:
    """Columns document_id, n_bytes (UTF-8 bytes of the text) and tokens, 16 bit wide where the ids fit."""
    token = pa.uint16() if vocab_size <= 1 << 16 else pa.uint32()
    return pa.schema(
        [
            pa.field("document_id", pa.string(), nullable=False),
            pa.field("n_bytes", pa.int64(), nullable=False),
            pa.field("tokens", pa.large_list(pa.field("item", token, nullable=False)), nullable=False),
        ]
    )


def write_token_shard(
    path: Path,
    document_ids: Sequence[str],
    n_bytes: Sequence[int],
    documents: Sequence[np.ndarray],
    vocab_size: int,
) -> None:
    """Write one shard to `path`; the caller makes it appear whole by a rename.

    Raises ValueError for a token id that is not one of the vocabulary.
    """
    lengths = np.array([len(document) for document in documents], np.int64)
    flat = np.concatenate(documents) if documents else np.zeros(0, np.uint16)
    write_token_stream(
        path, pa.array(document_ids, pa.string()), np.array(n_bytes, np.int64), flat, lengths, vocab_size
    )


def write_token_stream(
    path: Path, document_ids: pa.Array, n_bytes: np.ndarray, tokens: np.ndarray, lengths: np.ndarray, vocab_size: int
) -> None:
    """As `write_token_shard`, of documents of `lengths` (int64) that lie one after another in `tokens`."""
    schema = token_schema(vocab_size)
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        wrong = int(tokens[(tokens < 0) | (tokens >= vocab_size)][0])
        raise ValueError(f"{path.name}: token id {wrong} is outside 0 to {vocab_size - 1}, the ids of the vocabulary")
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    kind = schema.field("tokens").type
    flat = pa.array(tokens.astype(kind.value_type.to_pandas_dtype(), copy=False))
    column = pa.LargeListArray.from_arrays(pa.array(offsets), flat, type=kind)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([document_ids, pa.array(n_bytes), column], schema=schema))


@dataclass(frozen=True, slots=True)
class TokenShard:
    """A memory-mapped shard. Document i is tokens[offsets[i]:offsets[i + 1]]."""

    path: Path
    document_ids: pa.StringArray
    n_bytes: np.ndarray  # int64, a document
    tokens: np.ndarray  # uint16 or uint32, a token; a view of the file
    offsets: np.ndarray  # int64, documents + 1


def read_token_shard(path: Path) -> TokenShard:
    """ValueError names the file when it is not a whole token shard."""
    try:
        batches = pa.ipc.open_file(pa.memory_map(str(path)))
        batch = batches.get_batch(0)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable token shard ({error}); delete its folder and rerun") from error
    if batches.schema.names != ["document_id", "n_bytes", "tokens"] or batches.num_record_batches != 1:
        raise ValueError(f"{path}: not a token shard, its columns are {batches.schema.names}")
    tokens = batch.column("tokens")
    return TokenShard(  # views by DLPack: to_numpy would import pandas first, which takes 0.2 s
        path=path,
        document_ids=batch.column("document_id"),
        n_bytes=np.from_dlpack(batch.column("n_bytes")),
        tokens=np.from_dlpack(tokens.values),
        offsets=np.from_dlpack(tokens.offsets),
    )


def read_token_shards(directory: Path, split: str) -> list[TokenShard]:
    """All shards of a split in the order of their names."""
    return [read_token_shard(path) for path in sorted((directory / split).glob("*.arrow"))]


def check_vocabulary(shards: Sequence[TokenShard], vocab_size: int) -> None:
    """Reads all tokens. ValueError names the first shard with one that is not below `vocab_size`."""
    for shard in shards:
        if len(shard.tokens) and int(shard.tokens.max()) >= vocab_size:
            raise ValueError(
                f"{shard.path} holds the token id {int(shard.tokens.max())}, outside 0 to {vocab_size - 1}, the"
                " ids of the vocabulary: the shard is damaged, or of another tokenizer; tokenise again"
            )


def read_description(directory: Path) -> dict[str, Any]:
    """tokens.json of a folder of token shards. ValueError when there is none, or what training needs is not in it."""
    path = directory / DESCRIPTION
    if not path.exists():
        raise ValueError(f"{directory} is not a folder of token shards: it has no {DESCRIPTION}")
    try:
        description = json.loads(path.read_text("utf-8"))
        fits = int(description["vocab_size"]) >= 1 and isinstance(description["tokenizer"], str)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: not a description of token shards ({error!r}); tokenise again") from error
    if not fits:
        raise ValueError(f"{path}: vocab_size must be at least 1 and tokenizer a digest; tokenise again")
    return description
