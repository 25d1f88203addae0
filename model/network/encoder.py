"""The encoder: token ids to one vector per token, computed from the whole text. By its config a BERT, a RoBERTa or a
ModernBERT.

In: ids (B, T). Out: hidden states (B, T, D); or, with the head of a masked language model, logits (B, T, V) of what a
token is. Steps: embed, with token types and learned positions where the config has them; norm; n_layers blocks, those
in sliding_layers with a two-sided window; a last norm where norms come first in a branch.

Blocks, attention and names of modules are those of the decoder. Every model stores its trunk as `model`.
BERT: arXiv:1810.04805. RoBERTa: arXiv:1907.11692. ModernBERT: arXiv:2412.13663.

Legend: B batch, T position, S key position, D d_model, K d_head, M selected rows, V vocab.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from model.network.attention import AttentionPlan, RotaryTables, attention_plan
from model.network.block import Block
from model.network.decoder import check_shapes, initialise
from model.network.linear import Linear, autocast_dtype
from model.network.norm import new_norm
from model.network.rope import frequencies, rotary_tables
from model.network.shape import EncoderConfig
from model.network.visible import ALL, Visible


class EncoderTrunk(nn.Module):
    """Everything below the heads."""

    cos_S1K: Tensor
    sin_S1K: Tensor
    local_cos_S1K: Tensor
    local_sin_S1K: Tensor

    def __init__(self, cfg: EncoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.recomputes_layers = False
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.d_model)
        if cfg.positions == "learned":
            self.embed_positions = nn.Embedding(cfg.n_positions, cfg.d_model)
        if cfg.n_token_types:
            self.embed_types = nn.Embedding(cfg.n_token_types, cfg.d_model)
        self.embed_norm = new_norm(cfg)
        self.make_tables()
        self.layers = nn.ModuleList(Block(cfg, layer) for layer in range(cfg.n_layers))
        is_pre_norm = cfg.norm_position == "pre"
        if is_pre_norm:
            self.layers[0].input_layernorm = nn.Identity()  # its input comes from embed_norm
        self.norm = new_norm(cfg) if is_pre_norm else nn.Identity()

    def make_tables(self) -> None:
        """Compute the rotary tables, which depend on the config alone and are not stored."""
        cfg = self.cfg
        if cfg.positions == "rotary":
            local_theta = cfg.rope_theta if cfg.local_rope_theta is None else cfg.local_rope_theta
            for prefix, theta in (("", cfg.rope_theta), ("local_", local_theta)):
                tables = rotary_tables(frequencies(cfg.d_head, theta), cfg.max_seq_len)
                for name, table_S1K in zip(("cos_S1K", "sin_S1K"), tables, strict=True):
                    self.register_buffer(prefix + name, table_S1K, persistent=False)

    def recompute_layers(self, is_on: bool = True) -> None:
        """Activation checkpointing, as in the decoder."""
        self.recomputes_layers = is_on

    def forward(
        self,
        ids_BT: Tensor,
        *,
        visible: Visible = ALL,
        positions_BT: Tensor | None = None,
        types_BT: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D).

        `positions` (int64, below max_seq_len) are by default the ids' index in the row, `types` (int64, below
        n_token_types) 0. The layers in sliding_layers narrow `visible` by their window, which counts by index in the
        row, whatever the positions are.
        Raises ValueError when rows are longer than max_seq_len, or a shape does not fit.
        """
        of_ids = {"positions_BT": positions_BT, "types_BT": types_BT}
        check_shapes(self.cfg, ids_BT, ids_BT.size(1), visible, of_ids)
        x_BTD = self._embedded(ids_BT, positions_BT, types_BT)
        full, local = self._arguments(visible, x_BTD, positions_BT)
        for number, layer in enumerate(self.layers):
            arguments = local if number in self.cfg.sliding_layers else full
            if self.recomputes_layers and torch.is_grad_enabled():
                x_BTD = checkpoint(layer, x_BTD, *arguments, None, use_reentrant=False)
            else:
                x_BTD = layer(x_BTD, *arguments, None)
        return self.norm(x_BTD)

    def _embedded(self, ids_BT: Tensor, positions_BT: Tensor | None, types_BT: Tensor | None) -> Tensor:
        """Input of the first layer (B, T, D), under autocast in its type, as in the decoder."""
        x_BTD = self.embed_tokens(ids_BT)
        if self.cfg.n_token_types:
            x_BTD = x_BTD + self.embed_types(ids_BT.new_zeros(1, 1) if types_BT is None else types_BT)
        if self.cfg.positions == "learned":
            if positions_BT is None:
                positions_BT = torch.arange(ids_BT.size(1), device=ids_BT.device).unsqueeze(0)
            x_BTD = x_BTD + self.embed_positions(positions_BT + self.cfg.position_offset)
        x_BTD = self.embed_norm(x_BTD)
        return x_BTD.to(autocast_dtype(x_BTD.device) or x_BTD.dtype)

    def _arguments(
        self, visible: Visible, x_BTD: Tensor, positions_BT: Tensor | None
    ) -> tuple[tuple[RotaryTables | None, AttentionPlan], tuple[RotaryTables | None, AttentionPlan]]:
        """Rotary tables and attention plan of the layers that attend to all tokens, and of those with a window."""
        cfg = self.cfg
        full = local = self._plan(visible, x_BTD)
        if cfg.sliding_window is not None:
            local = self._plan(visible.windowed(cfg.sliding_window // 2, cfg.sliding_window // 2), x_BTD)
        if cfg.positions == "learned":
            return (None, full), (None, local)
        place = slice(x_BTD.size(1)) if positions_BT is None else positions_BT
        wide = x_BTD.dtype if autocast_dtype(x_BTD.device) is None else torch.float32
        tables = [t[place].to(wide) for t in (self.cos_S1K, self.sin_S1K, self.local_cos_S1K, self.local_sin_S1K)]
        return ((tables[0], tables[1]), full), ((tables[2], tables[3]), local)

    def _plan(self, visible: Visible, x_BTD: Tensor) -> AttentionPlan:
        n_rows, n_tokens, _ = x_BTD.shape
        return attention_plan(
            visible,
            n_rows=n_rows,
            n_queries=n_tokens,
            n_keys=n_tokens,
            device=x_BTD.device,
            dtype=x_BTD.dtype,
            d_head=self.cfg.d_head,
        )


class Encoder(nn.Module):
    """A trunk without a head, whose hidden states are the result, and the pooler if it has one."""

    def __init__(self, cfg: EncoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.model = EncoderTrunk(cfg)
        self.pooler = Linear(cfg.d_model, cfg.d_model, bias=cfg.head_bias) if cfg.has_pooler else None

    @property
    def trunk(self) -> EncoderTrunk:
        return self.model

    def forward(
        self,
        ids_BT: Tensor,
        *,
        visible: Visible = ALL,
        positions_BT: Tensor | None = None,
        types_BT: Tensor | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D); arguments and errors as in EncoderTrunk.forward."""
        return self.trunk(ids_BT, visible=visible, positions_BT=positions_BT, types_BT=types_BT)

    def pooled(self, x_BTD: Tensor) -> Tensor:
        """What the pooler makes of each text's first token, (B, D). ValueError where there is no pooler."""
        if self.pooler is None:
            raise ValueError("this encoder has no pooler (has_pooler=False); take the mean of its hidden states")
        return self.pooler(x_BTD[:, 0]).tanh()


class HeadLayer(nn.Module):
    """The hidden layer of a head: dense and tanh, as in BERT's pooler; or dense, exact GELU and a norm."""

    def __init__(self, cfg: EncoderConfig, activation: str) -> None:
        super().__init__()
        self.dense = Linear(cfg.d_model, cfg.d_model, bias=cfg.head_bias)
        self.norm = new_norm(cfg) if activation == "gelu" else None

    def forward(self, x_MD: Tensor) -> Tensor:
        x_MD = self.dense(x_MD)
        return x_MD.tanh() if self.norm is None else self.norm(F.gelu(x_MD))


class MaskedLM(nn.Module):
    """An encoder that predicts the tokens that were masked in its input."""

    def __init__(self, cfg: EncoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.model = EncoderTrunk(cfg)
        self.head = HeadLayer(cfg, "gelu")
        self.lm_head = Linear(cfg.d_model, cfg.vocab_size, bias=cfg.lm_head_bias, starts_at_zero=True)
        if cfg.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def trunk(self) -> EncoderTrunk:
        return self.model

    def forward(
        self,
        ids_BT: Tensor,
        *,
        visible: Visible = ALL,
        positions_BT: Tensor | None = None,
        types_BT: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of each token itself; arguments and errors as in EncoderTrunk.forward."""
        x_BTD = self.trunk(ids_BT, visible=visible, positions_BT=positions_BT, types_BT=types_BT)
        return self.lm_head(self.transformed(x_BTD))

    def transformed(self, x_MD: Tensor) -> Tensor:
        """Hidden states (..., D) as lm_head reads them: training computes this of the masked tokens only."""
        return self.head(x_MD)


def new_masked_lm(cfg: EncoderConfig, seed: int) -> MaskedLM:
    """A masked language model with initial weights that depend on nothing but `cfg` and `seed`."""
    with torch.random.fork_rng([]):  # torch's modules draw weights of their own, by the generator of the caller
        model = MaskedLM(cfg)
    initialise(model, seed)
    return model


def weightless_masked_lm(cfg: EncoderConfig) -> MaskedLM:
    """One whose weights are on the meta device and take no memory; its rotary tables are real."""
    with torch.device("meta"):
        model = MaskedLM(cfg)
    model.trunk.make_tables()
    return model
