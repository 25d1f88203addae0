"""Weights of a module by name, whole, and back.

In: a module, whose weights may be sharded over several processes. Out: whole tensors by name, or the module with the
tensors of a file in it. Checkpoints, saved models and exports all go through these two functions, so that a weight
has the same name everywhere.
"""

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
    weights = model.named_parameters()
    return {name: full_tensor_on_main(local_shard(weight.detach()), weight).contiguous() for name, weight in weights}


@torch.no_grad()
def load_weights(path: Path, model: nn.Module) -> None:
    """Copy the file's tensors into the model. ValueError names a tensor that is missing, unknown or misshapen."""
    tensors, weights = read_tensors(path), dict(model.named_parameters())
    check_same_shapes(str(path), weights, tensors)
    for name, weight in weights.items():
        local_shard(weight).copy_(shard_of(tensors[name], weight))
