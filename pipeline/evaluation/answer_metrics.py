"""Exact match and F1 of extracted answers, as SQuAD defines them (arXiv:1606.05250, section 6.1; 1806.03822).

In: the answered text, "" for "no answer", and the texts that are right, none for an unanswerable question. Out: per
question 0 or 1 for exact match, and the F1 of the words; the best over all right answers counts. Texts are compared
in lower case, without ASCII punctuation, without the articles a, an and the, and with single spaces.
"""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.evaluation.intervals import Counted, quotient, rate_of

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised_answer(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answer_scores(answered: str, expected: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1, each the best over `expected`. Answers that are only articles and punctuation are no right
    answers, as in the official script."""
    words = normalised_answer(answered)
    right = [one for one in map(normalised_answer, expected) if one] or [""]
    return float(words in right), max(_word_f1(words.split(), one.split()) for one in right)


def _word_f1(answered: list[str], expected: list[str]) -> float:
    if not answered or not expected:
        return float(answered == expected)
    n_same = (Counter(answered) & Counter(expected)).total()
    return 2 * n_same / (len(answered) + len(expected))


def counted_answers(
    examples: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]
) -> dict[str, Counted]:
    """What is counted for each metric: per question exact match, and F1 with a one."""
    expected = [[one["text"] for one in row["answers"]] for row in examples]
    scores_N2 = scores_of([row["answer"] for row in answers], expected)
    f1_N2 = np.stack([scores_N2[:, 1], np.ones(len(scores_N2))], axis=1)
    return {"exact_match": rate_of(scores_N2[:, 0] > 0), "f1": Counted(f1_N2, quotient)}


def scores_of(answered: Sequence[str], expected: Sequence[Sequence[str]]) -> np.ndarray:
    """Exact match and F1 of every question, float64 (N, 2)."""
    return np.array([answer_scores(*pair) for pair in zip(answered, expected, strict=True)]).reshape(-1, 2)
