"""Turns the records of a labelled file into rows: takes their parts by path and lets the kind of task judge them.

In: name and content of a file, a kind and its settings. Out: one `Row` per record, in order, as an example or with
its drop reason. A path that is in no record raises a ValueError that names the columns that the records have.
"""

import io
import re
from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.corpus.examples.data_files import beginning_of, plain_name
from pipeline.corpus.examples.labelled_file import PARQUET, TABLES, suffix_of
from pipeline.corpus.examples.paths import fields_of, part_of, value_at
from pipeline.corpus.examples.protocol import ExamplesConfig, Rows, part_paths
from pipeline.corpus.examples.rows import Row
from pipeline.store.settings import did_you_mean

BEGINNING_BYTES = 1_000_000  # of a labelled file on this machine that are read before anything is built
BEGINNING_ROWS = 1000  # of a parquet file
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "development"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
SHOWN_COLUMNS = 20
NAME = re.compile(r"[^\W\d][\w .:/()-]{0,40}")  # of a column, most likely


def labelled_rows(
    name: str, content: bytes, kind: Rows, cfg: ExamplesConfig, stray_quotes: list[int] | None = None
) -> Iterator[Row]:
    """Every row, as an example or with its drop reason; for `stray_quotes` see labelled_file.py."""
    n_unreadable, stray_quotes = 0, [] if stray_quotes is None else stray_quotes
    columns: set[str] = set()  # for the suggestion in the error message
    paths = part_paths(kind, cfg)
    missing = {field: part for part, path in paths.items() if part not in kind.optional for field in fields_of(path)}
    for number, record in enumerate(kind.records(name, content, cfg, stray_quotes), 1):
        if isinstance(record, str):
            n_unreadable += 1
            row = Row(record, reason="unreadable_row", detail=_unreadable(name))
        else:
            if missing:
                columns.update(record.keys())
                for field in [field for field in missing if value_at(record, field) is not None]:
                    del missing[field]
            parts = dict.fromkeys(kind.parts) | {part: part_of(record, path) for part, path in paths.items()}
            group, split = parts.pop("group", None), parts.pop("split", None)
            row = kind.row(parts, cfg)
            if row.group is None and group is not None:
                row.group = str(group)
            if cfg.split is not None:
                _set_split(row, split)
        row.number = number
        yield row
    for field, part in missing.items():
        unreadable = f"; {n_unreadable:,} rows cannot be read: {_unreadable(name)}" if n_unreadable else ""
        raise ValueError(
            f"{name}: {part} is {field!r}, {_what_is_there(field, columns)}{unreadable}"
            f"{_header_hint(name, columns, cfg)}"
        )


def _what_is_there(field: str, columns: Collection[str]) -> str:
    if field in columns:
        return "but that has no value in any row"
    if not columns:
        return "but no row has that; the rows have: no readable row"
    known = ", ".join(sorted(columns)[:SHOWN_COLUMNS])
    return f"but no row has that; the rows have: {known}{did_you_mean(field, columns)}"


def _header_hint(name: str, columns: Collection[str], cfg: ExamplesConfig) -> str:
    """What to do about a table whose first row does not look like names of columns."""
    if suffix_of(name) not in TABLES or cfg.columns or all(NAME.fullmatch(column) for column in columns):
        return ""
    return '. If the file has no header, name its columns: columns = ["label", "text"]'


def _set_split(row: Row, value: object) -> None:
    row.split = SPLIT_NAMES.get(str(value).strip().casefold())
    if row.split is None and row.reason is None:
        row.reason, row.detail = "unknown_split", "" if value is None else repr(value)[:60]


def check_beginning(kind: Rows, path: Path, cfg: ExamplesConfig, most: int = BEGINNING_BYTES) -> None:
    """Raises ValueError if a part of a row is missing in the header of the file, or in all rows of a small file.

    So a plan shows it, and a run is refused before anything is built. In a large file without a header a part may
    first appear later.
    """
    name, content, is_whole = _beginning(path, most)
    try:
        for _ in labelled_rows(name, content, kind, cfg):
            pass
    except ValueError:
        if is_whole or suffix_of(name) in (".csv", ".tsv", PARQUET):
            raise


def _beginning(path: Path, most: int) -> tuple[str, bytes, bool]:
    """The name of the file, its first rows as a file of the same form, and whether these are all."""
    name, is_compressed = plain_name(str(path)), plain_name(path.name) != path.name
    if suffix_of(name) == PARQUET and not is_compressed:
        return name, *_first_parquet_rows(path)
    content = beginning_of(path, most + 1)
    if len(content) <= most:
        return name, content, True
    return name, content[: content.rfind(b"\n") + 1], False


def _first_parquet_rows(path: Path) -> tuple[bytes, bool]:
    out = io.BytesIO()
    try:
        with pq.ParquetFile(path) as file:
            batches = file.iter_batches(BEGINNING_ROWS)
            table = pa.Table.from_batches([*_first(batches)], schema=file.schema_arrow)
            is_whole = table.num_rows == file.metadata.num_rows
    except pa.ArrowException as error:
        raise ValueError(f"{path} is not a readable parquet file: {error}") from error
    pq.write_table(table, out)
    return out.getvalue(), is_whole


def _first(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield batch
        return


def _unreadable(name: str) -> str:
    if suffix_of(name) in (".jsonl", ".json"):
        return "not a JSON object"
    return "more cells than columns; quote texts that contain the delimiter"
