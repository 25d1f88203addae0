"""Token shards: the one Arrow schema for tokens, its writer and its memory-mapped reader.

In: documents as arrays of token ids, optionally with a loss weight per token. Out: Arrow IPC files, uncompressed, one
row per document, which training reads without a copy: the flat values of the list column are the token stream, its
offsets the borders of the documents.

Where a document came from is in an optional column, source, as a dictionary: training mixes sources by it, and an
evaluation reports by it. Shards without the column are of one unnamed source.

A loss weight belongs to the token as a target: 0 = the token is read but not learned, as in the prompts of
instruction data; 2 = it counts as two targets. Weights are float16 in an optional last column, loss_weights: 2
bytes per token, exact for whole numbers up to 2,048. A shard without the column gives every token weight 1.

A folder of token shards holds train/, validation/ and test/ with NNNNN.arrow files, and tokens.json: vocab_size,
end_of_text (the id that opens every document), tokenizer (digest), and per split documents, tokens and bytes of text.
Every document starts with the end-of-text token, so that its first word is predicted too. train/ may contain a
document several times, according to the weight of its source; tokens.json counts every copy.
"""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

SPLITS = ("train", "validation", "test")
DESCRIPTION = "tokens.json"
COLUMNS, SOURCE, LOSS_WEIGHTS = ["document_id", "n_bytes", "tokens"], "source", "loss_weights"
MOST_WEIGHT = 2048  # whole numbers up to here are exact in float16


def token_schema(vocab_size: int, *, with_sources: bool = False, with_weights: bool = False) -> pa.Schema:
    """Columns document_id, n_bytes (UTF-8 bytes of the text), tokens, 16 bits wide where the ids fit, and if asked
    for source and loss_weights."""
    token = pa.uint16() if vocab_size <= 1 << 16 else pa.uint32()
    columns = {"document_id": pa.string(), "n_bytes": pa.int64(), "tokens": _list_of(token)}
    if with_sources:
        columns[SOURCE] = pa.dictionary(pa.int32(), pa.string())
    if with_weights:
        columns[LOSS_WEIGHTS] = _list_of(pa.float16())
    return pa.schema([pa.field(name, kind, nullable=False) for name, kind in columns.items()])


def _list_of(kind: pa.DataType) -> pa.DataType:
    return pa.large_list(pa.field("item", kind, nullable=False))


def write_token_shard(
    path: Path,
    document_ids: Sequence[str],
    n_bytes: Sequence[int],
    documents: Sequence[np.ndarray],
    vocab_size: int,
    weights: Sequence[np.ndarray] | None = None,
    sources: Sequence[str] | None = None,
) -> None:
    """Write one shard to `path`, with the loss weight of each token of each document if `weights` are given, and with
    the source of each document if `sources` are; the caller makes the file appear whole by a rename.

    Raises ValueError for a token id outside the vocabulary, and for a weight that is negative or not finite.
    """
    lengths = np.array([len(document) for document in documents], np.int64)
    flat = np.concatenate(documents) if documents else np.zeros(0, np.uint16)
    ids, sizes = pa.array(document_ids, pa.string()), np.array(n_bytes, np.int64)
    flat_weights = None if weights is None else np.concatenate([np.zeros(0, np.float16), *weights])
    names = None if sources is None else pa.array(sources, pa.string())
    write_token_stream(path, ids, sizes, flat, lengths, vocab_size, flat_weights, names)


def write_token_stream(
    path: Path,
    document_ids: pa.Array,
    n_bytes: np.ndarray,
    tokens: np.ndarray,
    lengths: np.ndarray,
    vocab_size: int,
    weights: np.ndarray | None = None,
    sources: pa.Array | None = None,
) -> None:
    """Same as `write_token_shard`, for documents of `lengths` (int64) whose tokens follow each other in `tokens`."""
    schema = token_schema(vocab_size, with_sources=sources is not None, with_weights=weights is not None)
    if tokens.size and not 0 <= int(tokens.min()) <= int(tokens.max()) < vocab_size:
        wrong = int(tokens[(tokens < 0) | (tokens >= vocab_size)][0])
        raise ValueError(f"{path.name}: token id {wrong} is outside 0 to {vocab_size - 1}, the ids of the vocabulary")
    if weights is not None:
        _check_weights(path, weights, len(tokens))
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    columns: dict[str, pa.Array] = {"document_id": document_ids, "n_bytes": pa.array(n_bytes)}
    if sources is not None:
        columns[SOURCE] = sources.dictionary_encode()
    for name, values in (("tokens", tokens), (LOSS_WEIGHTS, weights)):
        if values is not None:
            kind = schema.field(name).type
            flat = pa.array(values.astype(kind.value_type.to_pandas_dtype(), copy=False))
            columns[name] = pa.LargeListArray.from_arrays(pa.array(offsets), flat, type=kind)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema))


def _check_weights(path: Path, weights: np.ndarray, n_tokens: int) -> None:
    if len(weights) != n_tokens:
        raise ValueError(f"{path.name}: {len(weights)} loss weights for {n_tokens} tokens; give one per token")
    is_wrong = ~((weights >= 0) & (weights <= MOST_WEIGHT))
    if is_wrong.any():
        wrong = float(weights[is_wrong][0])
        raise ValueError(f"{path.name}: the loss weight {wrong} is outside 0 to {MOST_WEIGHT:,}")


@dataclass(frozen=True, slots=True)
class TokenShard:
    """A memory-mapped shard. Document i is tokens[offsets[i]:offsets[i + 1]]."""

    path: Path
    document_ids: pa.StringArray
    n_bytes: np.ndarray  # int64, per document
    tokens: np.ndarray  # uint16 or uint32; a view of the file
    offsets: np.ndarray  # int64, documents + 1
    weights: np.ndarray | None = None  # float16, the loss weight of each token; a view of the file; None = all 1
    sources: pa.DictionaryArray | None = None  # per document; None = not known


def read_token_shard(path: Path) -> TokenShard:
    """Raises ValueError with the file when it is not a whole token shard."""
    try:
        batches = pa.ipc.open_file(pa.memory_map(str(path)))
        batch = batches.get_batch(0)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not a readable token shard ({error}); delete its folder and rerun") from error
    names = batches.schema.names
    optional = [name for name in (SOURCE, LOSS_WEIGHTS) if name in names]
    if names != [*COLUMNS, *optional] or batches.num_record_batches != 1:
        raise ValueError(
            f"{path}: not a token shard, its columns are {names}, expected {COLUMNS} and at most {SOURCE} and"
            f" {LOSS_WEIGHTS} after them"
        )
    tokens = batch.column("tokens")
    weights = batch.column(LOSS_WEIGHTS).values if LOSS_WEIGHTS in names else None
    if weights is not None and (weights.type != pa.float16() or len(weights) != len(tokens.values)):
        raise ValueError(
            f"{path}: {len(weights)} {LOSS_WEIGHTS} of type {weights.type} for {len(tokens.values)} tokens, expected"
            " one halffloat per token; write the shard again"
        )
    return TokenShard(  # views by DLPack: to_numpy would import pandas first, which takes 0.2 s
        path=path,
        document_ids=batch.column("document_id"),
        n_bytes=np.from_dlpack(batch.column("n_bytes")),
        tokens=np.from_dlpack(tokens.values),
        offsets=np.from_dlpack(tokens.offsets),
        weights=None if weights is None else np.from_dlpack(weights),
        sources=batch.column(SOURCE) if SOURCE in names else None,
    )


def read_token_shards(directory: Path, split: str) -> list[TokenShard]:
    """All shards of a split, in the order of their names."""
    return [read_token_shard(path) for path in sorted((directory / split).glob("*.arrow"))]


def check_vocabulary(shards: Sequence[TokenShard], vocab_size: int) -> None:
    """Reads all tokens. Raises ValueError for the first shard with an id that is not below `vocab_size`."""
    for shard in shards:
        if len(shard.tokens) and int(shard.tokens.max()) >= vocab_size:
            raise ValueError(
                f"{shard.path} holds the token id {int(shard.tokens.max())}, outside 0 to {vocab_size - 1}, the"
                " ids of the vocabulary: the shard is damaged, or of another tokenizer; tokenise again"
            )


def read_description(directory: Path) -> dict[str, Any]:
    """tokens.json of a folder of token shards. Raises ValueError when it is missing, or lacks what training needs."""
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


def shards_digest(directory: Path) -> str:
    """What tells a folder of token shards from any other: a digest of tokens.json and of every shard's bytes.

    Reads all files, several at once, at about 1.5 GB per second and core.
    """
    paths = sorted(path for split in SPLITS for path in (directory / split).glob("*.arrow"))
    with ThreadPoolExecutor() as threads:  # hashlib lets go of the GIL
        digests = threads.map(_file_digest, [directory / DESCRIPTION, *paths])
        names = [DESCRIPTION, *(str(path.relative_to(directory)) for path in paths)]
        text = "".join(f"{name} {digest}\n" for name, digest in zip(names, digests, strict=True))
    return hashlib.sha256(text.encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
