"""Linear layers packed for decoding, where a few rows at a time are multiplied by all weights of a model.

In: layers that read the same input. Out: modules with the same names, results (up to rounding) and state dict, whose
weights share one memory, so that one product serves all of them: q, k and v, or gate and up. The plain weights are
given up, so a model still holds its weights once; it can no longer be trained.

The memory is what such a product reads in order, by what was faster in bench/generation.py:
- float32 on a CPU with AVX2 or AVX-512, large matrices, several rows: oneDNN's blocks, panels of outputs;
- other float32 on a CPU: the transposed matrix;
- everything else: the plain matrix.

Legend: B rows, D width in, O width out of all layers of one memory, P panels, V vocab.
"""

import ctypes
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from model.network.linear import HAS_ONEDNN, Linear, is_for_onednn, onednn_product

BLOCKED_FROM = 2**17  # numbers in a matrix from which oneDNN's blocks pay for the start of its product
PANEL = 64  # outputs side by side in oneDNN's blocks
PROMPT_ROWS = 4  # from which oneDNN is faster with transposed weights, too
SEVERAL = 8  # rows that oneDNN is told to expect; its blocks are the same for 2 and for 64


class PackedWeights:
    """The weights of `layers` in one memory. From (..., D), their results side by side, (..., O)."""

    def __init__(self, layers: Sequence[Any], *, is_for_one: bool, has_rows: bool = False) -> None:
        """`is_for_one`: one row at a time is expected. `has_rows`: single rows of the weights are read, as by an
        embedding."""
        self.widths, self.is_for_one = [layer.out_features for layer in layers], is_for_one
        weight_OD = torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self.bias_O = torch.cat(biases) if biases else None
        self.dtype, self.d_in, self.has_rows = weight_OD.dtype, weight_OD.size(1), has_rows
        self.layers: tuple[nn.Module, ...] = ()  # whose results are these; set by the layers
        self._lay_out(weight_OD)

    def _lay_out(self, weight_OD: Tensor) -> None:
        is_float_on_cpu = weight_OD.device.type == "cpu" and weight_OD.dtype is torch.float32
        self._may_block = is_float_on_cpu and HAS_ONEDNN and weight_OD.numel() >= BLOCKED_FROM
        self.is_blocked, self.panels_PDW = self._may_block and not self.is_for_one, None
        if self.is_blocked:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_OD, SEVERAL)
            self.panels_PDW = self._panels() if self.has_rows else None
            self.is_blocked = not self.has_rows or self.panels_PDW is not None
        if not self.is_blocked:  # (D, O) in both cases, but in memory by rows or by columns
            self._weight = weight_OD.T.contiguous() if is_float_on_cpu else weight_OD.T
            self._weight_OD = self._weight.T

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which torch cannot make of oneDNN's blocks: the plain weights."""
        weight_OD = self._weight.to_dense() if self.is_blocked else self._weight_OD
        return {**vars(self), "_weight": weight_OD, "_weight_OD": None, "panels_PDW": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lay_out(state["_weight"])

    def __call__(self, x_BTD: Tensor) -> Tensor:
        if self.is_blocked:
            return onednn_product(x_BTD, self._weight, self.bias_O)
        if x_BTD.numel() >= PROMPT_ROWS * self.d_in and is_for_onednn(x_BTD, self._weight_OD):
            return onednn_product(x_BTD, self._weight_OD, self.bias_O)
        if self.bias_O is None:
            return torch.matmul(x_BTD, self._weight)
        return F.linear(x_BTD, self._weight_OD, self.bias_O)

    def is_laid_out(self, is_for_one: bool) -> bool:
        """Whether packing again for one row, or for several, would change nothing."""
        return self.is_for_one == is_for_one or not self._may_block

    def dense(self, part: int) -> Tensor:
        """The weights of one of the layers, (O, D), as a view or a copy."""
        weight_OD = self._weight.to_dense() if self.is_blocked else self._weight_OD
        return weight_OD.split(self.widths)[part]

    def rows(self, ids_BT: Tensor) -> Tensor:
        """The weights of single outputs, (B, T, D), contiguous, because the residual stream keeps these strides."""
        if self.panels_PDW is not None:
            return self.panels_PDW[ids_BT // PANEL, : self.d_in, ids_BT % PANEL].contiguous()
        return self._weight.index_select(1, ids_BT.flatten()).T.contiguous().view(*ids_BT.shape, -1)

    def _panels(self) -> Tensor | None:
        """oneDNN's blocks as an ordinary tensor (P, D or more, 64) over the same memory; None if they are not that.

        torch has no reader of single rows of its opaque tensors, only a copy of the whole.
        """
        n_bytes, address = torch.ops.mkldnn._nbytes(self._weight), torch.ops.mkldnn.data_ptr(self._weight)
        memory = torch.frombuffer((ctypes.c_char * n_bytes).from_address(address), dtype=self.dtype)
        n_panels = -(-sum(self.widths) // PANEL)
        if memory.numel() % (n_panels * PANEL):
            return None
        panels_PDW = memory.view(n_panels, -1, PANEL)
        plain_OD = panels_PDW.transpose(1, 2).reshape(n_panels * PANEL, -1)[: sum(self.widths), : self.d_in]
        return panels_PDW if torch.equal(plain_OD, self._weight.to_dense()) else None


class _Direct(nn.Module):
    """A module that is called without torch's machinery of hooks as long as it has none."""

    def __call__(self, x: Tensor) -> Tensor:
        if self._forward_hooks or self._forward_pre_hooks:
            return super().__call__(x)
        return self.forward(x)


class Packable(nn.Module):
    """A module that may be packed, and then refuses whatever a packed one cannot do before any layer has changed."""

    def train(self, mode: bool = True) -> Self:
        if mode:
            check_unpacked(self, "a packed model can't be trained; train the plain model, then pack it")
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        check_unpacked(self, "a packed model can't be moved or cast; move the plain model, then pack it")
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        check_unpacked(self, "a packed model takes no other weights; load them into a new model and pack that")
        super()._load_from_state_dict(*args, **kwargs)


class _Joinable(_Direct):
    """A module that computes jointly with others, until something is put around it that has to see its own calls."""

    def separate(self) -> None:
        """From now on the module runs by itself."""
        raise NotImplementedError

    def register_forward_pre_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        self.separate()
        return super().register_forward_pre_hook(*args, **kwargs)

    def register_forward_hook(self, *args: Any, **kwargs: Any) -> RemovableHandle:
        self.separate()
        return super().register_forward_hook(*args, **kwargs)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "forward":  # some adapters replace the method of the instance
            self.separate()
        super().__setattr__(name, value)


class PackedLinear(_Joinable, Packable):
    """One of the layers of a PackedWeights, under the name that the plain layer had."""

    def __init__(self, weights: PackedWeights, part: int) -> None:
        super().__init__()
        self.weights, self.part = weights, part
        self.in_features, self.out_features = weights.d_in, weights.widths[part]
        weights.layers = (*weights.layers, self)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y_BTO, widths = self.weights(x_BTD), self.weights.widths
        return y_BTO if len(widths) == 1 else y_BTO.split_with_sizes(widths, -1)[self.part]

    def separate(self) -> None:
        self.weights.layers = ()

    @property
    def weight(self) -> Tensor:
        """(O, D), to be read only: a copy where the memory is oneDNN's."""
        return self.weights.dense(self.part)

    @property
    def bias(self) -> Tensor | None:
        bias_O = self.weights.bias_O
        return None if bias_O is None else bias_O.split(self.weights.widths)[self.part]

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        destination[prefix + "weight"] = self.weight.contiguous()
        if (bias_O := self.bias) is not None:
            destination[prefix + "bias"] = bias_O


class PackedEmbedding(PackedLinear):
    """The embedding that shares the weights of a packed head: row v is the weights of output v."""

    def __init__(self, weights: PackedWeights) -> None:
        super().__init__(weights, 0)

    def forward(self, ids_BT: Tensor) -> Tensor:  # type: ignore[override]
        return self.weights.rows(ids_BT)


def joint(x_BTD: Tensor, *layers: nn.Module) -> Tensor | None:
    """The results of `layers` side by side, if exactly these are packed together, by one product; otherwise None.

    None also if a layer was wrapped, replaced or hooked after packing, so that nothing put around it is lost.
    """
    first = layers[0]
    return first.weights(x_BTD) if type(first) is PackedLinear and first.weights.layers == layers else None


class PackedNorm(_Joinable):
    """RMSNorm without gradients, in five operations."""

    def __init__(self, weight: Tensor, eps: float) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(weight.detach(), requires_grad=False), eps
        self.joint_norms: list[JointNorm] = []  # that compute this norm, too; set by them
        self.forward = _Norm(weight, eps)

    def separate(self) -> None:
        for norm in self.joint_norms:
            norm.parts = ()


class JointNorm(_Direct):
    """The norms of query and key heads as one, for heads side by side (B, T, H + G, K). No part of the state."""

    def __init__(self, q_norm: PackedNorm, k_norm: PackedNorm, n_heads: int, n_kv_heads: int) -> None:
        super().__init__()
        self.parts: tuple[PackedNorm, ...] = (q_norm, k_norm)
        for part in self.parts:
            part.joint_norms.append(self)
        weights = [q_norm.weight.expand(n_heads, -1), k_norm.weight.expand(n_kv_heads, -1)]
        self.forward = _Norm(torch.cat(weights), q_norm.eps)


class _Norm:
    def __init__(self, weight: Tensor, eps: float) -> None:
        self.weight, self.dtype = weight.detach(), torch.promote_types(weight.dtype, torch.float32)
        self.eps = torch.tensor(eps, device=weight.device, dtype=self.dtype)
        self.share = 1 / weight.size(-1)  # of each element in the mean

    def __call__(self, x_BTD: Tensor) -> Tensor:
        length_BT1 = torch.linalg.vector_norm(x_BTD, 2, -1, True, dtype=self.dtype)
        unit_BTD = x_BTD * torch.addcmul(self.eps, length_BT1, length_BT1, value=self.share).rsqrt_()
        return (unit_BTD if unit_BTD.dtype is x_BTD.dtype else unit_BTD.to(x_BTD.dtype)).mul_(self.weight)


def pack_layers(parent: nn.Module, *names: str, is_for_one: bool) -> None:
    """Replaces the layers `names` of `parent`, which read the same input, by packed ones in one memory.

    Layers that are not plain, because an adapter wraps them or they have hooks, stay, and so do those beside them.
    Layers of which only some have a bias stay, too.
    """
    layers = [getattr(parent, name) for name in names]
    if not all(is_plain(layer) for layer in layers) or len({layer.bias is None for layer in layers}) > 1:
        return
    if isinstance(layers[0], PackedLinear) and layers[0].weights.is_laid_out(is_for_one):
        return
    weights = PackedWeights(layers, is_for_one=is_for_one)
    for part, name in enumerate(names):
        setattr(parent, name, PackedLinear(weights, part))


def is_plain(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Whether `module` is exactly one of `kinds`, by default a linear layer, and nothing was put around it."""
    has_hooks = bool(module._forward_hooks or module._forward_pre_hooks)
    return type(module) in (kinds or (Linear, PackedLinear)) and not has_hooks and "forward" not in vars(module)


def check_unpacked(model: nn.Module, message: str) -> None:
    """Raises ValueError with `message` if any layer of `model` is packed."""
    if any(isinstance(module, PackedLinear) for module in model.modules()):
        raise ValueError(message)
