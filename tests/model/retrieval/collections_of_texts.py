"""Small collections of documents, and an embedder without weights, for tests of retrieval."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from model.retrieval.retriever import (
    SCHEMA,
    RetrievalConfig,
    Retriever,
    load_retriever,
    searched_texts,
    write_retriever,
)
from model.retrieval.terms import terms_of

WIDTH = 64
MILL = {
    "stones": "The stones of the mill weigh 1,200 kg each. They were cut in 1873 by Ann Miller. New ones cost much.",
    "belts": "Belts of leather drive the sieves. A worn belt slips when it is wet, and is replaced in spring.",
    "corn": "Farmers bring wheat and rye. The mill grinds 12 tons of corn on a good day.",
    "opening": "The museum opens at nine in the morning. It is closed on Mondays.",
    "river": "The river turns a wheel of oak. In dry summers the water does not suffice.",
}


def embedded(texts: Sequence[str]) -> np.ndarray:
    """A vector of a text's words, each of which has a direction of its own."""
    vectors_ND = np.zeros((len(texts), WIDTH), np.float32)
    for row, text in enumerate(texts):
        for term in terms_of(text, "prefix"):
            seed = int.from_bytes(hashlib.sha256(term.encode()).digest()[:8], "little")
            vectors_ND[row] += np.random.default_rng(seed).standard_normal(WIDTH)
    return vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-9)


def table_of(documents: dict[str, str]) -> pa.Table:
    """Each document is one passage, under a title."""
    names, texts = list(documents), list(documents.values())
    columns = {
        "document": names,
        "url": [f"file:///{name}" for name in names],
        "title": [name.title() for name in names],
        "headings": [[] for _ in names],
        "start": [0] * len(names),
        "end": [len(text) for text in texts],
        "text": texts,
    }
    return pa.table(columns, SCHEMA)


def written(folder: Path, documents: dict[str, str], cfg: RetrievalConfig | None = None) -> Path:
    table = table_of(documents)
    write_retriever(folder, table, embedded(searched_texts(table)), cfg or RetrievalConfig())
    return folder


def made(folder: Path, documents: dict[str, str], cfg: RetrievalConfig | None = None) -> Retriever:
    return load_retriever(written(folder, documents, cfg), embedded)
