"""Finds what `gristmill forget` must deny: pages, their copies, and documents that contain parts of them.

In: the current handles of the assets, and addresses or ids. Out: `Findings`: the requested pages, the pages that
repeat them, and those that contain a part of them besides other content.

A page is denied together with the requested pages if
- it has the same text (document id), in any source;
- `dedup` or `dedup_lines` dropped it in favour of one of them, according to the evidence: it would come back in their
  place. The page in favour of which one of them was dropped as a near copy is denied too, with all its copies;
- it is similar to a forgotten text, or an excerpt of it, and `dedup` has not kept it as a different text.
A page that `dedup` kept besides a forgotten text, such as another page of the same template, or a longer document
that contains the text or a part of it, is reported with its share and kept, because it has other content too.
"""

import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.corpus.collect.members import address_of
from pipeline.corpus.deny_list import Denial
from pipeline.corpus.examples.stage import document_id
from pipeline.provenance.copies import Copy, CopyLimits, find_copies
from pipeline.store.chain import links_of, schema
from pipeline.store.engine import Engine
from pipeline.store.lineage import Folder, Record, folder_of, lineage
from pipeline.store.records import Handle
from pipeline.store.shards import DROPPED_FOLDER, EVIDENCE_FOLDER, read_table, shard_paths

PARTS = ("", DROPPED_FOLDER)
PAIR_COLUMNS = ("dropped_page_id", "kept_page_id", "similarity", "containment")  # columns of the evidence of `dedup`


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """A page in some output. `document_id` and `n_words` are None if the page gave no text."""

    page_id: str
    source: str
    url: str
    document_id: str | None = None
    n_words: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Relative:
    """A page that repeats another one, fully or in part."""

    page: Page
    of: str  # page id of the other one
    why: str  # to be printed
    held: float  # share of the other page's text that it contains, 0 to 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """`copies` are denied with `asked`; `holders` are only reported, largest share first."""

    asked: tuple[Page, ...]
    copies: tuple[Relative, ...]
    holders: tuple[Relative, ...]
    examples: Mapping[str, Sequence[str]] = field(default_factory=dict)  # asset -> ids of rows with a forgotten text
    near_examples: Mapping[str, int] = field(default_factory=dict)  # asset -> rows that repeat a part of it

    @property
    def pages(self) -> tuple[Page, ...]:
        """All pages that are denied."""
        return (*self.asked, *(copy.page for copy in self.copies))


@dataclass(frozen=True, slots=True)
class Known:
    """All outputs behind the current ones that still exist."""

    handles: Mapping[str, Handle]  # asset -> handle
    folders: Mapping[Folder, Record]

    def of_stage(self, stage: str) -> list[Folder]:
        return [folder for folder in self.folders if folder.stage == stage]


def known(handles: Mapping[str, Handle]) -> Known:
    there = {folder: record for folder, record in lineage(handles.values()).items() if record is not None}
    # dropped examples have ids and addresses too, but of rows, not of pages
    return Known(handles, {folder: record for folder, record in there.items() if folder.stage != "examples"})


def find_pages(outputs: Known, query: str) -> list[Page]:
    """The pages that `query` identifies: a URL, a page id, a document id of any stage, or else the end of a URL.

    The name of a file may be written as it is, or percent-encoded as in its URL.
    """
    encoded = address_of(query)
    return _pages_named(outputs, query) or (_pages_named(outputs, encoded) if encoded != query else [])


def _pages_named(outputs: Known, query: str) -> list[Page]:
    exact: set[Page] = set()
    endings: set[Page] = set()
    for folder in outputs.folders:
        for row in _found(folder, lambda table: _is_named(table, query)):
            page = Page(page_id=row["page_id"], source=row["source"], url=row["url"])
            (exact if query in (row["id"], row["page_id"], row["url"]) else endings).add(page)
    return _described(outputs, exact or endings)


def findings(
    outputs: Known,
    asked: Sequence[Page],
    limits: CopyLimits,
    *,
    containing: float | None,
    engine: Engine,
) -> Findings:
    """What is denied with `asked`. `containing`: share of a forgotten text from which a longer document is denied
    too."""
    texts = texts_of(outputs, asked)
    own = {page.page_id for page in asked}
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        found = find_copies(texts, _document_shards(outputs), limits, engine=engine, scratch=scratch)
        examples, near = _examples(outputs, asked, texts, limits, engine, scratch)
    closest = sorted(
        _as_judged(outputs, own, found), key=lambda copy: (-copy.is_copy, -copy.held, copy.page_id, copy.of)
    )
    copies = [*_same_texts(outputs, asked), *(_relative(copy) for copy in closest if copy.is_copy)]
    copies += _dropped_for(outputs, own | {one.page.page_id for one in copies})
    holders = [_relative(copy) for copy in closest if not copy.is_copy]
    copies += [one for one in holders if containing is not None and one.held >= containing]
    named_copies = _named(outputs, copies, besides=own)
    denied = own | {one.page.page_id for one in named_copies}
    return Findings(
        asked=tuple(asked),
        copies=tuple(named_copies),
        holders=tuple(sorted(_named(outputs, holders, besides=denied), key=lambda one: -one.held)),
        examples=examples,
        near_examples=near,
    )


def denials_of(outputs: Known, found: Findings, *, date: str, reason: str, asked_by: str | None) -> list[Denial]:
    """Rows of the deny list. An address that pages which are not forgotten have too is not denied."""
    shared = _shared_urls(outputs, found.pages)
    of = {relative.page.page_id: relative for relative in found.copies}
    return [
        Denial(
            url=None if page.url in shared else page.url,
            address=page.url if page.url in shared else None,
            page_id=page.page_id,
            document_id=page.document_id,
            source=page.source,
            date=date,
            reason=of[page.page_id].why if page.page_id in of else reason,
            asked_by=asked_by,
            duplicate_of=of[page.page_id].of if page.page_id in of else None,
        )
        for page in found.pages
    ]


def texts_of(outputs: Known, pages: Iterable[Page]) -> dict[str, str]:
    """Page id -> text as written by `filter`, else by `clean`; pages without text are not in it."""
    texts: dict[str, str] = {}
    wanted = sorted({page.page_id for page in pages})
    for stage in ("clean", "filter"):
        for folder in outputs.of_stage(stage):
            texts.update(_select(folder, "", ("page_id", "text"), wanted))
    return texts


def holding_shards(directory: Path, pages: Collection[str]) -> tuple[int, int]:
    """Number of shards of a finished folder with one of `pages` (page ids), and number of all shards."""
    paths = shard_paths(directory)
    if not paths:
        return 0, 0
    column = "page_id" if "page_id" in pq.read_schema(paths[0]).names else "id"
    held = [set(read_table(path, columns=[column])[column].to_pylist()) & set(pages) for path in paths]
    return sum(map(bool, held)), len(paths)


def _relative(copy: Copy) -> Relative:
    if copy.similarity == 1.0:
        why = "the same words"
    elif copy.is_copy:
        why = f"near copy: {copy.similarity:.0%} similar"
        why = why if copy.part <= copy.held else f"excerpt: {copy.part:.0%} of it is forgotten text"
    else:
        why = f"contains {copy.held:.0%} of the forgotten text"
    return Relative(page=Page(page_id=copy.page_id, source="", url=""), of=copy.of, why=why, held=copy.held)


def _same_texts(outputs: Known, pages: Sequence[Page]) -> Iterator[Relative]:
    """Pages of any source with the same text."""
    of = {page.document_id: page.page_id for page in reversed(pages) if page.document_id}
    for folder in outputs.of_stage("clean") if of else ():
        for row in _found(folder, lambda table: _is_among(table["id"], of)):
            page = Page(page_id=row["page_id"], source=row["source"], url=row["url"], document_id=row["id"])
            yield Relative(page=page, of=of[row["id"]], why="the same text", held=1.0)


def _as_judged(outputs: Known, own: Collection[str], copies: Sequence[Copy]) -> list[Copy]:
    """`copies`, corrected by the decision of `dedup` if it compared both pages; it overrides the shares."""
    others = {copy.page_id for copy in copies}
    kept: set[str] = set()
    judged: set[str] = set()
    pairs: set[tuple[str, str]] = set()  # (dropped as a near copy, kept)
    for folder in _of_corpus(outputs, "dedup"):
        limit = outputs.folders[folder]["config"]["min_similarity"]
        kept.update(page_id for (page_id,) in _select(folder, "", ("page_id",), others | set(own)))
        pairs_of_own = _select(folder, EVIDENCE_FOLDER, PAIR_COLUMNS, own, key="dropped_page_id")
        for dropped, other, similarity, _ in pairs_of_own:
            judged.add(dropped)
            if similarity >= limit:
                pairs.add((dropped, other))
    judged |= kept
    return [
        replace(
            copy,
            is_copy=(copy.of, copy.page_id) in pairs
            or copy.similarity == 1.0
            or (copy.is_copy and not (copy.page_id in kept and copy.of in judged)),
        )
        for copy in copies
    ]


def _of_corpus(outputs: Known, stage: str) -> list[Folder]:
    """Folders of a stage from which the current corpus was built."""
    stages = [link.name for link in links_of("corpus")]
    corpus = [handle for handle in outputs.handles.values() if handle.stage in stages]
    return [folder for folder, record in lineage(corpus).items() if record is not None and folder.stage == stage]


def _dropped_for(outputs: Known, page_ids: Collection[str]) -> Iterator[Relative]:
    """Pages that stages of the corpus dropped in favour of one of the pages, according to their evidence."""
    for link in links_of("corpus"):
        named = schema(link.evidence).names if link.evidence else ()
        if "kept_page_id" not in named:
            continue
        # without measures: equal after the lines of their site are removed
        columns = PAIR_COLUMNS if set(PAIR_COLUMNS) <= set(named) else ("page_id", "kept_page_id")
        for folder in _of_corpus(outputs, link.name):
            for dropped, kept, *measured in _select(folder, EVIDENCE_FOLDER, columns, page_ids, key="kept_page_id"):
                similarity, containment = measured or (1.0, 1.0)
                why = f"dropped as a copy before, {similarity:.0%} similar; it would come back"
                page = Page(page_id=dropped, source="", url="")
                yield Relative(page=page, of=kept, why=why, held=containment)


def _examples(
    outputs: Known,
    asked: Sequence[Page],
    texts: Mapping[str, str],
    limits: CopyLimits,
    engine: Engine,
    scratch: Path,
) -> tuple[dict[str, list[str]], dict[str, int]]:
    """Per asset of labelled examples: the rows with a forgotten text, and the number of others that repeat a part."""
    ids = {page.document_id for page in asked if page.document_id}
    same: dict[str, list[str]] = {}
    near: dict[str, int] = {}
    for asset, handle in sorted(outputs.handles.items()):
        if handle.stage != "examples":
            continue
        paths = shard_paths(handle.directory)
        for path in paths:
            table = read_table(path, columns=["id", "text"])
            for row, text in zip(table["id"].to_pylist(), table["text"], strict=True):
                if document_id(text.as_py()) in ids:
                    same.setdefault(asset, []).append(row)
        found = find_copies(texts, paths, limits, engine=engine, scratch=scratch, key="id")
        if others := {copy.page_id for copy in found} - set(same.get(asset, ())):
            near[asset] = len(others)
    return same, near


def _named(outputs: Known, relatives: Iterable[Relative], *, besides: Collection[str]) -> list[Relative]:
    """Each page once, with its first reason and all that is known about it."""
    first: dict[str, Relative] = {}
    for one in relatives:
        if one.page.page_id not in besides:
            first.setdefault(one.page.page_id, one)
    return [replace(first[page.page_id], page=page) for page in pages_by_id(outputs, list(first))]


def pages_by_id(outputs: Known, page_ids: Sequence[str]) -> list[Page]:
    found: set[Page] = set()
    for folder in outputs.folders:
        for row in _found(folder, lambda table: _is_among(table["page_id"], page_ids)):
            found.add(Page(page_id=row["page_id"], source=row["source"], url=row["url"]))
    return _described(outputs, found)


def _described(outputs: Known, pages: Collection[Page]) -> list[Page]:
    """Pages with document id and number of words, sorted by address."""
    wanted = sorted({page.page_id for page in pages})
    ids: dict[str, str] = {}
    words: dict[str, int] = {}
    for folder in outputs.of_stage("clean"):
        ids.update(_select(folder, "", ("page_id", "id"), wanted))
    for folder in outputs.of_stage("filter"):
        words.update(_select(folder, "", ("page_id", "n_words"), wanted))
    described = [replace(p, document_id=ids.get(p.page_id), n_words=words.get(p.page_id)) for p in pages]
    return sorted(described, key=lambda page: (page.url, page.source, page.page_id))


def _shared_urls(outputs: Known, pages: Sequence[Page]) -> set[str]:
    """Addresses of `pages` that another current page has too."""
    own = {page.page_id for page in pages}
    shared = set()
    for handle in outputs.handles.values():
        if handle.stage == "collect":
            rows = _select(folder_of(handle), "", ("id", "url"), {page.url for page in pages}, key="url")
            shared |= {url for page_id, url in rows if page_id not in own}
    return shared


def _document_shards(outputs: Known) -> list[Path]:
    """Of the current documents, those of tasks included; before there are any, of the outputs that they will be built
    from."""
    current = [handle for handle in outputs.handles.values() if handle.stage in ("filter", "clean")]
    folders = current or outputs.of_stage("clean")
    return [path for folder in folders for path in shard_paths(folder.directory)]


def _found(folder: Folder, is_wanted: Callable[[pa.Table], pa.ChunkedArray]) -> Iterator[dict[str, Any]]:
    """page_id, id, source and url of the wanted rows, kept or dropped. For a page, id is the page id."""
    for part in PARTS:
        for path in shard_paths(folder.directory, part):
            names = pq.read_schema(path).names
            if not {"id", "source", "url"} <= set(names):
                return
            table = read_table(path, columns=[name for name in ("page_id", "id", "source", "url") if name in names])
            if "page_id" not in names:
                table = table.append_column("page_id", table["id"])
            yield from table.filter(is_wanted(table)).to_pylist()


def _is_named(table: pa.Table, query: str) -> pa.ChunkedArray:
    """Rows with that id, page id or address, and rows whose address ends with it."""
    named = pc.call_function("ends_with", [table["url"]], pc.MatchSubstringOptions(query))
    for column in ("id", "page_id"):
        named = pc.call_function("or", [named, pc.call_function("equal", [table[column], query])])
    return named


def _is_among(column: pa.ChunkedArray, values: Collection[str]) -> pa.ChunkedArray:
    return pc.call_function("is_in", [column], pc.SetLookupOptions(pa.array(sorted(values), pa.string())))


def _select(
    folder: Folder, part: str, columns: Sequence[str], values: Collection[str], key: str = "page_id"
) -> Iterator[tuple[Any, ...]]:
    """`columns` of the rows whose `key` is one of `values`."""
    for path in shard_paths(folder.directory, part):
        keys = read_table(path, columns=[key])[key]
        if pc.call_function("any", [among := _is_among(keys, values)]).as_py():
            table = read_table(path, columns=list(columns)).filter(among)
            yield from zip(*(table[name].to_pylist() for name in columns), strict=True)
