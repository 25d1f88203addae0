"""torch.compile where it pays: layer by layer, so that one compilation serves all, and never without a word.

In: a model. Out: the same model, same parameters and names, whose layers run as generated code. Fused code rounds
otherwise than eager code: which of the two a run uses is chosen once and lies in its checkpoints.

Compiling needs a C++ compiler (CPU) or Triton and a C compiler (CUDA). Where that is missing, `compile_failure` says
so in words, and a run that was not told to compile goes on without.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)


@functools.cache
def compile_failure(device: str) -> str | None:
    """Why torch.compile does not work on `device` ("cpu", "cuda"), found by compiling one line; None if it does."""
    try:
        torch.compile(lambda x: (x * 2 + 1).relu(), dynamic=False)(torch.ones(4, device=device))
    except Exception as error:  # whatever a compiler, a linker or a missing package raises
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None


def chosen_compile(wish: bool | None, device: str) -> bool:
    """Whether to compile: as wished; where nothing is wished, on CUDA if it works there.

    Raises ValueError when it is wished and does not work.
    """
    if wish is False or (wish is None and device != "cuda"):
        return False
    failure = compile_failure(device)
    if failure is None:
        return True
    if wish:
        raise ValueError(
            f"compile=True, but torch.compile does not work on {device} here ({failure}): install a C++ compiler"
            " (Debian: g++), on CUDA Triton too, or set compile=False"
        )
    log.warning("torch.compile does not work on %s here (%s): training goes on without, slower", device, failure)
    return False


def compile_layers(model: nn.Module) -> None:
    """Compile every layer of the trunk in place, and let the loss do so with its own steps."""
    for layer in model.model.layers:  # type: ignore[union-attr]
        layer.compile(dynamic=False)
    model.is_compiled = True  # type: ignore[assignment]


def is_compiled(model: nn.Module) -> bool:
    return getattr(model, "is_compiled", False) is True


@functools.cache
def compiled(
    function: Callable[..., Any], backend: str = "inductor", dynamic: bool | None = None
) -> Callable[..., Any]:
    """`function` through torch.compile, once per process and backend; `dynamic` False = a graph per shape."""
    return torch.compile(function, backend=backend, dynamic=dynamic)
