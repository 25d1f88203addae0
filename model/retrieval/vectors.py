"""The vectors of passages, and which of them are nearest to a question.

In: vectors of length 1. Out: for a question the passages of the largest cosines. Up to `exact_limit` passages all
cosines are computed in one product; beyond, an index of usearch (HNSW, arXiv:1603.09320) proposes passages, of which
the cosines are computed then. Files: vectors.npy, and beyond the limit vectors.usearch.

Legend: N passages, Q questions, D width, K found.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.retrieval.arrays import open_array, write_array
from model.training.files import sha256

VECTORS, INDEX = "vectors.npy", "vectors.usearch"
DTYPE = np.float16
EXACT_LIMIT = 1_000_000
CONNECTIVITY, EXPANSION_ADD, EXPANSION_SEARCH = 16, 128, 64  # of the index, as usearch proposes them
ROWS_OF_BLOCK = 1 << 15  # passages whose vectors are float32 at a time
PROPOSED = 4  # passages that the index proposes for each that is asked for
LEAST_PROPOSED = 200


@dataclass(frozen=True, slots=True)
class Vectors:
    vectors_ND: np.ndarray
    index: Any = None  # of usearch; None = exact

    def nearest(self, questions_QD: np.ndarray, k: int, visible_N: np.ndarray | None) -> list[np.ndarray]:
        """Passages of each question, the nearest first; `visible_N`: those that may be found."""
        k = min(k, len(self.vectors_ND))
        if self.index is None:
            return _exact(self.vectors_ND, questions_QD, k, visible_N)
        return [self._proposed(question_D, k, visible_N) for question_D in questions_QD]

    def cosines(self, places: np.ndarray, question_D: np.ndarray) -> np.ndarray:
        return self.vectors_ND[places].astype(np.float32) @ question_D

    def _proposed(self, question_D: np.ndarray, k: int, visible_N: np.ndarray | None) -> np.ndarray:
        n_wanted = max(LEAST_PROPOSED, PROPOSED * k)
        while True:
            n_wanted = min(n_wanted, len(self.vectors_ND))
            found = self.index.search(question_D, n_wanted, threads=1)
            places = np.sort(found.keys[found.keys < len(self.vectors_ND)].astype(np.int64))
            if visible_N is not None:
                places = places[visible_N[places]]
            if len(places) >= k or n_wanted == len(self.vectors_ND):
                break
            n_wanted *= 4  # many of those that were proposed are hidden
        return places[best(self.cosines(places, question_D), k)]


def _exact(
    vectors_ND: np.ndarray, questions_QD: np.ndarray, k: int, visible_N: np.ndarray | None
) -> list[np.ndarray]:
    """In blocks, so that the cosines of all questions with all passages are never there at once."""
    places = [np.zeros(0, np.int64) for _ in questions_QD]
    cosines = [np.zeros(0, np.float32) for _ in questions_QD]
    for start in range(0, len(vectors_ND), ROWS_OF_BLOCK):
        block = slice(start, start + ROWS_OF_BLOCK)
        cosines_QN = questions_QD @ vectors_ND[block].astype(np.float32).T
        allowed = np.arange(start, start + cosines_QN.shape[1])
        if visible_N is not None:
            allowed = allowed[visible_N[block]]
            cosines_QN = cosines_QN[:, visible_N[block]]
        for question, cosines_N in enumerate(cosines_QN):
            chosen = best(cosines_N, k)
            together = np.concatenate([cosines[question], cosines_N[chosen]])
            kept = best(together, k)
            places[question] = np.concatenate([places[question], allowed[chosen]])[kept]
            cosines[question] = together[kept]
    return places


def best(scores_N: np.ndarray, k: int) -> np.ndarray:
    """Places of the `k` largest scores, the largest first; of equal ones the first."""
    if k < len(scores_N):
        least = np.partition(scores_N, len(scores_N) - k)[len(scores_N) - k]
        above = np.flatnonzero(scores_N > least)
        chosen = np.concatenate([above, np.flatnonzero(scores_N == least)[: k - len(above)]])
    else:
        chosen = np.arange(len(scores_N))
    return chosen[np.lexsort((chosen, -scores_N[chosen]))]


def write_vectors(directory: Path, vectors_ND: np.ndarray, exact_limit: int = EXACT_LIMIT) -> str | None:
    """Returns the sha256 of the index, if there is one."""
    write_array(directory / VECTORS, vectors_ND.astype(DTYPE))
    if len(vectors_ND) > exact_limit:
        index = _new_index(vectors_ND.shape[1])
        index.add(np.arange(len(vectors_ND)), vectors_ND.astype(DTYPE), threads=1)  # in their order: the same bytes
        index.save(str(directory / INDEX))
        return sha256(directory / INDEX)
    return None


def load_vectors(
    directory: Path, n_passages: int, width: int, exact_limit: int = EXACT_LIMIT, digest: str | None = None
) -> Vectors:
    """ValueError names the file that does not belong to `n_passages` of this width, and an index of other bytes than
    `digest` says: usearch trusts the numbers in its file."""
    vectors_ND = open_array(directory / VECTORS, DTYPE, (n_passages, width))
    if n_passages <= exact_limit:
        return Vectors(vectors_ND)
    return Vectors(vectors_ND, _index(directory / INDEX, n_passages, width, digest))


def _index(path: Path, n_passages: int, width: int, digest: str | None) -> Any:
    if not path.is_file() or (digest is not None and sha256(path) != digest):
        raise ValueError(f"{path} is missing, or holds other bytes than were written; build the index again")
    try:
        index = _new_index(width)
        index.view(str(path))
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"{path}: not readable as an index ({error}); build the index again") from error
    if len(index) != n_passages or index.ndim != width:
        raise ValueError(f"{path} is no index of {n_passages} vectors of {width} numbers; build the index again")
    return index


def _new_index(width: int) -> Any:
    from usearch.index import Index

    return Index(
        ndim=width,
        metric="ip",
        dtype="f16",
        connectivity=CONNECTIVITY,
        expansion_add=EXPANSION_ADD,
        expansion_search=EXPANSION_SEARCH,
    )
