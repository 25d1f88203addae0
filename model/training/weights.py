"""Weights of a module by name, whole, and back.

In: a module, whose weights may be sharded over several processes. Out: whole tensors by name, or the module with the
tensors of a file in it. Checkpoints, saved models and exports all go through these functions, so that a weight
has the same name everywhere. Of a model with adapters a checkpoint holds what is trained, and no more.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from model.network.packed import check_unpacked
from model.training.distributed import full_tensor_on_main, local_shard, shard_of
from model.training.files import check_same_shapes, read_tensors


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """Whole parameters by name (under FSDP on rank 0 alone). Weights that share memory appear once, under their first
    name. Raises ValueError for a packed model, whose matrices are no parameters."""
    check_unpacked(model, "a packed model can't be saved or exported; save the plain model, and pack it to generate")
    return _whole(dict(model.named_parameters()))


def trained_weights(model: nn.Module) -> dict[str, Tensor]:
    """As `named_weights`, without those that are frozen because they belong to the base of adapters."""
    return _whole(_trained(model))


def load_weights(path: Path, model: nn.Module) -> None:
    """Copy the file's tensors into the model. ValueError names a tensor that is missing, unknown or misshapen."""
    _load(path, dict(model.named_parameters()))


def load_trained_weights(path: Path, model: nn.Module) -> None:
    """As `load_weights`, of a file that `trained_weights` filled."""
    _load(path, _trained(model))


def n_trained_parameters(model: nn.Module) -> int | None:
    """How many weights are trained beside frozen ones; None where all are."""
    weights = _trained(model).values()
    is_whole = all(weight.requires_grad for weight in model.parameters())
    return None if is_whole else sum(weight.numel() for weight in weights)


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}


def _whole(weights: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    return {
        name: full_tensor_on_main(local_shard(weight.detach()), weight).contiguous()
        for name, weight in weights.items()
    }


@torch.no_grad()
def _load(path: Path, weights: Mapping[str, nn.Parameter]) -> None:
    tensors = read_tensors(path)
    check_same_shapes(str(path), weights, tensors)
    for name, weight in weights.items():
        local_shard(weight).copy_(shard_of(tensors[name], weight))
