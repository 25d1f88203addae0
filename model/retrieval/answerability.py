"""Whether the passages that were found answer a question, as a probability that can be explained.

In: a question and what was found for it. Out: five numbers, and a score of them: a logistic regression over

    cosine     of the nearest passage
    lead       of its cosine over that of the nearest passage of another document
    words      share of the question's words in the best of the first passages, each by its idf
    bm25       of the best passage, as a share of the idf of all words of the question
    bm25_lead  of that share over the share of another document
    agreement  1 if words and vectors find the same document first, else 0

It is fitted on questions whose documents are known, each twice: as it is found, and as it would be found if its
document were missing. The weights are those of the numbers as they are, so that each can be read.

Legend: N questions, F numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from model.retrieval.retriever import Hit, Retriever, searched_text
from model.retrieval.terms import terms_of

NUMBERS = ("cosine", "lead", "words", "bm25", "bm25_lead", "agreement")
LOOKED_AT = 50  # hits from which the numbers come
FIRST = 3  # passages in which the words are looked for
MOST_WRONG = 0.06  # share of the answerable validation questions that a threshold may refuse
PENALTY = 0.1  # of the squared weights of standardised numbers, as one question counts 1
N_STEPS = 50


@dataclass(frozen=True, slots=True)
class Answerability:
    weights_F: tuple[float, ...]
    bias: float
    threshold: float  # a question with a smaller score is refused

    def score(self, numbers_F: np.ndarray) -> float:
        """From 0 to 1: how likely the documents answer."""
        return float(1 / (1 + np.exp(-np.clip(numbers_F @ np.array(self.weights_F) + self.bias, -500, 500))))

    def described(self) -> dict[str, Any]:
        """For a file of JSON."""
        weights = dict(zip(NUMBERS, self.weights_F, strict=True))
        return {"weights": weights, "bias": self.bias, "threshold": self.threshold}


def answerability_in(described: Any) -> Answerability:
    """ValueError says what of a description is wrong."""
    try:
        weights, bias, threshold = (described[name] for name in ("weights", "bias", "threshold"))
        values = [*(weights[name] for name in NUMBERS), bias, threshold]
        if len(weights) != len(NUMBERS) or not all(type(one) in (int, float) for one in values):
            raise ValueError(f"expected numbers for {', '.join(NUMBERS)}, bias and threshold")
        *weights_F, bias, threshold = map(float, values)
        if not np.isfinite(values).all() or not 0 <= threshold <= 1:
            raise ValueError("a number is not finite, or the threshold is not from 0 to 1")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{str(described)[:200]} does not say when to answer ({error})") from error
    return Answerability(tuple(weights_F), bias, threshold)


def numbers_of(retriever: Retriever, question: str, hits: Sequence[Hit]) -> np.ndarray:
    """float64 (F,), by which the question is judged. `hits`: the fused ones of it, the best first."""
    if not hits:
        return np.zeros(len(NUMBERS))
    documents = [retriever.document(hit.place) for hit in hits]
    terms = set(terms_of(question, retriever.cfg.stemming))
    idf = {term: retriever.bm25.idf(term) for term in terms}
    total = sum(idf.values()) or 1.0
    cosine, lead, nearest = _lead([hit.cosine for hit in hits], documents)
    bm25, bm25_lead, likest = _lead([hit.bm25 / total for hit in hits], documents)
    found = []
    for hit in hits[:FIRST]:
        row = retriever.passage(hit.place)
        there = terms.intersection(
            terms_of(searched_text(row["title"], row["headings"], row["text"]), retriever.cfg.stemming)
        )
        found.append(sum(idf[term] for term in there) / total)
    return np.array([cosine, lead, max(found), bm25, bm25_lead, float(nearest == likest)])


def _lead(scores: Sequence[float], documents: Sequence[str]) -> tuple[float, float, str]:
    """The largest score, by how much it exceeds that of every other document, and its document."""
    place = int(np.argmax(scores))
    others = [score for score, document in zip(scores, documents, strict=True) if document != documents[place]]
    return scores[place], scores[place] - max(others, default=0.0), documents[place]


def examples_of(
    retriever: Retriever, questions: Sequence[str], documents: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (2 N, F) of the questions, and whether they are answerable, bool (2 N,): all of them as they are, and
    then without the document that answers each."""
    found = retriever.search(questions, LOOKED_AT)
    without = [
        [hit for hit in hits if retriever.document(hit.place) != document]
        for hits, document in zip(found, documents, strict=True)
    ]
    rows = [
        numbers_of(retriever, question, hits)
        for all_hits in (found, without)
        for question, hits in zip(questions, all_hits, strict=True)
    ]
    return np.array(rows).reshape(-1, len(NUMBERS)), np.repeat([True, False], len(questions))


def fitted(numbers_NF: np.ndarray, is_answerable_N: np.ndarray, most_wrong: float = MOST_WRONG) -> Answerability:
    """Newton's method on the log-loss with a small penalty, which is the same for both classes together."""
    if not is_answerable_N.any() or is_answerable_N.all():
        raise ValueError("answerable and unanswerable questions are needed to learn when to answer")
    mean_F, scale_F = numbers_NF.mean(axis=0), numbers_NF.std(axis=0)
    scale_F = np.where(scale_F > 1e-9, scale_F, 1.0)
    inputs_NF = np.column_stack([(numbers_NF - mean_F) / scale_F, np.ones(len(numbers_NF))])
    weights_F = np.zeros(inputs_NF.shape[1])
    penalty_F = np.append(np.full(len(mean_F), PENALTY), 1e-6)
    for _ in range(N_STEPS):
        p_N = 1 / (1 + np.exp(-np.clip(inputs_NF @ weights_F, -500, 500)))
        gradient_F = inputs_NF.T @ (p_N - is_answerable_N) + penalty_F * weights_F
        curvature_FF = (inputs_NF.T * (p_N * (1 - p_N))) @ inputs_NF + np.diag(penalty_F)
        step_F = np.linalg.solve(curvature_FF, gradient_F)
        weights_F = weights_F - step_F
        if np.abs(step_F).max() < 1e-8:
            break
    raw_F = weights_F[:-1] / scale_F
    made = Answerability(tuple(raw_F.tolist()), float(weights_F[-1] - raw_F @ mean_F), 0.0)
    scores_N = np.array([made.score(row) for row in numbers_NF])
    return Answerability(made.weights_F, made.bias, threshold_of(scores_N, is_answerable_N, most_wrong))


def threshold_of(scores_N: np.ndarray, is_answerable_N: np.ndarray, most_wrong: float = MOST_WRONG) -> float:
    """The threshold with the largest difference between right and wrong refusals, of those that refuse at most
    `most_wrong` of the answerable questions; midway between two scores."""
    borders = np.unique(scores_N)
    thresholds = np.concatenate([[0.0], (borders[:-1] + borders[1:]) / 2])
    answerable_N, others_N = scores_N[is_answerable_N], scores_N[~is_answerable_N]
    wrong = np.searchsorted(np.sort(answerable_N), thresholds) / max(1, len(answerable_N))
    right = np.searchsorted(np.sort(others_N), thresholds) / max(1, len(others_N))
    gains = np.where(wrong <= most_wrong, right - wrong, -1.0)
    return float(thresholds[int(np.argmax(gains))])
