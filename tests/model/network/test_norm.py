"""Norms against transformers and torch, also where the input is half as wide."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from model.network.norm import RMSNorm, new_norm
from model.training.presets import PRESETS


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_equals_transformers_with_gradients(dtype):
    torch.manual_seed(0)
    ours, theirs = RMSNorm(48, eps=1e-5).to(dtype), LlamaRMSNorm(48, eps=1e-5).to(dtype)
    weight_D = torch.randn(48, dtype=dtype)
    for norm in (ours, theirs):
        norm.load_state_dict({"weight": weight_D})
    x_BTD = (torch.randn(2, 5, 48) * 7).to(dtype)
    inputs = [x_BTD.clone().requires_grad_() for _ in range(2)]
    outputs = [norm(x) for norm, x in zip((ours, theirs), inputs, strict=True)]
    assert outputs[0].dtype == dtype
    torch.testing.assert_close(*outputs)
    for out in outputs:
        (out * torch.linspace(-1, 1, 48, dtype=dtype)).sum().backward()
    torch.testing.assert_close(inputs[0].grad, inputs[1].grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)


@pytest.mark.parametrize("kind", ["rmsnorm", "layernorm", "layernorm_no_bias"])
def test_norm_with_wider_weights_keeps_the_dtype_of_its_input(kind):
    cfg = dataclasses.replace(PRESETS["demo"].shape.with_vocab(10), norm=kind)
    norm, x_BD = new_norm(cfg), torch.randn(3, cfg.d_model, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    assert norm(x_BD).dtype == torch.bfloat16
    assert torch.equal(norm(x_BD), norm(x_BD.float()).bfloat16())  # one rounding, at the end


def test_rms_norm_of_half_width_numbers_is_taken_in_float32():
    x_D = torch.full((64,), 300.0, dtype=torch.float16)  # its squares are beyond float16
    torch.testing.assert_close(RMSNorm(64, 1e-6).half()(x_D), torch.ones(64, dtype=torch.float16))


def test_rms_norm_of_zeros_is_zero():
    assert RMSNorm(8, 1e-6)(torch.zeros(2, 8)).count_nonzero() == 0


def test_new_norm_is_the_one_that_the_config_names():
    cfg = PRESETS["demo"].shape.with_vocab(10)
    assert isinstance(new_norm(cfg), RMSNorm)
    norm = new_norm(dataclasses.replace(cfg, norm="layernorm", norm_eps=1e-3))
    x_BD = torch.randn(3, cfg.d_model, generator=torch.Generator().manual_seed(0))
    expected = F.layer_norm(x_BD, (cfg.d_model,), eps=1e-3)
    torch.testing.assert_close(norm(x_BD), expected)
    assert [name for name, _ in norm.named_parameters()] == ["weight", "bias"]
    norm = new_norm(dataclasses.replace(cfg, norm="layernorm_no_bias", norm_eps=1e-3))
    torch.testing.assert_close(norm(x_BD), expected)
    assert [name for name, _ in norm.named_parameters()] == ["weight"]
