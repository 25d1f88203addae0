"""Losses as sums: language modelling and classification.

In: a model and a batch (tensors by name, rows first). Out: the summed loss and the number of supervised targets.
Whoever accumulates micro-batches divides once by the targets of the whole global batch: a mean of means would
weigh a token by how empty its neighbours are.

Logits of a whole batch are never held: hidden states go through the head in chunks.

Legend: B batch, T position, N rows of a flat batch, D d_model, V vocab, C classes.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

IGNORE_INDEX = -100  # target without loss; torch's default
CHUNK_ROWS = 512  # tokens whose logits exist at once: 8 MB with a vocabulary of 4096, 103 MB with 50304

Batch = Mapping[str, Tensor]
LossFunction = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]


def language_model_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sum of -ln p(next token) over targets that are not IGNORE_INDEX, and their number; both 0-d tensors.

    `batch`: ids_BT and targets_BT (targets already shifted: targets[t] follows ids[t]).
    """
    targets_N = batch["targets_BT"].flatten()
    x_ND = model.trunk(batch["ids_BT"]).flatten(0, 1)  # type: ignore[operator]
    return linear_cross_entropy(x_ND, model.lm_head.weight, targets_N), (targets_N != IGNORE_INDEX).sum()  # type: ignore[union-attr,arg-type]


def classification_loss(model: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Sum of -ln p(label), and the number of labels. `batch`: ids_BT right-padded, lengths_B, labels_B.

    `label_smoothing`, 0 to 1, is the share of each label spread over all classes (arXiv:1512.00567 section 7).
    """
    labels_B = batch["labels_B"]
    logits_BC = model(batch["ids_BT"], batch["lengths_B"])
    loss = F.cross_entropy(
        logits_BC.float(), labels_B, reduction="sum", ignore_index=IGNORE_INDEX, label_smoothing=label_smoothing
    )
    return loss, (labels_B != IGNORE_INDEX).sum()


def linear_cross_entropy(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """Summed cross entropy of the logits x @ weight.T, without holding them all; IGNORE_INDEX counts nothing."""
    options_type = getattr(nn, "LinearCrossEntropyOptions", None)  # torch >= 2.13
    if options_type is None or torch.is_autocast_enabled(x_ND.device.type):
        return chunked_cross_entropy(x_ND, weight_VD, targets_N)
    options = options_type(batch_chunk_size=CHUNK_ROWS, chunking_method=None) if x_ND.size(0) > CHUNK_ROWS else None
    return F.linear_cross_entropy(
        x_ND, weight_VD, targets_N, reduction="sum", ignore_index=IGNORE_INDEX, options=options
    )


def chunked_cross_entropy(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    """The same with plain torch: backward computes the logits of a chunk a second time."""
    chunks = zip(x_ND.split(CHUNK_ROWS), targets_N.split(CHUNK_ROWS), strict=True)
    losses = [checkpoint(_chunk_loss, x, weight_VD, targets, use_reentrant=False) for x, targets in chunks]
    return torch.stack(losses).sum()


def _chunk_loss(x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    logits_NV = F.linear(x_ND, weight_VD).float()
    return F.cross_entropy(logits_NV, targets_N, reduction="sum", ignore_index=IGNORE_INDEX)
