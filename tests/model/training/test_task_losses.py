"""Losses of the heads of tasks are sums: of the rows alone, of micro-batches, and as transformers computes them."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from model.data.batch_layout import IGNORE_INDEX
from model.data.examples import EncodedExamples, ExampleBatches
from model.network.heads import SequenceClassifier, SpanClassifier, TokenClassifier
from model.network.shape import DecoderConfig, EncoderConfig, switches_of
from model.training.config import TrainConfig
from model.training.loss import classification_loss, span_loss, token_loss
from model.training.step import PASS_COST, accumulate_gradients, micro_batches, new_state

SIZES = {"vocab_size": 31, "n_layers": 2, "n_heads": 2, "d_model": 16, "d_head": 8, "d_ff": 24, "max_seq_len": 24}
CONFIGS = {
    "decoder": DecoderConfig(**SIZES, n_kv_heads=1),
    "bert": EncoderConfig(**SIZES, n_kv_heads=2, tie_embeddings=True, **switches_of("bert")),
    "modernbert": EncoderConfig(**SIZES, n_kv_heads=2, tie_embeddings=True, **switches_of("modernbert")),
}
HEADS = {
    "text": (partial(SequenceClassifier, n_classes=3), classification_loss),
    "token": (partial(TokenClassifier, n_classes=5), partial(token_loss, label_smoothing=0.1)),
    "span": (SpanClassifier, span_loss),
}
LENGTHS = (5, 1, 24, 9, 12, 3)


def examples(head: str) -> EncodedExamples:
    rng = np.random.default_rng(0)
    tokens = [rng.integers(0, 31, n) for n in LENGTHS]
    types = [(np.arange(n) > n // 2).astype(np.int64) for n in LENGTHS]
    targets, token_targets = {}, {"types_BT": types}
    if head == "text":
        targets = {"labels_B": np.array([0, 1, 2, 2, -1, 0])}
    elif head == "span":
        targets = {"starts_B": np.array([1, 0, 5, 3, 4, -1]), "ends_B": np.array([3, 0, 20, 3, 11, -1])}
        token_targets["allowed_BT"] = [np.ones(n, bool) for n in LENGTHS]
        token_targets["allowed_BT"][2][2:5] = False
    else:
        labels = [rng.integers(0, 5, n) for n in LENGTHS]
        labels[2][::2] = IGNORE_INDEX
        token_targets["labels_BT"] = labels
    return EncodedExamples([f"{i}" for i in range(len(tokens))], tokens, targets, token_targets=token_targets)


@pytest.fixture(params=[(name, head) for name in CONFIGS for head in HEADS], ids="-".join)
def case(request):
    """A model with weights far from zero, its loss, and examples."""
    name, head = request.param
    make, loss = HEADS[head]
    torch.manual_seed(0)
    model = make(CONFIGS[name])
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.2)
    return model, loss, examples(head)


def gradients(model, loss_of_parts):
    model.zero_grad()
    sums, counts = zip(*loss_of_parts, strict=True)
    sum(sums).backward()
    return sum(sums).detach(), sum(counts), [w.grad.clone() for w in model.parameters() if w.grad is not None]


def check_equal(found, expected):
    torch.testing.assert_close(found[0], expected[0], atol=1e-5, rtol=1e-5)
    assert found[1] == expected[1]
    for a, b in zip(found[2], expected[2], strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_loss_of_a_padded_batch_is_the_sum_of_the_rows_alone(case):
    model, loss, rows = case
    alone = gradients(model, [loss(model, rows.batch(np.array([i]))) for i in range(len(LENGTHS))])
    for width in (None, 24):
        check_equal(gradients(model, [loss(model, rows.batch(np.arange(6), width))]), alone)


@pytest.mark.parametrize("n_rows", [1, 2, 4])
def test_micro_batches_are_exact(case, n_rows):
    model, loss, rows = case
    batch = rows.batch(np.arange(6))
    whole = gradients(model, [loss(model, batch)])
    check_equal(gradients(model, [loss(model, micro) for micro in micro_batches(batch, n_rows)]), whole)


def test_accumulated_gradients_of_a_training_step_are_those_of_the_whole_batch(case):
    model, loss, rows = case
    batch, found = rows.batch(np.arange(6)), []
    for micro_batch in (6, 2):
        cfg = TrainConfig(rows=6, seq_len=24, n_steps=2, muon_lr=None, adamw_lr=1e-3, micro_batch=micro_batch)
        model.zero_grad()
        sums = accumulate_gradients(new_state(model, cfg), batch, cfg, loss)
        found.append((*sums, [w.grad.clone() for w in model.parameters() if w.grad is not None]))
    check_equal(found[1], found[0])


def test_token_loss_is_that_of_torch_over_the_labelled_tokens():
    torch.manual_seed(0)
    model = TokenClassifier(CONFIGS["bert"], 5)
    torch.nn.init.normal_(model.score.weight)
    batch = examples("token").batch(np.arange(6))
    logits = model(batch["ids_BT"], batch["lengths_B"], batch["types_BT"])
    expected = F.cross_entropy(logits.flatten(0, 1), batch["labels_BT"].flatten(), reduction="sum")
    loss, n = token_loss(model, batch)
    torch.testing.assert_close(loss, expected)
    assert n == (batch["labels_BT"] >= 0).sum() == sum(LENGTHS) - 12


def test_span_loss_is_the_mean_of_transformers_where_no_row_is_padded():
    """Theirs also lets padding compete, so that their loss depends on the longest row of a batch."""
    from transformers import BertConfig, BertForQuestionAnswering

    theirs = BertForQuestionAnswering(
        BertConfig(vocab_size=31, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24)
    ).eval()
    ids, starts, ends = torch.randint(0, 31, (4, 9)), torch.tensor([0, 2, 5, 8]), torch.tensor([1, 2, 7, 8])
    with torch.no_grad():
        out = theirs(ids, start_positions=starts, end_positions=ends)
    logits = torch.stack([out.start_logits, out.end_logits], dim=2)
    batch = {"ids_BT": ids, "lengths_B": torch.full((4,), 9), "starts_B": starts, "ends_B": ends}
    loss, n = span_loss(lambda *_: logits, batch)
    assert n == 8
    torch.testing.assert_close(loss / n, out.loss)


def test_a_batch_without_a_target_has_a_loss_of_zero_and_finite_gradients():
    model = SpanClassifier(CONFIGS["bert"])
    none = torch.tensor([-1])
    batch = {"ids_BT": torch.ones(1, 4, dtype=torch.int64), "lengths_B": torch.tensor([4])}
    loss, n = span_loss(model, {**batch, "starts_B": none, "ends_B": none})
    loss.backward()
    assert loss == 0 and n == 0 and all(w.grad.isfinite().all() for w in model.parameters() if w.grad is not None)


def batch_of_lengths(lengths) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(0)
    tokens = [rng.integers(0, 31, n) for n in lengths]
    labels = [rng.integers(0, 5, n) for n in lengths]
    rows = EncodedExamples([""] * len(tokens), tokens, {}, token_targets={"labels_BT": labels})
    return rows.batch(np.arange(len(tokens))) | {"row_seeds_B": torch.arange(len(tokens))}


@pytest.mark.parametrize("lengths", [[3, 3, 4], [1, 5, 9, 200, 3], [200, 2, 2, 2], [7], [2] * 40 + [90] * 3])
def test_passes_leave_out_padding_and_no_token(lengths):
    batch = batch_of_lengths(lengths)
    micros = list(micro_batches(batch, len(lengths)))
    assert torch.cat([micro["row_seeds_B"] for micro in micros]).tolist() == list(range(len(lengths)))
    seen = 0
    for micro in micros:
        assert micro["ids_BT"].size(1) == micro["labels_BT"].size(1) == micro["lengths_B"].max()
        for row, length in enumerate(micro["lengths_B"].tolist()):
            assert torch.equal(micro["ids_BT"][row, :length], batch["ids_BT"][seen + row, :length])
            assert torch.equal(micro["labels_BT"][row, :length], batch["labels_BT"][seen + row, :length])
        seen += len(micro["lengths_B"])
    n_cells = sum(micro["ids_BT"].numel() for micro in micros)
    assert n_cells <= batch["ids_BT"].numel() - PASS_COST * (len(micros) - 1)
    assert len(micros) == {3: 1, 5: 3, 4: 2, 1: 1, 43: 2}[len(lengths)]


@pytest.mark.parametrize("rows", [16, 32, 64, 128])
@pytest.mark.parametrize(
    ("mean", "sigma", "longest", "n_examples"),
    [
        (3.1, 0.5, 80, 6_900),
        (2.9, 0.45, 316, 20_000),
        (3.4, 0.4, 75, 3_400),
        (3.4, 0.8, 480, 1_200),
        (5.1, 0.4, 384, 950),
    ],
    ids=["reviews", "comments", "tweets", "contracts", "questions"],
)
def test_less_than_a_tenth_of_what_passes_is_padding(mean, sigma, longest, n_examples, rows):
    """Lengths as those of SST-2, GoEmotions, WNUT-17, sentences of contracts, and questions with their texts."""
    lengths = np.random.default_rng(0).lognormal(mean, sigma, n_examples).clip(3, longest).astype(int)
    examples = EncodedExamples([""] * n_examples, [np.zeros(n, np.int64) for n in lengths], {})
    batches = ExampleBatches(examples, rows=rows, seed=0)
    n_cells = sum(
        micro["ids_BT"].numel()
        for k in range(batches.batches_per_epoch)
        for micro in micro_batches(batches.batch(k), rows)
    )
    assert 1 - lengths.sum() / n_cells < 0.1
