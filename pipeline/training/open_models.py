"""Reads a table of kind "open" of models.toml. Each origin of weights has a class and an entry in ORIGINS.

In: name and table, and the folder of the file. Out: an OpenConfig. A mistake raises a ValueError that names the
place, the key and what is allowed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.store.settings import read
from pipeline.training.open_config import FolderWeights, OpenConfig, PackageWeights, Part, PartedWeights
from pipeline.training.open_hub import HubWeights

ORIGINS: dict[str, type[OpenConfig]] = {
    origin.key: origin for origin in (PackageWeights, PartedWeights, FolderWeights, HubWeights)
}


def read_open(name: str, table: Mapping[str, Any], where: str, folder: Path) -> OpenConfig:
    """The model of a table (without its key `kind`) that is written at `where` of a file in `folder`."""
    given = [key for key in ORIGINS if key in table]
    if len(given) != 1:
        got = f"has {' and '.join(given)}" if given else "does not name the place of the weights"
        raise ValueError(f"{where}: the table {got}, expected exactly one of the keys {', '.join(ORIGINS)}")
    origin, values = ORIGINS[given[0]], dict(table)
    fixed: dict[str, Any] = {"name": name}
    if origin is PartedWeights:
        fixed["parts"] = _parts(values.pop("parts"), where)
    return read(origin, values, where, **fixed).below(folder)


def _parts(tables: Any, where: str) -> tuple[Part, ...]:
    if not isinstance(tables, list) or not tables:
        raise ValueError(
            f"{where}: parts is {tables!r}, expected a list of tables, each with package, version, file, sha256 and"
            " member"
        )
    return tuple(read(Part, one, f"{where}, part {number}") for number, one in enumerate(tables, 1))
