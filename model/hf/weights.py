"""Weights between Hugging Face's names and layouts and ours, both ways, by the tables of model/hf/families.py.

In: tensors by name, and a model of ours. Out: the model with these weights; or tensors by their names, in the number
format that an export asks for. A weight that no rule names, a named one that is missing, another shape, or a number
format other than a float is an error that names it. A tied head appears once, under the embedding's name.

"Theirs" is a name or a layout of Hugging Face.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from model.hf.config import family_of
from model.hf.family import EMBEDDING, ENCODER, HEAD, Family, WeightRule
from model.network.registry import Config, kind_of
from model.training.files import check_same_shapes
from model.training.weights import named_weights

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


# By the rules of a table. No rules: the names and layouts are the same.


def to_theirs(weights: Mapping[str, Tensor], rules: Sequence[WeightRule], n_layers: int) -> dict[str, Tensor]:
    """Tensors of ours by their names and in their layouts; views where the layout allows it. Tensors that no rule
    names are left out."""
    if not rules:
        return dict(weights)
    found: dict[str, Tensor] = {}
    for theirs, ours, transposed in names_by(rules, n_layers):
        if ours[0] in weights:
            joined = weights[ours[0]] if len(ours) == 1 else torch.cat([weights[name] for name in ours])
            found[theirs] = joined.T if transposed and joined.ndim == 2 else joined
    return found


def to_ours(weights: Mapping[str, Tensor], rules: Sequence[WeightRule], n_layers: int) -> dict[str, Tensor]:
    """The inverse of `to_theirs`, where joined weights have equal shapes."""
    if not rules:
        return dict(weights)
    found: dict[str, Tensor] = {}
    for theirs, ours, transposed in names_by(rules, n_layers):
        if theirs in weights:
            joined = weights[theirs].T if transposed and weights[theirs].ndim == 2 else weights[theirs]
            found |= zip(ours, joined.chunk(len(ours)), strict=True)
    return found


def names_by(rules: Sequence[WeightRule], n_layers: int) -> Iterator[tuple[str, tuple[str, ...], bool]]:
    """(their name, our names, transposed) of every weight that the rules allow."""
    for rule in rules:
        for layer in range(n_layers) if "{}" in rule.theirs else (0,):
            for end in (".weight", ".bias"):
                ours = tuple(name.format(layer) + end for name in rule.ours)
                yield rule.theirs.format(layer) + end, ours, rule.transposed


# Of a model.


def model_to_hf(model: nn.Module, cfg: Config, dtype: torch.dtype) -> dict[str, Tensor]:
    """All weights of a model. ValueError names one that does not fit into `dtype`."""
    family, kind = family_of(cfg), kind_of(model)
    weights = to_theirs(named_weights(model), family.rules_of(kind), cfg.n_layers)
    weights |= {second: weights[name].clone() for name, second in family.copies.items() if name in weights}
    prefix = family.prefix if kind == ENCODER else ""  # a file of a bare trunk leaves it out
    return {name.removeprefix(prefix): narrowed(name, weight, dtype) for name, weight in weights.items()}


def narrowed(name: str, weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight` in `dtype`. ValueError when a finite number would become infinite, as above 65,504 in float16."""
    changed = weight.to(dtype)
    if dtype != weight.dtype and (is_lost := weight.isfinite() & ~changed.isfinite()).any():
        format_, advice = str(dtype).removeprefix("torch."), "; export as bfloat16 or float32"
        raise ValueError(
            f"{name} contains {weight[is_lost][0].item():g}, which {format_} cannot represent (at most"
            f" {torch.finfo(dtype).max:g})" + (advice if dtype == torch.float16 else "")
        )
    return changed


@torch.no_grad()
def weights_from_hf(model: nn.Module, cfg: Config, weights: Mapping[str, Tensor]) -> None:
    """Copy the tensors into a model, in its dtype; bfloat16 and float16 are widened.

    ValueError names a weight that is unknown, missing, quantised or of another shape.
    """
    family = family_of(cfg)
    where, rules = f"weights of {family.model_type}", family.rules_of(kind_of(model))
    given = _generic(weights, family, {name for name, _, _ in names_by(rules, cfg.n_layers)})
    for name, weight in given.items():
        if weight.dtype not in FLOATS:
            raise ValueError(f"{where}: {name} has the type {weight.dtype}, quantised weights are not supported")
    if cfg.tie_embeddings:
        _drop_tied_head(given, rules)
    own = dict(model.named_parameters())
    shapes = {name: weight.to("meta") for name, weight in own.items()}  # of the meta device: they take no memory
    check_same_shapes(where, to_theirs(shapes, rules, cfg.n_layers), given)
    for name, weight in to_ours(given, rules, cfg.n_layers).items():
        own[name].copy_(weight)


def _generic(weights: Mapping[str, Tensor], family: Family, known: set[str]) -> dict[str, Tensor]:
    """The weights under today's names of a whole model, without what is no weight of this one: buffers, second names,
    and heads that it does not have. A file of a bare trunk, as that of the published GPT-2, leaves the prefix out."""
    is_whole = any(name.startswith(family.prefix) or name in known for name in weights)
    prefix = "" if is_whole else family.prefix
    given: dict[str, Tensor] = {}
    for name, weight in weights.items():
        for old, new in family.old_endings.items():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        name = name if name.startswith(family.heads) else prefix + name
        if not name.endswith(family.buffers) and (name in known or not name.startswith(family.unused)):
            given[name] = weight
    for name, second in family.copies.items():
        if second in given:
            given.setdefault(name, given[second])
            del given[second]
    return given


def _drop_tied_head(given: dict[str, Tensor], rules: Sequence[WeightRule]) -> None:
    theirs_of = {ours[0]: theirs for theirs, ours, _ in names_by(rules, 1)}
    head, embedding = theirs_of.get(HEAD, HEAD), theirs_of.get(EMBEDDING, EMBEDDING)
    if head not in given:
        return
    if embedding in given and not torch.equal(given[head], given[embedding]):
        raise ValueError(f"{head} differs from {embedding}, but tie_word_embeddings says that they are one")
    del given[head]
