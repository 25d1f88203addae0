"""One layer of a decoder: two pre-norm residual branches (arXiv:2002.04745).

In: (B, T, D). Out: (B, T, D) = x + attention(norm(x)), then x + feed_forward(norm(x)).
"""

from torch import Tensor, nn

from model.network.attention import Attention, AttentionPlan, RotaryTables
from model.network.feed_forward import FeedForward
from model.network.kv_cache import KVCache
from model.network.norm import new_norm
from model.network.shape import DecoderConfig


class Block(nn.Module):
    def __init__(self, cfg: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = new_norm(cfg)
        self.self_attn = Attention(cfg, layer)
        self.post_attention_layernorm = new_norm(cfg)
        self.mlp = FeedForward(cfg)

    def forward(
        self, x_BTD: Tensor, rotary: RotaryTables | None, plan: AttentionPlan, cache: KVCache | None
    ) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rotary, plan, cache)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))
