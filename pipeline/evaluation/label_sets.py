"""Metrics of texts that have any number of labels, and the threshold of each label.

In: which labels the texts have (bool, N texts by C labels), and the probabilities of a model. Out: F1, precision and
recall per label; and per label the probability from which it is predicted, chosen for the best F1 on texts that
nothing was trained on.

Legend: N texts, C labels.
"""

import numpy as np

FEW_POSITIVES = 10  # of a label on validation: below so many, the labels together choose its threshold


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

    It lies in the middle between two probabilities that occur. A label that fewer than FEW_POSITIVES texts have gets
    the one threshold that has the best F1 over the decisions about all labels: its own would follow single texts.
    """
    common = _best_threshold(probabilities_NC.ravel(), truth_NC.ravel())
    return np.array(
        [
            _best_threshold(values_N, has_N) if has_N.sum() >= FEW_POSITIVES else common
            for values_N, has_N in zip(probabilities_NC.T, truth_NC.T, strict=True)
        ]
    )


def _best_threshold(values_N: np.ndarray, has_N: np.ndarray) -> float:
    order = np.argsort(-values_N, kind="stable")
    values_N, has_N = values_N[order], has_N[order]
    if not has_N.any():
        return 0.5
    right_N, n_predicted_N = np.cumsum(has_N), np.arange(1, len(has_N) + 1)
    f1_N = 2 * right_N / (n_predicted_N + right_N[-1])
    f1_N[:-1][values_N[1:] == values_N[:-1]] = -1.0  # equal probabilities are predicted together
    last = int(np.argmax(f1_N))
    below = values_N[last + 1] if last + 1 < len(values_N) else 0.0
    return float((values_N[last] + below) / 2)
