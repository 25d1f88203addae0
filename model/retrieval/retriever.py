"""A searchable collection of passages in a folder: its texts, their vectors, their words.

In: a table of passages and their vectors, or the folder that was made of them. Out: for questions the best passages,
by their words (bm25.py), by their vectors (vectors.py), or by both, of which the ranks are joined: the score of a
passage is the sum of weight / (constant + rank) over both rankings (reciprocal rank fusion, Cormack et al. 2009).

    passages.parquet   document, url, title, headings, start, end, text of each passage
    retriever.json     settings, the number of passages and the width of a vector
    and the files of bm25.py and vectors.py

What is compared with a question is the text of a passage below its title and headings (`searched_text`). Nothing is
unpickled. The same table, vectors and settings give the same bytes.

Legend: N passages, Q questions, D width.
"""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.retrieval.arrays import open_table
from model.retrieval.bm25 import BM25, load_bm25, write_bm25
from model.retrieval.terms import STEMMINGS, Stemming
from model.retrieval.vectors import EXACT_LIMIT, Vectors, best, load_vectors, write_vectors
from model.training.files import read_json, write_json

Method = Literal["fused", "bm25", "embeddings"]
METHODS: tuple[Method, ...] = get_args(Method)
PASSAGES, SETTINGS = "passages.parquet", "retriever.json"
COLUMNS = {
    "document": pa.string(),
    "url": pa.string(),
    "title": pa.string(),
    "headings": pa.list_(pa.string()),
    "start": pa.int64(),
    "end": pa.int64(),
    "text": pa.string(),
}
SCHEMA = pa.schema(COLUMNS)
FORMAT = 1
Embed = Callable[[Sequence[str]], np.ndarray]  # texts to vectors of length 1, float32 (N, D)


@dataclass(frozen=True, kw_only=True, slots=True)
class RetrievalConfig:
    stemming: Stemming = "prefix"
    constant: float = 10.0  # of the fusion: the larger, the less the first ranks count
    bm25_weight: float = 0.5  # 0 to 1; that of the vectors is 1 less this
    depth: int = 100  # passages of each ranking that are joined
    exact_limit: int = EXACT_LIMIT  # passages; more are searched by an index

    def __post_init__(self) -> None:
        if self.stemming not in STEMMINGS:
            raise ValueError(f"stemming={self.stemming!r} must be one of {', '.join(STEMMINGS)}")
        if not 0 < self.constant < float("inf"):
            raise ValueError(f"constant={self.constant} must be above 0")
        if not 0 <= self.bm25_weight <= 1:
            raise ValueError(f"bm25_weight={self.bm25_weight} must be from 0 to 1")
        if self.depth < 1 or self.exact_limit < 0:
            raise ValueError(f"depth={self.depth} must be at least 1, and exact_limit={self.exact_limit} at least 0")


@dataclass(frozen=True, slots=True)
class Hit:
    """A passage that was found."""

    place: int  # in the table of passages
    score: float  # by which the hits are ordered
    bm25: float
    cosine: float
    bm25_rank: int | None  # from 1; None = not among the first `depth`
    cosine_rank: int | None


@dataclass(frozen=True, slots=True)
class Retriever:
    passages: pa.Table
    bm25: BM25
    vectors: Vectors
    cfg: RetrievalConfig
    embed: Embed
    visible_N: np.ndarray | None = None  # bool; None = all

    def search(self, questions: Sequence[str], k: int, method: Method = "fused") -> list[list[Hit]]:
        """At most `k` passages for each question, the best first. Passages that share no word with it are not found
        by "bm25"."""
        if method not in METHODS:
            raise ValueError(f"method={method!r} must be one of {', '.join(METHODS)}")
        if k < 1:
            raise ValueError(f"k={k} must be at least 1")
        if not questions:
            return []
        depth = max(k, self.cfg.depth)
        questions_QD = self.embed(questions)
        nearest = self.vectors.nearest(questions_QD, depth, self.visible_N)
        return [
            self._hits(question, question_D, by_cosine, k, method)
            for question, question_D, by_cosine in zip(questions, questions_QD, nearest, strict=True)
        ]

    def without(self, documents: Collection[str]) -> Self:
        """The same, in which no passage of these documents is found."""
        hidden = set(documents)
        visible_N = np.array([one not in hidden for one in self.passages["document"].to_pylist()], bool)
        if self.visible_N is not None:
            visible_N &= self.visible_N
        return dataclasses.replace(self, visible_N=None if visible_N.all() else visible_N)

    def document(self, place: int) -> str:
        return self.passages["document"][place].as_py()

    def text(self, place: int) -> str:
        return self.passages["text"][place].as_py()

    def passage(self, place: int) -> dict[str, Any]:
        """The row of the passage."""
        return self.passages.slice(place, 1).to_pylist()[0]

    def _hits(
        self, question: str, question_D: np.ndarray, by_cosine: np.ndarray, k: int, method: Method
    ) -> list[Hit]:
        bm25_N = self.bm25.scores(question)
        if self.visible_N is not None:
            bm25_N[~self.visible_N] = 0
        depth = max(k, self.cfg.depth)
        by_words = best(bm25_N, depth)
        by_words = by_words[bm25_N[by_words] > 0]
        bm25_ranks = {place: rank for rank, place in enumerate(by_words.tolist(), start=1)}
        cosine_ranks = {place: rank for rank, place in enumerate(by_cosine.tolist(), start=1)}
        found = {"bm25": bm25_ranks, "embeddings": cosine_ranks, "fused": bm25_ranks | cosine_ranks}[method]
        places = np.array(sorted(found), np.int64)
        cosines = self.vectors.cosines(places, question_D)
        if method == "fused":
            ranks = [(bm25_ranks.get(place), cosine_ranks.get(place)) for place in places.tolist()]
            scores = np.array([fused(*pair, self.cfg.constant, self.cfg.bm25_weight) for pair in ranks])
        else:
            scores = bm25_N[places] if method == "bm25" else cosines
        return [
            Hit(
                place := int(places[at]),
                float(scores[at]),
                float(bm25_N[place]),
                float(cosines[at]),
                bm25_ranks.get(place),
                cosine_ranks.get(place),
            )
            for at in best(scores, k).tolist()
        ]


def fused(bm25_rank: int | None, cosine_rank: int | None, constant: float, bm25_weight: float) -> float:
    """The score of a passage by its ranks."""
    weighted = ((bm25_rank, bm25_weight), (cosine_rank, 1 - bm25_weight))
    return sum(weight / (constant + rank) for rank, weight in weighted if rank is not None)


def above(title: str, headings: Sequence[str], text: str) -> str:
    """The title and the headings of a passage that it does not contain itself."""
    return " > ".join(dict.fromkeys(one for one in (title, *headings) if one and one not in text))


def searched_text(title: str, headings: Sequence[str], text: str) -> str:
    """What of a passage is embedded and searched."""
    return f"{over}\n{text}" if (over := above(title, headings, text)) else text


def searched_texts(passages: pa.Table) -> list[str]:
    columns = (passages[name].to_pylist() for name in ("title", "headings", "text"))
    return [searched_text(*row) for row in zip(*columns, strict=True)]


def write_retriever(directory: Path, passages: pa.Table, vectors_ND: np.ndarray, cfg: RetrievalConfig) -> None:
    """The folder of a retriever. `passages`: of SCHEMA; `vectors_ND`: of their `searched_texts`, in their order."""
    if passages.schema != SCHEMA:
        raise ValueError(f"the passages have the columns {passages.schema}, expected {SCHEMA}")
    if not len(passages):
        raise ValueError("there is no passage: the documents are empty, or none of them was read; add documents")
    if vectors_ND.ndim != 2 or len(vectors_ND) != len(passages):
        raise ValueError(f"vectors of the shape {vectors_ND.shape} for {len(passages)} passages")
    if not np.isfinite(vectors_ND).all():
        raise ValueError("a vector holds a number that is not finite: the embedder's weights are damaged")
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(passages, directory / PASSAGES, compression="zstd")
    write_bm25(directory, searched_texts(passages), cfg.stemming)
    digest = write_vectors(directory, vectors_ND, cfg.exact_limit)
    about = {"format": FORMAT, "passages": len(passages), "width": vectors_ND.shape[1], "index_sha256": digest}
    write_json(directory / SETTINGS, about | {"settings": dataclasses.asdict(cfg)})


def load_retriever(directory: Path, embed: Embed) -> Retriever:
    """ValueError names the file that is missing, damaged, or does not belong to the others."""
    n_passages, width, cfg, digest = _described(directory / SETTINGS)
    passages = open_table(directory / PASSAGES, COLUMNS)
    if len(passages) != n_passages:
        raise ValueError(f"{directory / PASSAGES} has {len(passages)} passages, expected {n_passages}")
    bm25 = load_bm25(directory, n_passages, cfg.stemming)
    vectors = load_vectors(directory, n_passages, width, cfg.exact_limit, digest)
    return Retriever(passages, bm25, vectors, cfg, embed)


def _described(path: Path) -> tuple[int, int, RetrievalConfig, str | None]:
    about = read_json(path)
    try:
        if about["format"] != FORMAT:
            raise ValueError(f"format {about['format']!r}, expected {FORMAT}")
        n_passages, width = about["passages"], about["width"]
        if type(n_passages) is not int or type(width) is not int or min(n_passages, width) < 1:
            raise ValueError(f"{n_passages!r} passages of the width {width!r}")
        return n_passages, width, RetrievalConfig(**about["settings"]), about["index_sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not describe a retriever of this version ({error}); build it again") from error
