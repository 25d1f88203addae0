"""Arrays and tables in files: numpy's own format and Parquet, checked when they are opened, never unpickled.

In: arrays and paths. Out: files of the same bytes for the same values; arrays that are read from disk where they are
used. ValueError names a file that is missing, damaged, or something else than it should be.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def write_array(path: Path, values: np.ndarray) -> None:
    np.save(path, np.ascontiguousarray(values), allow_pickle=False)


def open_array(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> np.ndarray:
    """The array, mapped into memory for reading. An array of objects is refused before anything of it is read."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, MemoryError, OverflowError) as error:
        raise ValueError(f"{path}: not readable as an array of numbers ({error}); build the index again") from error
    if not isinstance(found, np.ndarray) or found.dtype != dtype or found.shape != shape:
        got = f"{found.dtype} {found.shape}" if isinstance(found, np.ndarray) else type(found).__name__
        raise ValueError(f"{path} holds {got}, expected {np.dtype(dtype)} {shape}; build the index again")
    return found


def open_table(path: Path, columns: Mapping[str, pa.DataType]) -> pa.Table:
    """The table with these columns, of these types and without a missing value."""
    try:
        table = pq.ParquetFile(path).read(columns=list(columns))
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path}: not readable as a table ({error}); build the index again") from error
    for name, kind in columns.items():
        if name not in table.column_names or table.schema.field(name).type != kind or table[name].null_count:
            raise ValueError(f"{path}: the column {name!r} must be there, of {kind}, without gaps; build it again")
    return table
