"""The kind of device that a training or an evaluation runs on: cpu or cuda.

Weights are reproducible to the bit on one kind of CPU, with float32. On CUDA products are bfloat16 where the GPU has
it, sums are added in another order, and the weights are others: a training is told apart by it, and goes on only on
the kind of device on which it began.
"""

import functools
import importlib.metadata


@functools.cache
def device_kind() -> str:
    """Says what model/training/distributed.py would choose; torch is imported only if it was built for GPUs."""
    if importlib.metadata.version("torch").endswith("+cpu"):
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
