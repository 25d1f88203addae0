"""Losses of preferences against plain torch with all logits, and log-probabilities of answers in any company."""

import math

import numpy as np
import pytest
import torch

from model.data.chat import Rendered
from model.data.pairs import EncodedPairs, pair_of
from model.network.decoder import new_decoder
from model.network.lora import add_lora
from model.network.lora_config import LoraConfig
from model.network.shape import DecoderConfig
from model.training.config import TrainConfig
from model.training.preferences import PreferenceLoss, pair_log_probabilities, preference_loss
from model.training.step import accumulate_gradients, micro_batches, new_state

SIZES = {"vocab_size": 31, "n_layers": 2, "n_heads": 2, "d_model": 16, "d_head": 8, "d_ff": 24, "max_seq_len": 24}
CONFIGS = {
    "rotary": DecoderConfig(**SIZES, n_kv_heads=1, qk_norm=True, tie_embeddings=True),
    "learned": DecoderConfig(**SIZES, n_kv_heads=2, positions="learned"),
    "windowed": DecoderConfig(**SIZES, n_kv_heads=2, sliding_window=5, sliding_layers=(1,)),
}
SHAPES = ((6, 3, 5), (1, 4, 1), (15, 9, 8), (3, 1, 7), (8, 2, 2))  # tokens of prompt, chosen and rejected answer
LOSSES = {
    "dpo": PreferenceLoss(beta=0.3),
    "cdpo": PreferenceLoss(beta=0.3, label_smoothing=0.2),
    "dpo_norm": PreferenceLoss(name="dpo_norm", beta=2.0),
    "ipo": PreferenceLoss(name="ipo", beta=0.5),
    "simpo": PreferenceLoss(name="simpo", beta=2.0, margin=0.7),
    "rpo": PreferenceLoss(beta=0.3, sft_weight=0.8),
}


def conversations() -> list[tuple[Rendered, Rendered]]:
    rng = np.random.default_rng(0)
    made = []
    for n_prompt, *n_answers in SHAPES:
        prompt = rng.integers(0, 31, n_prompt)
        made.append(
            tuple(
                Rendered(np.concatenate([prompt, rng.integers(0, 31, n)]), np.arange(n_prompt + n) >= n_prompt)
                for n in n_answers
            )
        )
    return made


def model_of(name: str):
    model = new_decoder(CONFIGS[name], seed=1)
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.3, generator=generator)
    return model


def encoded(name: str, references=None) -> EncodedPairs:
    shares = CONFIGS[name].sliding_window is None
    pairs = [pair_of(*pair, shares_beginning=shares) for pair in conversations()]
    ids = [str(number) for number in range(len(pairs))]
    return EncodedPairs(ids, pairs, np.zeros((0, 2)) if references is None else references)


def references() -> np.ndarray:
    return -np.random.default_rng(1).uniform(5, 15, (len(SHAPES), 2))


def plain_nats(model) -> torch.Tensor:
    """Log-probabilities of the answers (N, 2), each conversation alone and with all of its logits."""
    rows = []
    for pair in conversations():
        for one in pair:
            ids = torch.from_numpy(one.ids)
            nats_TV = model(ids[None, :-1])[0].log_softmax(-1)
            nats_T = nats_TV[torch.arange(len(ids) - 1), ids[1:]]
            rows.append(nats_T[torch.from_numpy(one.is_supervised[1:])].sum())
    return torch.stack(rows).view(-1, 2)


def plain_loss(name: str, nats_N2, references_N2) -> torch.Tensor:
    """The formulas of the papers, one pair after another."""
    pairs = zip(nats_N2, references_N2.tolist(), SHAPES, strict=True)
    return torch.stack([plain_pair(name, *nats, *ref, n, m) for nats, ref, (_, n, m) in pairs]).sum()


def plain_pair(name: str, chosen, rejected, ref_chosen: float, ref_rejected: float, n: int, m: int) -> torch.Tensor:
    """`n` and `m` are the tokens of the chosen and of the rejected answer."""
    ratio = (chosen - ref_chosen) - (rejected - ref_rejected)
    per_token = (chosen - ref_chosen) / n - (rejected - ref_rejected) / m
    values = {
        "dpo": -torch.sigmoid(0.3 * ratio).log(),
        "cdpo": -0.8 * torch.sigmoid(0.3 * ratio).log() - 0.2 * torch.sigmoid(-0.3 * ratio).log(),
        "dpo_norm": -torch.sigmoid(2 * per_token).log(),
        "ipo": (per_token - 1) ** 2,
        "simpo": -torch.sigmoid(2 * (chosen / n - rejected / m) - 2 * 0.7).log(),
        "rpo": -torch.sigmoid(0.3 * ratio).log() - 0.8 * chosen / n,
    }
    return values[name]


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return [weight.grad.clone() for weight in model.parameters() if weight.grad is not None]


def check_alike(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("config", CONFIGS)
def test_loss_and_gradients_equal_plain_torch_with_all_logits(config, loss):
    model = model_of(config)
    expected = plain_loss(loss, plain_nats(model), references())
    theirs = gradients(model, expected)
    found, n_pairs = preference_loss(model, encoded(config, references()).batch(np.arange(5)), LOSSES[loss])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert n_pairs == 5
    check_alike(gradients(model, found), theirs)


@pytest.mark.parametrize("config", CONFIGS)
def test_log_probabilities_do_not_depend_on_the_company(config):
    model = model_of(config)
    expected = plain_nats(model).detach().double().numpy()
    for tokens_per_pass in (1, 60, 10_000):
        found = pair_log_probabilities(model, encoded(config), tokens_per_pass=tokens_per_pass)
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
@pytest.mark.parametrize("n_rows", [1, 2, 4])
def test_micro_batches_never_divide_a_pair(loss, n_rows):
    model, batch = model_of("rotary"), encoded("rotary", references()).batch(np.arange(5))
    whole, _ = preference_loss(model, batch, LOSSES[loss])
    expected = gradients(model, whole)
    sums, counts = zip(
        *(preference_loss(model, one, LOSSES[loss]) for one in micro_batches(batch, n_rows)), strict=True
    )
    torch.testing.assert_close(sum(sums), whole, atol=1e-5, rtol=1e-5)
    assert sum(counts) == 5
    check_alike(gradients(model, sum(sums)), expected)


def test_training_step_with_micro_batches_has_the_gradients_of_the_whole_batch():
    model, found = model_of("learned"), []
    batch = encoded("learned", references()).batch(np.arange(4))
    for micro_batch in (4, 1):
        cfg = TrainConfig(rows=4, seq_len=24, n_steps=2, muon_lr=None, adamw_lr=1e-3, micro_batch=micro_batch)
        model.zero_grad()
        loss_sum, count = accumulate_gradients(
            new_state(model, cfg), batch, cfg, lambda m, b: preference_loss(m, b, LOSSES["dpo"])
        )
        found.append([loss_sum, count, *(weight.grad.clone() for weight in model.parameters())])
    check_alike(found[1], found[0])


def test_adapters_get_the_gradients_of_plain_torch():
    model = model_of("rotary")
    add_lora(model, LoraConfig(rank=2, alpha=4.0), seed=0, trains_head=False)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(len(name)))
    expected = plain_loss("dpo", plain_nats(model), references())
    theirs = gradients(model, expected)
    found, _ = preference_loss(model, encoded("rotary", references()).batch(np.arange(5)), LOSSES["dpo"])
    check_alike(gradients(model, found), theirs)
    assert 0 < len(theirs) < len(list(model.parameters()))


def test_loss_of_the_reference_itself_is_that_of_a_coin():
    model = model_of("rotary")
    own = pair_log_probabilities(model, encoded("rotary"))
    with torch.no_grad():
        loss, n_pairs = preference_loss(model, encoded("rotary", own).batch(np.arange(5)), PreferenceLoss())
    assert float(loss) / n_pairs == pytest.approx(math.log(2), abs=1e-5)


def test_loss_that_needs_a_reference_is_refused_without_one():
    batch = encoded("rotary").batch(np.arange(5))
    assert torch.isfinite(preference_loss(model_of("rotary"), batch, LOSSES["simpo"])[0])
    with pytest.raises(ValueError, match="loss dpo compares with a reference"):
        preference_loss(model_of("rotary"), batch, LOSSES["dpo"])


def test_losses_of_a_pair_have_the_values_of_the_formulas():
    """By hand: chosen -4 over 4 tokens, rejected -6 over 2, reference -5 and -5."""
    nats, reference, counts = (torch.tensor([pair], dtype=torch.float64) for pair in ((-4, -6), (-5, -5), (4, 2)))

    def value(**settings):
        return float(PreferenceLoss(**settings).of_pairs(nats, reference, counts))

    assert value(beta=0.5) == pytest.approx(math.log(1 + math.exp(-1.0)))
    assert value(beta=0.5, label_smoothing=0.25) == pytest.approx(math.log(1 + math.exp(-1.0)) + 0.25)
    assert value(name="dpo_norm", beta=2) == pytest.approx(math.log(1 + math.exp(-2 * 0.75)))
    assert value(name="ipo", beta=0.1) == pytest.approx((0.75 - 5) ** 2)
    assert value(name="simpo", beta=2, margin=0.5) == pytest.approx(math.log(1 + math.exp(-2 * 2 + 2 * 0.5)))
    assert value(beta=0.5, sft_weight=2) == pytest.approx(math.log(1 + math.exp(-1.0)) + 2)
