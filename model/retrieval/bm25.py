"""BM25: how well a passage fits a question by the words that they share (Robertson and Zaragoza, 2009).

In: texts, or a folder that was written here. Out: a score of every passage for a question. The weights of all terms
in all passages are computed once, by bm25s with the idf of Lucene, and kept as a sparse matrix in numpy's own files,
of which nothing is unpickled and only what a question needs is read:

    weights.npy      float32 (M,), column by column: a column for each term
    passages.npy     int32 (M,), the passage of each weight
    columns.npy      int64 (T + 1,), where the weights of each term begin
    terms.parquet    string (T,), sorted

The same texts give the same bytes.

Legend: N passages, T terms, M pairs of a term and a passage that has it.
"""

import itertools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from model.retrieval.arrays import open_array, open_table, write_array
from model.retrieval.terms import Stemming, terms_of

K1, B = 1.5, 0.75  # of the formula, as bm25s has them
WEIGHTS, PASSAGES, COLUMNS, TERMS = "weights.npy", "passages.npy", "columns.npy", "terms.parquet"
FILES = (WEIGHTS, PASSAGES, COLUMNS, TERMS)


@dataclass(frozen=True, slots=True)
class BM25:
    weights_M: np.ndarray
    passages_M: np.ndarray
    columns_T1: np.ndarray
    terms: dict[str, int]  # to its column
    n_passages: int
    stemming: Stemming

    def scores(self, question: str) -> np.ndarray:
        """float32 (N,): 0 for a passage without a term of the question. A term that it repeats counts as often."""
        scores_N = np.zeros(self.n_passages, np.float32)
        for term in terms_of(question, self.stemming):
            if (column := self.terms.get(term)) is not None:
                rows = slice(*self.columns_T1[column : column + 2].tolist())
                scores_N[self.passages_M[rows]] += self.weights_M[rows]  # a passage stands once in a column
        return scores_N

    def idf(self, term: str) -> float:
        """Of a term that may be in no passage, as Lucene has it."""
        column = self.terms.get(term)
        n_with = 0 if column is None else int(self.columns_T1[column + 1] - self.columns_T1[column])
        return math.log(1 + (self.n_passages - n_with + 0.5) / (n_with + 0.5))


def write_bm25(directory: Path, texts: Sequence[str], stemming: Stemming, k1: float = K1, b: float = B) -> None:
    """The files of the index. `texts`: of all passages, at least one."""
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it asks for all its own messages when it is imported
    found = [terms_of(text, stemming) for text in texts]
    terms = sorted(set(itertools.chain.from_iterable(found))) or [""]
    place = {term: number for number, term in enumerate(terms)}
    index = bm25s.BM25(k1=k1, b=b, method="lucene", backend="numpy")
    ids = [[place[term] for term in one] for one in found]
    if any(ids):  # of no words at all bm25s would divide by a mean length of 0
        index.index((ids, place), create_empty_token=False, show_progress=False)
        weights, passages, columns = (index.scores[name] for name in ("data", "indices", "indptr"))
    else:
        weights, passages, columns = np.zeros(0), np.zeros(0), np.zeros(len(terms) + 1)
    write_array(directory / WEIGHTS, weights.astype(np.float32))
    write_array(directory / PASSAGES, passages.astype(np.int32))
    write_array(directory / COLUMNS, columns.astype(np.int64))
    pq.write_table(pa.table({"term": pa.array(terms, pa.string())}), directory / TERMS, compression="zstd")


def load_bm25(directory: Path, n_passages: int, stemming: Stemming) -> BM25:
    """ValueError names the file that is no part of an index of `n_passages`."""
    terms = open_table(directory / TERMS, {"term": pa.string()})["term"].to_pylist()
    columns_T1 = open_array(directory / COLUMNS, np.int64, (len(terms) + 1,))
    n_pairs = int(columns_T1[-1]) if len(columns_T1) else 0
    if columns_T1[0] != 0 or (np.diff(columns_T1) < 0).any():
        raise ValueError(f"{directory / COLUMNS}: the columns do not follow one another; build the index again")
    weights_M = open_array(directory / WEIGHTS, np.float32, (n_pairs,))
    passages_M = open_array(directory / PASSAGES, np.int32, (n_pairs,))
    if n_pairs and not 0 <= int(passages_M.min()) <= int(passages_M.max()) < n_passages:
        raise ValueError(
            f"{directory / PASSAGES} names passages outside 0 to {n_passages - 1}; build the index again"
        )
    return BM25(weights_M, passages_M, columns_T1, {t: i for i, t in enumerate(terms)}, n_passages, stemming)
