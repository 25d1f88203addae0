"""Texts that have any number of labels: metrics of each label, its threshold, and a baseline of words.

In: which labels the texts have (bool, N texts by C labels), and the probabilities of a model. Out: F1, precision and
recall per label; and per label the probability from which it is predicted, chosen for the best F1 on texts that
nothing was trained on. The baseline is a logistic regression per label on TF-IDF, with thresholds chosen in that way.
scikit-learn is imported where it is used.

Legend: N texts, C labels.
"""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from pipeline.evaluation.baselines import LOGISTIC_C, words_and_pairs
from pipeline.evaluation.classification_metrics import refuse_unknown_labels

HELD_OUT = 10  # one group of near duplicates in so many chooses the thresholds of the baseline
FEW_POSITIVES = 10  # of a label on validation: below so many, its threshold follows from their number alone


def label_matrix(sets: Sequence[Sequence[str]], labels: Sequence[str]) -> np.ndarray:
    """Whether each text has each label, bool (N, C). Raises ValueError for a label that is not in `labels`."""
    refuse_unknown_labels(chain.from_iterable(sets), labels)
    place = {label: i for i, label in enumerate(labels)}
    has_NC = np.zeros((len(sets), len(labels)), bool)
    for row, one in enumerate(sets):
        has_NC[row, [place[label] for label in one]] = True
    return has_NC


def f1_table(truth_NC: np.ndarray, predicted_NC: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """F1, precision and recall of each label, float64 (C,) each; 0 where a label neither occurs nor is predicted."""
    right_C = (truth_NC & predicted_NC).sum(axis=0)
    true_C, predicted_C = truth_NC.sum(axis=0), predicted_NC.sum(axis=0)
    return (
        2 * right_C / np.maximum(true_C + predicted_C, 1),
        right_C / np.maximum(predicted_C, 1),
        right_C / np.maximum(true_C, 1),
    )


def best_thresholds(probabilities_NC: np.ndarray, truth_NC: np.ndarray) -> np.ndarray:
    """For each label the threshold with the best F1 on these texts, float64 (C,).

    It lies in the middle between two probabilities that occur. The F1 of a label that fewer than FEW_POSITIVES texts
    have depends on single texts: its threshold is the one that as many texts reach as have the label, PCut of Yang
    2001 (doi:10.1145/383952.383975).
    """
    return np.array(
        [
            (best_threshold if has_N.sum() >= FEW_POSITIVES else share_threshold)(values_N, has_N)
            for values_N, has_N in zip(probabilities_NC.T, truth_NC.T, strict=True)
        ]
    )


def share_threshold(values_N: np.ndarray, has_N: np.ndarray) -> float:
    """The threshold that as many texts reach as have the label, or fewer where probabilities are equal."""
    n_positive, descending_N = int(has_N.sum()), np.sort(values_N)[::-1]
    below = descending_N[n_positive] if n_positive < len(values_N) else 0.0
    above_N = descending_N[descending_N > below]
    return float((below + (above_N[-1] if len(above_N) else 1.0)) / 2)


def best_threshold(values_N: np.ndarray, has_N: np.ndarray) -> float:
    order = np.argsort(-values_N, kind="stable")
    values_N, has_N = values_N[order], has_N[order]
    right_N, n_predicted_N = np.cumsum(has_N), np.arange(1, len(has_N) + 1)
    f1_N = 2 * right_N / (n_predicted_N + right_N[-1])
    f1_N[:-1][values_N[1:] == values_N[:-1]] = -1.0  # equal probabilities are predicted together
    last = int(np.argmax(f1_N))
    below = values_N[last + 1] if last + 1 < len(values_N) else 0.0
    return float((values_N[last] + below) / 2)


def tfidf_label_sets(
    texts: Sequence[str], sets: Sequence[Sequence[str]], groups: Sequence[str], judged: Sequence[str]
) -> list[dict[str, Any]]:
    """Answers to the texts `judged`: `labels`, and the probabilities of all labels, sorted, as `of_labels`.

    The thresholds are chosen on a tenth of the groups, by a model of the others; the answers are those of a model of
    all texts.
    """
    labels = sorted({label for one in sets for label in one})
    has_NC, (_, group_N) = label_matrix(sets, labels), np.unique(np.array(groups), return_inverse=True)
    is_held_N = group_N % HELD_OUT == 0
    if is_held_N.all():
        is_held_N[:] = False
    fitted = [texts[int(i)] for i in np.flatnonzero(~is_held_N)], has_NC[~is_held_N]
    held = [texts[int(i)] for i in np.flatnonzero(is_held_N)]
    thresholds_C = best_thresholds(_tfidf_probabilities(*fitted, held), has_NC[is_held_N]) if held else 0.5
    probabilities_NC = _tfidf_probabilities(texts, has_NC, judged)
    return [
        {"labels": [labels[place] for place in np.flatnonzero(row_C >= thresholds_C)], "of_labels": row_C}
        for row_C in probabilities_NC
    ]


def _tfidf_probabilities(texts: Sequence[str], has_NC: np.ndarray, judged: Sequence[str]) -> np.ndarray:
    """Of each label for each text of `judged`, float64 (N, C). One that all or no `texts` have is constant."""
    from sklearn.linear_model import LogisticRegression

    vectorizer = words_and_pairs()
    words_NW, judged_NW = vectorizer.fit_transform(texts), vectorizer.transform(judged)
    columns = []
    for has_N in has_NC.T:
        if has_N.all() or not has_N.any():
            columns.append(np.full(len(judged), float(has_N.mean())))
            continue
        model = LogisticRegression(C=LOGISTIC_C, solver="liblinear").fit(words_NW, has_N)  # the fastest one here
        columns.append(model.predict_proba(judged_NW)[:, 1])
    return np.stack(columns, axis=1)
