"""The linear layer, and matrix products by the faster of two libraries on the CPU.

In: (..., I) and a weight (O, I). Out: (..., O) = x W^T + b.

torch multiplies float32 matrices with MKL, which keeps to 256-bit instructions on CPUs that are not Intel's. oneDNN,
a part of the same torch, takes 512-bit ones on every CPU that has them: about twice the speed, forward and backward,
where a unit of the CPU is as wide (AMD's from Zen 5 on), and a tenth more where two steps of 256 bits make one, as in
Zen 4 (bench/decoder.py). There MKL computes the gradient of a weight, whose factors oneDNN has to copy first. oneDNN
computes float32 too, in another order of summation. The choice depends on the CPU and the sizes alone, so that a
resumed run makes the same one.

Legend: N rows (all leading dimensions), I and O width in and out.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, library, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

LEAST_MULTIPLICATIONS = 2**20  # below, oneDNN's start (about 10 microseconds) costs more than it saves
HAS_ONEDNN = (
    torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    and torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
)
HAS_FAST_ONEDNN = HAS_ONEDNN and torch.backends.cpu.get_cpu_capability() == "AVX512"
CPU_INFO = Path("/proc/cpuinfo")
ZEN_5 = 26  # its "cpu family"; that of Zen 4 is 25


def has_wide_units(cpu_info: str) -> bool:
    """Whether this is a CPU of AMD that computes 512 bits in one step; `cpu_info` is the text of Linux."""
    first = cpu_info.partition("\n\n")[0]
    values = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in first.splitlines())}
    family = values.get("cpu family", "")
    return values.get("vendor_id") == "AuthenticAMD" and family.isdecimal() and int(family) >= ZEN_5


GRADIENTS_BY_ONEDNN = CPU_INFO.is_file() and has_wide_units(CPU_INFO.read_text("utf-8", "replace"))


class Linear(nn.Linear):
    """nn.Linear, the same weights under the same names.

    `starts_at_zero` marks what initialise (decoder.py) sets to zero: heads, and what writes to the residual stream.
    """

    def __init__(self, d_in: int, d_out: int, *, bias: bool = True, starts_at_zero: bool = False) -> None:
        super().__init__(d_in, d_out, bias=bias)
        self.starts_at_zero = starts_at_zero

    def forward(self, input: Tensor) -> Tensor:
        return linear(input, self.weight, self.bias)


def linear(x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """x W^T + b with gradients; x (..., I)."""
    if not is_for_onednn(x_NI, weight_OI):
        return F.linear(x_NI, weight_OI, bias_O)
    rows_NI = x_NI.reshape(-1, x_NI.size(-1))
    return _OneDnnLinear.apply(rows_NI, weight_OI, bias_O).view(*x_NI.shape[:-1], weight_OI.size(0))  # type: ignore[union-attr]


def product(a_NI: Tensor, b_OI: Tensor, bias_O: Tensor | None = None) -> Tensor:
    """a b^T + bias, (N, O), of two matrices without gradients: for use under no_grad or in an autograd.Function."""
    return _onednn(a_NI, b_OI, bias_O) if is_for_onednn(a_NI, b_OI) else F.linear(a_NI, b_OI, bias_O)


def is_for_onednn(x_NI: Tensor, weight_OI: Tensor) -> bool:
    """Whether both are float32 on a CPU with 512-bit instructions, and large enough to gain."""
    return (
        x_NI.device.type == "cpu"
        and x_NI.dtype is weight_OI.dtype is torch.float32
        and HAS_FAST_ONEDNN
        and x_NI.numel() * weight_OI.size(0) >= LEAST_MULTIPLICATIONS
        and not torch.is_autocast_enabled("cpu")
    )


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """The type that products on `device` are taken in, None where autocast is off or unknown there."""
    if not torch.amp.is_autocast_available(device.type) or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def _onednn(a_NI: Tensor, b_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    if torch.compiler.is_compiling():
        return _onednn_uncompiled(a_NI, b_OI, bias_O)
    return onednn_product(a_NI, b_OI, bias_O)


def onednn_product(a_NI: Tensor, b_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """a b^T + bias, by the one float32 product of oneDNN that torch offers; it has no gradient of its own.

    `b` is a matrix, or one in oneDNN's blocks.
    """
    return torch.ops.mkldnn._linear_pointwise(a_NI, b_OI, bias_O, "none", [], "")


@library.custom_op("gristmill::onednn_linear", mutates_args=())
def _onednn_uncompiled(a_NI: Tensor, b_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    """The same product, opaque to torch.compile, whose own version takes constant weights only."""
    return onednn_product(a_NI, b_OI, bias_O)


@_onednn_uncompiled.register_fake
def _(a_NI: Tensor, b_OI: Tensor, bias_O: Tensor | None) -> Tensor:
    return a_NI.new_empty(a_NI.size(0), b_OI.size(0))


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None) -> Tensor:
        ctx.save_for_backward(x_NI if ctx.needs_input_grad[1] else None, weight_OI)  # frozen weights do not need x
        return _onednn(x_NI, weight_OI, bias_O)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NO: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_NI, weight_OI = ctx.saved_tensors
        gradient_NO = gradient_NO.contiguous()
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            _onednn(gradient_NO, weight_OI.mT, None) if needs_x else None,
            _gradient_of_weight(gradient_NO, x_NI) if needs_weight else None,
            gradient_NO.sum(dim=0) if needs_bias else None,
        )


def _gradient_of_weight(gradient_NO: Tensor, x_NI: Tensor) -> Tensor:
    return _onednn(gradient_NO.mT, x_NI.mT, None) if GRADIENTS_BY_ONEDNN else gradient_NO.mT @ x_NI
