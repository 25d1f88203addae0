"""Losses as sums: language modelling and classification.

In: a model and a batch (tensors by name, rows first). Out: the summed loss and the number of supervised targets.
Whoever accumulates micro-batches divides once by the targets of the whole global batch: a mean of means would
weigh a token by how empty its neighbours are.

Logits of a whole batch are never held. The head and its loss are one operation: for each chunk of rows it makes the
logits, turns them in place into their own gradient, softmax minus one-hot, and multiplies that back into hidden
states and weights (arXiv:2410.10989 section 3.2). Nothing is computed twice, and one chunk is all that lives.

Legend: B batch, T query position, S key position, N rows of a flat batch or chunk, D d_model, V vocab, C classes.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.network.linear import linear, product
from model.network.visible import CAUSAL, Visible
from model.training.compilation import compiled, is_compiled

IGNORE_INDEX = -100  # target without loss; torch's default
CHUNK_BYTES = {"cpu": 1 << 26, "cuda": 1 << 30}  # of float32 logits: small beside a batch, large enough for products
MIN_CHUNK_ROWS = 64  # below, reading and writing the whole weight gradient for each chunk costs more than it computes

Batch = Mapping[str, Tensor]
LossFunction = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]


def language_model_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sum of -ln p(next token) over targets that are not IGNORE_INDEX, and their number; both 0-d tensors.

    `batch`: ids_BT and targets_BT (targets already shifted: targets[t] follows ids[t]). Where it has documents_BT,
    tokens attend to their own document only; where it has positions_BT, these are the positions of the ids.
    """
    visible = Visible.within(batch["documents_BT"]) if "documents_BT" in batch else CAUSAL
    targets_N = batch["targets_BT"].flatten()
    x_BTD = model.trunk(batch["ids_BT"], visible=visible, positions_BT=batch.get("positions_BT"))  # type: ignore[operator]
    x_ND = x_BTD.flatten(0, 1)
    weight_VD = model.lm_head.weight  # type: ignore[union-attr]
    loss = linear_cross_entropy(x_ND, weight_VD, targets_N, fused=is_compiled(model))  # type: ignore[arg-type]
    return loss, (targets_N != IGNORE_INDEX).sum()


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


def linear_cross_entropy(
    x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, *, rows_per_chunk: int | None = None, fused: bool = False
) -> Tensor:
    """Summed cross entropy of the logits x @ weight.T, 0-d float32; IGNORE_INDEX counts nothing.

    Products run in autocast's type where it is on; sums over chunks and over the vocabulary are float32 always.
    The result can be differentiated once, by one `backward`. `fused` compiles what lies between the products.
    """
    n_rows = rows_per_chunk or chunk_rows(weight_VD.size(0), x_ND.device.type)
    if torch.is_grad_enabled() and (x_ND.requires_grad or weight_VD.requires_grad):
        return _LinearCrossEntropy.apply(x_ND, weight_VD, targets_N, n_rows, fused)  # type: ignore[return-value]
    losses = [
        F.cross_entropy(linear(x, weight_VD).float(), targets, reduction="sum", ignore_index=IGNORE_INDEX)
        for x, targets in zip(x_ND.split(n_rows), targets_N.split(n_rows), strict=True)
    ]
    return torch.stack(losses).sum()


def chunk_rows(vocab_size: int, device: str) -> int:
    """Rows whose logits exist at once: the largest power of two that keeps them below CHUNK_BYTES."""
    fitting = CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (4 * vocab_size)
    return max(MIN_CHUNK_ROWS, 1 << max(0, fitting.bit_length() - 1))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, n_rows: int, fused: bool) -> Tensor:
        kind, dtypes = x_ND.device.type, (x_ND.dtype, weight_VD.dtype)
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_VD.dtype
        loss_of_chunk = compiled(_fused_chunk_loss) if fused else _chunk_loss
        with torch.autocast(kind, enabled=False):
            x_ND, weight_VD = x_ND.to(dtype), weight_VD.to(dtype)
            loss = torch.zeros((), dtype=torch.float32, device=x_ND.device)
            x_gradient_ND = torch.empty_like(x_ND)
            weight_gradient_VD = torch.zeros_like(weight_VD, dtype=torch.float32)
            for first in range(0, x_ND.size(0), n_rows):
                chunk = slice(first, first + n_rows)
                chunk_loss, gradient_NV = loss_of_chunk(product(x_ND[chunk], weight_VD), targets_N[chunk])
                loss += chunk_loss
                x_gradient_ND[chunk] = product(gradient_NV, weight_VD.mT)
                weight_gradient_VD += product(gradient_NV.mT, x_ND[chunk].mT)  # in float32, chunk by chunk
                del gradient_NV  # before the next chunk
        ctx.gradients = (x_gradient_ND.to(dtypes[0]), weight_gradient_VD.to(dtypes[1]))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, *scale: Tensor):  # type: ignore[override]
        if ctx.gradients is None:
            raise RuntimeError("the gradients of linear_cross_entropy are gone: backward can be called once")
        x_gradient_ND, weight_gradient_VD = ctx.gradients
        ctx.gradients = None  # they are scaled in place: a second copy would be as large as the head
        return x_gradient_ND.mul_(*scale), weight_gradient_VD.mul_(*scale), None, None, None


def _chunk_loss(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Summed loss of a chunk, and the gradient of its logits: in their memory, where they are float32."""
    counts_N = targets_N != IGNORE_INDEX
    place = torch.arange(len(targets_N), device=targets_N.device), targets_N.clamp(min=0)  # of each target's logit
    shifted_NV = logits_NV.float()  # itself where it is float32 already
    shifted_NV -= shifted_NV.amax(dim=1, keepdim=True)
    target_N = shifted_NV[place]
    sum_N = shifted_NV.exp_().sum(dim=1)
    loss = ((sum_N.log() - target_N) * counts_N).sum()
    shifted_NV *= (counts_N / sum_N).unsqueeze(1)
    shifted_NV[place] -= counts_N.float()
    return loss, shifted_NV.to(logits_NV.dtype)


def _fused_chunk_loss(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """The same, written for a compiler: no step in place, so that it reads the logits twice and writes once."""
    counts_N1 = (targets_N != IGNORE_INDEX).unsqueeze(1)
    index_N1 = targets_N.clamp(min=0).unsqueeze(1)
    wide_NV = logits_NV.float()
    log_sum_N1 = wide_NV.logsumexp(dim=1, keepdim=True)
    loss = ((log_sum_N1 - wide_NV.gather(1, index_N1)) * counts_N1).sum()
    is_target_NV = torch.arange(logits_NV.size(1), device=logits_NV.device) == index_N1
    gradient_NV = ((wide_NV - log_sum_N1).exp() - is_target_NV.float()) * counts_N1
    return loss, gradient_NV.to(logits_NV.dtype)
