"""The sources that a user declares: one table of sources.toml each, checked before anything is fetched or read.

In: the path of sources.toml. Out: `Source` by table name. Each kind has a file of its own and a place in KINDS:

- files: a folder, a single file or an archive (.zip, .whl, .tar, .tar.gz, .tgz, .tar.bz2, .tar.xz) on this machine.
- package: files inside a package of the Python package index, pinned by version and sha256.
- url: files at addresses (http, https, file), each pinned by its sha256.

`members` are globs relative to the folder or the archive: `*` stays within one folder, `**/` spans any number of
them, and a glob that begins with `!` takes files out again. `languages`, `rules` and `pii` say what `filter` does to
this source, `weight` how often `tokenize` repeats it.
"""

import difflib
import tomllib
from dataclasses import MISSING, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from pipeline.corpus.collect.files import FilesSource
from pipeline.corpus.collect.package import PackageSource
from pipeline.corpus.collect.source import Source
from pipeline.corpus.collect.url import UrlSource

KINDS: dict[str, type[Source]] = {kind.kind: kind for kind in (PackageSource, FilesSource, UrlSource)}


def read_sources(path: Path) -> dict[str, Source]:
    """Sources by name, in the order of the file. ValueError names file, table, key and what is allowed."""
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} does not exist; it declares the sources of the corpus") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid TOML: {error}") from error
    sources = {}
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise ValueError(
                f"{path}: {name} = {table!r} stands outside a table; put it below a line [name-of-source]"
            )
        try:
            sources[name] = _source(name, table, path.parent)
        except ValueError as error:
            raise ValueError(f"{path}: [{name}]: {error}") from error
    if not sources:
        raise ValueError(f'{path} declares no source; add a table, for instance one of kind = "files"')
    return sources


def _source(name: str, table: dict[str, Any], folder: Path) -> Source:
    if "kind" not in table:
        raise ValueError(f"key `kind` is missing; allowed: {_listed(KINDS)}")
    if table["kind"] not in KINDS:
        raise ValueError(f"kind is {table['kind']!r}, allowed: {_listed(KINDS)}{_did_you_mean(table['kind'], KINDS)}")
    kind = KINDS[table["kind"]]
    types = get_type_hints(kind)
    allowed = [field.name for field in fields(kind) if field.name != "name"]
    for key in table:
        if key not in ("kind", *allowed):
            raise ValueError(
                f"unknown key `{key}`; allowed: {_listed(['kind', *allowed])}{_did_you_mean(key, allowed)}"
            )
    required = [field.name for field in fields(kind) if field.default is MISSING and field.name != "name"]
    if missing := [key for key in required if key not in table]:
        raise ValueError(f"key `{missing[0]}` is missing; kind {kind.kind!r} needs {_listed(required)}")
    values = {key: _checked(key, value, types[key]) for key, value in table.items() if key != "kind"}
    return kind(name=name, **values).below(folder)


def _checked(key: str, value: Any, expected: Any) -> Any:
    if get_origin(expected) in (UnionType, Union):  # TOML has no null
        expected = next(kind for kind in get_args(expected) if kind is not NoneType)
    if get_origin(expected) is Literal:
        if value not in get_args(expected):
            allowed = get_args(expected)
            raise ValueError(f"{key} is {value!r}, allowed: {_listed(allowed)}{_did_you_mean(value, allowed)}")
        return value
    if get_origin(expected) is tuple:
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            example = '["docs/**/*.html"]' if key == "members" else '[] or ["one", "two"]'
            raise ValueError(f"{key} is {value!r}, expected a list of texts such as {example}")
        return tuple(value)
    if expected is float:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"{key} is {value!r}, expected a number")
        return float(value)
    if not isinstance(value, expected) or value == "":
        raise ValueError(f"{key} is {value!r}, expected a text")
    return value


def _listed(names: Any) -> str:
    return ", ".join(str(name) for name in names)


def _did_you_mean(got: Any, allowed: Any) -> str:
    close = difflib.get_close_matches(str(got), [str(name) for name in allowed], n=1)
    return f"; did you mean `{close[0]}`?" if close else ""
