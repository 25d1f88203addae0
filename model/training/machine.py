"""The machine that a training runs on: its cores, its device, and the memory that is free.

Weights are reproducible to the bit on one kind of CPU, with float32. On CUDA products are bfloat16 where the GPU has
it, sums are added in another order, and the weights are others: the kind of device is part of the identity of a
training, which continues only on the kind of device on which it began. Importing this module imports no torch.
"""

import functools
import importlib.metadata
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def n_usable_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.cache
def device_kind() -> str:
    """Says what model/training/distributed.py would choose; torch is imported only if it was built for GPUs."""
    if importlib.metadata.version("torch").endswith("+cpu"):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def training_device() -> "torch.device":
    """The GPU of this process' LOCAL_RANK where there are GPUs, else the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    local_rank, n_devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if local_rank >= n_devices:
        raise ValueError(
            f"LOCAL_RANK={local_rank} has no GPU, there are {n_devices}; start at most {n_devices} processes"
        )
    return torch.device("cuda", local_rank)


def free_memory(device: "torch.device") -> int:
    """Bytes that this process may still take on `device`."""
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():  # not Linux: what is free is not told alike everywhere; half of all is a careful guess
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    lines = dict(line.split(":", 1) for line in meminfo.read_text("utf-8").splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")  # a container's limit, version 2
    limit, used = group / "memory.max", group / "memory.current"
    if limit.exists() and used.exists() and (text := limit.read_text("utf-8").strip()) != "max":
        free = min(free, int(text) - int(used.read_text("utf-8")))
    return free
