"""The head's cross entropy against plain torch: values, gradients, padding, weights, refusals and memory."""

import os

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from model.data.batch_layout import IGNORE_INDEX
from model.training.cross_entropy import (
    MIN_CHUNK_ROWS,
    backward_of_sum,
    chunk_rows,
    linear_cross_entropy,
    target_losses,
)
from tests.children import python

N_ROWS, N_VOCAB, D_MODEL = 300, 50, 12


def operands() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.empty(N_ROWS, D_MODEL).normal_(generator=generator).requires_grad_()
    weight_VD = torch.empty(N_VOCAB, D_MODEL).normal_(generator=generator).requires_grad_()
    targets_N = torch.randint(0, N_VOCAB, (N_ROWS,), generator=generator)
    targets_N[::7] = IGNORE_INDEX
    return x_ND, weight_VD, targets_N


def bias() -> torch.Tensor:
    return torch.linspace(-2, 2, N_VOCAB).requires_grad_()


def plain(x_ND, weight_VD, targets_N, bias_V=None):
    return F.cross_entropy(F.linear(x_ND, weight_VD, bias_V), targets_N, reduction="sum")


@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
@pytest.mark.parametrize(
    "options",
    [
        *({"rows_per_chunk": n} for n in (1, 64, 128, 300, 1000)),
        {"rows_per_chunk": 64, "vocab_multiple": 64},
        {"compile_backend": "eager"},
        {"compile_backend": "eager", "vocab_multiple": 64},
    ],
    ids=str,
)
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear_cross_entropy_equals_plain_torch_in_value_and_gradient(options, has_bias):
    x_ND, weight_VD, targets_N = operands()
    bias_V = bias() if has_bias else None
    inputs = [tensor for tensor in (x_ND, weight_VD, bias_V) if tensor is not None]
    expected = plain(x_ND, weight_VD, targets_N, bias_V)
    gradients = torch.autograd.grad(expected / 7, inputs)
    loss = linear_cross_entropy(x_ND, weight_VD, targets_N, bias_V=bias_V, **options)
    torch.testing.assert_close(loss, expected, atol=1e-3, rtol=1e-5)
    for ours, theirs in zip(torch.autograd.grad(loss / 7, inputs), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        alone = linear_cross_entropy(x_ND, weight_VD, targets_N, bias_V=bias_V, **options)
    torch.testing.assert_close(alone, expected, atol=1e-3, rtol=1e-5)


def test_losses_of_single_targets_are_those_of_torch_and_zero_without_a_target():
    x_ND, weight_VD, targets_N = operands()
    expected = F.cross_entropy(F.linear(x_ND, weight_VD, bias()), targets_N, reduction="none")
    found = target_losses(x_ND, weight_VD, targets_N, bias_V=bias(), rows_per_chunk=64, vocab_multiple=64)
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-5)
    assert not found.requires_grad
    assert found[::7].count_nonzero() == 0


def test_negative_weight_makes_a_target_less_likely():
    x_ND, weight_VD, targets_N = operands()
    weights_N = torch.linspace(-2, 1, N_ROWS)
    losses_N = F.cross_entropy(F.linear(x_ND, weight_VD), targets_N, reduction="none")
    expected = torch.autograd.grad((losses_N * weights_N).sum(), (x_ND, weight_VD))
    loss = linear_cross_entropy(x_ND, weight_VD, targets_N, weights_N=weights_N, rows_per_chunk=64)
    torch.testing.assert_close(loss, (losses_N * weights_N).sum(), atol=1e-3, rtol=1e-5)
    for ours, theirs in zip(torch.autograd.grad(loss, (x_ND, weight_VD)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("vocab_multiple", [None, 64])
def test_selected_rows_have_the_loss_and_gradient_of_all_rows_where_the_others_have_no_target(vocab_multiple):
    x_ND, weight_VD, targets_N = operands()
    rows_M = (targets_N >= 0).nonzero().flatten()
    gradients = torch.autograd.grad(expected := plain(x_ND, weight_VD, targets_N), (x_ND, weight_VD))
    loss = linear_cross_entropy(
        x_ND, weight_VD, targets_N[rows_M], rows_M=rows_M, vocab_multiple=vocab_multiple, rows_per_chunk=64
    )
    torch.testing.assert_close(loss, expected, atol=1e-3, rtol=1e-5)
    for ours, theirs in zip(torch.autograd.grad(loss, (x_ND, weight_VD)), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_no_selected_row_is_a_loss_of_zero():
    x_ND, weight_VD, targets_N = operands()
    none = torch.zeros(0, dtype=torch.int64)
    loss = linear_cross_entropy(x_ND, weight_VD, targets_N[none], rows_M=none)
    loss.backward()
    assert loss.item() == 0 and not x_ND.grad.any() and not weight_VD.grad.any()


@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
@pytest.mark.parametrize("compile_backend", [None, "eager"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_weight_0_is_an_ignored_target_and_weight_n_is_n_copies(compile_backend, dtype):
    x_ND, weight_VD, targets_N = operands()
    weights_N = (torch.arange(N_ROWS) % 4).to(dtype)
    rows_M = torch.arange(N_ROWS).repeat_interleave(torch.arange(N_ROWS) % 4)
    gradients = torch.autograd.grad(expected := plain(x_ND[rows_M], weight_VD, targets_N[rows_M]), (x_ND, weight_VD))
    loss = linear_cross_entropy(x_ND, weight_VD, targets_N, weights_N=weights_N, compile_backend=compile_backend)
    torch.testing.assert_close(loss, expected, atol=1e-3, rtol=1e-5)
    for ours, theirs in zip(torch.autograd.grad(loss, (x_ND, weight_VD)), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        alone = linear_cross_entropy(x_ND, weight_VD, targets_N, weights_N=weights_N)
    torch.testing.assert_close(alone, expected, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("negative", [-1, -2])
def test_negative_targets_are_ignored_with_and_without_gradients(negative):
    """-1, which others write, was class 0 in training and an IndexError in validation."""
    x_ND, weight_VD, targets_N = operands()
    expected = plain(x_ND, weight_VD, targets_N)
    targets_N = targets_N.masked_fill(targets_N < 0, negative)
    torch.testing.assert_close(linear_cross_entropy(x_ND, weight_VD, targets_N), expected, atol=1e-3, rtol=1e-5)
    with torch.no_grad():
        alone = linear_cross_entropy(x_ND, weight_VD, targets_N)
    torch.testing.assert_close(alone, expected, atol=1e-3, rtol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about itself
@pytest.mark.parametrize("options", [{}, {"compile_backend": "eager"}], ids=str)
@pytest.mark.parametrize("has_gradient", [False, True])
def test_target_above_the_vocabulary_is_refused_by_row_and_value(options, has_gradient):
    x_ND, weight_VD, targets_N = operands()
    targets_N[5] = N_VOCAB
    with torch.set_grad_enabled(has_gradient), pytest.raises(ValueError, match=r"target 50 in row 5 .* less than 50"):
        linear_cross_entropy(x_ND, weight_VD, targets_N, **options)


def test_linear_cross_entropy_of_logits_that_exp_cannot_hold_is_finite():
    x_ND = torch.tensor([[1000.0], [-1000.0]], requires_grad=True)
    weight_VD = torch.tensor([[1.0], [-1.0], [0.5]])
    loss = linear_cross_entropy(x_ND, weight_VD, torch.tensor([2, 1]))
    loss.backward()
    assert loss.item() == 500.0 and torch.isfinite(x_ND.grad).all()


def test_linear_cross_entropy_without_a_target_is_zero_and_moves_nothing():
    x_ND, weight_VD, targets_N = operands()
    loss = linear_cross_entropy(x_ND, weight_VD, torch.full_like(targets_N, IGNORE_INDEX))
    loss.backward()
    assert loss.item() == 0 and not x_ND.grad.any() and not weight_VD.grad.any()


def test_linear_cross_entropy_differentiated_twice_says_so():
    loss = linear_cross_entropy(*operands())
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward can be called once"):
        loss.backward()


class Multiplications(TorchDispatchMode):
    """Records the shapes of what is multiplied element by element."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[torch.Size] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.mul, torch.ops.aten.mul_):
            self.shapes.append(args[0].shape)
        return func(*args, **(kwargs or {}))


def test_backward_of_a_sum_leaves_gradients_that_are_ready_alone():
    """In training the factor is 1: multiplying with it was a pass over the whole head for nothing."""
    x_ND, weight_VD, targets_N = operands()
    loss = linear_cross_entropy(x_ND, weight_VD, targets_N)
    with Multiplications() as seen:
        backward_of_sum(loss)
    assert not {x_ND.shape, weight_VD.shape} & set(seen.shapes)
    ready = x_ND.grad.clone(), weight_VD.grad.clone()
    x_ND.grad = weight_VD.grad = None
    backward_of_sum(3 * linear_cross_entropy(x_ND, weight_VD, targets_N))
    for tripled, gradient in zip((x_ND.grad, weight_VD.grad), ready, strict=True):
        torch.testing.assert_close(tripled, 3 * gradient)


@pytest.mark.parametrize("vocab_multiple", [1, 64])
def test_linear_cross_entropy_under_autocast_sums_its_chunks_in_float32(vocab_multiple):
    """Products are bfloat16; a weight gradient summed in bfloat16 over 300 chunks would be off by more than 1 %."""
    x_ND, weight_VD, targets_N = operands()
    (expected,) = torch.autograd.grad(plain(x_ND, weight_VD, targets_N), weight_VD)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x_ND, weight_VD, targets_N, rows_per_chunk=1, vocab_multiple=vocab_multiple)
    (gradient,) = torch.autograd.grad(loss, weight_VD)
    assert loss.dtype == gradient.dtype == torch.float32 and gradient.shape == weight_VD.shape
    assert (gradient - expected).norm() < 0.01 * expected.norm()


def test_frozen_head_gets_no_gradient_and_hidden_states_the_same_one():
    x_ND, weight_VD, targets_N = operands()
    (expected,) = torch.autograd.grad(plain(x_ND, weight_VD, targets_N), x_ND)
    linear_cross_entropy(x_ND, weight_VD.detach(), targets_N).backward()
    torch.testing.assert_close(x_ND.grad, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("vocab_size", "device", "expected"), [(65, "cpu", 131_072), (50_304, "cpu", 256), (50_304, "cuda", 4096)]
)
def test_chunk_rows_follow_the_vocabulary(vocab_size, device, expected):
    assert chunk_rows(vocab_size, device) == expected


def test_chunk_rows_of_a_huge_vocabulary_stay_worth_a_product():
    assert chunk_rows(10_000_000, "cpu") == MIN_CHUNK_ROWS


PEAKS = """
import torch
from torch.nn import functional as F
from model.training.cross_entropy import linear_cross_entropy
torch.set_num_threads(1)
def peak():  # not ru_maxrss, which a process takes over from the one that started it
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
def added_peaks(n_rows, n_vocab):
    x, weight = torch.randn(n_rows, 64, requires_grad=True), torch.randn(n_vocab, 64, requires_grad=True)
    targets, before = torch.randint(0, n_vocab, (n_rows,)), peak()
    linear_cross_entropy(x, weight, targets).backward()
    chunked = peak() - before
    x.grad = weight.grad = None
    F.cross_entropy(x @ weight.T, targets, reduction="sum").backward()
    return chunked, peak() - before
added_peaks(4, 50)  # maps the code, which counts too
print(*added_peaks(768, 50304))
"""


def test_loss_at_a_vocabulary_of_50_thousand_takes_less_than_half_of_the_plain_memory():
    chunked, plain = map(
        int, python("-c", PEAKS, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True).stdout.split()
    )
    assert chunked < 0.5 * plain
