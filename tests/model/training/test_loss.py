"""Losses of models: who may see whom, which positions count, and how much."""

import pytest
import torch
from torch.nn import functional as F

from model.data.batch_layout import IGNORE_INDEX
from model.network.decoder import new_decoder
from model.network.shape import DecoderConfig
from model.training.loss import classification_loss, language_model_loss, multi_label_loss

DECODER = DecoderConfig(
    vocab_size=31, n_layers=1, n_heads=2, n_kv_heads=1, d_model=16, d_head=8, d_ff=24, max_seq_len=8
)


def decoder():
    model = new_decoder(DECODER, 0)
    with torch.no_grad():
        model.lm_head.weight.normal_(generator=torch.Generator().manual_seed(1))
    return model


def token_batch() -> dict[str, torch.Tensor]:
    ids_BT = torch.randint(0, 31, (3, 9), generator=torch.Generator().manual_seed(0))
    targets_BT = ids_BT[:, 1:].clone()
    targets_BT[:, ::3] = IGNORE_INDEX
    targets_BT[0] = -1
    return {"ids_BT": ids_BT[:, :-1], "targets_BT": targets_BT}


def gradients_of(batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    model = decoder()
    loss, count = language_model_loss(model, batch)
    loss.backward()
    return loss.detach(), count, [weight.grad for weight in model.parameters()]


def assert_alike(batch: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    for one, two in zip(gradients_of(batch), gradients_of(other), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4, check_dtype=False)


def test_positions_that_are_selected_alone_have_the_loss_count_and_gradient_of_all():
    """One row has no target, the others have different numbers of them: the rest of a row of indices is -1."""
    batch = token_batch()
    supervised_BP = torch.full((3, 6), -1)
    for row, targets_T in enumerate(batch["targets_BT"]):
        places = (targets_T >= 0).nonzero().flatten()
        supervised_BP[row, : len(places)] = places
    assert_alike(batch, batch | {"supervised_BP": supervised_BP})
    weights_BT = torch.rand(3, 8, generator=torch.Generator().manual_seed(2))
    assert_alike(
        batch | {"weights_BT": weights_BT}, batch | {"weights_BT": weights_BT, "supervised_BP": supervised_BP}
    )


def test_weights_of_0_and_1_are_targets_that_are_ignored_or_not():
    batch = token_batch()
    weights_BT = (torch.arange(24).view(3, 8) % 5 > 1).to(torch.uint8)
    ignored = batch["targets_BT"].masked_fill(weights_BT == 0, IGNORE_INDEX)
    assert_alike(batch | {"weights_BT": weights_BT}, batch | {"targets_BT": ignored})


def test_bias_of_a_head_is_added_to_its_logits_and_trained():
    model, batch = decoder(), token_batch()
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, 31))
    loss, _ = language_model_loss(model, batch)
    targets_N = batch["targets_BT"].flatten().clamp(min=IGNORE_INDEX)
    expected = F.cross_entropy(
        model(batch["ids_BT"]).flatten(0, 1), targets_N.masked_fill(targets_N < 0, IGNORE_INDEX), reduction="sum"
    )
    torch.testing.assert_close(loss, expected)
    (ours,), (theirs,) = (torch.autograd.grad(value, [model.lm_head.bias]) for value in (loss, expected))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_classification_loss_with_smoothing_equals_its_definition(smoothing):
    logits_BC, labels_B = torch.randn(5, 3), torch.tensor([0, 2, 1, 1, 0])
    batch = {"ids_BT": logits_BC, "lengths_B": labels_B, "labels_B": labels_B}
    summed, count = classification_loss(lambda ids_BT, lengths_B: ids_BT, batch, smoothing)
    target_BC = (1 - smoothing) * F.one_hot(labels_B, 3) + smoothing / 3
    torch.testing.assert_close(summed, -(target_BC * logits_BC.log_softmax(dim=1)).sum())
    assert count == 5


@pytest.mark.parametrize("negative", [-1, IGNORE_INDEX])
def test_classification_ignores_negative_labels(negative):
    logits_BC, labels_B = torch.randn(3, 4), torch.tensor([1, negative, 3])
    batch = {"ids_BT": logits_BC, "lengths_B": labels_B, "labels_B": labels_B}
    summed, count = classification_loss(lambda ids_BT, lengths_B: ids_BT, batch)
    log_probabilities_BC = logits_BC.log_softmax(dim=1)
    torch.testing.assert_close(summed, -(log_probabilities_BC[0, 1] + log_probabilities_BC[2, 3]))
    assert count == 2


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weights_of_examples_are_those_of_torchs_class_weights(smoothing):
    logits_BC, labels_B, weights_C = (
        torch.randn(6, 3),
        torch.tensor([0, 2, 1, 1, 0, 2]),
        torch.tensor([0.5, 1.0, 3.0]),
    )
    batch = {"ids_BT": logits_BC, "lengths_B": labels_B, "labels_B": labels_B, "weights_B": weights_C[labels_B]}
    summed, count = classification_loss(lambda ids_BT, lengths_B: ids_BT, batch, smoothing)
    torch.testing.assert_close(count, weights_C[labels_B].sum())
    # torch weighs also the smoothed share of a class by that class: without smoothing both are the same
    if not smoothing:
        torch.testing.assert_close(summed / count, F.cross_entropy(logits_BC, labels_B, weights_C))
    repeated_B = torch.repeat_interleave(torch.arange(6), (2 * weights_C[labels_B]).long())
    plain = {"ids_BT": logits_BC[repeated_B], "lengths_B": repeated_B, "labels_B": labels_B[repeated_B]}
    twice, _ = classification_loss(lambda ids_BT, lengths_B: ids_BT, plain, smoothing)
    torch.testing.assert_close(2 * summed, twice)


def test_weight_of_an_ignored_label_does_not_count():
    logits_BC, labels_B = torch.randn(3, 4), torch.tensor([1, -1, 3])
    batch = {"ids_BT": logits_BC, "lengths_B": labels_B, "labels_B": labels_B, "weights_B": torch.tensor([1.0, 7, 2])}
    summed, count = classification_loss(lambda ids_BT, lengths_B: ids_BT, batch)
    log_probabilities_BC = logits_BC.log_softmax(dim=1)
    torch.testing.assert_close(summed, -(log_probabilities_BC[0, 1] + 2 * log_probabilities_BC[2, 3]))
    assert count == 3


def test_multi_label_loss_equals_torchs_and_ignores_what_is_not_known():
    logits_BC, labels_BC = torch.randn(5, 4), (torch.rand(5, 4) < 0.4).float()
    batch = {"ids_BT": logits_BC, "lengths_B": torch.ones(5), "labels_BC": labels_BC}
    summed, count = multi_label_loss(lambda ids_BT, lengths_B: ids_BT, batch)
    assert count == 20
    torch.testing.assert_close(summed / count, F.binary_cross_entropy_with_logits(logits_BC, labels_BC))
    labels_BC[1] = -1
    known, n_known = multi_label_loss(lambda ids_BT, lengths_B: ids_BT, batch | {"labels_BC": labels_BC})
    rest = [0, 2, 3, 4]
    assert n_known == 16
    expected = F.binary_cross_entropy_with_logits(logits_BC[rest], labels_BC[rest], reduction="sum")
    torch.testing.assert_close(known, expected)
