"""Rules of SampleConfig."""

import subprocess
import sys

import pytest

from model.generation.sample_config import SampleConfig


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("max_new_tokens", 0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_k", 0),
        ("top_p", 0.0),
        ("top_p", 1.5),
        ("min_p", -0.1),
        ("min_p", 1.1),
        ("repetition_penalty", 0.0),
        ("stop", ("a", "")),
        ("stop", "ab"),
        ("seed", -1),
    ],
)
def test_sample_config_out_of_range_names_the_field(setting, value):
    with pytest.raises(ValueError, match=f"^{setting}="):
        SampleConfig(**{setting: value})


def test_sample_config_imports_no_torch():
    code = "import sys, model.generation.sample_config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
