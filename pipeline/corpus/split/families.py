"""Finds families: groups of documents that must all be in the same split.

In: document shards. Out: a Family for every set of linked documents: by family_id (they overlap, as editions of a
book do), by cluster_id or id (the same text), or by the section of a site, which is the directory of their URLs.

A directory is a section if it contains at most a set share of the words of each of its sources. A larger one is not
meaningful: all pages of a flat site such as /wiki/<title> are in one directory, and holding out one of a few large
directories would hold out much of the source.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.store.shards import read_table

LINKS = ("id", "cluster_id", "family_id", "section")


@dataclass(frozen=True, slots=True)
class Family:
    id: str  # the smallest family_id in it
    source: str  # the source of most of its words
    n_words: int
    page_ids: tuple[str, ...]


def read_families(paths: Sequence[Path], max_section_fraction: float) -> list[Family]:
    """Families of all documents of `paths` in the order of their ids; a share of 0 leaves sections out."""
    tables = [_with_directories(path) for path in paths]
    table = pa.concat_tables(tables) if tables else None
    if table is None or not table.num_rows:
        return []
    labels = pa.array(_labels(table, _sections(table, max_section_fraction)))
    table = table.append_column("family", labels)
    names = dict(_rows(table.group_by("family").aggregate([("family_id", "min")]), "family", "family_id_min"))
    by_source = table.group_by(["family", "source"]).aggregate([("n_words", "sum")])
    words = sorted(_rows(by_source, "family", "n_words_sum", "source"), key=lambda row: (row[0], -row[1], row[2]))
    largest = {family: next(rows)[2] for family, rows in groupby(words, key=lambda row: row[0])}
    totals = dict(_rows(table.group_by("family").aggregate([("n_words", "sum")]), "family", "n_words_sum"))
    pages = groupby(sorted(_rows(table, "family", "page_id")), key=lambda row: row[0])
    families = [
        Family(names[family], largest[family], totals[family], tuple(page_id for _, page_id in rows))
        for family, rows in pages
    ]
    return sorted(families, key=lambda family: family.id)


def directory_of(url: str) -> str:
    """A URL without the last part of its path; "" if it has no path."""
    path = url.split("#", 1)[0].split("?", 1)[0].rstrip("/")
    scheme, separator, rest = path.rpartition("://")
    directory, slash, _ = rest.rpartition("/")
    return f"{scheme}{separator}{directory}" if slash else ""


def _with_directories(path: Path) -> pa.Table:
    table = read_table(path, columns=["page_id", "source", "url", "n_words", "id", "cluster_id", "family_id"])
    directories = [directory_of(url) or None for url in table["url"].to_pylist()]
    return table.drop_columns("url").append_column("section", pa.array(directories, pa.string()))


def _sections(table: pa.Table, max_fraction: float) -> set[str]:
    of_source = dict(_rows(table.group_by("source").aggregate([("n_words", "sum")]), "source", "n_words_sum"))
    of_directory = table.group_by(["section", "source"]).aggregate([("n_words", "sum")])
    rows = list(_rows(of_directory, "section", "source", "n_words_sum"))
    too_large = {name for name, source, n_words in rows if n_words > max_fraction * of_source[source]}
    return {name for name, _, _ in rows if name is not None} - too_large if max_fraction else set()


def _labels(table: pa.Table, sections: set[str]) -> np.ndarray:
    """A number per document, equal for linked ones: the connected components of documents and their links."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n_nodes = table.num_rows
    documents, links = [], []
    for name in LINKS:
        encoded = table[name].combine_chunks().dictionary_encode()
        codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        if name == "section":
            is_section = np.array([value in sections for value in encoded.dictionary.to_pylist()], bool)
            codes = np.where((codes >= 0) & np.append(is_section, False)[codes], codes, -1)
        linked = np.flatnonzero(codes >= 0)
        documents.append(linked)
        links.append(codes[linked].astype(np.int64) + n_nodes)
        n_nodes += len(encoded.dictionary)
    rows, columns = np.concatenate(documents), np.concatenate(links)
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(n_nodes, n_nodes))
    return connected_components(graph, directed=False)[1][: table.num_rows]


def _rows(table: pa.Table, *columns: str) -> zip:
    return zip(*(table[name].to_pylist() for name in columns), strict=True)
