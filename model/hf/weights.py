"""Weights between Hugging Face's names and layouts and ours, both ways, by the tables of model/hf/families.py.

In: tensors by their names, and a model of ours. Out: the model with these weights; or the reverse. A weight without
a place, a place without a weight, another shape, or a number format that is no float, is an error that names it.
A tied head appears once, under the embedding's name.

"Theirs" is a name or a layout of Hugging Face's.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from model.hf.config import family_of
from model.hf.families import EMBEDDING, HEAD, HEADS, Family, WeightRule
from model.network.shape import DecoderConfig
from model.training.files import check_same_shapes
from model.training.weights import named_weights

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def weights_to_hf(cfg: DecoderConfig, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of ours by their names and in their layouts; views where the layout allows it."""
    family = family_of(cfg)
    return placed(weights, family.rules, cfg.n_layers) if family.rules else dict(weights)


def placed(weights: Mapping[str, Tensor], rules: Sequence[WeightRule], n_layers: int) -> dict[str, Tensor]:
    """Tensors of ours where a table wants them; one without a place is left out."""
    found: dict[str, Tensor] = {}
    for theirs, ours, transposed in _pairs(rules, n_layers):
        if ours[0] in weights:
            joined = weights[ours[0]] if len(ours) == 1 else torch.cat([weights[name] for name in ours])
            found[theirs] = joined.T if transposed and joined.ndim == 2 else joined
    return found


def model_to_hf(model: nn.Module, cfg: DecoderConfig, dtype: torch.dtype) -> dict[str, Tensor]:
    """All weights of a Decoder or SequenceClassifier. ValueError names one that does not fit into `dtype`."""
    weights = weights_to_hf(cfg, named_weights(model))
    return {name: narrowed(name, weight, dtype) for name, weight in weights.items()}


def narrowed(name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight` in `dtype`. ValueError when a finite number would become infinite, as above 65,504 in float16."""
    changed = weight.to(dtype)
    if dtype == torch.float16 and not torch.equal(changed.isfinite(), weight.isfinite()):
        raise ValueError(
            f"{name} holds {weight.abs().max().item():g}, which float16 cannot (at most 65504); export as bfloat16 or"
            " float32"
        )
    return changed


@torch.no_grad()
def weights_from_hf(model: nn.Module, cfg: DecoderConfig, weights: Mapping[str, Tensor]) -> None:
    """Copy the tensors into a Decoder or SequenceClassifier, in its dtype; bfloat16 and float16 are widened.

    Raises ValueError naming what has no place or no weight, another shape, or is quantised.
    """
    family, what = family_of(cfg), f"weights of {family_of(cfg).model_type}"
    # a file of a bare trunk leaves the prefix out, as that of the published GPT-2 does
    prefix = "" if any(name.startswith(family.prefix) for name in weights) else family.prefix
    given = {
        name if name.startswith(HEADS) else prefix + name: weight
        for name, weight in weights.items()
        if not name.endswith(family.buffers)
    }
    for name, weight in given.items():
        if weight.dtype not in FLOATS:
            raise ValueError(f"{what}: {name} holds {weight.dtype}, quantised weights are not supported")
    _drop_tied_head(given, cfg, family)
    own = dict(model.named_parameters())
    check_same_shapes(what, weights_to_hf(cfg, {name: w.to("meta") for name, w in own.items()}), given)
    for name, weight in _ours(given, cfg, family).items():
        own[name].copy_(weight)


def _drop_tied_head(given: dict[str, Tensor], cfg: DecoderConfig, family: Family) -> None:
    embedding = next(
        (theirs for theirs, ours, _ in _pairs(family.rules, cfg.n_layers) if ours == (EMBEDDING,)), EMBEDDING
    )
    if cfg.tie_embeddings and HEAD in given:
        if embedding in given and not torch.equal(given[HEAD], given[embedding]):
            raise ValueError(f"{HEAD} differs from {embedding}, but tie_word_embeddings says they are one")
        del given[HEAD]


def _ours(given: Mapping[str, Tensor], cfg: DecoderConfig, family: Family) -> dict[str, Tensor]:
    """The inverse of `weights_to_hf`."""
    if not family.rules:
        return dict(given)
    found: dict[str, Tensor] = {}
    for theirs, ours, transposed in _pairs(family.rules, cfg.n_layers):
        if theirs in given:
            joined = given[theirs].T if transposed and given[theirs].ndim == 2 else given[theirs]
            found |= zip(ours, joined.chunk(len(ours)), strict=True)
    return found


def _pairs(rules: Sequence[WeightRule], n_layers: int) -> Iterator[tuple[str, tuple[str, ...], bool]]:
    """(their name, our names, transposed) of every weight that a table may rule."""
    for rule in rules:
        for layer in range(n_layers) if "{}" in rule.theirs else (0,):
            for end in (".weight", ".bias"):
                ours = tuple(name.format(layer) + end for name in rule.ours)
                yield rule.theirs.format(layer) + end, ours, rule.transposed
