"""Metrics of a model that answers from documents: what it finds, what it refuses, what it answers.

In: questions with the document that answers each (none if no document does) and their right answers; and what a model
found and answered. Out: counts per question for each metric, over the questions that have it:

- recall_at_k and mrr (mean reciprocal rank): where the document of the question is among the documents found, each
  counted once, by its best passage;
- wrong_refusals: answerable questions that are refused; right_refusals: unanswerable ones that are; and
  refusals_without_document: answerable ones that are refused when their own document is left out of the search;
- answer_f1: words shared with the right answer, as in SQuAD; a refusal is an empty answer;
- supported_citations: sentences of answers whose cited passage has their words, among all sentences written.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.evaluation.answer_metrics import answer_scores
from pipeline.evaluation.intervals import Counted, quotient

RECALLS = (1, 5, 10)
FOUND = (*(f"recall_at_{k}" for k in RECALLS), "mrr")
REFUSED = ("right_refusals", "wrong_refusals", "refusals_without_document")
WRITTEN = ("answer_f1", "supported_citations")
METRICS = (*FOUND, *REFUSED, *WRITTEN)
LOWER_IS_BETTER = ("wrong_refusals",)
Row = Mapping[str, Any]


def counted_found(examples: Sequence[Row], answers: Sequence[Row]) -> dict[str, Counted]:
    """`rank` of an answer: that of the right document from 1, or 0 if it was not found."""
    ranks_N = np.array([row["rank"] for row in answers], np.int64)
    asked_N = np.array([row["document"] is not None for row in examples])
    counted = {f"recall_at_{k}": _mean((ranks_N > 0) & (ranks_N <= k), asked_N) for k in RECALLS}
    reciprocal_N = np.divide(1.0, ranks_N, out=np.zeros(len(ranks_N)), where=ranks_N > 0)
    return {**counted, "mrr": _mean(reciprocal_N, asked_N)}


def counted_refused(examples: Sequence[Row], answers: Sequence[Row]) -> dict[str, Counted]:
    if any("refused" not in row for row in answers):
        return {}
    asked_N = np.array([row["document"] is not None for row in examples])
    refused_N = np.array([row["refused"] for row in answers], bool)
    without_N = np.array([bool(row["refused_without"]) for row in answers])
    return {
        "right_refusals": _mean(refused_N, ~asked_N),
        "wrong_refusals": _mean(refused_N, asked_N),
        "refusals_without_document": _mean(without_N, asked_N),
    }


def counted_written(examples: Sequence[Row], answers: Sequence[Row]) -> dict[str, Counted]:
    """Of the questions that were answered in words."""
    judged_N = np.array([bool(row["answers"]) and row["document"] is not None for row in examples])
    f1 = [answer_scores(one["answer"], row["answers"])[1] for row, one in zip(examples, answers, strict=True)]
    counted = {"answer_f1": _mean(np.array(f1), judged_N)}
    if all("n_sentences" in one for one in answers):
        pairs = [[one["n_supported"], one["n_sentences"]] for one in answers]
        counted["supported_citations"] = Counted(np.array(pairs, np.float64).reshape(-1, 2), quotient)
    return counted


def _mean(values_N: np.ndarray, asked_N: np.ndarray) -> Counted:
    """The mean of the values over some questions."""
    return Counted(np.stack([values_N * asked_N, asked_N], axis=1).astype(np.float64), quotient)
