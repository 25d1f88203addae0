"""The decoder: token ids to a distribution over the next token. By its config a GPT-2, a Llama or a Qwen3.

In: ids (B, T). Out: logits (B, T, V), or the normalised hidden states (B, T, D) that the head and other heads read.
Steps: embed, with learned positions where the config has them; n_layers blocks; norm; head.
Modules are named as Hugging Face names those of Llama and Qwen3 (model.layers.0.self_attn.q_proj ...), so that import
and export of such weights are the identity. Therefore a trunk is stored as `model`; code reads it as `trunk`.

Legend: B batch, T position, S key position, D d_model, K d_head, V vocab.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.network.attention import AttentionPlan, RotaryTables, attention_plan
from model.network.block import Block
from model.network.kv_cache import KVCache
from model.network.linear import Linear, autocast_dtype
from model.network.norm import LayerNorm, RMSNorm, new_norm
from model.network.packed import Packable
from model.network.rope import frequencies, rotary_tables
from model.network.shape import DecoderConfig, TrunkShape
from model.network.visible import CAUSAL, Visible

INIT_STD = 0.02  # of embeddings, GPT-2's value


class Trunk(Packable):
    """Everything below the head, which decoders and classifiers share."""

    cos_S1K: Tensor
    sin_S1K: Tensor

    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.recomputes_layers = False
        self.embed_tokens = nn.Embedding(cfg.vocab_size, cfg.d_model)
        if cfg.positions == "learned":
            self.embed_positions = nn.Embedding(cfg.max_seq_len, cfg.d_model)
        self.make_tables()
        self.layers = nn.ModuleList(Block(cfg, layer) for layer in range(cfg.n_layers))
        self.norm = new_norm(cfg) if cfg.norm_position == "pre" else nn.Identity()  # post: the last layer has it

    def make_tables(self) -> None:
        """Compute the rotary tables, which depend on the config alone and are not stored."""
        if self.cfg.positions == "rotary":
            frequency_K = frequencies(self.cfg.d_head, self.cfg.rope_theta, self.cfg.rope_scaling)
            cos_S1K, sin_S1K = rotary_tables(frequency_K, self.cfg.max_seq_len)
            self.register_buffer("cos_S1K", cos_S1K, persistent=False)
            self.register_buffer("sin_S1K", sin_S1K, persistent=False)

    def recompute_layers(self, is_on: bool = True) -> None:
        """Activation checkpointing: a training pass keeps only the input of each layer, and backward computes the
        layer again. Gradients stay the same, memory falls to about a layer's, and a step takes a third longer."""
        self.recomputes_layers = is_on

    def forward(
        self,
        ids_BT: Tensor,
        *,
        visible: Visible = CAUSAL,
        positions_BT: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Hidden states (B, T, D) after the last norm.

        With a `cache` the ids of each row follow those that it has already, and S counts both, of the longest row.
        `positions` (int64, below max_seq_len) are the places of the ids in their text, by default their index in the
        row. The layers in sliding_layers narrow `visible` by their window, which counts by index in the row, whatever
        the positions are.
        Raises ValueError when tokens without positions outgrow max_seq_len, tokens outgrow the cache, or a shape does
        not fit.
        """
        n_new = ids_BT.size(1)
        n_seen = cache.begin(n_new) if cache is not None else 0
        self._check_sizes(ids_BT, n_seen + n_new, cache, visible, positions_BT)
        places_BT = cache.positions_BT if cache is not None else None
        x_BTD, rotary = self._embedded(ids_BT, n_seen, places_BT if positions_BT is None else positions_BT)
        plans = self._plans(visible, x_BTD, n_seen + n_new, places_BT, None if cache is None else cache.ends)
        for layer, plan in zip(self.layers, plans, strict=True):
            if self.recomputes_layers and cache is None and torch.is_grad_enabled():
                x_BTD = checkpoint(layer, x_BTD, rotary, plan, None, use_reentrant=False)
            else:
                x_BTD = layer(x_BTD, rotary, plan, cache)
        if cache is not None:
            cache.advance(n_new)
        return self.norm(x_BTD)

    def _embedded(
        self, ids_BT: Tensor, n_seen: int, positions_BT: Tensor | None
    ) -> tuple[Tensor, RotaryTables | None]:
        """Input of the first layer (B, T, D), and the rotary tables of its positions where positions are rotary.

        Under autocast the residual stream that begins here is in autocast's type: half the bytes for everything
        between two products. The tables stay float32, also where FSDP gathers the embedding in bfloat16.
        """
        x_BTD, rotary = self.embed_tokens(ids_BT), None
        narrow = autocast_dtype(x_BTD.device)
        wide = x_BTD.dtype if narrow is None else torch.float32
        place = slice(n_seen, n_seen + ids_BT.size(1)) if positions_BT is None else positions_BT
        if self.cfg.positions == "rotary":
            rotary = self.cos_S1K[place].to(wide), self.sin_S1K[place].to(wide)
        else:
            if positions_BT is None:  # looked up, not sliced: FSDP gathers the embedding for its module only
                positions_BT = torch.arange(n_seen, n_seen + ids_BT.size(1), device=ids_BT.device)
            x_BTD = x_BTD + self.embed_positions(positions_BT)
        return x_BTD.to(narrow or x_BTD.dtype), rotary

    def _plans(
        self, visible: Visible, x_BTD: Tensor, n_keys: int, places_BT: Tensor | None, ends: list[int] | None
    ) -> list[AttentionPlan]:
        """The attention plan of each layer; layers with the same window share one."""
        cfg, device, dtype = self.cfg, x_BTD.device, x_BTD.dtype
        sizes = {"n_rows": x_BTD.size(0), "n_queries": x_BTD.size(1), "n_keys": n_keys, "d_head": cfg.d_head}
        full = attention_plan(visible, device=device, dtype=dtype, places_BT=places_BT, ends=ends, **sizes)
        if cfg.sliding_window is None:
            return [full] * cfg.n_layers
        narrow = visible.windowed(cfg.sliding_window - 1, 0)
        windowed = attention_plan(narrow, device=device, dtype=dtype, places_BT=places_BT, ends=ends, **sizes)
        return [windowed if layer in cfg.sliding_layers else full for layer in range(cfg.n_layers)]

    def _check_sizes(
        self, ids_BT: Tensor, n_keys: int, cache: KVCache | None, visible: Visible, positions_BT: Tensor | None
    ) -> None:
        check_shapes(self.cfg, ids_BT, n_keys, visible, {"positions_BT": positions_BT})
        if cache is not None and (n_keys > cache.max_len or ids_BT.size(0) != cache.n_rows):
            raise ValueError(
                f"{ids_BT.size(0)} rows of {n_keys} tokens do not fit the cache: it has {cache.n_rows} rows"
                f" and room for {cache.max_len} tokens each"
            )


def check_shapes(
    cfg: TrunkShape, ids_BT: Tensor, n_keys: int, visible: Visible, of_ids: Mapping[str, Tensor | None]
) -> None:
    """ValueError when rows are longer than the model reads, or the shape of `visible`, or of one of `of_ids` (tensors
    with a number for each id), does not fit. Rows with positions of their own may have any length."""
    if n_keys > cfg.max_seq_len and of_ids.get("positions_BT") is None:
        raise ValueError(f"{n_keys} tokens exceed max_seq_len={cfg.max_seq_len}; cut or split the text")
    expected_of = {
        "mask_BTS": (visible.mask_BTS, (*ids_BT.shape, n_keys)),
        "documents_BS": (visible.documents_BS, (ids_BT.size(0), n_keys)),
        **{name: (tensor, tuple(ids_BT.shape)) for name, tensor in of_ids.items()},
    }
    for name, (tensor, expected) in expected_of.items():
        if tensor is not None and tensor.shape != expected:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {expected}")


class Decoder(Packable):
    def __init__(self, cfg: DecoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.model = Trunk(cfg)
        self.lm_head = Linear(cfg.d_model, cfg.vocab_size, bias=False, starts_at_zero=True)
        if cfg.tie_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def trunk(self) -> Trunk:
        return self.model

    def forward(
        self,
        ids_BT: Tensor,
        *,
        visible: Visible = CAUSAL,
        positions_BT: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Logits (B, T, V) of the token that follows each of `ids`; arguments and errors as in Trunk.forward."""
        return self.lm_head(self.trunk(ids_BT, visible=visible, positions_BT=positions_BT, cache=cache))

    def new_cache(self, n_rows: int, max_len: int | None = None) -> KVCache:
        """An empty cache for `n_rows` rows of at most `max_len` tokens, max_seq_len where that is None."""
        weight = next(self.parameters())
        max_len = self.cfg.max_seq_len if max_len is None else max_len
        return KVCache(self.cfg, n_rows, max_len, weight.device, weight.dtype)


def new_decoder(cfg: DecoderConfig, seed: int) -> Decoder:
    """A decoder with initial weights that depend on nothing but `cfg` and `seed`."""
    with torch.random.fork_rng([]):  # torch's modules draw weights of their own, by the generator of the caller
        decoder = Decoder(cfg)
    initialise(decoder, seed)
    return decoder


def weightless_decoder(cfg: DecoderConfig) -> Decoder:
    """A decoder whose weights are on the meta device and take no memory; its rotary tables are real."""
    with torch.device("meta"):
        decoder = Decoder(cfg)
    decoder.trunk.make_tables()
    return decoder


@torch.no_grad()
def initialise(model: nn.Module, seed: int) -> None:
    """Sets all weights, module by module in the order of the model, from one generator.

    Embeddings are normal(0, 0.02), matrices normal(0, 1 / fan_in), norms 1, biases 0. What writes to the residual
    stream and the heads start at 0 (arXiv:2203.03466 appendix D.2), so that a pre-norm layer starts as the identity.
    Raises TypeError for a kind of module that has weights and no rule here.
    """
    generator = torch.Generator().manual_seed(seed)
    tied = set()  # weights that two modules share get the values of the first one
    for module in model.modules():
        weights = {name: w for name, w in module.named_parameters(recurse=False) if w not in tied}
        tied.update(weights.values())
        for name, weight in weights.items():
            _initialise(module, name, weight, generator)


def _initialise(module: nn.Module, name: str, weight: nn.Parameter, generator: torch.Generator) -> None:
    if name == "bias" or (isinstance(module, Linear) and module.starts_at_zero):
        weight.zero_()
    elif isinstance(module, RMSNorm | LayerNorm):
        weight.fill_(1.0)
    elif isinstance(module, nn.Embedding | Linear):
        std = INIT_STD if isinstance(module, nn.Embedding) else weight.size(1) ** -0.5
        weight.copy_(torch.empty(weight.shape).normal_(std=std, generator=generator))
    else:
        raise TypeError(f"no initial values for {name} of a {type(module).__name__}; give initialise a rule for it")
