"""The constants with which the two rankings are joined, chosen on questions whose documents are known.

In: a retriever, questions and the document of each. Out: the settings with the largest mean reciprocal rank of the
right document (MRR). Each question is searched once; every pair of constants then orders the same hits. Of pairs
that are equally good the one nearest to the settings so far is taken.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from model.retrieval.retriever import Hit, Retriever, fused

CONSTANTS = (1.0, 3.0, 10.0, 30.0, 60.0)
WEIGHTS = (0.3, 0.4, 0.5, 0.6, 0.7)


def tuned(retriever: Retriever, questions: Sequence[str], documents: Sequence[str]) -> Retriever:
    """The retriever with the best constants of CONSTANTS and WEIGHTS, or those that it has."""
    found = retriever.search(questions, 2 * retriever.cfg.depth)
    own = (retriever.cfg.constant, retriever.cfg.bm25_weight)
    others = sorted(
        ((constant, weight) for constant in CONSTANTS for weight in WEIGHTS),
        key=lambda pair: (abs(np.log(pair[0] / own[0])), abs(pair[1] - own[1])),
    )
    quality = {pair: mean_reciprocal_rank(retriever, found, documents, *pair) for pair in [own, *others]}
    constant, weight = max(quality, key=lambda pair: quality[pair])  # the first of the best
    cfg = dataclasses.replace(retriever.cfg, constant=constant, bm25_weight=weight)
    return dataclasses.replace(retriever, cfg=cfg)


def mean_reciprocal_rank(
    retriever: Retriever, found: Sequence[Sequence[Hit]], documents: Sequence[str], constant: float, weight: float
) -> float:
    total = 0.0
    for hits, document in zip(found, documents, strict=True):
        ordered = sorted(hits, key=lambda hit: (-fused(hit.bm25_rank, hit.cosine_rank, constant, weight), hit.place))
        rank = rank_of(retriever, ordered, document)
        total += 1 / rank if rank else 0.0
    return total / max(1, len(documents))


def rank_of(retriever: Retriever, hits: Sequence[Hit], document: str) -> int | None:
    """Rank of a document, from 1: that of the first of its passages, where each document counts once."""
    seen = dict.fromkeys(retriever.document(hit.place) for hit in hits)
    return next((rank for rank, one in enumerate(seen, start=1) if one == document), None)
