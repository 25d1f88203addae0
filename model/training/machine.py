"""The machine that a training runs on: its cores, devices and free memory, and how exactly its kernels repeat.

In: the environment that torchrun sets, the kernel's files about memory. Out: this process's device, the precision of
its products, bytes that are free. Importing this module imports no torch.

On a CPU, with float32, the same training gives the same bits every time. On CUDA it does so within
`deterministic_kernels` (TrainConfig.deterministic): kernels that do not repeat are replaced or refused.
CPU and CUDA give different bits always: products on CUDA are bfloat16 where the GPU has it, so the kind of device is
part of a training's identity, and a training resumes only on the kind of device on which it began.
"""

import contextlib
import functools
import importlib.metadata
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # read by cuBLAS and checked by torch before the first product
CUBLAS_WORKSPACES = (":4096:8", ":16:8")  # the two with which cuBLAS repeats its results; the first is faster


def n_usable_cores() -> int:
    """Cores that this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# Devices.


@functools.cache
def n_gpus() -> int:
    """CUDA devices that torch can use. torch is imported only if it was built for GPUs."""
    if importlib.metadata.version("torch").endswith("+cpu"):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def device_kind() -> str:
    """The kind of `training_device()`, "cuda" or "cpu", without starting the device."""
    return "cuda" if n_gpus() else "cpu"


def check_n_processes(n_processes: int, n_devices: int | None = None) -> None:
    """ValueError where a training in `n_processes` processes has too few GPUs; on a CPU any number may run."""
    n_devices = n_gpus() if n_devices is None else n_devices
    if 0 < n_devices < n_processes:
        raise ValueError(
            f"devices={n_processes}, but this machine has {n_devices} GPU{'s' if n_devices > 1 else ''} that torch"
            f" can use; start at most {n_devices} processes (each takes a GPU of its own)"
        )


def training_device() -> "torch.device":
    """The GPU of this process's LOCAL_RANK where there are GPUs, else the CPU."""
    import torch

    if not n_gpus():
        return torch.device("cpu")
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    check_n_processes(local_rank + 1)
    return torch.device("cuda", local_rank)


def product_dtype(device: "torch.device") -> "torch.dtype":
    """Type of matrix products: bfloat16 where the device has it natively, float32 on CPUs, which emulate it."""
    import torch

    is_native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if is_native else torch.float32


def precision(device: "torch.device") -> contextlib.AbstractContextManager:
    """A context in which products run in `product_dtype`; the sums around them stay float32."""
    import torch

    dtype = product_dtype(device)
    return contextlib.nullcontext() if dtype is torch.float32 else torch.autocast(device.type, dtype)


@contextlib.contextmanager
def deterministic_kernels(is_on: bool) -> Iterator[None]:
    """Within the block kernels repeat their bits, where `is_on`; afterwards the settings are what they were.

    An operation that has no such kernel raises RuntimeError and is named. `warn_only` would not do: with it
    the backward pass of flash attention stays nondeterministic. Begin the block before the first product on CUDA.
    """
    if not is_on:
        yield
        return
    import torch

    before = (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled())
    fills = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    with _cublas_workspace(), _untimed_compilation():
        try:
            torch.use_deterministic_algorithms(True, warn_only=False)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  (finds bugs only)
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            torch.utils.deterministic.fill_uninitialized_memory = fills  # type: ignore[attr-defined]


@contextlib.contextmanager
def _cublas_workspace() -> Iterator[None]:
    set_by_user = os.environ.get(CUBLAS_WORKSPACE)
    if set_by_user is not None and set_by_user not in CUBLAS_WORKSPACES:
        raise ValueError(
            f"{CUBLAS_WORKSPACE}={set_by_user} in the environment does not go with deterministic=True: cuBLAS repeats"
            f" its results with {' or '.join(CUBLAS_WORKSPACES)} only; unset it, or set deterministic=False"
        )
    os.environ.setdefault(CUBLAS_WORKSPACE, CUBLAS_WORKSPACES[0])
    try:
        yield
    finally:
        if set_by_user is None:
            del os.environ[CUBLAS_WORKSPACE]


def _untimed_compilation() -> contextlib.AbstractContextManager:
    """torch.compile on CUDA chooses block sizes by timing, and so the order of sums; here it chooses by rule."""
    if not n_gpus():
        return contextlib.nullcontext()
    import torch._inductor.config as inductor

    return inductor.patch(deterministic=True)


# Memory.


def free_memory(device: "torch.device", root: Path = Path("/")) -> int:
    """Bytes that this process may still take on `device`; on a CPU its share among the processes of its node.

    `root` is where proc/ and sys/fs/cgroup/ are.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    n_sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    meminfo = root / "proc/meminfo"
    if not meminfo.exists():  # not Linux: systems report what is free in different ways; half of all is a safe guess
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 // n_sharing
    lines = dict(line.split(":", 1) for line in meminfo.read_text("utf-8").splitlines())
    free = int(lines["MemAvailable"].split()[0]) * 1024
    return max(0, min([free, *(_free_in_group(group) for group in _control_groups(root))])) // n_sharing


def _control_groups(root: Path) -> list[Path]:
    """Control groups (version 2) of this process that limit its memory: its own and those around it."""
    top, own = root / "sys/fs/cgroup", root / "proc/self/cgroup"
    lines = own.read_text("utf-8").splitlines() if own.exists() else []
    path = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    inner = top / path
    around = [group for group in (inner, *inner.parents) if group == top or top in group.parents]
    return [group for group in around if (group / "memory.max").exists() and (group / "memory.current").exists()]


def _free_in_group(group: Path) -> int:
    """Bytes below the group's limit. Pages of files that were only read do not count: the kernel drops them first."""
    limit = (group / "memory.max").read_text("utf-8").strip()
    if limit == "max":
        return 1 << 62
    used = int((group / "memory.current").read_text("utf-8"))
    stat = group / "memory.stat"
    lines = (line.split() for line in stat.read_text("utf-8").splitlines()) if stat.exists() else ()
    cached = next((int(size) for name, size in lines if name == "inactive_file"), 0)
    return int(limit) - (used - cached)
