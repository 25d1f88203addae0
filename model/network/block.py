"""One layer: attention and a feed-forward network, each in a residual branch.

In: (B, T, D). Out: (B, T, D). Norms come first in a branch, x + f(norm(x)) (arXiv:2002.04745), or last, after the
sum, norm(x + f(x)) (arXiv:1706.03762, as in BERT).
"""

from torch import Tensor, nn

from model.network.attention import Attention, AttentionPlan, RotaryTables
from model.network.feed_forward import FeedForward
from model.network.kv_cache import KVCache
from model.network.norm import new_norm
from model.network.shape import LayerShape


class Block(nn.Module):
    def __init__(self, cfg: LayerShape, layer: int) -> None:
        super().__init__()
        self.is_pre_norm = cfg.norm_position == "pre"
        self.input_layernorm = new_norm(cfg)
        self.self_attn = Attention(cfg, layer)
        self.post_attention_layernorm = new_norm(cfg)
        self.mlp = FeedForward(cfg)

    def forward(
        self, x_BTD: Tensor, rotary: RotaryTables | None, plan: AttentionPlan, cache: KVCache | None
    ) -> Tensor:
        if self.is_pre_norm:
            x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), rotary, plan, cache)
            return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))
        x_BTD = self.input_layernorm(x_BTD + self.self_attn(x_BTD, rotary, plan, cache))
        return self.post_attention_layernorm(x_BTD + self.mlp(x_BTD))
