"""Encoded shards: the tokens of every shard of a split corpus, cached by shard and tokenizer.

In: split's shards and a tokenizer. Out: encoded/<shard>.arrow: Arrow IPC files with the rows of the shard in their
order, in batches of about BATCH_TOKENS tokens, each document with the columns that the shuffle and the mixture need.
Steps: a worker process reads a shard batch by batch, encodes it and writes the file itself, so that tokens are never
sent between processes and memory depends only on the longest document; this process moves the file into place.

An encoded shard does not depend on the order, the mixture or the size of the output files.
"""

import dataclasses
import functools
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from model.data.token_shards import token_schema
from model.data.tokenizer import Tokenizer, load_tokenizer
from pipeline.store.engine import Done, Failed, value_of
from pipeline.store.errors import CorruptShard
from pipeline.store.parts import map_shards
from pipeline.store.records import SPLIT_CORPUS, Counts, Shards, TokenizerFile
from pipeline.store.shards import replacing
from pipeline.store.store import Work

ENCODED_FOLDER = "encoded"
ENCODING_VERSION = 2  # raise it with any change of the file or of the tokens for an equal text and tokenizer
KEPT_COLUMNS = ("id", "page_id", "source", "split", "cluster_size")
BATCH_TOKENS = 1 << 20  # per batch of an encoded shard; a longer document is a batch of its own
READ_BYTES = 1 << 20  # of text in memory at a time, if documents are shorter
READ_DOCUMENTS = 256


@dataclass(frozen=True, slots=True)
class EncodeItem:
    """A shard to encode into `target`; `digest` distinguishes tokenizers that were in the same folder."""

    path: Path
    tokenizer: Path
    digest: str
    target: Path


def encoded_schema(vocab_size: int) -> pa.Schema:
    tokens, n_bytes = (token_schema(vocab_size).field(name) for name in ("tokens", "n_bytes"))
    return pa.schema([*(SPLIT_CORPUS.field(name) for name in KEPT_COLUMNS), n_bytes, tokens])


def encode_shards(corpus: Shards, file: TokenizerFile, work: Work) -> Counts:
    """Writes encoded/<shard>.arrow for every shard."""
    recipe = json.dumps(["encoded", ENCODING_VERSION, dict(work.libraries), file.digest])
    scratch = (
        work.parts / f".{work.fingerprint}"
    )  # on the same file system as the parts, so that a file can be renamed
    shutil.rmtree(scratch, ignore_errors=True)  # left by a build that was killed
    try:
        return map_shards(
            dataclasses.replace(work, directory=work.directory / ENCODED_FOLDER, recipe=recipe),
            (corpus,),
            read=lambda path: [EncodeItem(path, file.directory, file.digest, scratch / f"{path.stem}.arrow")],
            function=encode_shard,
            write=_keep_encoded,
            unit="documents",
        )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def encode_shard(item: EncodeItem) -> int:
    """Number of documents written. Runs in a worker process."""
    tokenizer = _tokenizer(item.tokenizer, item.digest)
    schema, n_documents = encoded_schema(tokenizer.vocab_size), 0
    with replacing(item.target) as file, pa.ipc.new_file(str(file), schema) as writer:
        for batch in _encoded_batches(tokenizer, schema, read_batches(item.path, [*KEPT_COLUMNS, "text"])):
            writer.write_batch(batch)
            n_documents += batch.num_rows
    return n_documents


def read_encoded(path: Path, *, mapped: bool = False) -> Iterator[pa.RecordBatch]:
    """The batches of an encoded shard, one in memory at a time, or memory-mapped if only few columns are read.

    Raises CorruptShard naming the file.
    """
    try:
        with pa.memory_map(str(path)) if mapped else pa.OSFile(str(path)) as source:
            reader = pa.ipc.open_file(source)
            for i in range(reader.num_record_batches):
                yield reader.get_batch(i)
    except (pa.ArrowException, OSError) as error:
        raise CorruptShard(f"{path}: not a readable encoded shard ({error}); delete its folder and rerun") from error


def offsets_of(tokens: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The flat tokens of a batch's column and the offsets of its documents, without copying."""
    return tokens.values.to_numpy(zero_copy_only=True), tokens.offsets.to_numpy(zero_copy_only=False)


def read_batches(path: Path, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Rows of a shard of documents, about READ_BYTES of text at a time. Raises CorruptShard naming the file."""
    try:
        with pq.ParquetFile(path, buffer_size=READ_BYTES) as file:
            if missing := [name for name in columns if name not in file.schema_arrow.names]:
                raise CorruptShard(f"{path}: columns {missing} are missing; delete its folder and rerun")
            yield from file.iter_batches(_rows_at_once(file), columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise CorruptShard(f"{path}: not a readable Parquet shard ({error}); delete its folder and rerun") from error


def _rows_at_once(file: pq.ParquetFile) -> int:
    """The number of documents that make READ_BYTES of text on average."""
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    n_bytes = sum(group.column(_column_index(group, "text")).total_uncompressed_size for group in groups)
    return min(READ_DOCUMENTS, max(1, READ_BYTES * file.metadata.num_rows // max(1, n_bytes)))


def _column_index(group: pq.RowGroupMetaData, name: str) -> int:
    """The index of a column in a row group, where nested columns before it take several places."""
    return next(i for i in range(group.num_columns) if group.column(i).path_in_schema == name)


def _encoded_batches(
    tokenizer: Tokenizer, schema: pa.Schema, batches: Iterator[pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    rows: list[pa.RecordBatch] = []
    documents: list[np.ndarray] = []
    n_tokens = 0
    for batch in batches:
        rows.append(batch)
        for text in batch.column("text").to_pylist():
            documents.append(tokenizer.encode_array(text))
            n_tokens += len(documents[-1]) + 1
        if n_tokens >= BATCH_TOKENS:
            yield _encoded_batch(tokenizer, schema, rows, documents)
            rows, documents, n_tokens = [], [], 0
    if rows:
        yield _encoded_batch(tokenizer, schema, rows, documents)


def _encoded_batch(
    tokenizer: Tokenizer, schema: pa.Schema, rows: Sequence[pa.RecordBatch], documents: Sequence[np.ndarray]
) -> pa.RecordBatch:
    dtype = schema.field("tokens").type.value_type
    opening = np.array([tokenizer.end_of_text], np.uint32)
    flat = np.concatenate([part for document in documents for part in (opening, document)])
    assert flat.max() < tokenizer.vocab_size
    offsets = np.zeros(len(documents) + 1, np.int64)
    np.cumsum([len(document) + 1 for document in documents], out=offsets[1:])
    table = pa.Table.from_batches(rows)
    columns = {
        **{name: table[name].combine_chunks() for name in KEPT_COLUMNS},
        "n_bytes": pc.call_function("binary_length", [table["text"]]).combine_chunks(),
        "tokens": pa.LargeListArray.from_arrays(
            pa.array(offsets), pa.array(flat.astype(dtype.to_pandas_dtype())), type=schema.field("tokens").type
        ),
    }
    return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)


@functools.lru_cache(maxsize=1)
def _tokenizer(directory: Path, digest: str) -> Tokenizer:
    return load_tokenizer(directory)


def _keep_encoded(part: Path, items: Sequence[EncodeItem], answers: Sequence[Done | Failed]) -> Counts:
    item = items[0]
    n_documents = value_of(answers[0], item.path, "it was encoded")
    item.target.replace(part / "kept.arrow")
    return Counts(rows_in=n_documents, kept=n_documents)
