"""Reads the small JSON files of the data folder: records of outputs, current outputs, journals.

In: a path, the keys that the file must have, and what helps if it is damaged. Out: its object, or a CorruptShard that
names the file. A crash of the machine, a full disk or an editor may leave such a file empty, torn or with other
content; every reader then says the same.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any

from pipeline.store.errors import CorruptShard

Kind = type | UnionType | tuple[type, ...]
NUMBER = int | float


def read_object(path: Path, keys: Mapping[str, Kind], cure: str) -> dict[str, Any]:
    """The object in `path`, which has at least `keys` with values of these types. Raises CorruptShard otherwise."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptShard(f"{path} is damaged ({_why(path, error)}); {cure}") from error
    if fault := misfit(found, keys):
        raise CorruptShard(f"{path} is damaged ({fault}); {cure}")
    return found


def misfit(value: Any, keys: Mapping[str, Kind]) -> str | None:
    """Why `value` is not an object with `keys`, in words; None = it is."""
    if not isinstance(value, dict):
        return f"it contains {_name(type(value))}, expected an object"
    for key, kind in keys.items():
        if key not in value:
            return f"it has no `{key}`"
        if not isinstance(value[key], kind) or (isinstance(value[key], bool) and kind is not bool):
            return f"its `{key}` is {_name(type(value[key]))}"
    return None


def _why(path: Path, error: Exception) -> str:
    return "it is empty" if not path.stat().st_size else f"it is not whole JSON: {error}"


def _name(kind: type) -> str:
    names = {dict: "an object", list: "a list", str: "a text", int: "a number", float: "a number", NoneType: "null"}
    return names.get(kind, kind.__name__)
