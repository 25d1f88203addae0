"""From logits to the next token: penalise, cut, draw.

In: the logits (B, V) of one position, which tokens each row holds already, and a number below 1 a row. Out: an id a
row. Steps, in the order in which transformers has them:
1. repetition penalty: tokens that were there before become less likely (arXiv:1909.05858 section 4.1);
2. temperature: logits are divided by it; 0 takes the likeliest token and ends here;
3. top_k: the k likeliest tokens stay;
4. top_p: the smallest set of the likeliest that holds probability p stays (arXiv:1904.09751);
5. min_p: what has at least min_p times the probability of the likeliest stays (arXiv:2407.01082);
6. the distribution function is inverted at the row's number.

Legend: B rows, V vocab, C candidates (tokens that may still be drawn), T steps.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from model.generation.sample_config import SampleConfig

NUCLEUS_FIRST = 256  # candidates that top_p looks at before it sorts the whole vocabulary
# Largest float32 below 1 that stays below the sum of all probabilities when it is multiplied with it.
BELOW_ONE = 1 - 2.0**-22


def uniform_numbers(cfg: SampleConfig, row_numbers: Sequence[int]) -> Tensor:
    """What the rows draw with, (T, B) float32 from 0 to below 1, T = max_new_tokens.

    A row's numbers depend on the seed and its own number alone, not on the rows beside it or the device.
    """
    rows = [np.random.default_rng((cfg.seed, row)).random(cfg.max_new_tokens, np.float32) for row in row_numbers]
    return torch.from_numpy(np.stack(rows, axis=1)) * BELOW_ONE


def penalised(logits_BV: Tensor, seen_BV: Tensor, penalty: float) -> Tensor:
    """Logits whose tokens in `seen` (bool, True = the row holds it) moved down by the factor `penalty`."""
    lowered_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    return torch.where(seen_BV, lowered_BV, logits_BV)


def draw(logits_BV: Tensor, cfg: SampleConfig, uniform_B: Tensor) -> Tensor:
    """One id a row, (B,) int64. `uniform` decides which; with temperature 0 nobody reads it."""
    if cfg.temperature == 0:
        return logits_BV.argmax(dim=-1)
    weight_BC, ids_BC = candidates(logits_BV, cfg)
    cumulated_BC = weight_BC.cumsum(dim=-1)
    aim_B1 = uniform_B.unsqueeze(1) * cumulated_BC[:, -1:]
    place_B1 = torch.searchsorted(cumulated_BC, aim_B1, right=True)  # right: never one of weight 0
    return (place_B1 if ids_BC is None else ids_BC.gather(1, place_B1)).squeeze(1)


def probabilities(logits_BV: Tensor, cfg: SampleConfig) -> Tensor:
    """What `draw` draws from, (B, V), for a temperature above 0: rows sum to 1, tokens that were cut have 0."""
    weight_BC, ids_BC = candidates(logits_BV, cfg)
    share_BC = weight_BC / weight_BC.sum(dim=-1, keepdim=True)
    return share_BC if ids_BC is None else torch.zeros_like(logits_BV).scatter(-1, ids_BC, share_BC)


def candidates(logits_BV: Tensor, cfg: SampleConfig) -> tuple[Tensor, Tensor | None]:
    """Weights (B, C), in proportion to the probabilities, 0 for what is cut; and the ids (B, C), likeliest first.

    Ids are None where nothing had to be sorted: candidate c is token c. Of tokens that tie for the last place of
    top_k as many are taken as have room.
    """
    # The likeliest has weight 1: nothing overflows, however small the temperature.
    weight_BV = ((logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / cfg.temperature).exp()
    top_p = cfg.top_p if cfg.top_p is not None and cfg.top_p < 1 else None
    if cfg.top_k is not None:
        weight_BC, ids_BC = weight_BV.topk(min(cfg.top_k, weight_BV.size(-1)), dim=-1)
        if top_p is not None:
            weight_BC = _nucleus(weight_BC, top_p * weight_BC.sum(dim=-1, keepdim=True))
    elif top_p is not None:
        room_B1 = top_p * weight_BV.sum(dim=-1, keepdim=True)
        weight_BC, ids_BC = weight_BV.topk(min(NUCLEUS_FIRST, weight_BV.size(-1)), dim=-1)
        if (weight_BC.sum(dim=-1, keepdim=True) < room_B1).any():  # the set is larger than that
            weight_BC, ids_BC = weight_BV.sort(dim=-1, descending=True)
        weight_BC = _nucleus(weight_BC, room_B1)
    else:
        weight_BC, ids_BC = weight_BV, None
    if cfg.min_p is not None:
        weight_BC = weight_BC.masked_fill(weight_BC < cfg.min_p, 0.0)
    return weight_BC, ids_BC


def _nucleus(sorted_BC: Tensor, room_B1: Tensor) -> Tensor:
    """Weights in falling order, those 0 before which at least `room` is taken by likelier ones."""
    likelier_BC = sorted_BC.cumsum(dim=-1) - sorted_BC
    return sorted_BC.masked_fill(likelier_BC >= room_B1, 0.0)
