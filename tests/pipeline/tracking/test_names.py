"""Names of the user, such as labels, are written as MLflow accepts them."""

import pytest
from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, _validate_metric, _validate_param, _validate_tag

from pipeline.tracking.names import LONGEST_NAME, LONGEST_PARAM, accepted_name, accepted_values, original_name

LABELS = ["C++", "C#", "R&D", "a/b", "a//b", "/", "..", ".", "", " ", "%41", ":", ":41", "x:y", "50 %", "f1=1", "$x$"]
LABELS += ["good \N{GRINNING FACE}", "\u0939\u093f\u0928\u094d\u0926\u0940", "two\nlines", "tab\t", "\\", "'\"`|<b>"]
LABELS += ["x" * 300, "x" * 299 + "y", "+" * 300, "\u6c34", "\ud800", "../up", "a/../b", "end/"]


@pytest.mark.parametrize("label", LABELS)
def test_name_of_any_label_is_accepted_by_mlflow(label):
    """A label such as C++ became part of the name of a metric, which MLflow refuses: the run kept no metric, stayed
    RUNNING, and its model was never registered (mlflow/mlflow#9425, huggingface/transformers#39469)."""
    for name in (label, f"f1_{label}"):
        accepted = accepted_name(name)
        assert 0 < len(accepted) <= LONGEST_NAME
        _validate_metric(accepted, 1.0, 0, 0)
        _validate_param(accepted, "value")
        _validate_tag(accepted, "value")
        if len(accepted) < LONGEST_NAME:
            assert original_name(accepted) == name or "\ud800" in name


def test_names_of_different_labels_stay_different():
    names = [accepted_name(f"f1_{label}") for label in LABELS]
    assert len(set(names)) == len(LABELS)
    assert accepted_name("f1_C#") == "f1_C:23"


def test_names_that_mlflow_accepts_are_not_changed():
    for name in ("loss", "system/cpu_utilization_percentage", "train.rows", "f1_\u6c34", "a b-c"):
        assert accepted_name(name) == name


def test_values_beyond_the_limit_are_cut_visibly():
    (value,) = accepted_values({"labels": "x" * 7000}, LONGEST_PARAM).values()
    assert len(value) == MAX_PARAM_VAL_LENGTH and value.endswith("...")
