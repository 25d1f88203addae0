"""Where a trained model is applied: on the device that `training_device` chooses, in that device's precision.

In: a loaded model in float32 on the CPU. Out: the same model on the device. Evaluation and classification keep
float32 weights and run under `precision`, as validation does during training. Generation reads every weight for each
token, so its weights are converted once, to the type in which the device multiplies. On a CPU both are float32 and
nothing changes.

A device without room is an error of one line. There is no fallback to the CPU, which would take hours without notice
and give other numbers.
"""

from collections.abc import Generator, Iterable
from typing import TypeVar

import torch
from torch import nn

from model.training.machine import product_dtype, training_device
from model.training.memory import memory_explained

M = TypeVar("M", bound=nn.Module)
T = TypeVar("T")
ON_CPU = "CUDA_VISIBLE_DEVICES= (empty) runs it on the CPU"


def for_evaluation(model: M) -> M:
    """`model` on the device, with weights in the type that they have. Raises OutOfMemory."""
    return _placed(model, training_device(), None)


def for_generation(model: M) -> M:
    """`model` on the device, with weights in the type of its products. Raises OutOfMemory."""
    device = training_device()
    return _placed(model, device, product_dtype(device))


def _placed(model: M, device: torch.device, dtype: torch.dtype | None) -> M:
    n_bytes = sum(weight.numel() * (dtype or weight.dtype).itemsize for weight in model.parameters())
    with memory_explained(f"the model takes {n_bytes / 2**30:.2f} GiB; free memory on {device}, or {ON_CPU}"):
        return model.to(device=device, dtype=dtype)


def each_explained(items: Iterable[T], advice: str) -> Generator[T]:
    """The items, with an allocator's error between two of them explained in the same way."""
    with memory_explained(advice):
        yield from items
