"""torchrun itself, once: two processes of which the second fails before the first can wait for it."""

import os

import pytest

from model.training.launch import launch

# Only the second process is given a folder that is not there, as if a disk were mounted on one machine alone.
SECOND_FAILS = """
import os, sys
from model.cli import main
shards, out, *settings = sys.argv[1:]
sys.exit(main(["train", shards if os.environ["RANK"] == "0" else shards + "-missing", out, *settings]))
"""


def test_process_that_fails_before_the_group_exists_prints_its_error_and_its_number(
    tmp_path, corpus, tiny_settings, capfd
):
    """Only the first process printed errors, so that one in another ended the training without a word."""
    (tmp_path / "second_fails.py").write_text(SECOND_FAILS)
    path = os.pathsep.join([str(tmp_path), os.getcwd(), os.environ.get("PYTHONPATH", "")])  # noqa: PTH109
    arguments = [str(corpus / "shards"), str(tmp_path / "out"), *tiny_settings]
    ended = launch("second_fails", arguments, 2, {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"})
    out, err = capfd.readouterr()
    assert ended.code == 1 and not ended.was_stopped
    assert "model.cli: process 1 of 2: " in err and f"{corpus / 'shards'}-missing" in err
    assert "Traceback" not in err and "step 1/" not in out


def test_more_devices_than_gpus_are_refused_before_anything_starts(capfd):
    with pytest.raises(ValueError, match="has 2 GPUs that torch can use; start at most 2 processes"):
        launch("model.cli", ["train"], 4, n_devices=2)
    assert capfd.readouterr() == ("", "")
