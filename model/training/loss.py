"""Losses as sums: language modelling, masked language modelling, classification of texts and tokens, and spans.

In: a model and a batch (tensors by name, rows first). Out: the summed loss and the number of supervised targets, or
the sum of their weights. The training step divides once, by the targets of the whole global batch: a mean over
micro-batches of their means would give the tokens of a nearly empty micro-batch more weight than others.

Legend: B batch, T position, P selected positions per row, N rows of a flat batch, M selected rows, D d_model,
V vocab, C classes.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.data.batch_layout import IGNORE_INDEX
from model.network.visible import CAUSAL, Visible
from model.training.compilation import compile_backend
from model.training.cross_entropy import linear_cross_entropy

Batch = Mapping[str, Tensor]
LossFunction = Callable[[nn.Module, Batch], tuple[Tensor, Tensor]]


def language_model_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sum of -ln p(next token) over the supervised targets, and their number; both 0-d tensors.

    `batch`: ids_BT and targets_BT (targets already shifted: targets[t] follows ids[t]); negative targets are ignored.
    Where it has documents_BT, tokens attend to their own document only; positions_BT are the positions of the ids;
    weights_BT, at least 0, multiply the loss of each target, and the number becomes the sum of the weights;
    supervised_BP selects the positions that go through the head (see `supervision`).
    """
    visible = Visible.within(batch["documents_BT"]) if "documents_BT" in batch else CAUSAL
    x_BTD = model.trunk(batch["ids_BT"], visible=visible, positions_BT=batch.get("positions_BT"))  # type: ignore[operator]
    rows_M, targets_N, weights_N = supervision(batch)
    return _head_loss(model, x_BTD.flatten(0, 1), rows_M, targets_N, weights_N)


def masked_token_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sum of -ln p(token) over the hidden tokens, and their number; both 0-d tensors.

    `batch`: what model/data/masking.py makes; ids_BT, targets_BT (the tokens themselves, negative = ignored) and
    supervised_BP. documents_BT, positions_BT and weights_BT as in `language_model_loss`, but tokens attend to both
    sides. Only the positions of supervised_BP go through the head, also through its hidden layer.
    """
    visible = Visible.within(batch["documents_BT"], causal=False) if "documents_BT" in batch else Visible.all()
    x_BTD = model.trunk(batch["ids_BT"], visible=visible, positions_BT=batch.get("positions_BT"))  # type: ignore[operator]
    rows_M, targets_N, weights_N = supervision(batch)
    x_ND = x_BTD.flatten(0, 1)
    x_ND = model.transformed(x_ND if rows_M is None else x_ND.index_select(0, rows_M))  # type: ignore[operator]
    return _head_loss(model, x_ND, None, targets_N, weights_N)


def _head_loss(
    model: nn.Module, x_ND: Tensor, rows_M: Tensor | None, targets_N: Tensor, weights_N: Tensor | None
) -> tuple[Tensor, Tensor]:
    loss = linear_cross_entropy(
        x_ND,
        model.lm_head.weight,  # type: ignore[union-attr,arg-type]
        targets_N,
        bias_V=model.lm_head.bias,  # type: ignore[union-attr,arg-type]
        weights_N=weights_N,
        rows_M=rows_M,
        compile_backend=compile_backend(model),
    )
    return loss, count_of(targets_N, weights_N)


def supervision(batch: Batch) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """(rows, targets, weights), flat, of the positions that go through the head; rows None = all, in order.

    With supervised_BP (positions within each row, -1 = none) only these do: where few tokens have a target, as in
    masked language modelling, the head is most of the work. Positions that it does not name have no loss.
    """
    targets_BT, weights_BT, index_BP = (batch.get(name) for name in ("targets_BT", "weights_BT", "supervised_BP"))
    assert targets_BT is not None
    if index_BP is None:
        return None, targets_BT.flatten(), None if weights_BT is None else weights_BT.flatten()
    is_none_BP, index_BP = index_BP < 0, index_BP.clamp(min=0)
    targets_BP = targets_BT.gather(1, index_BP).masked_fill(is_none_BP, IGNORE_INDEX)
    first_B1 = torch.arange(len(index_BP), device=index_BP.device).unsqueeze(1) * targets_BT.size(1)
    weights_N = None if weights_BT is None else weights_BT.gather(1, index_BP).flatten()
    rows_N, targets_N = (first_B1 + index_BP).flatten(), targets_BP.flatten()
    if index_BP.device.type != "cpu" or not is_none_BP.any():  # a device would have to be waited for
        return rows_N, targets_N, weights_N
    is_there_N = ~is_none_BP.flatten()
    return rows_N[is_there_N], targets_N[is_there_N], None if weights_N is None else weights_N[is_there_N]


def count_of(targets_N: Tensor, weights_N: Tensor | None) -> Tensor:
    """The number of supervised targets (int64), or the sum of their weights (float32); 0-d."""
    is_supervised_N = targets_N >= 0
    return is_supervised_N.sum() if weights_N is None else (weights_N.float() * is_supervised_N).sum()


def _outputs(model: nn.Module, batch: Batch) -> Tensor:
    """Those of the head of a task; types_BT exists where rows are pairs of texts."""
    types = {"types_BT": batch["types_BT"]} if "types_BT" in batch else {}
    return model(batch["ids_BT"], batch["lengths_B"], **types)


def classification_loss(model: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Sum of -ln p(label), and the number of labels.

    `batch`: ids_BT right-padded, lengths_B, labels_B (negative = ignored), and types_BT for pairs of texts; with
    weights_B the loss of each example is multiplied by its weight, and the number is the sum of the weights.
    `label_smoothing`, 0 to 1, is the share of each label spread over all classes (arXiv:1512.00567 section 7).
    """
    labels_B, weights_B = batch["labels_B"], batch.get("weights_B")
    labels_B = labels_B.masked_fill(labels_B < 0, IGNORE_INDEX)
    loss_B = F.cross_entropy(
        _outputs(model, batch).float(),
        labels_B,
        reduction="none",
        ignore_index=IGNORE_INDEX,
        label_smoothing=label_smoothing,
    )
    return (loss_B if weights_B is None else loss_B * weights_B).sum(), count_of(labels_B, weights_B)


def multi_label_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sum of -ln p(whether the text has the label) over texts and labels, and the number of these decisions.

    `batch`: ids_BT right-padded, lengths_B, labels_BC (1 = has the label, 0 = has not, negative = ignored), and
    types_BT for pairs of texts.
    """
    labels_BC = batch["labels_BC"]
    is_known_BC = (labels_BC >= 0).float()
    loss = F.binary_cross_entropy_with_logits(
        _outputs(model, batch).float(), labels_BC.clamp(min=0), is_known_BC, reduction="sum"
    )
    return loss, is_known_BC.sum()


def token_loss(model: nn.Module, batch: Batch, label_smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    """Sum of -ln p(label) over the tokens that have one, and their number. `batch`: ids_BT right-padded, lengths_B,
    labels_BT (negative = ignored), and types_BT for pairs of texts. `label_smoothing` as in `classification_loss`."""
    labels_N = batch["labels_BT"].flatten()
    is_supervised_N = labels_N >= 0
    logits_BTC = _outputs(model, batch)
    loss = F.cross_entropy(
        logits_BTC.flatten(0, 1).float(),
        labels_N.masked_fill(~is_supervised_N, IGNORE_INDEX),
        reduction="sum",
        ignore_index=IGNORE_INDEX,
        label_smoothing=label_smoothing,
    )
    return loss, is_supervised_N.sum()


def span_loss(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Sum of -ln p(start) and -ln p(end), and the number of both. `batch`: ids_BT right-padded, lengths_B, starts_B
    and ends_B, the positions of the first and the last token of the span (negative = ignored), types_BT for pairs.

    A start competes with all tokens of its row, or with those of allowed_BT where the batch has it. A row whose text
    has no answer may have its first token as the span.
    """
    logits_BT2 = _outputs(model, batch).float()
    places_T = torch.arange(logits_BT2.size(1), device=logits_BT2.device)
    is_possible_BT = places_T < batch["lengths_B"].unsqueeze(1)
    if "allowed_BT" in batch:
        is_possible_BT = is_possible_BT & batch["allowed_BT"]
    logits_BT2 = logits_BT2.masked_fill(~is_possible_BT.unsqueeze(2), -torch.inf)
    targets_B2 = torch.stack([batch["starts_B"], batch["ends_B"]], dim=1)
    is_supervised_B2 = targets_B2 >= 0
    targets_B2 = targets_B2.masked_fill(~is_supervised_B2, IGNORE_INDEX)
    loss = F.cross_entropy(logits_BT2, targets_B2, reduction="sum", ignore_index=IGNORE_INDEX)
    return loss, is_supervised_B2.sum()
