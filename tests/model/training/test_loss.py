"""Losses against plain torch: values, gradients, memory, and who may see whom."""

import os
import subprocess
import sys

import pytest
import torch
from torch.nn import functional as F

from model.training.loss import (
    IGNORE_INDEX,
    MIN_CHUNK_ROWS,
    _chunk_loss,
    _fused_chunk_loss,
    chunk_rows,
    linear_cross_entropy,
)


def operands(n_rows: int = 300, vocab_size: int = 50) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x_ND = torch.empty(n_rows, 12).normal_(generator=generator).requires_grad_()
    weight_VD = torch.empty(vocab_size, 12).normal_(generator=generator).requires_grad_()
    targets_N = torch.randint(0, vocab_size, (n_rows,), generator=generator)
    targets_N[::7] = IGNORE_INDEX
    return x_ND, weight_VD, targets_N


def plain(x_ND, weight_VD, targets_N):
    return F.cross_entropy(x_ND @ weight_VD.T, targets_N, reduction="sum")


@pytest.mark.parametrize("rows_per_chunk", [1, 64, 128, 300, 1000])
def test_linear_cross_entropy_equals_plain_torch_in_value_and_gradient(rows_per_chunk):
    x_ND, weight_VD, targets_N = operands()
    expected = plain(x_ND, weight_VD, targets_N)
    gradients = torch.autograd.grad(expected / 7, (x_ND, weight_VD))
    loss = linear_cross_entropy(x_ND, weight_VD, targets_N, rows_per_chunk=rows_per_chunk)
    torch.testing.assert_close(loss, expected, atol=1e-3, rtol=1e-5)
    for ours, theirs in zip(torch.autograd.grad(loss / 7, (x_ND, weight_VD)), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


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


def test_linear_cross_entropy_without_gradients_has_the_same_value():
    x_ND, weight_VD, targets_N = operands()
    with torch.no_grad():
        loss = linear_cross_entropy(x_ND, weight_VD, targets_N, rows_per_chunk=64)
    torch.testing.assert_close(loss, linear_cross_entropy(*operands()).detach())


def test_linear_cross_entropy_under_autocast_sums_its_chunks_in_float32():
    """Products are bfloat16; a weight gradient summed in bfloat16 over 300 chunks would be off by more than 1 %."""
    x_ND, weight_VD, targets_N = operands()
    (expected,) = torch.autograd.grad(plain(x_ND, weight_VD, targets_N), weight_VD)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(x_ND, weight_VD, targets_N, rows_per_chunk=1)
    (gradient,) = torch.autograd.grad(loss, weight_VD)
    assert loss.dtype == gradient.dtype == torch.float32
    assert (gradient - expected).norm() < 0.01 * expected.norm()


def test_chunk_loss_written_for_a_compiler_equals_the_one_in_place():
    x_ND, weight_VD, targets_N = operands()
    logits_NV = (x_ND @ weight_VD.T).detach()
    for ours, theirs in zip(
        _fused_chunk_loss(logits_NV, targets_N), _chunk_loss(logits_NV.clone(), targets_N), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("vocab_size", "device", "expected"), [(65, "cpu", 131_072), (50_304, "cpu", 256), (50_304, "cuda", 4096)]
)
def test_chunk_rows_follow_the_vocabulary(vocab_size, device, expected):
    assert chunk_rows(vocab_size, device) == expected


def test_chunk_rows_of_a_huge_vocabulary_stay_worth_a_product():
    assert chunk_rows(10_000_000, "cpu") == MIN_CHUNK_ROWS


PEAK = """
import sys, torch
from torch.nn import functional as F
from model.training.loss import linear_cross_entropy
torch.set_num_threads(1)
x, weight = torch.randn(1024, 64, requires_grad=True), torch.randn(50304, 64, requires_grad=True)
targets = torch.randint(0, 50304, (1024,))
def peak():  # not ru_maxrss, which a process takes over from the one that started it
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
before = peak()
if sys.argv[1] == "plain":
    F.cross_entropy(x @ weight.T, targets, reduction="sum").backward()
else:
    linear_cross_entropy(x, weight, targets).backward()
print(peak() - before)
"""


def test_loss_at_a_vocabulary_of_50_thousand_takes_less_than_half_of_the_plain_memory():
    peaks = {
        kind: int(
            subprocess.run(
                [sys.executable, "-c", PEAK, kind],
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                capture_output=True,
                text=True,
                check=True,
            ).stdout
        )
        for kind in ("plain", "chunked")
    }
    assert peaks["chunked"] < 0.5 * peaks["plain"]
