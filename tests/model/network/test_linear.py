"""The linear layer against float64 and against torch's own, on both sides of the size where the library changes."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.network import linear as linear_module
from model.network.linear import (
    HAS_FAST_ONEDNN,
    LEAST_MULTIPLICATIONS,
    Linear,
    has_wide_units,
    is_for_onednn,
    linear,
    product,
)

SHAPES = {"small": (3, 5, 24, 40), "large": (4, 64, 96, 80)}  # B, T, I, O: below LEAST_MULTIPLICATIONS and above


def tensors(shape: tuple[int, int, int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Input, weight, bias and gradient of the output."""
    n_rows, n_positions, d_in, d_out = shape
    generator = torch.Generator().manual_seed(0)
    sizes = ((n_rows, n_positions, d_in), (d_out, d_in), (d_out,), (n_rows, n_positions, d_out))
    x_BTI, weight_OI, bias_O, gradient_BTO = (torch.randn(size, generator=generator) for size in sizes)
    return x_BTI, weight_OI, bias_O, gradient_BTO


def with_gradients(function, inputs: list[Tensor], gradient: Tensor) -> list[Tensor]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    out = function(*leaves)
    out.backward(gradient)
    return [out.detach(), *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("by_onednn", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_linear_equals_double_precision_with_gradients(shape, has_bias, by_onednn, monkeypatch):
    monkeypatch.setattr(linear_module, "GRADIENTS_BY_ONEDNN", by_onednn)
    x_BTI, weight_OI, bias_O, gradient_BTO = tensors(shape)
    inputs = [x_BTI, weight_OI, bias_O] if has_bias else [x_BTI, weight_OI]
    ours = with_gradients(linear, inputs, gradient_BTO)
    exact = with_gradients(F.linear, [tensor.double() for tensor in inputs], gradient_BTO.double())
    for got, expected in zip(ours, exact, strict=True):
        torch.testing.assert_close(got.double(), expected, atol=1e-4, rtol=1e-5)


def test_linear_takes_strided_inputs_and_expanded_gradients():
    x_BTI, weight_OI, _, _ = tensors(SHAPES["large"])
    wide_BTI = torch.cat([x_BTI, x_BTI], dim=-1)[..., :96]
    expected = with_gradients(F.linear, [x_BTI, weight_OI], torch.ones(4, 64, 80))
    leaf_BTI = wide_BTI.detach().requires_grad_()
    weight_OI.requires_grad_()
    linear(leaf_BTI, weight_OI).sum().backward()
    torch.testing.assert_close(leaf_BTI.grad, expected[1], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(weight_OI.grad, expected[2], atol=1e-4, rtol=1e-5)


def test_linear_gives_no_gradient_to_what_asks_for_none():
    x_BTI, weight_OI, _, gradient_BTO = tensors(SHAPES["large"])
    weight_OI.requires_grad_()  # the input is data, as below a frozen embedding
    linear(x_BTI, weight_OI).backward(gradient_BTO)
    assert x_BTI.grad is None
    assert weight_OI.grad is not None


def test_linear_layer_has_the_names_and_weights_of_torch():
    ours, theirs = Linear(96, 80), nn.Linear(96, 80)
    theirs.load_state_dict(ours.state_dict())
    x_BTI = tensors(SHAPES["large"])[0]
    torch.testing.assert_close(ours(x_BTI), theirs(x_BTI), atol=1e-5, rtol=1e-5)
    with torch.inference_mode():
        assert torch.equal(ours(x_BTI), linear(x_BTI, ours.weight, ours.bias))


@pytest.mark.parametrize("shape", [(16, 24, 40), (256, 96, 80)], ids=["small", "large"])
def test_product_equals_double_precision_also_of_transposed_matrices(shape):
    n_rows, d_in, d_out = shape
    generator = torch.Generator().manual_seed(1)
    a_NI, b_IO = (torch.randn(size, generator=generator) for size in ((n_rows, d_in), (d_in, d_out)))
    torch.testing.assert_close(product(a_NI, b_IO.mT).double(), a_NI.double() @ b_IO.double(), atol=1e-4, rtol=1e-5)


def test_library_is_chosen_by_type_size_and_cpu_alone():
    x_NI, weight_OI = torch.zeros(LEAST_MULTIPLICATIONS // 64, 8), torch.zeros(8, 8)
    assert is_for_onednn(x_NI, weight_OI) is HAS_FAST_ONEDNN
    assert not is_for_onednn(x_NI[1:], weight_OI)
    assert not is_for_onednn(x_NI.bfloat16(), weight_OI.bfloat16())
    assert not is_for_onednn(x_NI.double(), weight_OI.double())
    with torch.autocast("cpu", torch.bfloat16):
        assert not is_for_onednn(x_NI, weight_OI)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, while it compiles
def test_compiled_linear_equals_eager_in_one_graph():
    """torch's compiler knows oneDNN's product for constant weights only, and failed on ours."""
    x_BTI, weight_OI, _, gradient_BTO = tensors(SHAPES["large"])
    compiled = torch.compile(linear, fullgraph=True, dynamic=False)
    eager = with_gradients(linear, [x_BTI, weight_OI], gradient_BTO)
    for got, expected in zip(with_gradients(compiled, [x_BTI, weight_OI], gradient_BTO), eager, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("vendor", "family", "is_wide"),
    [("AuthenticAMD", "25", False), ("AuthenticAMD", "26", True), ("GenuineIntel", "6", False), ("", "", False)],
)
def test_wide_units_follow_from_vendor_and_family(vendor, family, is_wide):
    text = f"processor\t: 0\nvendor_id\t: {vendor}\ncpu family\t: {family}\nmodel\t\t: 17\n\nprocessor\t: 1\n"
    assert has_wide_units(text) is is_wide
    assert not has_wide_units("")
