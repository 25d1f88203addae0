"""Heads of tasks on top of a trunk: one answer per text, one per token, and a span of tokens.

In: ids (B, T) padded on the right, the real length of each row, and for pairs of texts the type of each token. Out:
logits (B, C) of a text, logits (B, T, C) of each token, or logits (B, T, 2) of a span's first and last token. Padding
changes no logit of a real token; the logits of padding itself mean nothing.

A decoder's logits of a text are computed from the last real token, the only one that attends to the whole text; those
of a token from that token, which attends only to what precedes it. An encoder's logits of a text are computed from
the first token or the mean of all real ones, through a hidden layer. Its logits of a token pass a hidden layer only
where transformers has one, in ModernBERT.

Legend: B batch, T position, D d_model, C classes. The names are those of Hugging Face's
Qwen3ForSequenceClassification and Qwen3ForTokenClassification.
"""

import dataclasses
from typing import TypeVar

import torch
from torch import Tensor, nn

from model.network.decoder import Decoder, Trunk, initialise
from model.network.encoder import Encoder, EncoderTrunk, HeadLayer, MaskedLM
from model.network.linear import Linear
from model.network.shape import DecoderConfig, EncoderConfig
from model.network.visible import Visible

Base = Decoder | Encoder | MaskedLM


class TaskHead(nn.Module):
    """A trunk, the hidden layer of an encoder's head where it has one, and the layer that gives the logits."""

    def __init__(
        self,
        cfg: DecoderConfig | EncoderConfig,
        n_classes: int,
        *,
        has_head: bool,
        bias: bool,
        starts_at_zero: bool = True,
    ) -> None:
        super().__init__()
        if n_classes < 2:
            raise ValueError(f"n_classes={n_classes} must be at least 2")
        self.cfg = cfg
        self.n_classes = n_classes
        self.model = EncoderTrunk(cfg) if isinstance(cfg, EncoderConfig) else Trunk(cfg)
        self.head = HeadLayer(cfg, cfg.head_activation) if has_head and isinstance(cfg, EncoderConfig) else None
        self.score = Linear(cfg.d_model, n_classes, bias=bias, starts_at_zero=starts_at_zero)

    @property
    def trunk(self) -> Trunk | EncoderTrunk:
        return self.model

    def hidden_states(self, ids_BT: Tensor, lengths_B: Tensor, types_BT: Tensor | None) -> Tensor:
        """Hidden states (B, T, D). Types are not read by a trunk that knows fewer than two of them."""
        if not isinstance(self.cfg, EncoderConfig):
            return self.trunk(ids_BT)  # causal attention keeps padding on the right from reaching the text
        types_BT = types_BT if self.cfg.n_token_types > 1 else None
        return self.trunk(ids_BT, visible=Visible.padded(lengths_B, ids_BT.size(1)), types_BT=types_BT)


class SequenceClassifier(TaskHead):
    def __init__(self, cfg: DecoderConfig | EncoderConfig, n_classes: int) -> None:
        super().__init__(cfg, n_classes, has_head=True, bias=isinstance(cfg, EncoderConfig))

    def forward(self, ids_BT: Tensor, lengths_B: Tensor, types_BT: Tensor | None = None) -> Tensor:
        """Logits (B, C). A row's text is its first `lengths` ids, at least one; the rest may be any id."""
        x_BTD = self.hidden_states(ids_BT, lengths_B, types_BT)
        if isinstance(self.cfg, EncoderConfig):
            assert self.head is not None
            pooled_BD = x_BTD[:, 0] if self.cfg.pooling == "first" else mean_of_real(x_BTD, lengths_B)
            return self.score(self.head(pooled_BD))
        rows_B = torch.arange(ids_BT.size(0), device=ids_BT.device)
        return self.score(x_BTD[rows_B, lengths_B - 1])


class TokenClassifier(TaskHead):
    """Its head does not start at zero: most tokens have one class, so that at first all rows of such a head learn the
    same direction, in which the whole trunk follows (bench/results.md has the difference)."""

    def __init__(self, cfg: DecoderConfig | EncoderConfig, n_classes: int) -> None:
        has_head = isinstance(cfg, EncoderConfig) and cfg.head_activation == "gelu"
        super().__init__(cfg, n_classes, has_head=has_head, bias=True, starts_at_zero=False)

    def forward(self, ids_BT: Tensor, lengths_B: Tensor, types_BT: Tensor | None = None) -> Tensor:
        """Logits (B, T, C); those from `lengths` on are of padding and mean nothing."""
        x_BTD = self.hidden_states(ids_BT, lengths_B, types_BT)
        return self.score(x_BTD if self.head is None else self.head(x_BTD))


class SpanClassifier(TokenClassifier):
    """Its two logits of a token are those of a span's start and of its end."""

    def __init__(self, cfg: DecoderConfig | EncoderConfig) -> None:
        super().__init__(cfg, 2)


T = TypeVar("T", bound=TaskHead)


def mean_of_real(x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
    """The mean of the first `lengths` hidden states of each row, (B, D)."""
    is_real_BT = torch.arange(x_BTD.size(1), device=x_BTD.device) < lengths_B.unsqueeze(1)
    share_BT = is_real_BT.to(x_BTD.dtype) / lengths_B.unsqueeze(1)
    return torch.einsum("bt,btd->bd", share_BT, x_BTD)


def new_classifier(cfg: DecoderConfig | EncoderConfig, n_classes: int, seed: int) -> SequenceClassifier:
    """A classifier from random initialisation; its head starts at zero, so that all classes are equally likely."""
    with torch.random.fork_rng([]):  # torch's modules draw weights, by the generator of the caller
        return _initialised(SequenceClassifier(cfg, n_classes), seed)


def new_token_classifier(cfg: DecoderConfig | EncoderConfig, n_classes: int, seed: int) -> TokenClassifier:
    """As `new_classifier`, with one answer per token; the head is drawn from `seed`, too."""
    with torch.random.fork_rng([]):
        return _initialised(TokenClassifier(cfg, n_classes), seed)


def new_span_classifier(cfg: DecoderConfig | EncoderConfig, seed: int) -> SpanClassifier:
    """As `new_token_classifier`, with the two answers of a span."""
    with torch.random.fork_rng([]):
        return _initialised(SpanClassifier(cfg), seed)


def pooled(cfg: DecoderConfig | EncoderConfig, pooling: str | None) -> DecoderConfig | EncoderConfig:
    """The shape with this pooling. Raises ValueError for a decoder: only its last token has read the whole text."""
    if pooling is None:
        return cfg
    if not isinstance(cfg, EncoderConfig):
        raise ValueError(
            f"pooling={pooling!r} is a setting of encoders; a decoder is read at its last token. Remove the setting,"
            " or choose an encoder as the base"
        )
    return dataclasses.replace(cfg, pooling=pooling)


def classifier_from(base: Base, n_classes: int, seed: int, pooling: str | None = None) -> SequenceClassifier:
    """A classifier whose trunk is a copy of the base's; all classes are equally likely at first. `pooling` of an
    encoder: first or mean, None = the base's.

    An encoder's hidden layer is a copy of the base's, where that has one of the same kind, as in transformers: the
    pooler of BERT, the head of ModernBERT's masked language model. Otherwise it is drawn from `seed`.
    """
    return _with_weights_of(base, new_classifier(pooled(base.cfg, pooling), n_classes, seed))


def token_classifier_from(base: Base, n_classes: int, seed: int) -> TokenClassifier:
    """As `classifier_from`, with one answer per token."""
    return _with_weights_of(base, new_token_classifier(base.cfg, n_classes, seed))


def span_classifier_from(base: Base, seed: int) -> SpanClassifier:
    """As `token_classifier_from`, with the two answers of a span."""
    return _with_weights_of(base, new_span_classifier(base.cfg, seed))


def _initialised(model: T, seed: int) -> T:
    initialise(model, seed)
    return model


def _with_weights_of(base: Base, model: T) -> T:
    model.trunk.load_state_dict(base.trunk.state_dict())
    head = model.head
    if head is not None and head.norm is None and isinstance(base, Encoder) and base.pooler is not None:
        head.dense.load_state_dict(base.pooler.state_dict())
    elif head is not None and head.norm is not None and isinstance(base, MaskedLM):
        head.load_state_dict(base.head.state_dict())
    return model
