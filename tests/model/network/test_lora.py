"""Low-rank adapters: the model as it was at the start, and merged and unmerged the same after training."""

import copy
import dataclasses

import pytest
import torch
from torch.nn import functional as F

from model.generation.decode import pack
from model.network.decoder import Decoder, new_decoder
from model.network.heads import new_classifier
from model.network.lora import (
    LoraLinear,
    add_lora,
    has_lora,
    linears_of_blocks,
    lora_layers,
    lora_linear,
    merge_lora,
)
from model.network.lora_config import LoraConfig, lora_config
from model.network.shape import DecoderConfig
from model.training.replicas import Replicas

CFG = DecoderConfig(
    vocab_size=50, n_layers=2, n_heads=4, n_kv_heads=2, d_model=32, d_head=8, d_ff=48, max_seq_len=32, qkv_bias=True
)
IDS_BT = torch.randint(0, 50, (3, 20), generator=torch.Generator().manual_seed(1))
LENGTHS_B = torch.tensor([20, 3, 11])


def trained_decoder(seed: int = 0) -> Decoder:
    """A decoder whose layers have an effect: initial weights that are zero are drawn, too."""
    return with_drawn_zeros(new_decoder(CFG, seed), seed)


@torch.no_grad()
def with_drawn_zeros(model, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if not weight.any():
            weight.copy_(torch.empty(weight.shape).normal_(std=0.2, generator=generator))
    return model


def adapted(model, cfg: LoraConfig, *, trains_head: bool = False):
    """A copy of `model` with adapters whose B is not zero."""
    model = copy.deepcopy(model)
    add_lora(model, cfg, 3, trains_head=trains_head)
    return with_drawn_zeros(model, 5)


@torch.no_grad()
@pytest.mark.parametrize("cfg", [LoraConfig(), LoraConfig(rank=3, alpha=1.0, targets=("q_proj", "mlp.down_proj"))])
def test_model_with_new_adapters_gives_the_bits_of_its_base(cfg):
    decoder, classifier = trained_decoder(), with_drawn_zeros(new_classifier(CFG, 3, seed=0))
    for model, inputs in ((decoder, (IDS_BT,)), (classifier, (IDS_BT, LENGTHS_B))):
        expected = model(*inputs)
        add_lora(model, cfg, seed=0)
        assert torch.equal(model(*inputs), expected)


@torch.no_grad()
def test_merged_model_is_the_adapted_one_and_not_the_base():
    base = trained_decoder()
    model = adapted(base, LoraConfig(rank=4, alpha=6.0))
    adapted_BTV = model(IDS_BT)
    names = [name for name, _ in base.named_parameters()]
    merge_lora(model)
    assert [name for name, _ in model.named_parameters()] == names and not has_lora(model)
    assert all(weight.requires_grad for weight in model.parameters())
    torch.testing.assert_close(model(IDS_BT), adapted_BTV, atol=1e-4, rtol=0)
    assert (adapted_BTV - base(IDS_BT)).abs().max() > 0.1


@pytest.mark.parametrize("has_bias", [True, False])
def test_lora_linear_and_its_gradients_equal_those_of_the_written_formula(has_bias):
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int, is_trained: bool = True) -> torch.Tensor:
        return torch.randn(shape, generator=generator).requires_grad_(is_trained)

    x_BTI, a_RI, b_OR = drawn(2, 70, 96), drawn(4, 96), drawn(130, 4)
    weight_OI, bias_O = drawn(130, 96, is_trained=False), drawn(130, is_trained=False) if has_bias else None
    gradient_BTO = drawn(2, 70, 130, is_trained=False)
    y_BTO = lora_linear(x_BTI, weight_OI, bias_O, a_RI, b_OR, 0.7)
    expected_BTO = F.linear(x_BTI, weight_OI + 0.7 * b_OR @ a_RI, bias_O)
    torch.testing.assert_close(y_BTO, expected_BTO, atol=1e-4, rtol=1e-4)
    inputs = (x_BTI, a_RI, b_OR)
    got, expected = (torch.autograd.grad(y, inputs, gradient_BTO) for y in (y_BTO, expected_BTO))
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)


def test_frozen_weights_get_no_gradients_and_a_new_head_gets_one():
    model = adapted(new_classifier(CFG, 3, seed=0), LoraConfig(targets=("q_proj", "v_proj")), trains_head=True)
    model(IDS_BT, LENGTHS_B).sum().backward()
    with_gradient = {name for name, weight in model.named_parameters() if weight.grad is not None}
    layers = {f"model.layers.{i}.self_attn.{part}_proj" for i in (0, 1) for part in "qv"}
    assert with_gradient == {"score.weight", *(f"{name}.lora_{x}" for name in layers for x in "ab")}


def test_backward_of_frozen_layers_computes_no_product_for_weights_and_none_below_the_first_adapter():
    """Counted: products of matrices in backward. Every layer but the last adapter's passes a gradient on."""
    model = trained_decoder()
    add_lora(model, LoraConfig(rank=2, targets=("layers.1.mlp.down_proj",)), seed=0)
    loss = model.trunk(IDS_BT).sum()
    with torch.profiler.profile(record_shapes=False) as profile:
        loss.backward()
    n_products = sum(event.count for event in profile.key_averages() if event.key in ("aten::mm", "aten::addmm"))
    assert n_products == 3  # of gradient and B; of A's gradient; of B's. None with W, since nothing below is trained


def test_frozen_layers_keep_no_input_for_backward():
    def kept(is_frozen: bool) -> int:
        model = trained_decoder()
        if is_frozen:
            add_lora(model, LoraConfig(rank=1, targets=("layers.0.self_attn.q_proj",)), seed=0)
        known = {weight.data_ptr() for weight in model.parameters()}
        seen = {}
        with torch.autograd.graph.saved_tensors_hooks(lambda x: seen.setdefault(x.data_ptr(), x), lambda x: x):
            model.trunk(IDS_BT)
        return sum(x.nbytes for place, x in seen.items() if place not in known)

    assert kept(is_frozen=True) < 0.9 * kept(is_frozen=False)


def test_adapters_depend_on_the_seed_alone():
    first, second, other = (dict(lora_layers(adapted_with(seed)))["model.layers.1.mlp.up_proj"] for seed in (0, 0, 1))
    assert torch.equal(first.lora_a, second.lora_a) and not torch.equal(first.lora_a, other.lora_a)
    assert not first.lora_b.any() and first.lora_a.std().item() == pytest.approx(32**-0.5, rel=0.2)


def adapted_with(seed: int) -> Decoder:
    model = trained_decoder()
    add_lora(model, LoraConfig(), seed)
    return model


def test_all_linear_layers_of_the_blocks_are_the_default_and_the_head_is_none_of_them():
    model = trained_decoder()
    names = {name for name, _ in linears_of_blocks(model)}
    add_lora(model, LoraConfig(), 0)
    assert {name for name, _ in lora_layers(model)} == names and len(names) == 2 * 7
    assert not isinstance(model.lm_head, LoraLinear)


@torch.no_grad()
@pytest.mark.parametrize("targets", [(), ("q_proj",), ("up_proj", "o_proj")])
def test_packed_decoding_computes_adapters(targets):
    model = adapted(trained_decoder(), LoraConfig(targets=targets))
    expected_BTV = model(IDS_BT)
    torch.testing.assert_close(pack(model.eval(), n_rows=3)(IDS_BT), expected_BTV, atol=1e-4, rtol=1e-4)


def test_replicas_in_threads_add_the_gradients_of_adapters_and_share_frozen_weights():
    model = adapted(trained_decoder(), LoraConfig())
    model(IDS_BT[:2]).square().sum().backward()
    expected = {name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None}
    model.zero_grad()
    replicas = Replicas(model, 2, 1)
    try:
        assert replicas.models[1].get_parameter("lm_head.weight") is model.lm_head.weight
        replicas.accumulate(lambda one, batch: one(batch["ids_BT"]).square().sum().backward(), {"ids_BT": IDS_BT[:2]})
    finally:
        replicas.close()
    got = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    torch.testing.assert_close(got, expected, atol=1e-3, rtol=1e-4)


def test_adapters_train_on_recomputed_layers():
    model = adapted(trained_decoder(), LoraConfig())
    gradients = []
    for is_on in (False, True):
        model.trunk.recompute_layers(is_on)
        model.zero_grad()
        model(IDS_BT).square().sum().backward()
        gradients.append({name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None})
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rank": 0}, "rank=0 of LoRA must be at least 1"),
        ({"alpha": 0.0}, r"alpha=0\.0 of LoRA must be"),
        ({"alpha": float("nan")}, "alpha=nan of LoRA must be"),
    ],
)
def test_sizes_that_break_a_rule_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        LoraConfig(**values)


def test_targets_that_no_layer_has_and_second_adapters_are_refused():
    model = trained_decoder()
    with pytest.raises(
        ValueError, match=r"no linear layer is named 'query'; the blocks have down_proj, gate_proj, k"
    ):
        add_lora(model, LoraConfig(targets=("q_proj", "query")), 0)
    assert not has_lora(model) and all(weight.requires_grad for weight in model.parameters())
    add_lora(model, LoraConfig(), 0)
    with pytest.raises(ValueError, match="has adapters already"):
        add_lora(model, LoraConfig(), 0)


def test_config_is_read_back_from_what_json_makes_of_it():
    cfg = LoraConfig(rank=4, targets=("q_proj",))
    assert lora_config({**dataclasses.asdict(cfg), "targets": ["q_proj"]}) == cfg
