"""Muon against an independent polar factor, AdamW's groups, and the state of both."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn

from model.network.decoder import new_decoder
from model.network.heads import new_classifier
from model.network.lora import add_lora
from model.network.lora_config import LoraConfig
from model.network.shape import DecoderConfig, EncoderConfig, switches_of
from model.training.config import TrainConfig
from model.training.newton_schulz import NEWTON_SCHULZ, orthogonalised
from model.training.optim import Optimizer, layer_shares, parameter_groups

CONFIG = DecoderConfig(
    vocab_size=31, n_layers=2, n_heads=2, n_kv_heads=1, d_model=16, d_head=8, d_ff=24, max_seq_len=8
)
TRAIN = TrainConfig(n_steps=10, rows=2, seq_len=8, micro_batch=2)


def with_gradients(model, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.grad = torch.empty(weight.shape).normal_(generator=generator)
    return model


def test_orthogonalised_has_the_singular_vectors_of_the_polar_factor_and_values_near_one():
    torch.manual_seed(0)
    gradient_NRC = torch.randn(5, 20, 60, dtype=torch.float32)
    result = orthogonalised(gradient_NRC).double()
    u_NRR, _, vh_NRC = torch.linalg.svd(gradient_NRC.double(), full_matrices=False)
    # in the basis of the gradient's own singular vectors the result is diagonal
    inside = u_NRR.mT @ result @ vh_NRC.mT
    values = inside.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(inside, torch.diag_embed(values), atol=1e-4, rtol=0)
    assert (values > 0.86).all() and (values < 1.13).all()


@pytest.mark.parametrize(("n_steps", "smallest", "low", "high"), [(3, 0.011, 0.72, 1.28), (5, 0.0011, 0.87, 1.13)])
def test_orthogonalised_leaves_singular_values_in_the_interval_that_its_steps_promise(n_steps, smallest, low, high):
    torch.manual_seed(0)
    values = torch.logspace(0, math.log10(smallest), 40, dtype=torch.float64)
    values[:1] = (1 - values[1:].square().sum().clamp(max=0.9)).sqrt()  # so that the Frobenius norm is about 1
    values = values / values.norm()
    u_RR, _ = torch.linalg.qr(torch.randn(40, 40, dtype=torch.float64))
    v_CR, _ = torch.linalg.qr(torch.randn(90, 40, dtype=torch.float64))
    result = orthogonalised((u_RR * values @ v_CR.mT).float()[None], n_steps)[0].double()
    reached = (u_RR.mT @ result @ v_CR).diagonal()[values / 1.01 >= (0.01 if n_steps == 3 else 0.001)]
    assert len(reached) > 20 and low < reached.min() and reached.max() < high


@pytest.mark.parametrize(("shape", "smallest"), [((3, 20, 60), 1), ((3, 128, 160), 1), ((2, 96, 384), 1e-6)])
def test_orthogonalised_is_the_polynomial_of_the_singular_values(shape, smallest):
    """By float64 and singular values; the larger ones take another library on some CPUs, a matrix at a time, and wide
    ones another order of products, which squares small values."""
    torch.manual_seed(0)
    gradient_NRC = torch.randn(shape) * torch.logspace(0, math.log10(smallest), shape[1])[:, None]
    u_NRR, values_NR, v_NRC = torch.linalg.svd(gradient_NRC.double(), full_matrices=False)
    values_NR = values_NR / (1.01 * gradient_NRC.double().norm(dim=(1, 2))[:, None] + 1e-7)
    for a, b, c in NEWTON_SCHULZ[5]:
        values_NR = a * values_NR + b * values_NR**3 + c * values_NR**5
    expected_NRC = u_NRR * values_NR[:, None, :] @ v_NRC
    torch.testing.assert_close(orthogonalised(gradient_NRC, 5).double(), expected_NRC, atol=1e-4, rtol=0)


def test_orthogonalised_does_not_depend_on_the_scale_of_the_gradient():
    torch.manual_seed(1)
    gradient_NRC = torch.randn(2, 8, 12)
    torch.testing.assert_close(orthogonalised(gradient_NRC), orthogonalised(gradient_NRC * 1e3), atol=1e-4, rtol=1e-3)


def test_orthogonalised_of_zero_is_zero():
    assert torch.equal(orthogonalised(torch.zeros(1, 4, 6)), torch.zeros(1, 4, 6))


@pytest.mark.parametrize("n_steps", [3, 5])
def test_muon_stacked_step_equals_the_published_rule_for_each_matrix(n_steps):
    model = with_gradients(new_decoder(CONFIG, seed=1))
    before = copy.deepcopy(dict(model.named_parameters()))
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    optimizer = Optimizer(model, dataclasses.replace(TRAIN, newton_schulz_steps=n_steps))
    optimizer.step(0.5)
    hidden, _ = parameter_groups(model, use_muon=True)
    for name, weight in hidden.items():
        # Nesterov after one step from zero: g (1 - m) + m (1 - m) g, of which only the direction counts
        gradient = gradients[name]
        update = orthogonalised(gradient[None], n_steps)[0]
        scale = max(1.0, gradient.size(0) / gradient.size(1)) ** 0.5
        torch.testing.assert_close(weight, before[name] - 0.5 * TRAIN.muon_lr * scale * update, atol=1e-4, rtol=1e-3)


def test_muon_moves_as_torchs_with_its_coefficients(monkeypatch):
    """Momentum, Nesterov's step, decay and scale of a shape are the same; torch rounds to bfloat16 (2^-9 a value)."""
    coefficients = (3.4445, -4.7750, 2.0315)
    monkeypatch.setitem(NEWTON_SCHULZ, 5, (coefficients,) * 5)
    cfg = dataclasses.replace(TRAIN, newton_schulz_steps=5, muon_weight_decay=0.1)
    model, other = new_decoder(CONFIG, seed=1), new_decoder(CONFIG, seed=1)
    hidden, _ = parameter_groups(model, use_muon=True)
    theirs, _ = parameter_groups(other, use_muon=True)
    before = {name: weight.detach().clone() for name, weight in hidden.items()}
    optimizer = Optimizer(model, cfg)
    assert cfg.muon_lr is not None
    reference = torch.optim.Muon(
        list(theirs.values()),
        lr=cfg.muon_lr,
        weight_decay=0.1,
        momentum=cfg.muon_momentum,
        ns_coefficients=coefficients,
    )
    for seed in range(3):
        with_gradients(model, seed), with_gradients(other, seed)
        optimizer.step(1.0)
        reference.step()
    for name, weight in hidden.items():
        way, torchs_way = weight - before[name], theirs[name] - before[name]
        assert (way - torchs_way).norm() < 0.05 * torchs_way.norm(), name


def test_adamw_weights_equal_torch_and_norms_do_not_decay():
    cfg = TrainConfig(n_steps=10, rows=2, seq_len=8, micro_batch=2, adamw_weight_decay=0.3)
    model = with_gradients(new_decoder(CONFIG, seed=1))
    other = with_gradients(new_decoder(CONFIG, seed=1))
    _, plain = parameter_groups(other, use_muon=True)
    reference = [
        torch.optim.AdamW(
            [w for w in plain.values() if (w.ndim > 1) == is_matrix],
            lr=cfg.adamw_lr,
            betas=(cfg.beta1, cfg.beta2),
            eps=cfg.adamw_eps,
            weight_decay=decay,
            foreach=False,
            fused=False,
        )
        for is_matrix, decay in ((True, 0.3), (False, 0.0))
    ]
    optimizer = Optimizer(model, cfg)
    for seed in range(3):
        with_gradients(model, seed), with_gradients(other, seed)
        optimizer.step(1.0)
        for single in reference:
            single.step()
    for name, weight in plain.items():
        torch.testing.assert_close(dict(model.named_parameters())[name], weight, atol=1e-6, rtol=1e-5)


def test_parameter_groups_give_muon_exactly_the_matrices_inside_layers():
    model = new_decoder(CONFIG, seed=0)
    hidden, others = parameter_groups(model, use_muon=True)
    assert len(hidden) == 7 * CONFIG.n_layers
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} <= others.keys()
    assert hidden.keys() | others.keys() == dict(model.named_parameters()).keys()
    assert not parameter_groups(model, use_muon=False)[0]


class Bert(nn.Module):
    """Modules named as Hugging Face names those of BERT: no name has ".layers." in it."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attention": nn.ModuleDict({"query": nn.Linear(8, 8)}),
                    "relative_bias": nn.Embedding(4, 2),
                    "norm": nn.LayerNorm(8),
                }
            )
            for _ in range(2)
        )
        self.pooler = nn.Linear(8, 8)


class LowRank(nn.Module):
    """An adapter around a linear map, as LoRA is one."""

    def __init__(self, base: nn.Linear, is_module: bool) -> None:
        super().__init__()
        self.base = base
        self.adapter = nn.Module()
        self.adapter.is_adapter = True
        if is_module:
            self.adapter.a, self.adapter.b = nn.Linear(8, 2, bias=False), nn.Linear(2, 8, bias=False)
        else:
            self.adapter.a, self.adapter.b = nn.Parameter(torch.ones(2, 8)), nn.Parameter(torch.ones(8, 2))


def test_parameter_groups_give_muon_the_matrices_of_any_list_of_layers():
    """By names alone those of an encoder would all have gone to AdamW."""
    hidden, others = parameter_groups(Bert(), use_muon=True)
    assert list(hidden) == [f"encoder.layer.{i}.attention.query.weight" for i in range(2)]
    assert {"pooler.weight", "encoder.layer.0.relative_bias.weight", "encoder.layer.0.norm.weight"} <= others.keys()


@pytest.mark.parametrize("is_module", [True, False])
def test_parameter_groups_give_muon_no_matrix_of_an_adapter(is_module):
    model = Bert()
    attention = model.encoder.layer[1]["attention"]
    attention["query"] = LowRank(attention["query"], is_module)
    hidden, others = parameter_groups(model, use_muon=True)
    assert list(hidden) == [
        "encoder.layer.0.attention.query.weight",
        "encoder.layer.1.attention.query.base.weight",
    ]
    assert sum(".adapter." in name for name in others) == 2


@pytest.mark.parametrize("n_steps_before", [0, 2])
def test_update_that_is_not_applied_changes_no_bit_of_weights_and_state(n_steps_before):
    """Decided on the device: the host does not know of it, and the next update is as if it had not been."""
    cfg = dataclasses.replace(TRAIN, muon_weight_decay=0.1, adamw_weight_decay=0.2)
    model, other = new_decoder(CONFIG, seed=2), new_decoder(CONFIG, seed=2)
    skipping, plain = Optimizer(model, cfg), Optimizer(other, cfg)
    for seed in range(n_steps_before):
        for one, optimizer in ((model, skipping), (other, plain)):
            with_gradients(one, seed)
            optimizer.step(1.0)
    with_gradients(model, 77)
    model.lm_head.weight.grad[0, 0] = torch.nan
    model.model.layers[0].mlp.up_proj.weight.grad[0, 0] = torch.inf
    skipping.step(0.5, torch.tensor(False))
    for one, optimizer in ((model, skipping), (other, plain)):
        with_gradients(one, 5)
        optimizer.step(1.0, torch.tensor(True) if optimizer is skipping else None)
    for weight, same in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(weight, same)
    for name, tensor in plain.state().items():
        assert torch.equal(tensor, skipping.state()[name]), name


@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
@pytest.mark.parametrize("n_steps", [3, 5])
def test_orthogonalised_through_the_compiler_is_the_same(n_steps):
    for shape in ((3, 8, 20), (2, 6, 6)):
        gradient_NRC = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        plain_NRC = orthogonalised(gradient_NRC, n_steps)
        assert torch.equal(orthogonalised(gradient_NRC, n_steps, compile_backend="eager"), plain_NRC)


def test_state_of_a_training_that_was_never_updated_is_loaded_elsewhere():
    """A checkpoint before the first update: the first steps had no target, or were left out."""
    model = new_decoder(CONFIG, seed=2)
    state = Optimizer(model, TRAIN).state()
    second = Optimizer(copy.deepcopy(model), TRAIN)
    second.load(state)
    assert second.state().keys() == state.keys()


def test_frozen_weights_are_in_no_group():
    model = new_decoder(CONFIG, seed=0)
    model.model.layers.requires_grad_(False)
    hidden, others = parameter_groups(model, use_muon=True)
    assert not hidden
    assert others.keys() == {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"}


def test_optimizer_state_loaded_elsewhere_continues_to_the_bit():
    first = new_decoder(CONFIG, seed=2)
    a = Optimizer(first, TRAIN)
    for seed in range(3):
        with_gradients(first, seed)
        a.step(1.0)
    second = copy.deepcopy(first)
    b = Optimizer(second, TRAIN)
    b.load({name: tensor.clone() for name, tensor in a.state().items()})
    for seed in range(3, 6):
        with_gradients(first, seed), with_gradients(second, seed)
        a.step(0.7)
        b.step(0.7)
    for weight, same in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(weight, same)
    for name, tensor in a.state().items():
        assert torch.equal(tensor, b.state()[name]), name
        assert tensor.dtype == torch.float32


def test_optimizer_state_of_another_model_is_refused_by_name():
    model = with_gradients(new_decoder(CONFIG, seed=2))
    optimizer = Optimizer(model, TRAIN)
    optimizer.step(1.0)
    state = dict(optimizer.state())
    state["muon.momentum.model.layers.0.mlp.up_proj.weight"] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=r"up_proj.*\(3, 3\)"):
        optimizer.load(state)


def test_muon_weight_without_gradient_is_named():
    model = with_gradients(new_decoder(CONFIG, seed=2))
    model.model.layers[1].mlp.up_proj.weight.grad = None
    with pytest.raises(ValueError, match="no gradient"):
        Optimizer(model, TRAIN).step(1.0)


def test_layer_decay_multiplies_the_rate_of_every_weight_by_its_depth():
    """Against one optimizer per depth with the rates written out; a first step moves AdamW's weights by the rate."""
    decay, before = 0.5, new_decoder(CONFIG, seed=0)
    expected = {"model.embed_tokens": decay**2, "model.layers.0": decay, "model.layers.1": 1.0, "model.norm": 1.0}
    for lr in ({"muon_lr": None}, {"muon_lr": 0.1, "muon_weight_decay": 0.3, "adamw_weight_decay": 0.2}):
        decayed = with_gradients(copy.deepcopy(before))
        Optimizer(decayed, dataclasses.replace(TRAIN, **lr, layer_decay=decay)).step(0.7)
        for prefix, share in expected.items():
            plain = with_gradients(copy.deepcopy(before))
            Optimizer(plain, dataclasses.replace(TRAIN, **lr)).step(0.7 * share)
            names = [name for name, _ in before.named_parameters() if name.startswith(prefix)]
            assert names
            for name in names:
                moved, same = decayed.get_parameter(name), plain.get_parameter(name)
                torch.testing.assert_close(moved, same, rtol=1e-6, atol=1e-7)
                assert not torch.equal(moved, before.get_parameter(name))


def test_layer_shares_of_a_classifier_of_an_encoder_rise_from_the_embeddings_to_the_head():
    sizes = {"n_layers": 3, "n_heads": 2, "n_kv_heads": 2, "d_model": 16, "d_head": 8, "d_ff": 24}
    cfg = EncoderConfig(**sizes, **switches_of("bert"), has_pooler=True, vocab_size=31, max_seq_len=8)
    classifier = new_classifier(cfg, 2, seed=0)
    add_lora(classifier, LoraConfig(rank=2), 0, trains_head=True)
    shares = layer_shares(classifier, 0.5)
    assert shares.keys() == dict(classifier.named_parameters()).keys()
    for prefix, share in (
        *((f"model.embed_{name}", 0.125) for name in ("tokens", "positions", "types", "norm")),
        *((f"model.layers.{i}.", 0.25 * 2**i) for i in range(3)),
        *(("head.", 1.0), ("score.", 1.0)),
    ):
        found = {shares[name] for name in shares if name.startswith(prefix)}
        assert found == {share}, prefix
    assert set(layer_shares(classifier, 1.0).values()) == {1.0}
