"""Sequence classification on top of a decoder's trunk.

In: ids (B, T) padded on the right, and the real length of each row. Out: logits (B, C), computed from the last real
token, the only one that attends to the whole text. Causal attention keeps padding from reaching it.

Legend: B batch, T position, D d_model, C classes. Names are those of Hugging Face's Qwen3ForSequenceClassification.
"""

import torch
from torch import Tensor, nn

from model.network.decoder import Decoder, Trunk, initialise
from model.network.linear import Linear
from model.network.shape import DecoderConfig


class SequenceClassifier(nn.Module):
    def __init__(self, cfg: DecoderConfig, n_classes: int) -> None:
        super().__init__()
        if n_classes < 2:
            raise ValueError(f"n_classes={n_classes} must be at least 2")
        self.cfg = cfg
        self.n_classes = n_classes
        self.model = Trunk(cfg)
        self.score = Linear(cfg.d_model, n_classes, bias=False, starts_at_zero=True)

    @property
    def trunk(self) -> Trunk:
        return self.model

    def forward(self, ids_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Logits (B, C). A row's text is its first `lengths` ids, at least one; the rest may be any id."""
        x_BTD = self.trunk(ids_BT)
        rows_B = torch.arange(ids_BT.size(0), device=ids_BT.device)
        return self.score(x_BTD[rows_B, lengths_B - 1])


def new_classifier(cfg: DecoderConfig, n_classes: int, seed: int) -> SequenceClassifier:
    """A classifier from random initialisation; its head starts at zero, so that all classes are equally likely."""
    with torch.random.fork_rng([]):  # torch's modules draw weights, by the generator of the caller
        classifier = SequenceClassifier(cfg, n_classes)
    initialise(classifier, seed)
    return classifier


def classifier_from_decoder(decoder: Decoder, n_classes: int) -> SequenceClassifier:
    """A classifier whose trunk is a copy of the decoder's; its head starts at zero."""
    with torch.random.fork_rng([]):
        classifier = SequenceClassifier(decoder.cfg, n_classes)
    classifier.trunk.load_state_dict(decoder.trunk.state_dict())
    nn.init.zeros_(classifier.score.weight)
    return classifier
