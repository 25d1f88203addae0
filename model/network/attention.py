"""Grouped-query attention (arXiv:2305.13245): QK-norm, rotary positions and biases by the switches of a LayerShape.

In: (B, T, D) and what each query may attend to. Out: (B, T, D). Steps: project to queries, keys and values; where the
config says so, normalise every query and key head (arXiv:2302.05442, as in Qwen3) and rotate; scaled dot product;
project back. A cache supplies the keys and values of earlier tokens.

This module alone knows the kernels. `attention_plan` turns a Visible into the arguments of one of five, once per pass
and kind of layer:
- causal, full: torch's scaled dot product without a mask, which takes flash attention on CUDA;
- varlen: flash attention over segments of a flat batch, for documents and windows on CUDA (flash takes no mask);
- rows: on a CPU, the scaled dot product of each row with its own keys alone, for rows of very different lengths;
- mask: the scaled dot product with a bool mask, for everything else.

Legend: B batch, T query position, S key position, N = B T, D d_model, H heads, G kv heads, K d_head.
"""

import functools
import inspect
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.varlen import varlen_attn

from model.network.kv_cache import KVCache
from model.network.linear import Linear
from model.network.norm import RMSNorm
from model.network.packed import JointNorm, joint
from model.network.rope import rotate
from model.network.shape import LayerShape
from model.network.visible import Visible, document_starts

RotaryTables = tuple[Tensor, Tensor]  # cosine and signed sine of the positions at hand, (T, 1, K) or (B, T, 1, K)
Kernel = Literal["causal", "full", "varlen", "rows", "mask"]
MAX_FLASH_HEAD = 256


class AttentionPlan(NamedTuple):
    """The kernel of some layers in one pass, and its arguments. A tuple of tensors and numbers: it passes through
    torch.compile and activation checkpoints as it is."""

    kernel: Kernel
    mask_BHTS: Tensor | None = None  # mask: (1 or B, 1, T, S), True = may attend
    borders: Tensor | None = None  # varlen: int32, where each segment of the flat batch begins, then N
    window: tuple[int, int] = (-1, -1)  # varlen: keys before and after the own one, -1 = no limit
    is_blind_BHT1: Tensor | None = None  # mask: True = may attend to nothing, so it gets zeros
    ends: tuple[int, ...] = ()  # rows: how many keys each row has
    repeats_keys: bool = False  # grouped heads: copy keys and values for each head before the kernel


class Attention(nn.Module):
    def __init__(self, cfg: LayerShape, layer: int) -> None:
        super().__init__()
        self.layer = layer  # whose keys and values are ours in the cache
        self.d_head = cfg.d_head
        self.n_heads, self.n_kv_heads = cfg.n_heads, cfg.n_kv_heads
        d_queries, d_keys = cfg.n_heads * cfg.d_head, cfg.n_kv_heads * cfg.d_head
        self.q_proj = Linear(cfg.d_model, d_queries, bias=cfg.qkv_bias)
        self.k_proj = Linear(cfg.d_model, d_keys, bias=cfg.qkv_bias)
        self.v_proj = Linear(cfg.d_model, d_keys, bias=cfg.qkv_bias)
        self.o_proj = Linear(d_queries, cfg.d_model, bias=cfg.output_bias, starts_at_zero=True)
        self.q_norm = RMSNorm(cfg.d_head, cfg.norm_eps) if cfg.qk_norm else None
        self.k_norm = RMSNorm(cfg.d_head, cfg.norm_eps) if cfg.qk_norm else None
        self.qk_norm: JointNorm | None = None  # both norms side by side, for projections that are packed together

    def forward(
        self, x_BTD: Tensor, rotary: RotaryTables | None, plan: AttentionPlan, cache: KVCache | None
    ) -> Tensor:
        """`rotary` is None where positions are not rotary."""
        *qk, v_BTGK = self.qkv(x_BTD)
        norms = (self.q_norm, self.k_norm) if len(qk) == 2 else (self.qk_norm,)
        qk = [heads if norm is None else norm(heads) for heads, norm in zip(qk, norms, strict=True)]
        if rotary is not None:
            qk = [rotate(heads, *rotary) for heads in qk]
        v_BGSK, qk = v_BTGK.transpose(1, 2), [heads.transpose(1, 2) for heads in qk]
        q_BHTK, k_BGSK = qk if len(qk) == 2 else qk[0].split_with_sizes([self.n_heads, self.n_kv_heads], 1)
        if cache is not None:
            k_BGSK, v_BGSK = cache.extend(self.layer, k_BGSK, v_BGSK)
        out_BHTK = attend(q_BHTK, k_BGSK, v_BGSK, plan)
        return self.o_proj(out_BHTK.transpose(1, 2).flatten(2))

    def qkv(self, x_BTD: Tensor) -> Sequence[Tensor]:
        """Queries (B, T, H, K), keys and values (B, T, G, K), before norm and rotation. Where they are packed
        together, queries and keys are one tensor (B, T, H + G, K).

        Nothing else reads the weights of these three projections.
        """
        layers, heads = (self.q_proj, self.k_proj, self.v_proj), (*x_BTD.shape[:2], -1, self.d_head)
        norms = None if self.qk_norm is None else self.qk_norm.parts
        is_joint = norms == (self.q_norm, self.k_norm) or self.q_norm is self.k_norm is None
        if is_joint and (joint_BTJ := joint(x_BTD, *layers)) is not None:
            return joint_BTJ.view(heads).split_with_sizes([self.n_heads + self.n_kv_heads, self.n_kv_heads], 2)
        return [layer(x_BTD).view(heads) for layer in layers]


def attend(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, plan: AttentionPlan) -> Tensor:
    """softmax(q k / sqrt(K)) v over the keys that `plan` allows, (B, H, T, K)."""
    if plan.kernel == "varlen":
        return _attend_in_segments(q_BHTK, k_BGSK, v_BGSK, plan)
    if plan.kernel == "rows":
        return _attend_row_by_row(q_BHTK, k_BGSK, v_BGSK, plan.ends)
    n_groups = q_BHTK.size(1) // k_BGSK.size(1)
    if plan.repeats_keys and n_groups > 1:
        k_BGSK, v_BGSK = k_BGSK.repeat_interleave(n_groups, dim=1), v_BGSK.repeat_interleave(n_groups, dim=1)
    options = {"is_causal": plan.kernel == "causal", "enable_gqa": q_BHTK.size(1) != k_BGSK.size(1)}
    out_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BGSK, v_BGSK, plan.mask_BHTS, **options)
    return out_BHTK if plan.is_blind_BHT1 is None else out_BHTK.masked_fill(plan.is_blind_BHT1, 0.0)


def _attend_row_by_row(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, ends: Sequence[int]) -> Tensor:
    out_BHTK, has_groups = torch.empty_like(q_BHTK), q_BHTK.size(1) != k_BGSK.size(1)
    for row, end in enumerate(ends):
        one = slice(row, row + 1)
        out_BHTK[one] = F.scaled_dot_product_attention(
            q_BHTK[one], k_BGSK[one, :, :end], v_BGSK[one, :, :end], enable_gqa=has_groups
        )
    return out_BHTK


def _attend_in_segments(q_BHTK: Tensor, k_BGSK: Tensor, v_BGSK: Tensor, plan: AttentionPlan) -> Tensor:
    assert plan.borders is not None
    n_rows, _, n_tokens, _ = q_BHTK.shape
    q_NHK, k_NGK, v_NGK = (x.transpose(1, 2).flatten(0, 1) for x in (q_BHTK, k_BGSK, v_BGSK))
    # No segment is longer than a row. The longest one would have to be read from the device, or be compiled anew.
    longest = n_tokens
    out_NHK = varlen_attn(
        q_NHK, k_NGK, v_NGK, plan.borders, plan.borders, longest, longest, window_size=plan.window, enable_gqa=True
    )
    assert isinstance(out_NHK, Tensor)
    return out_NHK.unflatten(0, (n_rows, n_tokens)).transpose(1, 2)


def attention_plan(
    visible: Visible,
    *,
    n_rows: int,
    n_queries: int,
    n_keys: int,
    device: torch.device,
    dtype: torch.dtype,
    d_head: int,
    places_BT: Tensor | None = None,
    ends: Sequence[int] | None = None,
) -> AttentionPlan:
    """The kernel for `visible` and its arguments. `dtype`: of queries and keys. `places`: the number of each query's
    own key where rows have different lengths; None if the queries are the last keys. `ends`: the keys of each row,
    if it has one query and may be computed by itself."""
    if ends is not None and visible.sees_all_before(n_keys):
        return AttentionPlan("rows", ends=tuple(ends))
    has_flash = flash_takes(device, dtype, d_head)
    kernel = kernel_for(visible, n_queries, n_keys, has_varlen=has_flash and varlen_takes(d_head))
    if places_BT is not None:
        kernel = "mask"
    if kernel == "varlen":
        return varlen_plan(visible, n_rows, n_keys, device)
    # Grouped heads are for flash alone: with a mask, or in float32, torch would fall to its plain kernel, which holds
    # B H T S scores. The memory-efficient kernel takes the rest, with as many keys as queries.
    repeats_keys = device.type == "cuda" and (kernel == "mask" or not has_flash)
    if kernel != "mask":
        return AttentionPlan(kernel, repeats_keys=repeats_keys)
    if places_BT is None:
        places_BT = torch.arange(n_keys - n_queries, n_keys, device=device).unsqueeze(0)
    mask_BHTS = visible.dense(places_BT, n_keys).unsqueeze(1)
    plan = AttentionPlan(kernel, mask_BHTS, repeats_keys=repeats_keys)
    may_be_blind = visible.mask_BTS is not None  # every other rule includes the own key
    return sighted(plan) if may_be_blind and device.type == "cuda" else plan


def sighted(plan: AttentionPlan) -> AttentionPlan:
    """A plan whose queries all attend to something, and that clears the output of those that may not.

    A softmax over nothing is NaN, forward or backward, in some kernels of CUDA. That of the CPU gives zeros.
    """
    assert plan.mask_BHTS is not None
    is_blind_BHT1 = ~plan.mask_BHTS.any(dim=-1, keepdim=True)
    return plan._replace(mask_BHTS=plan.mask_BHTS | is_blind_BHT1, is_blind_BHT1=is_blind_BHT1)


def kernel_for(visible: Visible, n_queries: int, n_keys: int, *, has_varlen: bool) -> Kernel:
    """The cheapest kernel that computes `visible`; the queries are the last of the keys."""
    if visible.mask_BTS is not None:
        return "mask"
    if visible.documents_BS is None and visible.window(n_keys) == (None, None):
        if not visible.is_causal or n_queries == 1:  # a last query comes after all keys
            return "full"
        if n_queries == n_keys:
            return "causal"
    return "varlen" if has_varlen and n_queries == n_keys else "mask"


def varlen_plan(visible: Visible, n_rows: int, n_tokens: int, device: torch.device) -> AttentionPlan:
    """Segments of the flat batch (N = n_rows n_tokens): its documents, or else its rows."""
    left, right = visible.window(n_tokens)
    window = -1 if left is None else left, 0 if visible.is_causal else -1 if right is None else right
    if visible.documents_BS is None:
        borders = torch.arange(0, n_rows * n_tokens + 1, n_tokens, dtype=torch.int32, device=device)
        return AttentionPlan("varlen", borders=borders, window=window)
    starts = document_starts(visible.documents_BS).flatten().nonzero().squeeze(1)
    borders = F.pad(starts.int(), (0, 1), value=n_rows * n_tokens).to(device, non_blocking=True)
    torch._dynamo.mark_dynamic(borders, 0)  # else a compiled layer is compiled again for each number of documents
    return AttentionPlan("varlen", borders=borders, window=window)


@functools.cache
def varlen_takes(d_head: int) -> bool:
    """Whether varlen attention knows heads of this width, where flash attention runs at all.

    Before torch 2.12 it knew neither windows nor grouped heads.
    """
    is_known = {"window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys()
    return is_known and d_head % 8 == 0 and d_head <= MAX_FLASH_HEAD


def flash_takes(device: torch.device, dtype: torch.dtype, d_head: int) -> bool:
    """Whether torch's flash attention runs there: half-width numbers on CUDA from Ampere on, narrow heads."""
    is_half = dtype in (torch.bfloat16, torch.float16)
    return device.type == "cuda" and is_half and d_head <= MAX_FLASH_HEAD and _has_flash(device)


@functools.cache
def _has_flash(device: torch.device) -> bool:
    is_built = torch.backends.cuda.is_flash_attention_available()
    return is_built and torch.cuda.get_device_capability(device) >= (8, 0)
