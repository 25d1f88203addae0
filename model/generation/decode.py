"""The next token of every row through the decoder: what generation does all day, with its weights laid out for it.

In: one id a row and the cache of the tokens before. Out: logits (B, V). The numbers are the Decoder's up to rounding;
the steps are its steps, with fewer and better products, because one token costs little but reading all weights:
- q, k and v are one product, gate and up another; q and k are normed and rotated together;
- on a CPU, weights are copied so that a product of few rows reads memory in order: transposed, or, for several rows
  and large matrices, in oneDNN's own blocks.

Legend: B rows, D d_model, H heads, G kv heads, J = H + G, K d_head, S key position, F d_ff, V vocab, I and O widths.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.network.attention import attention_plan
from model.network.decoder import Decoder
from model.network.feed_forward import activated
from model.network.kv_cache import KVCache
from model.network.linear import HAS_FAST_ONEDNN, onednn_product
from model.network.norm import RMSNorm
from model.network.rope import rotate
from model.network.visible import CAUSAL, Visible

BLOCKED_FROM = 2**17  # numbers in a matrix from which oneDNN's blocks pay for its start, with more than one row


class DecodeStep:
    """A copy of the weights of `model`, made at the first call; training the model on does not change it."""

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self._layers: list[_Layer] | None = None
        self._head: _Product | None = None

    @torch.inference_mode()
    def __call__(
        self, ids_B: Tensor, cache: KVCache, mask_BS: Tensor | None = None, positions_B: Tensor | None = None
    ) -> Tensor:
        """Logits (B, V) after `ids`, which go into the cache. `mask` and `positions` as in Trunk.forward."""
        trunk, cfg = self.model.model, self.model.cfg
        layers, head = self._laid_out(ids_B.size(0))
        visible = CAUSAL if mask_BS is None else Visible.mask(mask_BS.unsqueeze(1))
        full = self._mask(visible, ids_B, cache)
        windowed = self._mask(visible.windowed((cfg.sliding_window or cache.max_len) - 1, 0), ids_B, cache)
        x_BD, rotary = trunk.embed_tokens(ids_B), None
        place = slice(cache.position, cache.position + 1) if positions_B is None else positions_B
        if cfg.positions == "learned":
            x_BD = x_BD + trunk.embed_positions.weight[place]
        else:  # (1 or B, 1, K)
            rotary = trunk.cos_S1K[place].to(x_BD.dtype), trunk.sin_S1K[place].to(x_BD.dtype)
        for number, layer in enumerate(layers):
            x_BD = layer(x_BD, rotary, windowed if number in cfg.sliding_layers else full, cache)
        cache.advance(1)
        return head(_normed(x_BD, trunk.norm))

    def _mask(self, visible: Visible, ids_B: Tensor, cache: KVCache) -> Tensor | None:
        sizes = {"n_rows": ids_B.size(0), "n_queries": 1, "n_keys": cache.position + 1}
        dtype, d_head = cache.keys_LNGSK.dtype, self.model.cfg.d_head
        return attention_plan(visible, device=ids_B.device, dtype=dtype, d_head=d_head, **sizes).mask_BHTS

    def _laid_out(self, n_rows: int) -> "tuple[list[_Layer], _Product]":
        if self._layers is None or self._head is None:
            self._layers = [
                _Layer(block, number, self.model, n_rows) for number, block in enumerate(self.model.model.layers)
            ]
            self._head = _Product([self.model.lm_head], n_rows)
        return self._layers, self._head


class _Layer:
    def __init__(self, block: Any, number: int, model: Decoder, n_rows: int) -> None:
        cfg, attention, mlp = model.cfg, block.self_attn, block.mlp
        self.number, self.block, self.cfg = number, block, cfg
        self.n_joint = cfg.n_heads + cfg.n_kv_heads
        self.qkv = _Product([attention.q_proj, attention.k_proj, attention.v_proj], n_rows)
        self.output = _Product([attention.o_proj], n_rows)
        self.up = _Product([mlp.gate_proj, mlp.up_proj] if cfg.mlp == "swiglu" else [mlp.up_proj], n_rows)
        self.down = _Product([mlp.down_proj], n_rows)
        self.scale_JK = None
        if cfg.qk_norm:
            q_HK = attention.q_norm.weight.expand(cfg.n_heads, -1)
            self.scale_JK = torch.cat([q_HK, attention.k_norm.weight.expand(cfg.n_kv_heads, -1)])

    def __call__(
        self, x_BD: Tensor, rotary: tuple[Tensor, Tensor] | None, mask_B11S: Tensor | None, cache: KVCache
    ) -> Tensor:
        x_BD = x_BD + self._attention(_normed(x_BD, self.block.input_layernorm), rotary, mask_B11S, cache)
        up_BF = self.up(_normed(x_BD, self.block.post_attention_layernorm))
        gate_BF = None
        if self.cfg.mlp == "swiglu":
            gate_BF, up_BF = up_BF.chunk(2, dim=-1)
        return x_BD + self.down(activated(self.cfg.mlp, up_BF, gate_BF))

    def _attention(
        self, x_BD: Tensor, rotary: tuple[Tensor, Tensor] | None, mask_B11S: Tensor | None, cache: KVCache
    ) -> Tensor:
        cfg, n_joint = self.cfg, self.n_joint
        heads = self.qkv(x_BD).view(x_BD.size(0), -1, cfg.d_head)
        qk_BJK, v_BGK = heads[:, :n_joint], heads[:, n_joint:]
        if self.scale_JK is not None:
            qk_BJK = F.rms_norm(qk_BJK, (cfg.d_head,), None, cfg.norm_eps) * self.scale_JK
        if rotary is not None:
            qk_BJK = rotate(qk_BJK, *rotary)
        q_BH1K, k_BG1K = qk_BJK[:, : cfg.n_heads].unsqueeze(2), qk_BJK[:, cfg.n_heads :].unsqueeze(2)
        k_BGSK, v_BGSK = cache.extend(self.number, k_BG1K, v_BGK.unsqueeze(2))
        out_BH1K = F.scaled_dot_product_attention(
            q_BH1K, k_BGSK, v_BGSK, attn_mask=mask_B11S, enable_gqa=cfg.n_kv_heads != cfg.n_heads
        )
        return self.output(out_BH1K.flatten(1))


class _Product:
    """(B, I) to (B, O): one or several linear layers of the same input side by side."""

    def __init__(self, layers: Sequence[Any], n_rows: int) -> None:
        weight_OI = torch.cat([layer.weight.detach() for layer in layers])
        self.bias_O = torch.cat([layer.bias.detach() for layer in layers]) if layers[0].bias is not None else None
        is_float_on_cpu = weight_OI.device.type == "cpu" and weight_OI.dtype is torch.float32
        self.is_blocked = is_float_on_cpu and HAS_FAST_ONEDNN and n_rows > 1 and weight_OI.numel() >= BLOCKED_FROM
        if self.is_blocked:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI, n_rows)
        else:
            self.weight = weight_OI.T.contiguous() if is_float_on_cpu else weight_OI.T

    def __call__(self, x_BI: Tensor) -> Tensor:
        if self.is_blocked:
            return onednn_product(x_BI, self.weight, self.bias_O)
        if self.bias_O is not None:
            return torch.addmm(self.bias_O, x_BI, self.weight)
        return torch.mm(x_BI, self.weight)


def _normed(x_BD: Tensor, norm: nn.Module) -> Tensor:
    if isinstance(norm, RMSNorm):
        return F.rms_norm(x_BD, (x_BD.size(-1),), norm.weight, norm.eps)
    return norm(x_BD)
