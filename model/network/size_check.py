"""Refuses a config that asks for more than its weight files hold, before memory is taken for it.

In: the config of a decoder or an encoder and the headers of the safetensors files beside it. Out: nothing, or a
ValueError that names what the config asks for and what the files hold. Anybody can write a config of a few bytes that
asks for any amount of memory; weight files have the size that they have.
"""

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from model.network.shape import DecoderConfig, EncoderConfig
from model.network.size import n_parameters

MAX_HEADER_BYTES = 16_000_000  # about 130,000 tensors; the largest dense models have a few thousand
SLACK = 2  # below this ratio the tensors are compared one by one, which names the one that differs
Shapes = Mapping[str, tuple[int, ...]]


def shapes_in(path: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the tensors of a safetensors file, from its header alone. ValueError when it is none."""
    try:
        with path.open("rb") as file:
            start = file.read(8)
        n_bytes, size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0, path.stat().st_size
        if n_bytes > min(size, MAX_HEADER_BYTES):
            raise ValueError(
                f"{path}: its header says that it has {n_bytes} bytes; the file has {size}, and a header at most"
                f" {MAX_HEADER_BYTES}; fetch or export the model again"
            )
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a whole safetensors file ({error})") from error


def check_size(cfg: DecoderConfig | EncoderConfig, shapes: Shapes, where: Path) -> None:
    """ValueError when the model is far larger than its weights, or than this machine's memory."""
    title = "an encoder" if isinstance(cfg, EncoderConfig) else "a decoder"
    asked = n_parameters(replace(cfg, tie_embeddings=True))  # a head may be tied, or be that of a classifier
    held = sum(math.prod(shape) for shape in shapes.values())
    sizes = f"n_layers={cfg.n_layers}, d_model={cfg.d_model}, d_ff={cfg.d_ff}, vocab_size={cfg.vocab_size}"
    if cfg.n_layers > len(shapes) or asked > SLACK * held:
        raise ValueError(
            f"{where}: {title} with {sizes} has {asked:,} weights in {cfg.n_layers:,} layers; the weight files"
            f" beside it hold {held:,} in {len(shapes):,} tensors; the config does not belong to these weights"
        )
    tables = 4 * 2 * cfg.max_seq_len * cfg.d_head if cfg.positions == "rotary" else 0
    needed, there = 4 * asked + 2 * tables, memory_of_machine()
    if needed > there:
        raise ValueError(
            f"{where}: {title} with {sizes}, max_seq_len={cfg.max_seq_len} takes at least {needed / 1e9:,.1f} GB of"
            f" memory; this machine has {there / 1e9:,.1f} GB, enough for {there / 4e9:,.2f} billion weights"
        )


def memory_of_machine() -> int:
    """Bytes of memory that a process here may ever have: those of the machine, or of its container."""
    n_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")  # a container's, version 2
    text = limit.read_text("ascii").strip() if limit.exists() else "max"
    return n_bytes if text == "max" else min(n_bytes, int(text))
