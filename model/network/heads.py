"""Sequence classification on top of a trunk.

In: ids (B, T) padded on the right, and the real length of each row. Out: logits (B, C). A decoder's are computed from
the last real token, the only one that attends to the whole text; causal attention keeps padding from reaching it. An
encoder's are computed from the first token or the mean of all real ones, through a hidden layer; padding is hidden.

Legend: B batch, T position, D d_model, C classes. The names of a decoder's classifier are those of Hugging Face's
Qwen3ForSequenceClassification.
"""

import torch
from torch import Tensor, nn

from model.network.decoder import Decoder, Trunk, initialise
from model.network.encoder import Encoder, EncoderTrunk, HeadLayer, MaskedLM
from model.network.linear import Linear
from model.network.shape import DecoderConfig, EncoderConfig
from model.network.visible import Visible


class SequenceClassifier(nn.Module):
    def __init__(self, cfg: DecoderConfig | EncoderConfig, n_classes: int) -> None:
        super().__init__()
        if n_classes < 2:
            raise ValueError(f"n_classes={n_classes} must be at least 2")
        self.cfg = cfg
        self.n_classes = n_classes
        is_encoder = isinstance(cfg, EncoderConfig)
        self.model = EncoderTrunk(cfg) if is_encoder else Trunk(cfg)
        self.head = HeadLayer(cfg, cfg.head_activation) if is_encoder else None
        self.score = Linear(cfg.d_model, n_classes, bias=is_encoder, starts_at_zero=True)

    @property
    def trunk(self) -> Trunk | EncoderTrunk:
        return self.model

    def forward(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Logits (B, C). A row's text is its first `lengths` ids, at least one; the rest may be any id."""
        if isinstance(self.cfg, EncoderConfig):
            assert self.head is not None
            x_BTD = self.trunk(ids_BT, visible=Visible.padded(lengths_B, ids_BT.size(1)))
            pooled_BD = x_BTD[:, 0] if self.cfg.pooling == "first" else mean_of_real(x_BTD, lengths_B)
            return self.score(self.head(pooled_BD))
        x_BTD = self.trunk(ids_BT)
        rows_B = torch.arange(ids_BT.size(0), device=ids_BT.device)
        return self.score(x_BTD[rows_B, lengths_B - 1])


def mean_of_real(x_BTD: Tensor, lengths_B: Tensor) -> Tensor:
    """The mean of the first `lengths` hidden states of each row, (B, D)."""
    is_real_BT = torch.arange(x_BTD.size(1), device=x_BTD.device) < lengths_B.unsqueeze(1)
    share_BT = is_real_BT.to(x_BTD.dtype) / lengths_B.unsqueeze(1)
    return torch.einsum("bt,btd->bd", share_BT, x_BTD)


def new_classifier(cfg: DecoderConfig | EncoderConfig, n_classes: int, seed: int) -> SequenceClassifier:
    """A classifier from random initialisation; its head starts at zero, so that all classes are equally likely."""
    with torch.random.fork_rng([]):  # torch's modules draw weights, by the generator of the caller
        classifier = SequenceClassifier(cfg, n_classes)
    initialise(classifier, seed)
    return classifier


def classifier_from(base: Decoder | Encoder | MaskedLM, n_classes: int, seed: int) -> SequenceClassifier:
    """A classifier whose trunk is a copy of the base's; all classes are equally likely at first.

    An encoder's hidden layer is a copy of the base's, where that has one of the same kind, as in transformers: the
    pooler of BERT, the head of ModernBERT's masked language model. Otherwise it is drawn from `seed`.
    """
    classifier = new_classifier(base.cfg, n_classes, seed)
    classifier.trunk.load_state_dict(base.trunk.state_dict())
    head = classifier.head
    if head is not None and head.norm is None and isinstance(base, Encoder) and base.pooler is not None:
        head.dense.load_state_dict(base.pooler.state_dict())
    elif head is not None and head.norm is not None and isinstance(base, MaskedLM):
        head.load_state_dict(base.head.state_dict())
    return classifier
