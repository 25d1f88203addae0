"""torch.compile where it pays: layer by layer, so that one compilation serves all layers, and never silently.

In: a model. Out: the same model, same parameters and names, whose layers and last norm run as generated code. Rows of
one length get a graph for their shape; where lengths vary, one graph serves all lengths, whichever comes first, so
that a resumed run uses the same code for the same batch. Fused code rounds differently from eager code: which of the
two a run uses is chosen once and stored in its checkpoints.

Compiling needs a C++ compiler (CPU) or Triton and a C compiler (CUDA). Where that is missing, `compile_failure`
returns the reason, and a run that was not asked to compile continues without. A model that meets too many shapes to
compile fails: torch itself would run it eagerly from then on, at half the speed and with other roundings.
"""

import contextlib
import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

log = logging.getLogger(__name__)


@functools.cache
def compile_failure(device: str) -> str | None:
    """Why torch.compile does not work on `device` ("cpu", "cuda"), found by compiling one line, or None."""
    try:
        torch.compile(lambda x: (x * 2 + 1).relu(), dynamic=False)(torch.ones(4, device=device))
    except Exception as error:  # whatever a compiler, a linker or a missing package raises
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return None


def chosen_compile(wish: bool | None, device: str) -> bool:
    """Whether to compile: what `wish` says, or for None whether the device is CUDA and compiling works there.

    Raises ValueError when `wish` is True and compiling does not work.
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


def compile_layers(model: nn.Module, *, has_varying_lengths: bool = False, backend: str = "inductor") -> None:
    """Compile every layer of the trunk and its last norm in place; loss and optimiser do so with their own steps.

    `has_varying_lengths`: batches differ in rows and length, and one graph is to serve all. Call the model within
    `strictly_compiled`.
    """
    for module in (*model.trunk.layers, model.trunk.norm):  # type: ignore[union-attr,misc]
        module.compile(backend=backend, dynamic=has_varying_lengths)  # type: ignore[union-attr]
    model.compile_backend = backend  # type: ignore[assignment]


def compile_backend(model: nn.Module) -> str | None:
    """What compiles the layers of `model`; None = they run eagerly."""
    return getattr(model, "compile_backend", None)


def is_compiled(model: nn.Module) -> bool:
    return compile_backend(model) is not None


@contextlib.contextmanager
def strictly_compiled(is_on: bool = True) -> Iterator[None]:
    """Within the block a compiled module that meets too many shapes raises ValueError instead of running eagerly."""
    if not is_on:
        yield
        return
    import torch._dynamo.config
    import torch.fx.experimental._config as symbolic_shapes
    from torch._dynamo.exc import FailOnRecompileLimitHit

    # Else a length that happens to equal a width in the first batch counts as that width, and is compiled alone.
    free = symbolic_shapes.patch(use_duck_shape=False)  # type: ignore[attr-defined]
    try:
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True), free:
            yield
    except FailOnRecompileLimitHit as error:
        limit = torch._dynamo.config.recompile_limit  # type: ignore[attr-defined]
        raise ValueError(
            f"a layer was compiled {limit} times and met yet another shape or setting: batches must have few shapes."
            " Set compile=False (the same training, slower), or pad rows to fewer lengths; TORCH_LOGS=recompiles in"
            " the environment shows what differed"
        ) from error


@functools.cache
def compiled(
    function: Callable[..., Any], backend: str = "inductor", dynamic: bool | None = None
) -> Callable[..., Any]:
    """`function` through torch.compile, once per process and backend; `dynamic` False = a graph per shape."""
    return torch.compile(function, backend=backend, dynamic=dynamic)
