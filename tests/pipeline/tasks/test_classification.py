"""One label per text: labels as objects of 0 and 1, and settings of the training that change what is learned."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from sklearn.utils.class_weight import compute_sample_weight
from torch.nn import functional as F

from pipeline.tasks.classification import (
    BALANCED,
    KIND,
    ClassificationExamplesConfig,
    ClassificationFinetuneConfig,
    balanced_weights,
)

CFG = ClassificationExamplesConfig(text="text", label="label")


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ({"positive": 1, "negative": 0}, "positive"),
        ({"positive": "0", "neutral": True, "negative": None}, "neutral"),
        ({"positive": 1.0}, "positive"),
    ],
)
def test_object_of_0_and_1_is_read_as_its_single_label(label, expected):
    assert KIND.row({"text": "some text", "label": label}, CFG).values == {"label": expected}


@pytest.mark.parametrize(
    "label",
    [{"positive": 1, "negative": 1}, {"positive": 0}, {}, {"positive": 0.4, "negative": 0.3}, {"a": {"b": 1}}],
)
def test_object_without_exactly_one_label_is_dropped(label):
    assert KIND.row({"text": "some text", "label": label}, CFG).reason == "not_text_label"


def test_labels_of_an_object_are_renamed_and_declared_as_others():
    cfg = ClassificationExamplesConfig(text="text", label="label", labels=("pos=positive", "neg=negative"))
    assert KIND.row({"text": "t", "label": {"pos": 1, "neg": 0}}, cfg).values == {"label": "positive"}
    assert KIND.row({"text": "t", "label": {"meh": 1, "neg": 0}}, cfg).reason == "unknown_label"


def test_baselines_have_the_probability_of_every_label_in_sorted_order():
    """Without them ROC-AUC and calibration of the model stood alone."""
    train = pa.table({"text": ["good film", "bad film", "good plot", "fine"], "label": ["p", "n", "p", "n"]})
    found = KIND.baselines(train, pa.table({"text": ["good good", "bad"]}))
    assert [one["label"] for one in found["majority"]] == ["n", "n"]  # the first of equally frequent labels
    assert [one["label"] for one in found["tfidf_logistic"]] == ["p", "n"]
    assert found["majority"][0]["probabilities"].tolist() == [0.5, 0.5]
    assert found["tfidf_logistic"][0]["probabilities"][1] > 0.5


def test_balanced_weights_equal_those_of_scikit_learn():
    labels_B = np.random.default_rng(0).choice(4, 200, p=[0.7, 0.2, 0.08, 0.02])
    weights_B = balanced_weights(labels_B)
    np.testing.assert_allclose(weights_B, compute_sample_weight("balanced", labels_B), rtol=1e-6)
    assert weights_B.sum() == pytest.approx(200, rel=1e-5) and weights_B.dtype == np.float32


def test_class_weights_decide_whether_examples_or_labels_count_alike():
    logits_BC, labels_B = torch.randn(6, 2), torch.tensor([0, 0, 0, 0, 0, 1])
    weights_B = torch.from_numpy(balanced_weights(labels_B.numpy()))
    batch = {"ids_BT": logits_BC, "lengths_B": labels_B, "labels_B": labels_B, BALANCED: weights_B}

    def mean_loss(class_weights: str) -> torch.Tensor:
        loss = KIND.loss(ClassificationFinetuneConfig(class_weights=class_weights))
        summed, count = loss(lambda ids_BT, lengths_B: ids_BT, batch)
        return summed / count

    torch.testing.assert_close(mean_loss("none"), F.cross_entropy(logits_BC, labels_B))
    expected = F.cross_entropy(logits_BC, labels_B, torch.tensor([6 / 10, 6 / 2]))
    torch.testing.assert_close(mean_loss("balanced"), expected)
