"""Longer runs that go on from shorter ones: the bits of a run that had its length from the beginning."""

import dataclasses
import shutil
from pathlib import Path

import pytest

from model.data.batches import TokenBatches
from model.data.token_shards import read_token_shard
from model.training.checkpoint import complete_checkpoints
from model.training.resume import continued
from model.training.run import run
from tests.model.training.test_run import TRAIN, Notebook, Stop, job_on, result, train, write_tokens

SHORT = dataclasses.replace(
    TRAIN, n_steps=20, checkpoint_every=4, validate_every=20, muon_weight_decay=0.1, keep_checkpoints=1
)
LONG = dataclasses.replace(SHORT, n_steps=32, decay_fraction=0.25)


def root_of(directory: Path) -> Path:
    return directory / "run" / "checkpoints"


def steps_of(directory: Path) -> list[int]:
    return [int(path.name[5:]) for path in complete_checkpoints(root_of(directory))]


@pytest.fixture(scope="module")
def short(tmp_path_factory) -> Path:
    """A finished run of 20 steps; its learning rate falls from step 10 on."""
    directory = tmp_path_factory.mktemp("short")
    write_tokens(directory / "tokens.arrow")
    train(directory, SHORT)
    return directory


@pytest.fixture
def directory(tmp_path, short) -> Path:
    return Path(shutil.copytree(short, tmp_path / "copy"))


def test_run_of_a_short_training_keeps_the_end_of_its_stable_phase(short):
    assert steps_of(short) == [10, 20]


def test_extended_run_has_the_bits_of_one_that_was_long_from_the_beginning(directory, tmp_path, short, caplog):
    """Until the longer run, which has a warm-up of as many steps, it is the same run. The weight decay that the rules
    give for more steps does not replace the one it had."""
    longer = continued(root_of(directory), dataclasses.replace(LONG, muon_weight_decay=0.7))
    (directory / "heard").unlink()
    train(directory, longer)
    assert "the run of 20 steps is extended to 32, from step 10 of its stable phase" in caplog.text
    assert int((directory / "heard").read_text().split()[0]) == 11
    whole = tmp_path / "whole"
    whole.mkdir()
    shutil.copy(short / "tokens.arrow", whole)
    train(whole, dataclasses.replace(LONG, warmup_horizon=20))
    assert result(directory) == result(whole)


def test_extended_run_that_was_stopped_goes_on_where_it_was(directory, tmp_path):
    class Stopping(Notebook):
        def metrics(self, step, values):
            super().metrics(step, values)
            if step == 14:
                raise Stop

    batches = TokenBatches([read_token_shard(directory / "tokens.arrow")], rows=4, seq_len=8, seed=0)
    whole = Path(shutil.copytree(directory, tmp_path / "whole"))
    with pytest.raises(Stop):
        run(directory / "run", job_on(batches, continued(root_of(directory), LONG)), Stopping(directory / "heard"))
    assert steps_of(directory)[-1] == 12
    longer = continued(root_of(directory), dataclasses.replace(LONG, muon_weight_decay=0.9))
    train(directory, longer)
    train(whole, continued(root_of(whole), LONG))
    assert result(directory) == result(whole)


def test_extended_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before(directory):
    """It took the longer run for another one, because only the damaged checkpoint was asked for its warm-up."""
    train(directory, continued(root_of(directory), LONG))
    expected = result(directory)
    (root_of(directory) / "step-000032" / "state.json").write_text("{")
    train(directory, continued(root_of(directory), LONG))
    assert result(directory) == expected


@pytest.mark.parametrize(
    ("longer", "message"),
    [
        (dataclasses.replace(LONG, n_steps=19), "n_steps=20, now it is 19"),
        (dataclasses.replace(LONG, adamw_lr=0.5), "adamw_lr=0.008, now it is 0.5"),
        (dataclasses.replace(LONG, schedule="cosine"), "schedule=warmup_stable_decay, now it is cosine"),
        (dataclasses.replace(LONG, warmup_horizon=32), "was made with n_steps=20, now it is 32"),
    ],
)
def test_run_that_is_no_extension_is_refused_and_changes_nothing(directory, longer, message):
    before = result(directory)
    with pytest.raises(ValueError, match=message):
        train(directory, continued(root_of(directory), longer))
    assert result(directory) == before


def test_run_whose_stable_checkpoint_is_gone_is_not_extended(directory):
    shutil.rmtree(root_of(directory) / "step-000010")
    before = result(directory)
    with pytest.raises(ValueError, match="n_steps=20, which n_steps=32 would extend, but no whole checkpoint"):
        train(directory, continued(root_of(directory), LONG))
    assert result(directory) == before


def test_run_with_a_cosine_resumes_whatever_the_decay_says(tmp_path, short):
    """`decay_fraction` is read by another schedule only."""
    shutil.copy(short / "tokens.arrow", tmp_path)
    cosine = dataclasses.replace(SHORT, schedule="cosine", n_steps=8, validate_every=4)
    train(tmp_path, cosine)
    before = result(tmp_path)
    train(tmp_path, dataclasses.replace(cosine, decay_fraction=0.1))
    assert result(tmp_path) == before
