"""The head and its cross entropy as one operation, which never holds the logits of a whole batch.

In: hidden states, the weight (and bias) of the head, targets. Out: the summed loss, with gradients. For each chunk
of rows it makes the logits, turns them into their own gradient (softmax minus one-hot) in the same memory, and
multiplies that back into hidden states and weights (arXiv:2410.10989 section 3.2). Nothing is computed twice, and
only one chunk of logits exists at a time.

On CUDA the vocabulary is padded inside this operation, because tensor cores want multiples of 8 columns. The padding
is made by the copy that casts the weight to bfloat16 anyway, and parameters, gradients and checkpoints never have it.

Legend: N rows of a flat batch or chunk, M selected rows, D d_model, V vocab, W vocab with padding.
"""

import dataclasses
import functools
import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.data.batch_layout import IGNORE_INDEX
from model.network.linear import linear, product
from model.training.compilation import compiled

CHUNK_BYTES = {"cpu": 1 << 26, "cuda": 1 << 30}  # of float32 logits: small beside a batch, large enough for products
MIN_CHUNK_ROWS = 64  # below, reading and writing the whole weight gradient for each chunk costs more than its product
VOCAB_MULTIPLE = {"cuda": 64}  # of the padded vocabulary, by device; elsewhere there is no padding


def linear_cross_entropy(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    weights_N: Tensor | None = None,
    rows_M: Tensor | None = None,
    rows_per_chunk: int | None = None,
    compile_backend: str | None = None,
    vocab_multiple: int | None = None,
) -> Tensor:
    """Summed cross entropy of the logits x @ weight.T + bias, 0-d float32; negative targets count nothing.

    Args:
        weights_N: factor of each target's loss: 0 is as if the target were ignored, 2 as if it were there twice; a
            negative one makes the target less likely.
        rows_M: rows of x that targets and weights belong to, in their order; None = all rows.
        compile_backend: torch.compile's, for what lies between the products; None = nothing is compiled.
        vocab_multiple: the vocabulary is padded to a multiple of it; None = as the device likes it.

    Products run in autocast's type where it is on; sums over chunks and over the vocabulary are float32 always.
    The result can be differentiated once, by one `backward`. Raises ValueError for a target that is not in the
    vocabulary, on a CPU; on CUDA the kernel fails.
    """
    n_vocab, device = weight_VD.size(0), x_ND.device.type
    if rows_M is not None:
        x_ND = x_ND.index_select(0, rows_M)
    factors_N = (targets_N >= 0).float()
    if weights_N is not None:
        factors_N *= weights_N
    plan = _plan(weight_VD, device, rows_per_chunk, vocab_multiple, compile_backend)
    tensors = x_ND, weight_VD, bias_V, targets_N, factors_N
    needs_gradient = any(tensor is not None and tensor.requires_grad for tensor in tensors)
    try:
        if torch.is_grad_enabled() and needs_gradient:
            return _LinearCrossEntropy.apply(*tensors, plan)  # type: ignore[return-value]
        return _loss_without_gradients(x_ND, weight_VD, bias_V, targets_N, weights_N, plan)
    except (IndexError, RuntimeError) as error:
        _refuse_foreign_target(targets_N, n_vocab, error)
        raise


def chunk_rows(vocab_size: int, device: str) -> int:
    """Rows whose logits exist at once: the largest power of two that keeps them below CHUNK_BYTES."""
    fitting = CHUNK_BYTES.get(device, CHUNK_BYTES["cuda"]) // (4 * vocab_size)
    return max(MIN_CHUNK_ROWS, 1 << max(0, fitting.bit_length() - 1))


def backward_of_sum(loss_sum: Tensor) -> None:
    """`loss_sum.backward()`, by a gradient of 1 that `linear_cross_entropy` recognises and does not multiply with."""
    loss_sum.backward(_unit_gradient(loss_sum.device) if loss_sum.dtype is torch.float32 else None)


@functools.cache
def _unit_gradient(device: torch.device) -> Tensor:
    return torch.ones((), device=device)


@dataclasses.dataclass(frozen=True, slots=True)
class _Plan:
    rows_per_chunk: int
    n_columns: int  # of the logits, padding included
    compile_backend: str | None


def _plan(
    weight_VD: Tensor,
    device: str,
    rows_per_chunk: int | None,
    vocab_multiple: int | None,
    compile_backend: str | None = None,
) -> _Plan:
    n_vocab, multiple = weight_VD.size(0), vocab_multiple or VOCAB_MULTIPLE.get(device, 1)
    return _Plan(rows_per_chunk or chunk_rows(n_vocab, device), -(-n_vocab // multiple) * multiple, compile_backend)


def _refuse_foreign_target(targets_N: Tensor, n_vocab: int, error: Exception) -> None:
    """ValueError in place of an index error of the CPU; elsewhere the targets would have to be copied to the host."""
    if targets_N.device.type != "cpu" or not len(foreign := (targets_N >= n_vocab).nonzero()):
        return
    row = int(foreign[0])
    raise ValueError(
        f"target {int(targets_N[row])} in row {row} of the flat batch, expected less than {n_vocab}, the size of the"
        " head; make targets and model by one tokenizer, or write a negative number where there is no target"
    ) from error


def _padded(tensor: Tensor, n_rows: int, dtype: torch.dtype) -> Tensor:
    """`tensor` in `dtype` with rows of zeros up to `n_rows`: itself where it has both, else one copy."""
    if tensor.size(0) == n_rows:
        return tensor.to(dtype)
    padded = tensor.new_empty(n_rows, *tensor.shape[1:], dtype=dtype)
    padded[: tensor.size(0)] = tensor
    padded[tensor.size(0) :] = 0
    return padded


def target_losses(
    x_ND: Tensor,
    weight_VD: Tensor,
    targets_N: Tensor,
    *,
    bias_V: Tensor | None = None,
    rows_per_chunk: int | None = None,
    vocab_multiple: int | None = None,
) -> Tensor:
    """-ln p(target) of the logits x @ weight.T + bias, float32 (N,), and 0 where the target is negative. Arguments as
    in `linear_cross_entropy`, but nothing of it can be differentiated."""
    plan = _plan(weight_VD, x_ND.device.type, rows_per_chunk, vocab_multiple)
    with torch.no_grad():
        return torch.cat(list(_losses_of_chunks(x_ND, weight_VD, bias_V, targets_N, plan)))


def _loss_without_gradients(
    x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, weights_N: Tensor | None, plan: _Plan
) -> Tensor:
    losses = _losses_of_chunks(x_ND, weight_VD, bias_V, targets_N, plan)
    weights = itertools.repeat(1.0) if weights_N is None else weights_N.split(plan.rows_per_chunk)
    return torch.stack([(loss_N * weight).sum() for loss_N, weight in zip(losses, weights, strict=False)]).sum()


def _losses_of_chunks(
    x_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, targets_N: Tensor, plan: _Plan
) -> Iterator[Tensor]:
    """The loss of each target, chunk by chunk; one empty chunk where there is no target."""
    weight_WD = _padded(weight_VD, plan.n_columns, weight_VD.dtype)
    bias_W = None if bias_V is None else _padded(bias_V, plan.n_columns, bias_V.dtype)
    targets_N = targets_N.masked_fill(targets_N < 0, IGNORE_INDEX)
    for first in range(0, max(1, x_ND.size(0)), plan.rows_per_chunk):
        chunk = slice(first, first + plan.rows_per_chunk)
        logits_NV = linear(x_ND[chunk], weight_WD, bias_W)[:, : weight_VD.size(0)].float()
        yield F.cross_entropy(logits_NV, targets_N[chunk], reduction="none", ignore_index=IGNORE_INDEX)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        x_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        factors_N: Tensor,
        plan: _Plan,
    ) -> Tensor:
        kind, n_vocab = x_ND.device.type, weight_VD.size(0)
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_VD.dtype
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        loss_of_chunk = _chunk_loss
        if plan.compile_backend is not None:
            loss_of_chunk = compiled(_fused_chunk_loss, plan.compile_backend)
        with torch.autocast(kind, enabled=False):
            inputs_ND, weight_WD = x_ND.to(dtype), _padded(weight_VD, plan.n_columns, dtype)
            bias_W = None if bias_V is None else _padded(bias_V, plan.n_columns, dtype)
            loss = torch.zeros((), dtype=torch.float32, device=x_ND.device)
            # sums over chunks are float32, whatever the products are
            x_gradient_ND = torch.empty_like(inputs_ND) if needs_x else None
            weight_gradient_WD = torch.zeros_like(weight_WD, dtype=torch.float32) if needs_weight else None
            bias_gradient_W = loss.new_zeros(plan.n_columns) if needs_bias else None
            for first in range(0, x_ND.size(0), plan.rows_per_chunk):
                chunk = slice(first, first + plan.rows_per_chunk)
                logits_NW = product(inputs_ND[chunk], weight_WD)
                if bias_W is not None:
                    logits_NW += bias_W
                chunk_loss, gradient_NW = loss_of_chunk(logits_NW, targets_N[chunk], factors_N[chunk], n_vocab)
                loss += chunk_loss
                if x_gradient_ND is not None:
                    x_gradient_ND[chunk] = product(gradient_NW, weight_WD.mT)
                if weight_gradient_WD is not None:
                    weight_gradient_WD += product(gradient_NW.mT, inputs_ND[chunk].mT)
                if bias_gradient_W is not None:
                    bias_gradient_W += gradient_NW.sum(dim=0, dtype=torch.float32)
                del logits_NW, gradient_NW  # before the next chunk
        pairs = (x_ND, x_gradient_ND), (weight_VD, weight_gradient_WD), (bias_V, bias_gradient_W)
        ctx.gradients = tuple(
            None if gradient is None or tensor is None else gradient[: len(tensor)].to(tensor.dtype)
            for tensor, gradient in pairs
        )
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, scale: Tensor):  # type: ignore[override]
        if ctx.gradients is None:
            raise RuntimeError("the gradients of linear_cross_entropy are gone: backward can be called once")
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place: a copy would be as large as the head
        if scale is not _unit_gradient(scale.device):  # compared by identity: its value is on the device
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(scale)
        return *gradients, None, None, None


def _chunk_loss(logits_NW: Tensor, targets_N: Tensor, factors_N: Tensor, n_vocab: int) -> tuple[Tensor, Tensor]:
    """Summed loss of a chunk, and the gradient of its logits in their memory."""
    index = torch.arange(len(targets_N), device=targets_N.device), targets_N.clamp(min=0)  # of each target's logit
    logits_NV = logits_NW[:, :n_vocab]
    shifted_NV = logits_NV.float()  # the same memory where it is float32 already
    shifted_NV -= shifted_NV.amax(dim=1, keepdim=True)
    target_N = shifted_NV[index]
    sum_N = shifted_NV.exp_().sum(dim=1)
    loss = ((sum_N.log() - target_N) * factors_N).sum()
    shifted_NV *= (factors_N / sum_N).unsqueeze(1)
    shifted_NV[index] -= factors_N
    if shifted_NV.dtype is not logits_NW.dtype:
        logits_NV.copy_(shifted_NV)
    logits_NW[:, n_vocab:] = 0  # the padding
    return loss, logits_NW


def _fused_chunk_loss(logits_NW: Tensor, targets_N: Tensor, factors_N: Tensor, n_vocab: int) -> tuple[Tensor, Tensor]:
    """The same for a compiler: without operations in place, so that it reads the logits twice and writes once."""
    factors_N1, index_N1 = factors_N.unsqueeze(1), targets_N.clamp(min=0).unsqueeze(1)
    column_W = torch.arange(logits_NW.size(1), device=logits_NW.device)
    wide_NW = logits_NW.float()
    if n_vocab < logits_NW.size(1):
        wide_NW = wide_NW.masked_fill(column_W >= n_vocab, float("-inf"))
    log_sum_N1 = wide_NW.logsumexp(dim=1, keepdim=True)
    loss = ((log_sum_N1 - wide_NW.gather(1, index_N1)) * factors_N1).sum()
    gradient_NW = ((wide_NW - log_sum_N1).exp() - (column_W == index_N1).float()) * factors_N1
    return loss, gradient_NW.to(logits_NW.dtype)
