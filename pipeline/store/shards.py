"""Reads and writes shards: atomic files, Parquet tables, content digests.

In: Arrow tables. Out: files that appear complete or not at all, because each is written under a temporary name and
renamed.
`shard_number` distributes pages over a fixed number of shards by a hash of their URL, so that one changed file
changes one shard and an added file moves no other.
"""

import os
import re
import shutil
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from pipeline.store.errors import CorruptShard

DROPPED_FOLDER = "dropped"
EVIDENCE_FOLDER = "evidence"
IN_GLOB = re.compile(r"([*?\[])")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path next to `path` that replaces it when the block ends, and is removed when the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    with replacing(path) as part:
        part.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode())


def write_durably(path: Path, text: str) -> None:
    """Write a file by which others are found, such as the record of an output: it is there after a power cut."""
    write_text(path, text)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Force the names in a folder to disk, after files were renamed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_table(path: Path, table: pa.Table) -> None:
    with replacing(path) as part:
        pq.write_table(table, part, compression="zstd", compression_level=3)


def write_rows(path: Path, rows: list[dict[str, object]], schema: pa.Schema) -> None:
    write_table(path, pa.Table.from_pylist(rows, schema=schema))


def read_table(path: Path, schema: pa.Schema | None = None, columns: list[str] | None = None) -> pa.Table:
    """The table in `path`. Raises CorruptShard with its name when it is unreadable or lacks a column."""
    try:
        with pq.ParquetFile(path) as file:  # read_table would read folders named key=value as columns
            table = file.read(columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise CorruptShard(f"{path}: not a readable Parquet shard ({error}); delete its folder and rerun") from error
    expected = columns or (schema.names if schema else [])
    if missing := [name for name in expected if name not in table.column_names]:
        raise CorruptShard(
            f"{path}: columns {missing} are missing, got {table.column_names}; delete its folder and rerun"
        )
    return table


def shard_paths(directory: Path, folder: str = "") -> list[Path]:
    """Shard files of a finished folder, sorted by name."""
    return sorted((directory / folder).glob("*.parquet"))


def duckdb_files(paths: Iterable[Path]) -> list[str]:
    """`paths` escaped for read_parquet, which would read signs such as [ and * in them as patterns."""
    return [IN_GLOB.sub(r"[\1]", str(path)) for path in paths]


def shard_number(url: str, n_shards: int) -> int:
    """The shard of a page: a hash of its URL determines it, whatever other pages there are."""
    return xxhash.xxh3_64_intdigest(url.encode(errors="surrogatepass")) % n_shards


def shard_name(source: str, number: int) -> str:
    return f"{source}-{number:05d}.parquet"


def text_digest(*parts: str | bytes) -> str:
    """32 hex digits. The lengths of the parts are hashed too, so that ("ab", "c") differs from ("a", "bc")."""
    digest = xxhash.xxh3_128()
    for part in parts:
        raw = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "little"))
        digest.update(raw)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def link_or_copy(source: Path, target: Path) -> None:
    """Hard-links `target` to `source` if the file system can, so that a reused shard needs no disk space."""
    with replacing(target) as part:
        try:
            os.link(source, part)
        except OSError:
            shutil.copyfile(source, part)
