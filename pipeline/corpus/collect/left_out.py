"""Why a file of a source is none of its pages: its globs leave the file out, or its name begins with a dot.

In: the sources, and what a user calls the file: an address, a path, or the end of one. Out: one sentence per file.
Nothing is downloaded, so a package or an address that was never fetched is not searched.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.corpus.collect.members import Choice, address_of, shown
from pipeline.corpus.collect.source import Source

MOST = 5  # files that are named


def left_out(sources: Iterable[Source], cache: Path, query: str) -> list[str]:
    """At most MOST sentences; none if no file with that name is left out."""
    query = query.removeprefix("./").rstrip("/")
    endings = {query, address_of(query)} if query else set()
    if Path(query).is_absolute():
        endings.add(Path(query).as_uri())
    found: list[str] = []
    for source in sources:
        for sentence in _left_out_of(source, cache, query, endings):
            found.append(sentence)
            if len(found) == MOST:
                return found
    return found


def _left_out_of(source: Source, cache: Path, query: str, endings: set[str]) -> Iterator[str]:
    choice = Choice(source.members)
    try:
        for url, member in source.candidates(cache):
            if not any(url == ending or url.endswith(f"/{ending}") for ending in endings):
                continue
            where = f"{shown(url)} is left out of source `{source.name}` by members"
            if glob := choice.leaves(member.name):
                yield f'{where}: the glob "!{glob.removeprefix("!")}" excludes it'
            elif not choice.hits(member.name):
                yield f"{where}: none of its globs matches it ({', '.join(choice.takes)})"
        if hidden := _hidden(source, query):
            yield f"{shown(hidden.as_uri())} is not read, because a part of its name begins with a dot"
    except (ValueError, OSError):  # a source that is not there has no files
        return


def _hidden(source: Source, query: str) -> Path | None:
    root = Path(getattr(source, "path", ""))
    path = root / query
    is_hidden = root.is_dir() and path.is_relative_to(root) and path.is_file()
    return path if is_hidden and any(part.startswith(".") for part in path.relative_to(root).parts) else None
