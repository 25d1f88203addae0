"""Indexes of the row positions in an output, so that a look-up among millions reads a few kilobytes and no shard.

In: the folder of a finished output. Out: an Index, which finds rows by page id, document id, URL or the end of one,
or by the shingles of a text. It is in <store>/trace/<fingerprint>/, one memory-mapped Arrow file per kind, and is
built once, when it is first needed, even if several processes need it at the same time. It is not part of the output:
it can be removed at any time, and is rebuilt if it is missing, damaged or of another version.

Kinds: keys (ids, exact, and their order), addresses (URL, the order of the reversed URLs, source, licence) and
passages (from dedup's signatures: a share of the shingles, and the rows with them). Rows are numbered over the files
sorted by name, kept ones first.
"""

import binascii
import bisect
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from model.data.token_shards import SPLITS, read_token_shard
from pipeline.store.layout import INDEXES
from pipeline.store.lineage import Folder
from pipeline.store.record_file import load_record
from pipeline.store.shards import DROPPED_FOLDER, file_digest, read_table, replacing, shard_paths, write_text

LOCK = ".index.lock"
VERSION = 1  # raise it when the content of the files below changes
KEYS, ADDRESSES, PASSAGES = "keys", "addresses", "passages"
SIGNATURES_FOLDER = "signatures"
ONE_SHINGLE_IN = 8  # share of the shingles in `passages`: 20 of a passage of 160 words
HEX_DIGITS, HEX_BYTES = 32, 16  # of an id as the stages write it
LONGEST_LIST = 10_000  # rows per shingle; more frequent shingles are ignored
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Index:
    """The rows of one output; `columns` are arrays of the mapped file with one entry per row, except for PASSAGES."""

    files: tuple[str, ...]  # below the output
    ends: np.ndarray  # int64: cumulative number of rows per file
    columns: dict[str, pa.Array]

    def place(self, row: int) -> tuple[str, int]:
        """The file of a row, and its number in the file."""
        number = int(np.searchsorted(self.ends, row, side="right"))
        return self.files[number], row - (int(self.ends[number - 1]) if number else 0)

    def rows_of(self, column: str, value: str) -> list[int]:
        """Rows whose `column` (page_id or id) is `value`, in order."""
        values, order = self.columns[column], _numbers(self.columns[f"{column}_order"])
        if (wanted := _key(value, values.type)) is None:
            return []
        first = bisect.bisect_left(range(len(order)), wanted, key=lambda i: values[int(order[i])].as_py())
        rows = []
        while first < len(order) and values[int(order[first])].as_py() == wanted:
            rows.append(int(order[first]))
            first += 1
        return sorted(rows)

    def value(self, column: str, row: int) -> Any:
        """The values of a row, ids as text."""
        value = self.columns[column][row].as_py()
        return value.hex() if isinstance(value, bytes) else value

    def rows_ending_in(self, end: str, most: int) -> tuple[list[int], int]:
        """At most `most` rows whose URL ends with `end`, shortest URL first, and their total number."""
        urls, order = self.columns["url"], _numbers(self.columns["url_order"])
        wanted = end.encode(errors="replace")[::-1]

        def backwards(i: int) -> bytes:
            return urls[int(order[i])].as_py().encode()[: -len(wanted) - 1 : -1]

        places = range(len(order))
        first = bisect.bisect_left(places, wanted, key=backwards)
        last = bisect.bisect_right(places, wanted, key=backwards)
        return [int(row) for row in order[first : min(last, first + most)]], last - first

    def rows_sharing(self, shingles: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Rows with one of `shingles`, those that share most first, with the number that they share and the total.

        Only shingles in the index are counted, see ONE_SHINGLE_IN.
        """
        wanted = indexed_shingles(shingles)
        hashes, owners = _numbers(self.columns["hash"]), _numbers(self.columns["row"])
        first, last = (np.searchsorted(hashes, wanted, side=side) for side in ("left", "right"))
        lists = [owners[a:b] for a, b in zip(first, last, strict=True) if a < b <= a + LONGEST_LIST]
        if not lists:
            return np.zeros(0, np.int64), np.zeros(0, np.int64), len(wanted)
        rows, counts = np.unique(np.concatenate(lists), return_counts=True)
        order = np.lexsort((rows, -counts))
        return rows[order].astype(np.int64), counts[order], len(wanted)


def open_index(store: Path, folder: Folder, kind: str, say: Say) -> Index:
    """The index of a finished output, which is built if there is no valid one. `say` is called before that."""
    path = _path(store, folder, kind)
    if (index := _read(path, folder)) is not None:
        return index
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(store / INDEXES / LOCK):
        if (index := _read(path, folder)) is None:  # no other run built it while this one waited
            _make(path, folder, kind, say)
            index = _read(path, folder)
    if index is None:
        raise ValueError(f"{path} cannot be read after it was written; is the disk full or broken?")
    return index


def drop_damaged(store: Path, folder: Folder) -> bool:
    """Remove the indexes of `folder` whose bytes have changed. Returns whether there were any."""
    damaged = False
    for record in sorted((store / INDEXES / folder.fingerprint).glob("*.json")):
        path = record.with_suffix(".arrow")
        try:
            whole = path.exists() and file_digest(path) == json.loads(record.read_text("utf-8"))["digest"]
        except (ValueError, KeyError, TypeError):
            whole = False
        if not whole:
            record.unlink(missing_ok=True)
            damaged = True
    return damaged


def indexed_shingles(shingles: np.ndarray) -> np.ndarray:
    """The `shingles` (uint64) that an index of passages contains, in its format: sorted, unique uint32."""
    known = shingles[shingles < np.uint64(2**64 // ONE_SHINGLE_IN)]
    return np.unique((known // np.uint64(2**32 // ONE_SHINGLE_IN)).astype(np.uint32))


def has_passages(folder: Folder) -> bool:
    """Whether the signatures for an index of passages exist."""
    paths = shard_paths(folder.directory, SIGNATURES_FOLDER)
    return bool(paths) and "sample" in pq.read_schema(paths[0]).names


def _path(store: Path, folder: Folder, kind: str) -> Path:
    return store / INDEXES / folder.fingerprint / f"{kind}.arrow"


def _read(path: Path, folder: Folder) -> Index | None:
    """None if there is no complete index of this version."""
    try:
        record = json.loads(path.with_suffix(".json").read_text("utf-8"))
        if record["version"] != VERSION or path.stat().st_size != record["bytes"]:
            return None
        if record["output"] != _digest_of(folder):  # lost rows were recovered since, see store/parts.py
            return None
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        names = tuple(name for name, _ in record["files"])
        ends = np.cumsum([rows for _, rows in record["files"]], dtype=np.int64)
        return Index(names, ends, {name: batch.column(name) for name in batch.schema.names})
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException):
        return None


def _make(path: Path, folder: Folder, kind: str, say: Say) -> None:
    path.with_suffix(".json").unlink(missing_ok=True)  # a damaged index counts as unfinished until it is rebuilt
    maker = {KEYS: _key_columns, ADDRESSES: _address_columns, PASSAGES: _passage_columns}[kind]
    parts = list(_parts(folder, kind))
    files = [(name, n_rows) for name, n_rows, _ in parts]
    say(f"indexing the {sum(n for _, n in files):,} rows of `{folder.stage}` ({kind}), once")
    batch = pa.RecordBatch.from_pydict(maker(folder, [path for _, _, path in parts]))
    with replacing(path) as part, pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    record = {
        "version": VERSION,
        "output": _digest_of(folder),
        "files": files,
        "bytes": path.stat().st_size,
        "digest": file_digest(path),
    }
    write_text(path.with_suffix(".json"), json.dumps(record))


def _digest_of(folder: Folder) -> str:
    return load_record(folder.directory)["digest"]


def _parts(folder: Folder, kind: str) -> Iterator[tuple[str, int, Path]]:
    """Name below the output, number of rows and path of the files that an index covers."""
    if kind == PASSAGES:
        paths = shard_paths(folder.directory, SIGNATURES_FOLDER)
    elif folder.stage == "tokenize":
        paths = [path for side in SPLITS for path in sorted((folder.directory / side).glob("*.arrow"))]
        paths += shard_paths(folder.directory, DROPPED_FOLDER)
    else:
        paths = [*shard_paths(folder.directory), *shard_paths(folder.directory, DROPPED_FOLDER)]
    for path in paths:
        n_rows = len(read_token_shard(path).document_ids) if _is_tokens(path) else pq.read_metadata(path).num_rows
        yield str(path.relative_to(folder.directory)), n_rows, path


def _is_tokens(path: Path) -> bool:
    return path.suffix == ".arrow"


def _key_columns(folder: Folder, paths: list[Path]) -> dict[str, Any]:
    """Token shards and examples have no pages."""
    has_pages = folder.stage not in ("tokenize", "examples")
    parts: dict[str, list[pa.Array]] = {"id": [], "page_id": []} if has_pages else {"id": []}
    for path in paths:
        if _is_tokens(path):
            parts["id"].append(read_token_shard(path).document_ids)
            continue
        is_page = folder.stage == "collect" and path.parent == folder.directory
        table = read_table(path, columns=["id"] if is_page else list(parts))
        for name, chunks in parts.items():
            chunks += table["id" if is_page else name].chunks
    columns: dict[str, Any] = {}
    for name, chunks in parts.items():
        columns[name], columns[f"{name}_order"] = _sorted_ids(chunks)
    return columns


def _address_columns(folder: Folder, paths: list[Path]) -> dict[str, Any]:
    import pyarrow.compute as pc

    tables = []
    for path in paths:
        table = read_table(path, columns=["url", "source"])
        there = "licence" in pq.read_schema(path).names
        licences = read_table(path, columns=["licence"])["licence"] if there else pa.nulls(len(table), pa.string())
        tables.append(table.append_column("licence", licences))
    table = pa.concat_tables(tables) if tables else pa.table({name: [] for name in ("url", "source", "licence")})
    urls = _joined(table["url"].chunks, pa.large_string())
    backwards = pc.call_function("binary_reverse", [urls.cast(pa.large_binary())])
    order = pc.call_function("array_sort_indices", [backwards], pc.ArraySortOptions())
    coded = {
        name: _joined(table[name].chunks, pa.string())
        .dictionary_encode()
        .cast(pa.dictionary(pa.int32(), pa.string()))
        for name in ("source", "licence")
    }
    return {"url": urls, "url_order": order.cast(pa.uint32()), **coded}


def _passage_columns(folder: Folder, paths: list[Path]) -> dict[str, Any]:
    import pyarrow.compute as pc

    hashes, rows, first = [np.zeros(0, np.uint32)], [np.zeros(0, np.uint32)], 0
    for path in paths:
        sample = read_table(path, columns=["sample"])["sample"].combine_chunks()
        lengths = pc.call_function("list_value_length", [sample]).to_numpy(zero_copy_only=False).astype(np.int64)
        flat = pc.call_function("list_flatten", [sample]).to_numpy(zero_copy_only=False)
        known = flat < np.uint64(2**64 // ONE_SHINGLE_IN)
        hashes.append((flat[known] // np.uint64(2**32 // ONE_SHINGLE_IN)).astype(np.uint32))
        rows.append(np.repeat(np.arange(first, first + len(sample), dtype=np.uint32), lengths)[known])
        first += len(sample)
    all_hashes, all_rows = np.concatenate(hashes), np.concatenate(rows)
    order = np.argsort(all_hashes, kind="stable")
    return {"hash": pa.array(all_hashes[order]), "row": pa.array(all_rows[order])}


def _joined(chunks: list[pa.Array], kind: pa.DataType) -> pa.Array:
    arrays = [chunk.cast(kind) for chunk in chunks]
    return pa.concat_arrays(arrays) if arrays else pa.array([], kind)


def _sorted_ids(chunks: list[pa.Array]) -> tuple[pa.Array, pa.Array]:
    """Ids, as 16 bytes if all are 32 hex digits as the stages write them, and the rows in the order of the ids."""
    import pyarrow.compute as pc

    texts = _joined(chunks, pa.large_string())
    lengths = pc.call_function("binary_length", [texts]).to_numpy(zero_copy_only=False)
    if (lengths == HEX_DIGITS).all():
        digits = texts.cast(pa.large_binary()).buffers()[2]
        start = texts.offset * HEX_DIGITS
        raw = memoryview(digits)[start : start + HEX_DIGITS * len(texts)] if digits else b""
        try:
            packed = binascii.unhexlify(raw)
        except ValueError:
            packed = None
        if packed is not None and binascii.hexlify(packed) == bytes(raw):  # otherwise upper case, which would be lost
            halves = np.frombuffer(packed, ">u8").reshape(-1, 2).astype(np.uint64)
            order = np.lexsort((halves[:, 1], halves[:, 0])).astype(np.uint32)
            binary = pa.Array.from_buffers(pa.binary(HEX_BYTES), len(texts), [None, pa.py_buffer(packed)])
            return binary, pa.array(order)
    order = pc.call_function("array_sort_indices", [texts], pc.ArraySortOptions())
    return texts, order.cast(pa.uint32())


def _key(value: str, kind: pa.DataType) -> Any:
    """`value` in the format of the index; None if it cannot be in it."""
    if not pa.types.is_fixed_size_binary(kind):
        return value
    if len(value) != HEX_DIGITS or value != value.lower():
        return None
    try:
        return binascii.unhexlify(value)
    except ValueError:
        return None


def _numbers(column: pa.Array) -> np.ndarray:
    """A view of the mapped file; to_numpy would import pandas first, which takes 0.2 s."""
    return np.from_dlpack(column)
