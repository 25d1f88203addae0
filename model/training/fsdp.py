"""A model in shards: every process holds a part of each weight, gradient and momentum (FSDP2, arXiv:2304.11277).

In: a model, either with weights or on the meta device with a function that initialises it. Out: the loss of a copy
in which layers are gathered one by one while they compute. Steps: copy the model without memory, shard the copy,
allocate the shards alone, and fill them weight by weight: at no time does a process hold a second whole model, and
none at all where the weights are on the meta device.
"""

import copy
from collections.abc import Callable

import torch
from torch import nn

from model.training.distributed import Objective, local_shard, shard_of, whole_mesh
from model.training.machine import product_dtype, training_device

Initialise = Callable[[nn.Module], None]


def sharded(model: nn.Module, initialise: Initialise | None = None, dtype: torch.dtype | None = None) -> Objective:
    """The loss of a copy of `model` that holds this process's shard of every weight.

    The shards come from `model`, which keeps its weights; or, where the weights of `model` are on the meta device,
    from `initialise`, and then `model` becomes one with released weights on the training's device. Layers compute
    with weights that are gathered in `dtype`, by default that of the device's products; gradients are added up in
    float32.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
    from torch.distributed.tensor.experimental import implicit_replication

    first = next(model.parameters())
    device = training_device() if first.is_meta else first.device
    parallel = Objective(without_memory(model))
    dtype = product_dtype(device) if dtype is None else dtype
    # Inputs stay as they are: a batch may hold float32 weights of its targets, and layers get float32 rotary tables.
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    stacks = [module for module in parallel.modules() if isinstance(module, nn.ModuleList)]
    for part in [*(layer for layers in stacks for layer in layers), parallel]:
        fully_shard(part, mesh=whole_mesh(device), mp_policy=policy)
        assert isinstance(part, FSDPModule)
        part.set_gradient_divide_factor(1.0)
        part.set_force_sum_reduction_for_comms(True)
    allocate(parallel, device)
    if not first.is_meta:
        copy_shards(parallel.model, model)
        return parallel
    if initialise is None:
        raise ValueError("the weights are on the meta device and nothing fills them; give the job `initialise`")
    with implicit_replication():  # it makes each whole weight, and this process's shard is kept
        initialise(parallel.model)
    forget_weights(model, device)
    return parallel


def without_memory(model: nn.Module) -> nn.Module:
    """A copy of `model` with weights on the meta device; tied weights stay tied, buffers are copied."""
    weights = {id(weight): nn.Parameter(weight.to("meta"), weight.requires_grad) for weight in model.parameters()}
    return copy.deepcopy(model, weights)  # type: ignore[arg-type]  (a memo: what it holds counts as copied)


def allocate(parallel: nn.Module, device: torch.device) -> None:
    """Give the shards of weights on the meta device memory; tied ones stay tied, buffers keep their values."""
    buffers = dict(parallel.named_buffers())
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module, name, weight in every_weight(parallel):
        holders.setdefault(id(weight), []).append((module, name))
    parallel.to_empty(device=device)
    for (first, first_name), *others in holders.values():
        for module, name in others:
            setattr(module, name, getattr(first, first_name))
    for name, buffer in parallel.named_buffers():
        buffer.copy_(buffers[name])


def every_weight(model: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """Each weight with the module that holds it and its name there; a tied weight is listed with each module."""
    held = [(module, module.named_parameters(recurse=False, remove_duplicate=False)) for module in model.modules()]
    return [(module, name, weight) for module, weights in held for name, weight in weights]


@torch.no_grad()
def copy_shards(model: nn.Module, source: nn.Module) -> None:
    for weight, whole in zip(model.parameters(), source.parameters(), strict=True):
        local_shard(weight).copy_(shard_of(whole, weight))


def forget_weights(model: nn.Module, device: torch.device) -> None:
    """Replace weights on the meta device by empty ones on `device`, to which `gather_weights` can give values."""
    empty = {id(weight): nn.Parameter(torch.empty(0, device=device)) for weight in model.parameters()}
    for module, name, weight in every_weight(model):
        setattr(module, name, empty[id(weight)])
    model.to(device)
