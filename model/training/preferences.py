"""Losses of preferences: how much more likely a model makes a chosen answer than a rejected one.

In: a decoder and a batch of pairs (model/data/pairs.py) with the log-probabilities that a reference model gives to
the answers. Out: the summed loss and the number of pairs; or the log-probabilities themselves.

Steps of a loss: one pass through the trunk; the log-probability of every answer, without gradients and a chunk of
logits at a time; the loss of each pair and its derivative by the two log-probabilities; then `linear_cross_entropy`
with these derivatives as weights of the tokens, which has the gradient of the whole loss. So the trunk is computed
once for both answers, and the logits of a batch never exist together.

Legend: N supervised tokens, M rows of a flat batch, B pairs, 2 = chosen, rejected.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.data.pairs import CHOSEN, COMMON, EncodedPairs
from model.evaluate import TOKENS_PER_PASS, passes_of
from model.network.visible import Visible
from model.training.compilation import compile_backend
from model.training.cross_entropy import linear_cross_entropy, target_losses
from model.training.loss import Batch, supervision
from model.training.machine import precision
from model.training.memory import memory_explained
from model.training.step import on_device

Name = Literal["dpo", "dpo_norm", "ipo", "simpo"]
BETAS: dict[Name, float] = {"dpo": 0.1, "dpo_norm": 5.0, "ipo": 0.1, "simpo": 2.0}  # those of the papers


@dataclass(frozen=True, kw_only=True, slots=True)
class PreferenceLoss:
    """Which loss, and its constants."""

    name: Name = "dpo"
    beta: float = 0.1  # how strongly the model is held to the reference; of simpo: the factor of the margin
    label_smoothing: float = 0.0  # probability that the two answers of a pair are the wrong way round
    margin: float = 0.5  # simpo alone: how much likelier the chosen answer is to be, before the factor
    sft_weight: float = 0.0  # of the loss of the chosen answer itself, in nats per token

    def of_pairs(self, nats_B2: Tensor, references_B2: Tensor, counts_B2: Tensor) -> Tensor:
        """The loss of each pair from the log-probabilities of its answers and their numbers of tokens; (B,).

        dpo: arXiv:2305.18290 equation 7; with label smoothing its cDPO (the authors' note on noisy labels).
        dpo_norm: the same with log-probabilities per token (arXiv:2411.15124 section 5.1.2).
        ipo: arXiv:2310.12036 equation 17, here with log-probabilities per token, as in the authors' later experiments
        and in other tools, because the sums grow with the length and the target does not.
        simpo: arXiv:2405.14734 equation 6, without a reference. sft_weight: arXiv:2404.19733 equation 1.
        """
        means_B2 = nats_B2 / counts_B2
        if self.name == "simpo":
            logits_B = self.beta * (_margin(means_B2) - self.margin)
        elif self.name == "dpo":
            logits_B = self.beta * _margin(nats_B2 - references_B2)
        else:
            logits_B = self.beta * _margin(means_B2 - references_B2 / counts_B2)
        if self.name == "ipo":
            loss_B = (logits_B / self.beta - 1 / (2 * self.beta)).square()
        else:
            s = self.label_smoothing
            loss_B = -(1 - s) * F.logsigmoid(logits_B) - s * F.logsigmoid(-logits_B)
        return loss_B - self.sft_weight * means_B2[:, 0]


def _margin(values_B2: Tensor) -> Tensor:
    return values_B2[:, 0] - values_B2[:, 1]


def preference_loss(model: nn.Module, batch: Batch, loss: PreferenceLoss) -> tuple[Tensor, Tensor]:
    """Sum of the losses of the pairs, and their number; both 0-d tensors. `batch` as EncodedPairs.batch makes it,
    with references_B2 unless the loss is simpo."""
    x_MD, rows_N, targets_N = _hidden(model, batch)
    answers_N = _answers(batch, rows_N)
    nats_B2, counts_B2 = _sums(model, batch, x_MD.detach(), rows_N, targets_N, answers_N)
    references_B2 = batch.get("references_B2")
    if references_B2 is None:
        if loss.name != "simpo":
            raise ValueError(f"the loss {loss.name} compares with a reference, but the batch has no references_B2")
        references_B2 = torch.zeros_like(nats_B2)
    n_pairs = targets_N.new_tensor(len(nats_B2))
    if not torch.is_grad_enabled():
        return loss.of_pairs(nats_B2, references_B2, counts_B2).sum().float(), n_pairs
    loss_sum = loss.of_pairs(nats_B2.requires_grad_(), references_B2, counts_B2).sum()
    (slopes_B2,) = torch.autograd.grad(loss_sum, nats_B2)
    surrogate = linear_cross_entropy(
        x_MD,
        model.lm_head.weight,  # type: ignore[union-attr,arg-type]
        targets_N,
        bias_V=model.lm_head.bias,  # type: ignore[union-attr,arg-type]
        weights_N=-slopes_B2.float().flatten()[answers_N],  # a loss is the negative of a log-probability
        rows_M=rows_N,
        compile_backend=compile_backend(model),
    )
    return surrogate + (loss_sum.detach().float() - surrogate.detach()), n_pairs


@torch.inference_mode()
def pair_log_probabilities(
    model: nn.Module,
    pairs: EncodedPairs,
    *,
    tokens_per_pass: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> np.ndarray:
    """Log-probabilities of the answers in nats, float64 (N, 2). `tokens_per_pass` changes speed and memory, not the
    result. Raises OutOfMemory when the device has no room."""
    device = next(model.parameters()).device
    tokens_per_pass = tokens_per_pass or TOKENS_PER_PASS.get(device.type, TOKENS_PER_PASS["cuda"])
    order = np.argsort(-pairs.lengths, kind="stable")
    nats_N2 = np.zeros((len(pairs.ids), 2))
    with memory_explained(f"{tokens_per_pass:,} tokens passed at once; give a smaller tokens_per_pass"):
        for rows in passes_of(pairs.lengths[order], tokens_per_pass):
            places = order[rows]
            batch = on_device(pairs.batch(places), device)
            with precision(device):
                x_MD, rows_N, targets_N = _hidden(model, batch)
                nats_B2, _ = _sums(model, batch, x_MD, rows_N, targets_N, _answers(batch, rows_N))
            nats_N2[places] = nats_B2.cpu().numpy()
            progress(min(rows.stop, len(order)), len(order))
    return nats_N2


def visible_in_pairs(parts_BT: Tensor) -> Visible:
    """Tokens attend to what is before them in the common beginning and in their own part."""
    parts_BT1, parts_B1S = parts_BT.unsqueeze(2), parts_BT.unsqueeze(1)
    is_own_BTS = (parts_B1S == COMMON) | (parts_B1S == parts_BT1)
    return Visible.mask(is_own_BTS.tril())


def _hidden(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states of all positions of the flat batch, the positions that go through the head, and their targets."""
    visible = visible_in_pairs(batch["parts_BT"])
    x_BTD = model.trunk(batch["ids_BT"], visible=visible, positions_BT=batch["positions_BT"])  # type: ignore[operator]
    rows_N, targets_N, _ = supervision(batch)
    assert rows_N is not None
    return x_BTD.flatten(0, 1), rows_N, targets_N


def _answers(batch: Batch, rows_N: Tensor) -> Tensor:
    """The answer of each position, as a place in a flat tensor (B, 2)."""
    n_positions = batch["ids_BT"].size(1)
    parts_N = batch["parts_BT"].flatten()[rows_N]
    return rows_N // n_positions * 2 + (parts_N > CHOSEN).long()


def _sums(
    model: nn.Module, batch: Batch, x_MD: Tensor, rows_N: Tensor, targets_N: Tensor, answers_N: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and numbers of tokens of the answers, float64 (B, 2)."""
    head: nn.Linear = model.lm_head  # type: ignore[assignment]
    losses_N = target_losses(x_MD[rows_N], head.weight, targets_N, bias_V=head.bias).double()
    none_A = losses_N.new_zeros(2 * batch["ids_BT"].size(0))
    nats_A = none_A.index_add(0, answers_N, -losses_N)
    counts_A = none_A.index_add(0, answers_N, (targets_N >= 0).double())
    return nats_A.view(-1, 2), counts_A.view(-1, 2)
