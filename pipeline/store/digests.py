"""The digest of a file's content as data, by which an output is identified.

In: a file. Out: 32 hex digits. Of Parquet and Arrow IPC files the names, types and values of the columns are hashed,
so that the same rows have the same digest however they were written: row groups, encodings, compression, the footer
with the version of the library, and the layout in memory (offsets, slices, dictionaries, what lies below a null) do
not count. Of all other files the bytes are hashed.

Every column is hashed as a few streams, each with a hash of its own, so that memory is bounded and it does not matter
where one batch of rows ends: positions of nulls, lengths, and values without the nulls.
"""

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from pipeline.store.errors import CorruptShard
from pipeline.store.shards import file_digest, text_digest

BATCH_BYTES = 16 << 20  # of values that are in memory at once, approximately
MOST_ROWS = 1 << 16  # per batch


def content_digest(path: Path, without: Collection[str] = ()) -> str:
    """The digest of the data in `path`; the columns `without`, such as a time of day, do not count.

    Raises CorruptShard if a table cannot be read.
    """
    if path.suffix not in (".parquet", ".arrow"):
        return file_digest(path)
    try:
        with _batches(path) as (schema, batches):
            return batches_digest(schema, batches, without)
    except (pa.ArrowException, OSError) as error:
        raise CorruptShard(f"{path}: not a readable table ({error}); delete its folder and rerun") from error


def batches_digest(schema: pa.Schema, batches: Iterable[pa.RecordBatch], without: Collection[str] = ()) -> str:
    """The digest of the rows in `batches`."""
    columns = {i: _Streams() for i, field in enumerate(schema) if field.name not in without}
    n_rows = 0
    for batch in batches:
        n_rows += batch.num_rows
        for i, streams in columns.items():
            _add(streams, "", batch.column(i))
    described = ((schema.field(i), streams.digest()) for i, streams in columns.items())
    return text_digest(str(n_rows), *(part for f, d in described for part in (f.name, type_name(f.type), d)))


def type_name(kind: pa.DataType) -> str:
    """The type of the values: how they are laid out in memory is left out."""
    if isinstance(kind, pa.BaseExtensionType):
        return type_name(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return type_name(kind.value_type)
    if _is_text(kind):
        return "string"
    if _is_binary(kind):
        return "binary"
    if pa.types.is_struct(kind):
        return f"struct<{', '.join(f'{one.name}: {type_name(one.type)}' for one in kind)}>"
    if pa.types.is_map(kind):
        return f"map<{type_name(kind.key_type)}, {type_name(kind.item_type)}>"
    if _is_list(kind):
        return f"list<{type_name(kind.value_type)}>"
    return str(kind)


@contextmanager
def _batches(path: Path) -> Iterator[tuple[pa.Schema, Iterable[pa.RecordBatch]]]:
    if path.suffix == ".arrow":
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as file:
            yield file.schema, (file.get_batch(i) for i in range(file.num_record_batches))
        return
    with pq.ParquetFile(path, buffer_size=BATCH_BYTES) as file:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        n_bytes = sum(group.total_byte_size for group in groups)
        rows = max(1, min(MOST_ROWS, BATCH_BYTES * file.metadata.num_rows // max(1, n_bytes)))
        yield file.schema_arrow, file.iter_batches(rows)


class _Streams:
    """The streams of one column, by name; a stream without content is left out."""

    def __init__(self) -> None:
        self.hashes: dict[str, xxhash.xxh3_128] = {}
        self.n_values: dict[str, int] = {}

    def add(self, name: str, content: Any) -> None:
        """`content` has the bytes of values: a buffer, an array of numpy, or bytes."""
        if name not in self.hashes:
            self.hashes[name] = xxhash.xxh3_128()
        self.hashes[name].update(content)

    def digest(self) -> str:
        return text_digest(*(part for name, one in sorted(self.hashes.items()) for part in (name, one.digest())))


def _add(streams: _Streams, name: str, array: pa.Array) -> None:
    """Adds the values of `array` to the streams below `name`."""
    array = _plain(array)
    first = streams.n_values.get(name, 0)
    streams.n_values[name] = first + len(array)
    if array.null_count:
        nulls = pc.call_function("indices_nonzero", [array.is_null()]).to_numpy().astype("<i8") + first
        streams.add(f"{name}/nulls", nulls)
        array = array.drop_null()
    kind = array.type
    if not len(array):
        return
    if pa.types.is_struct(kind):
        for i, child in enumerate(array.flatten()):
            _add(streams, f"{name}/{i}", child)
    elif _is_list(kind):
        streams.add(f"{name}/lengths", _whole(pc.call_function("list_value_length", [array])))
        _add(streams, f"{name}/items", array.flatten())
    elif _is_text(kind) or _is_binary(kind):
        streams.add(f"{name}/lengths", _whole(pc.call_function("binary_length", [array])))
        streams.add(f"{name}/values", _characters(array))
    elif pa.types.is_boolean(kind):
        streams.add(f"{name}/values", _buffer(array.cast(pa.uint8()), 1))
    elif pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or pa.types.is_fixed_size_binary(kind):
        streams.add(f"{name}/values", _buffer(array, kind.bit_width // 8))
    else:  # types that no stage of ours writes
        for value in array.to_pylist():
            streams.add(f"{name}/values", f"{value!r}\n".encode(errors="surrogatepass"))


def _plain(array: pa.Array) -> pa.Array:
    """The array in the usual layout of its type."""
    if isinstance(array, pa.ExtensionArray):
        return _plain(array.storage)
    if isinstance(array, pa.DictionaryArray):
        return _plain(array.dictionary_decode())
    if pa.types.is_run_end_encoded(array.type):
        return _plain(pc.call_function("run_end_decode", [array]))
    if pa.types.is_string_view(array.type):
        return array.cast(pa.large_string())
    return array.cast(pa.large_binary()) if pa.types.is_binary_view(array.type) else array


def _whole(lengths: pa.Array) -> np.ndarray:
    return lengths.to_numpy(zero_copy_only=False).astype("<i8", copy=False)


def _buffer(array: pa.Array, width: int) -> "pa.Buffer | bytes":
    """The bytes of values of a fixed `width` without nulls."""
    buffer = array.buffers()[1]
    return b"" if buffer is None else buffer.slice(array.offset * width, len(array) * width)


def _characters(array: pa.Array) -> "pa.Buffer | bytes":
    """The bytes of all texts without nulls, one after another."""
    _, offsets, values = array.buffers()
    if values is None:
        return b""
    large = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    places = np.frombuffer(offsets, np.int64 if large else np.int32)
    start, end = int(places[array.offset]), int(places[array.offset + len(array)])
    return values.slice(start, end - start)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)


def _is_binary(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
