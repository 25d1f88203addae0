"""Checkpoints: exact round trip, and a clear word about every damage."""

import dataclasses
import errno
import hashlib
import json
import resource
from pathlib import Path

import pytest
import torch

from model.network.decoder import new_decoder
from model.network.registry import describe
from model.network.shape import DecoderConfig
from model.training.checkpoint import (
    FILES,
    complete_checkpoints,
    load_checkpoint,
    prune_checkpoints,
    save_values,
    snapshot_of,
    values_of,
    write_checkpoint,
)
from model.training.config import TrainConfig
from model.training.files import fault_in
from model.training.selection import Selection
from model.training.step import TrainState, new_state, train_step

CONFIG = DecoderConfig(
    vocab_size=19,
    n_layers=1,
    n_heads=2,
    n_kv_heads=1,
    d_model=8,
    d_head=4,
    d_ff=12,
    max_seq_len=6,
    tie_embeddings=True,
)
TRAIN = TrainConfig(n_steps=9, rows=2, seq_len=6, micro_batch=2)


def batch(k: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(0, 19, (2, 7), generator=torch.Generator().manual_seed(k))
    return {"ids_BT": ids[:, :-1], "targets_BT": ids[:, 1:]}


def trained(n_steps: int = 2, cfg: DecoderConfig = CONFIG) -> TrainState:
    state = new_state(new_decoder(cfg, seed=0), TRAIN)
    for k in range(n_steps):
        train_step(state, batch(k), TRAIN)
    return state


def save(root: Path, state: TrainState) -> Path:
    snapshot = snapshot_of(state, TRAIN, describe(state.model.cfg), {"note": 1})  # type: ignore[arg-type]
    assert snapshot is not None
    return write_checkpoint(root, snapshot)


def test_checkpoint_loaded_into_a_fresh_state_continues_to_the_bit(tmp_path):
    state = trained()
    folder = save(tmp_path, state)
    other = new_state(new_decoder(CONFIG, seed=9), TRAIN)
    resumed = load_checkpoint(folder, other, TRAIN)
    assert (resumed.step, other.step, resumed.notes, resumed.train) == (2, 2, {"note": 1}, TRAIN)
    for k in range(2, 6):
        train_step(state, batch(k), TRAIN)
        train_step(other, batch(k), TRAIN)
    for weight, same in zip(state.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(weight, same)


def test_checkpoint_restores_the_generator(tmp_path):
    folder = save(tmp_path, trained())
    expected = torch.rand(3)
    load_checkpoint(folder, trained(), TRAIN)
    assert torch.equal(torch.rand(3), expected)


def test_checkpoint_saved_twice_has_equal_bytes(tmp_path):
    state = trained()
    first, second = save(tmp_path / "a", state), save(tmp_path / "b", state)
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_checkpoint_of_another_shape_names_the_tensor_and_both_shapes(tmp_path):
    folder = save(tmp_path, trained())
    wider = new_state(new_decoder(dataclasses.replace(CONFIG, d_ff=16), seed=0), TRAIN)
    with pytest.raises(ValueError, match=r"mlp\.\w+_proj\.weight has shape \(\d+, \d+\), expected \(\d+, \d+\)"):
        load_checkpoint(folder, wider, TRAIN)


def test_checkpoint_of_another_depth_names_what_is_missing(tmp_path):
    folder = save(tmp_path, trained())
    deeper = new_state(new_decoder(dataclasses.replace(CONFIG, n_layers=2), seed=0), TRAIN)
    with pytest.raises(ValueError, match=r"missing.*layers\.1"):
        load_checkpoint(folder, deeper, TRAIN)


def test_checkpoint_with_another_config_names_the_field(tmp_path):
    folder = save(tmp_path, trained())
    with pytest.raises(ValueError, match="n_steps=9, now it is 10"):
        load_checkpoint(folder, trained(), dataclasses.replace(TRAIN, n_steps=10))


def test_checkpoint_of_another_version_names_the_field(tmp_path):
    folder = save(tmp_path, trained())
    about = json.loads((folder / "state.json").read_text())
    about["train"]["n_experts"] = 8
    content = json.dumps(about).encode()
    (folder / "state.json").write_bytes(content)
    record = json.loads((folder / "complete.json").read_text())
    record["files"]["state.json"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / "complete.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"state\.json: not a training config of this version .*n_experts"):
        load_checkpoint(folder, trained(), TRAIN)


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_checkpoint_with_a_truncated_file_names_it_and_says_what_to_do(tmp_path, name):
    folder = save(tmp_path, trained())
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"{name} has \d+ bytes, expected {len(content)}; delete"):
        load_checkpoint(folder, trained(), TRAIN)


def test_checkpoint_with_a_changed_byte_is_refused(tmp_path):
    folder = save(tmp_path, trained())
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)
    assert fault_in(folder, FILES) == f"{folder / 'model.safetensors'} holds other bytes than were written"


def test_checkpoint_with_a_missing_file_names_it(tmp_path):
    folder = save(tmp_path, trained())
    (folder / "optimizer.safetensors").unlink()
    assert fault_in(folder, FILES) == f"{folder / 'optimizer.safetensors'} is missing"


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "{}", '{"files": {}}', '{"files": {"model.safetensors": 1}}', "nul\0"]
)
def test_checkpoint_whose_list_of_files_is_damaged_is_found_out(tmp_path, content):
    """complete.json itself may be torn; `{}` was an unexpected KeyError."""
    folder = save(tmp_path, trained())
    (folder / "complete.json").write_text(content)
    assert str(folder / "complete.json") in (fault_in(folder, FILES) or "")


@pytest.mark.parametrize("content", ["", "[]", '{"loss": "low"}'])
def test_damaged_values_of_a_checkpoint_count_as_not_validated(tmp_path, content, caplog):
    folder = save(tmp_path, trained())
    (folder / "values.json").write_text(content)
    assert values_of(folder) is None and "values.json" in caplog.text


def test_checkpoint_without_room_is_an_os_error_and_leaves_nothing(tmp_path):
    """safetensors hides a full disk in an exception of its own, which nobody would take for one."""
    earlier = save(tmp_path, trained(1))
    state = trained(2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # as good as a full disk, for one file
    try:
        with pytest.raises(OSError, match=r"model\.safetensors") as caught:
            save(tmp_path, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == [earlier]
    load_checkpoint(earlier, state, TRAIN)


def test_prune_keeps_the_newest_and_the_best_and_removes_leftovers(tmp_path):
    state = new_state(new_decoder(CONFIG, seed=0), TRAIN)
    for k, value in enumerate((3.0, 1.0, 2.0, 2.5, None)):
        train_step(state, batch(k), TRAIN)
        folder = save(tmp_path, state)
        if value is not None:
            save_values(folder, {"loss": value})
    (tmp_path / "step-000009").mkdir()  # without a record
    (tmp_path / ".step-000007.partial").mkdir()
    prune_checkpoints(tmp_path, keep=2, selection=Selection(metric="loss"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000002", "step-000004", "step-000005"]
    prune_checkpoints(tmp_path, keep=1, selection=None)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step-000005"]


def test_checkpoints_beyond_a_million_steps_stay_in_order(tmp_path):
    for step in (999_999, 1_000_000, 20):
        state = trained(1)
        state.step = step
        save(tmp_path, state)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step-000020", "step-999999", "step-1000000"]
