"""The decoder: token ids to a distribution over the next token, in the shape of Qwen3.

In: ids (B, T). Out: logits (B, T, V), or the normalised hidden states (B, T, D) that the head and other heads read.
Steps: embed; n_layers times (x + attention(norm(x)), x + feed_forward(norm(x))); norm; head.
Modules are named as Hugging Face names them (model.layers.0.self_attn.q_proj ...), so that import and export of
weights are the identity.

Legend: B batch, T position, S key position, D d_model, V vocab.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.attention import Attention
from model.config import DecoderConfig
from model.feed_forward import FeedForward
from model.kv_cache import KVCache
from model.norm import RMSNorm
from model.rope import rotary_tables

INIT_STD = 0.02  # of embeddings, GPT-2's value


class Layer(nn.Module):
    def __init__(self, cfg: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(cfg.d_model, cfg.norm_eps)
        self.self_attn = Attention(cfg, layer)
        self.post_attention_layernorm = RMSNorm(cfg.d_model, cfg.norm_eps)
        self.mlp = FeedForward(cfg.d_model, cfg.d_ff)

    def forward(
        self, x_BTD: Tensor, cos_T1K: Tensor, sin_T1K: Tensor, mask_B1TS: Tensor | None, cache: KVCache | None
    ) -> Tensor:
        x_BTD = x_BTD + self.self_attn(self.input_layernorm(x_BTD), cos_T1K, sin_T1K, mask_B1TS, cache)
        return x_BTD + self.mlp(self.post_attention_layernorm(x_BTD))


class Trunk(nn.Module):
    """Everything below the head; the part that fine-tuning takes over."""

    cos_S1K: Tensor
    sin_S1K: Tensor

    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.d_model)
        self.layers = nn.ModuleList(Layer(cfg, layer) for layer in range(cfg.n_layers))
        self.norm = RMSNorm(cfg.d_model, cfg.norm_eps)
        cos_S1K, sin_S1K = rotary_tables(cfg.max_seq_len, cfg.d_head, cfg.rope_theta)
        self.register_buffer("cos_S1K", cos_S1K, persistent=False)
        self.register_buffer("sin_S1K", sin_S1K, persistent=False)

    def forward(self, ids_BT: Tensor, cache: KVCache | None = None, mask_BTS: Tensor | None = None) -> Tensor:
        """Final-normed hidden states (B, T, D).

        `mask`: True = may look; it replaces the causal rule. With a `cache` the ids follow those already in it.
        Raises ValueError when the tokens outgrow max_seq_len.
        """
        start = cache.position if cache is not None else 0
        end = start + ids_BT.size(1)
        if end > self.cfg.max_seq_len:
            raise ValueError(f"{end} tokens exceed max_seq_len={self.cfg.max_seq_len}; cut or split the text")
        x_BTD = self.embed_tokens(ids_BT)
        cos_T1K, sin_T1K = self.cos_S1K[start:end].to(x_BTD.dtype), self.sin_S1K[start:end].to(x_BTD.dtype)
        mask_B1TS = mask_BTS.unsqueeze(1) if mask_BTS is not None else None
        for layer in self.layers:
            x_BTD = layer(x_BTD, cos_T1K, sin_T1K, mask_B1TS, cache)
        if cache is not None:
            cache.advance(ids_BT.size(1))
        return self.norm(x_BTD)


class Decoder(nn.Module):
    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.model = Trunk(cfg)
        self.lm_head = nn.Linear(cfg.d_model, cfg.vocab_size, bias=False)
        if cfg.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def trunk(self, ids_BT: Tensor, cache: KVCache | None = None, mask_BTS: Tensor | None = None) -> Tensor:
        """Final-normed hidden states (B, T, D); `mask` as in Trunk.forward."""
        return self.model(ids_BT, cache, mask_BTS)

    def forward(self, ids_BT: Tensor, cache: KVCache | None = None, mask_BTS: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of the token that follows each of `ids`."""
        return F.linear(self.trunk(ids_BT, cache, mask_BTS), self.lm_head.weight)

    def new_cache(self, n_rows: int) -> KVCache:
        weight = self.model.embed_tokens.weight
        return KVCache(self.cfg, n_rows, weight.device, weight.dtype)


def new_decoder(cfg: DecoderConfig, seed: int) -> Decoder:
    """A decoder with initial weights that depend on nothing but `cfg` and `seed`."""
    decoder = Decoder(cfg)
    initialise(decoder, seed)
    return decoder


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Embeddings normal(0, 0.02), matrices normal(0, 1/fan_in), norms 1, and 0 for what writes to the residual
    stream, so that every layer starts as the identity, and for heads (arXiv:2203.03466 appendix D.2)."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim < 2:
            weight.fill_(1.0)
        elif name.endswith("embed_tokens.weight"):
            weight.copy_(torch.empty(weight.shape).normal_(std=INIT_STD, generator=generator))
        elif name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight", "score.weight")):
            weight.zero_()
        else:
            weight.copy_(torch.empty(weight.shape).normal_(std=weight.size(1) ** -0.5, generator=generator))
