"""Devices that are counted before a start, kernels that repeat their bits, and memory that is free in a container."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from model.data.batches import TokenBatches
from model.data.token_shards import read_token_shard, write_token_shard
from model.network.decoder import new_decoder
from model.network.registry import describe
from model.network.shape import DecoderConfig
from model.training.config import TrainConfig
from model.training.loss import language_model_loss
from model.training.machine import (
    CUBLAS_WORKSPACE,
    check_n_processes,
    deterministic_kernels,
    device_kind,
    free_memory,
    precision,
    training_device,
)
from model.training.run import Job, run


class Silent:
    def metrics(self, step, values) -> None: ...
    def checkpoint(self, path, step, values) -> None: ...


CPU = torch.device("cpu")
GIB = 1 << 30


def test_more_processes_than_gpus_are_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"devices=4, but this machine has 2 GPUs .* start at most 2 processes"):
        check_n_processes(4, n_devices=2)


@pytest.mark.parametrize(("n_processes", "n_devices"), [(2, 2), (1, 8), (4, 0)], ids=["all", "one", "on a CPU"])
def test_as_many_processes_as_gpus_may_run_and_any_number_on_a_cpu(n_processes, n_devices):
    check_n_processes(n_processes, n_devices)


def test_kind_of_device_is_that_of_the_training_device():
    assert device_kind() == training_device().type


def test_products_on_a_cpu_stay_float32():
    with precision(CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype is torch.float32


def settings() -> tuple:
    fills = torch.utils.deterministic.fill_uninitialized_memory
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        fills,
        os.environ.get(CUBLAS_WORKSPACE),
    )


def test_deterministic_kernels_refuse_what_cannot_repeat_and_restore_every_setting(monkeypatch):
    monkeypatch.delenv(CUBLAS_WORKSPACE, raising=False)
    before = settings()
    with pytest.raises(KeyError), deterministic_kernels(True):
        assert settings() == (True, False, False, ":4096:8")
        raise KeyError
    assert settings() == before
    with deterministic_kernels(False):
        assert settings() == before


def test_deterministic_kernels_within_a_block_that_only_warns_leave_it_as_it_was():
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        with deterministic_kernels(True):
            assert not torch.is_deterministic_algorithms_warn_only_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_deterministic_run_asks_for_such_kernels_in_every_step_and_no_longer(tmp_path):
    write_token_shard(tmp_path / "tokens.arrow", ["doc"], [40], [np.arange(40) % 7], vocab_size=7)
    batches = TokenBatches([read_token_shard(tmp_path / "tokens.arrow")], rows=2, seq_len=4, seed=0)
    shape = {"n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "d_model": 8, "d_head": 8, "d_ff": 8, "max_seq_len": 4}
    cfg, seen = DecoderConfig(vocab_size=7, **shape), []

    def loss(model, batch):
        seen.append(torch.are_deterministic_algorithms_enabled())
        return language_model_loss(model, batch)

    for is_on in (True, False):
        train = TrainConfig(n_steps=2, rows=2, seq_len=4, deterministic=is_on)
        about = {"description": describe(cfg), "batches": batches, "loss_function": loss}
        run(tmp_path / str(is_on), Job(model=new_decoder(cfg, 0), cfg=train, **about), Silent())
        assert not torch.are_deterministic_algorithms_enabled()
    assert seen == [True, True, False, False]


def test_cublas_workspace_of_the_user_is_kept_or_refused(monkeypatch):
    monkeypatch.setenv(CUBLAS_WORKSPACE, ":16:8")
    with deterministic_kernels(True):
        assert os.environ[CUBLAS_WORKSPACE] == ":16:8"
    assert os.environ[CUBLAS_WORKSPACE] == ":16:8"
    monkeypatch.setenv(CUBLAS_WORKSPACE, ":0:0")
    with pytest.raises(ValueError, match=r"CUBLAS_WORKSPACE_CONFIG=:0:0 .* unset it, or set deterministic=False"):
        deterministic_kernels(True).__enter__()


def machine(root, available: int, groups: dict[str, tuple[str, int, int]], own: str = "/"):
    """Files of a kernel: bytes that are available; per control group its limit, what it uses, and cached files."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: {64 << 20} kB\nMemAvailable: {available >> 10} kB\n")
    (root / "proc/self/cgroup").write_text(f"4:memory:/elsewhere\n0::{own}\n")
    for name, (limit, used, cached) in groups.items():
        folder = root / "sys/fs/cgroup" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(f"{limit}\n")
        (folder / "memory.current").write_text(f"{used}\n")
        (folder / "memory.stat").write_text(f"anon 5\nactive_file 7\ninactive_file {cached}\n")
    return root


@pytest.mark.parametrize(
    ("groups", "own", "expected"),
    [
        ({}, "/", 20 * GIB),  # no limit: what the machine has
        ({".": ("max", 9 * GIB, 0)}, "/", 20 * GIB),
        ({".": (str(8 * GIB), 3 * GIB, 0)}, "/", 5 * GIB),
        ({".": (str(8 * GIB), 7 * GIB, 6 * GIB)}, "/", 7 * GIB),  # 6 of the 7 are pages of files that were read
        ({".": (str(30 * GIB), 7 * GIB, 0)}, "/", 20 * GIB),
        ({".": (str(4 * GIB), 5 * GIB, 0)}, "/", 0),
        ({"a/b": ("max", GIB, 0), "a": (str(6 * GIB), 2 * GIB, 0)}, "/a/b", 4 * GIB),  # the group around it limits
        ({"other": (str(GIB), 0, 0)}, "/a", 20 * GIB),
    ],
)
def test_free_memory_is_what_machine_and_container_leave_without_the_cache_of_files(tmp_path, groups, own, expected):
    assert free_memory(CPU, machine(tmp_path, 20 * GIB, groups, own)) == expected


def test_free_memory_is_shared_among_the_processes_of_a_node(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_memory(CPU, machine(tmp_path, 20 * GIB, {})) == 5 * GIB


def test_free_memory_of_this_machine_is_what_the_kernel_reports():
    lines = Path("/proc/meminfo").read_text("utf-8").splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    assert 0 < free_memory(CPU) <= 1.2 * 1024 * available
