"""Low-rank adapters (LoRA, arXiv:2106.09685): few weights that are trained, beside many that are frozen.

In: a model and a LoraConfig. Out: the same model, in which a linear layer computes x W^T + b + alpha / r (x A^T) B^T.
W and b are frozen, B starts at zero, so that the model starts as it was. Or the reverse: adapters merged into plain
layers, W + alpha / r B A.

The layers keep their names and the names of their weights, and get two more weights, lora_a and lora_b. One operation
computes layer and adapter: autograd by itself would make a second output as wide as the first, and add the two.
Backward computes neither the gradient of W nor, below the first adapter, that of the input.

Legend: N rows (all leading dimensions), I and O width in and out, R rank.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from model.network.linear import Linear, autocast_dtype, product
from model.network.lora_config import LoraConfig
from model.network.packed import check_unpacked


class LoraLinear(Linear):
    """A linear layer with an adapter."""

    is_adapter = True  # for the optimiser: its matrices are factors, which Muon must not make orthogonal

    def __init__(self, layer: Linear, cfg: LoraConfig) -> None:
        """Takes over the weights of `layer`; the adapter's are empty."""
        with torch.device("meta"):
            super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.starts_at_zero, self.scale = layer.starts_at_zero, cfg.scale
        self.weight, self.bias = layer.weight, layer.bias
        self.lora_a = nn.Parameter(layer.weight.new_empty(cfg.rank, layer.in_features))
        self.lora_b = nn.Parameter(layer.weight.new_empty(layer.out_features, cfg.rank))

    def forward(self, input: Tensor) -> Tensor:
        return lora_linear(input, self.weight, self.bias, self.lora_a, self.lora_b, self.scale)

    @torch.no_grad()
    def merged(self) -> Linear:
        """The plain layer that computes the same; the sum is taken in float32."""
        with torch.device("meta"):
            layer = Linear(self.in_features, self.out_features, bias=False, starts_at_zero=self.starts_at_zero)
        update_OI = self.scale * (self.lora_b.float() @ self.lora_a.float())
        layer.weight = nn.Parameter((self.weight.float() + update_OI).to(self.weight.dtype))
        layer.bias = self.bias
        return layer


def add_lora(model: nn.Module, cfg: LoraConfig, seed: int, *, trains_head: bool = False) -> None:
    """Freeze `model` and give the layers that `cfg` names adapters, whose weights depend on `seed` alone.

    A is normal(0, 1 / fan_in), B zero. `trains_head`: what is outside the trunk is new, and is trained whole.
    Raises ValueError when a target names no linear layer, or the model has adapters already or is packed.
    """
    check_unpacked(model, "a packed model can't be trained; give the plain model adapters")
    if has_lora(model):
        raise ValueError("the model has adapters already; merge them first, or load the base again")
    layers = dict(linears_of_blocks(model))
    chosen = {name: layer for name, layer in layers.items() if cfg.takes(name)}
    for target in cfg.targets:
        if not any(f".{name}".endswith(f".{target}") for name in layers):
            kinds = sorted({name.rpartition(".")[2] for name in layers})
            raise ValueError(f"lora_targets: no linear layer is named {target!r}; the blocks have {', '.join(kinds)}")
    in_trunk = {id(weight) for weight in model.trunk.parameters()}  # type: ignore[union-attr,operator]
    for weight in model.parameters():
        weight.requires_grad_(trains_head and id(weight) not in in_trunk)
    for name, layer in chosen.items():
        _replace(model, name, LoraLinear(layer, cfg))
    initialise_lora(model, seed)


@torch.no_grad()
def initialise_lora(model: nn.Module, seed: int) -> None:
    """Set all adapters, layer by layer in the order of the model, from one generator."""
    generator = torch.Generator().manual_seed(seed)
    for _, layer in lora_layers(model):
        a_RI = torch.empty(layer.lora_a.shape).normal_(std=layer.in_features**-0.5, generator=generator)
        layer.lora_a.copy_(a_RI)
        layer.lora_b.zero_()


def merge_lora(model: nn.Module) -> None:
    """Replace every layer that has an adapter by the plain layer that computes the same; all weights can be trained
    again."""
    for name, layer in list(lora_layers(model)):
        _replace(model, name, layer.merged())
    model.requires_grad_(True)


def has_lora(model: nn.Module) -> bool:
    return next(lora_layers(model), None) is not None


def lora_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    yield from ((name, module) for name, module in model.named_modules() if isinstance(module, LoraLinear))


def linears_of_blocks(model: nn.Module) -> Iterator[tuple[str, Linear]]:
    """The linear layers inside lists of layers, by their names in `model`."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            yield from ((f"{name}.{inner}", m) for inner, m in module.named_modules() if isinstance(m, Linear))


def _replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own_name = name.rpartition(".")
    setattr(model.get_submodule(parent), own_name, layer)


def lora_linear(
    x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float
) -> Tensor:
    """x W^T + b + scale (x A^T) B^T with gradients of x, A and B, and of W and b where these are not frozen."""
    is_frozen = not (weight_OI.requires_grad or (bias_O is not None and bias_O.requires_grad))
    if not is_frozen or autocast_dtype(x_NI.device) is not None:
        return F.linear(x_NI, weight_OI, bias_O) + scale * F.linear(F.linear(x_NI, a_RI), b_OR)
    rows_NI = x_NI.reshape(-1, x_NI.size(-1))
    y_NO = _LoraLinear.apply(rows_NI, weight_OI, bias_O, a_RI, b_OR, scale)
    return y_NO.view(*x_NI.shape[:-1], weight_OI.size(0))  # type: ignore[union-attr]


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_NI: Tensor, weight_OI: Tensor, bias_O: Tensor | None, a_RI: Tensor, b_OR: Tensor, scale: float
    ) -> Tensor:
        low_NR = x_NI @ a_RI.mT
        ctx.save_for_backward(x_NI, low_NR, weight_OI, a_RI, b_OR)
        ctx.scale = scale
        return product(x_NI, weight_OI, bias_O).addmm_(low_NR, b_OR.mT, alpha=scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_NO: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x_NI, low_NR, weight_OI, a_RI, b_OR = ctx.saved_tensors
        gradient_NO = gradient_NO.contiguous()
        # Written so that the long dimension is contiguous in both factors: three times as fast with MKL.
        low_gradient_NR = F.linear(gradient_NO, b_OR.mT.contiguous()).mul_(ctx.scale)
        needs_x, _, _, needs_a, needs_b, _ = ctx.needs_input_grad
        return (
            product(gradient_NO, weight_OI.mT).addmm_(low_gradient_NR, a_RI) if needs_x else None,
            None,
            None,
            low_gradient_NR.mT @ x_NI if needs_a else None,
            (low_NR.mT @ gradient_NO).mul_(ctx.scale).mT if needs_b else None,
            None,
        )
