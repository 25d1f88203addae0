"""From logits to the next token: penalise, filter, draw, each row by settings of its own.

In: the logits (B, V) of one position, and per row a SampleConfig, the tokens it holds, and a number below 1. Out: one
id per row. Steps, in the order of transformers:
1. repetition penalty: tokens that the row holds become less likely (arXiv:1909.05858 section 4.1);
2. temperature: logits are divided by it; 0 takes the likeliest token and ends here;
3. top_k: the k likeliest tokens remain;
4. top_p: the smallest set of the likeliest tokens with probability p remains (arXiv:1904.09751);
5. min_p: tokens with at least min_p times the probability of the likeliest remain (arXiv:2407.01082);
6. the cumulative distribution is inverted at the row's number.
Rows in one batch do not influence each other, whatever their settings are.

Legend: N slots, B rows (the first slots), V vocab, C candidates (tokens that may still be drawn), T steps.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from model.generation.sample_config import SampleConfig

NUCLEUS_FIRST = 256  # candidates that top_p tries on a CPU before it sorts a row's whole vocabulary
# The largest float32 below 1 whose product with the sum of all probabilities stays below that sum.
BELOW_ONE = 1 - 2.0**-22


class Rule(NamedTuple):
    """What decides how many candidates there are and in which order; rows with one rule are drawn together."""

    is_greedy: bool
    top_k: int | None
    has_top_p: bool


class Values(NamedTuple):
    """The other settings of each row, (B, 1) float32; where a row does not use one, a value without effect."""

    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    penalty: Tensor


def rule_of(cfg: SampleConfig) -> Rule:
    if cfg.temperature == 0:
        return Rule(True, None, False)
    return Rule(False, cfg.top_k, cfg.top_p is not None and cfg.top_p < 1)


def values_of(cfgs: Sequence[SampleConfig], device: torch.device | str = "cpu") -> Values:
    least = torch.finfo(torch.float32).tiny  # a temperature that float32 can divide by
    rows = [(max(c.temperature, least), c.top_p or 1.0, c.min_p or 0.0, c.repetition_penalty or 1.0) for c in cfgs]
    return Values(*torch.tensor(rows, dtype=torch.float32, device=device).split(1, dim=1))


def uniform_numbers(cfg: SampleConfig, row_number: int) -> Tensor:
    """The numbers that a row draws with, (T,) float32 from 0 to below 1, T = max_new_tokens.

    They depend on the seed and the row's number alone, not on the rows beside it, the device or T.
    """
    numbers_T = np.random.default_rng((cfg.seed, row_number)).random(cfg.max_new_tokens, np.float32)
    return torch.from_numpy(numbers_T) * BELOW_ONE


class RowSampler:
    """Settings, random numbers and seen tokens of the rows in the first slots, one element of each tensor per slot.

    All of it is on the device: nothing is transferred while rows are only drawn for, moved or dropped.
    """

    def __init__(self, n_slots: int, vocab_size: int, device: torch.device) -> None:
        self._rules: list[Rule] = []  # of the rows, by slot
        self._codes: dict[Rule, int] = {}  # the rules that were met so far
        self._code_N = torch.zeros(n_slots, dtype=torch.int64, device=device)
        self._values = Values(*torch.ones(4, n_slots, 1, device=device))
        self._uniform_NT = torch.zeros(n_slots, 0, device=device)
        self._n_drawn_N1 = torch.zeros(n_slots, 1, dtype=torch.int64, device=device)
        self._seen_NV: Tensor | None = None  # bool, True = the row holds the token; made for the first penalty
        self._vocab_size, self._device = vocab_size, device

    def join(self, slot: int, cfg: SampleConfig, row_number: int, context: Sequence[int], n_drawn: int = 0) -> None:
        """Puts a row into `slot`, which is one of those taken or the next one. It has drawn `n_drawn` ids before."""
        rule = rule_of(cfg)
        self._rules[slot : slot + 1] = [rule]
        self._code_N[slot] = self._codes.setdefault(rule, len(self._codes))
        for values_N1, value in zip(self._values, values_of([cfg]), strict=True):
            values_N1[slot] = value.item()
        self._n_drawn_N1[slot] = n_drawn
        n_more = cfg.max_new_tokens - self._uniform_NT.size(1)
        if n_more > 0:  # also for greedy rows, whose number is read, though not used, beside rows that draw
            self._uniform_NT = torch.nn.functional.pad(self._uniform_NT, (0, n_more))
        if not rule.is_greedy:
            self._uniform_NT[slot, : cfg.max_new_tokens] = uniform_numbers(cfg, row_number).to(self._device)
        if cfg.repetition_penalty is not None:
            self._see(slot, context)

    def _see(self, slot: int, context: Sequence[int]) -> None:
        if self._seen_NV is None:
            shape = self._code_N.size(0), self._vocab_size
            self._seen_NV = torch.zeros(shape, dtype=torch.bool, device=self._device)
        self._seen_NV[slot] = False
        self._seen_NV[slot, torch.tensor(context, device=self._device)] = True

    def leave(self, slot: int) -> None:
        """Drops the row of `slot`; the row of the last slot takes its place."""
        last = len(self._rules) - 1
        if slot < last:
            seen = () if self._seen_NV is None else (self._seen_NV,)
            for tensor in (self._code_N, *self._values, self._uniform_NT, self._n_drawn_N1, *seen):
                tensor[slot] = tensor[last]
        self._rules[slot] = self._rules[last]
        self._rules.pop()

    def draw(self, logits_BV: Tensor, slots: Sequence[int] | None = None) -> Tensor:
        """The next id of each row, (B,) int64. `slots`: of the rows that these logits are for, None = all."""
        rules = self._rules if slots is None else [self._rules[slot] for slot in slots]
        is_all = len(rules) == len(self._rules)
        rows = slice(len(rules)) if slots is None or is_all else torch.tensor(slots, device=self._device)
        kinds = list(dict.fromkeys(rules))
        if self._seen_NV is None and all(rule.is_greedy for rule in kinds):
            return logits_BV.argmax(dim=-1)
        values = Values(*(value_N1[rows] for value_N1 in self._values))
        if self._seen_NV is not None:
            logits_BV = penalised(logits_BV, self._seen_NV[rows], values.penalty)
        uniform_B = torch.zeros(())
        if not all(rule.is_greedy for rule in kinds):
            uniform_B = self._uniform_NT[rows].gather(1, self._n_drawn_N1[rows]).squeeze(1)
        if len(kinds) == 1:
            ids_B = draw(logits_BV, kinds[0], values, uniform_B)
        elif self._device.type == "cpu":
            ids_B = _drawn_apart(logits_BV, rules, values, uniform_B)
        else:
            ids_B = torch.zeros((), dtype=torch.int64, device=self._device)
            for rule in kinds:  # each for all rows, because nothing is to be sent to the device
                is_own_B = self._code_N[rows] == self._codes[rule]
                ids_B = torch.where(is_own_B, draw(logits_BV, rule, values, uniform_B), ids_B)
        self._n_drawn_N1[rows] += 1
        if self._seen_NV is not None:
            self._see_drawn(rows, ids_B)
        return ids_B

    def _see_drawn(self, rows: slice | Tensor, ids_B: Tensor) -> None:
        assert self._seen_NV is not None
        if isinstance(rows, slice):
            self._seen_NV[rows].scatter_(1, ids_B.unsqueeze(1), True)
        else:
            self._seen_NV[rows, ids_B] = True


def _drawn_apart(logits_BV: Tensor, rules: Sequence[Rule], values: Values, uniform_B: Tensor) -> Tensor:
    """As `draw`, with a rule for each row; the rows of a rule are drawn together, and no row twice."""
    ids_B = torch.zeros(len(rules), dtype=torch.int64)
    for rule in dict.fromkeys(rules):
        own = torch.tensor([place for place, one in enumerate(rules) if one == rule])
        of_own = Values(*(value_B1[own] for value_B1 in values))
        ids_B[own] = draw(logits_BV[own], rule, of_own, uniform_B if rule.is_greedy else uniform_B[own])
    return ids_B


def penalised(logits_BV: Tensor, seen_BV: Tensor, penalty_B1: Tensor) -> Tensor:
    """Logits whose tokens in `seen` (bool, True = the row holds it) are lowered by the factor `penalty`."""
    lowered_BV = torch.where(logits_BV > 0, logits_BV / penalty_B1, logits_BV * penalty_B1)
    return torch.where(seen_BV, lowered_BV, logits_BV)


def draw(logits_BV: Tensor, rule: Rule, values: Values, uniform_B: Tensor) -> Tensor:
    """One id per row, (B,) int64. `uniform` decides which; a greedy rule does not read it."""
    if rule.is_greedy:
        return logits_BV.argmax(dim=-1)
    weight_BC, ids_BC = candidates(logits_BV, rule, values)
    cumulated_BC = weight_BC.cumsum(dim=-1)
    target_B1 = uniform_B.unsqueeze(1) * cumulated_BC[:, -1:]
    index_B1 = torch.searchsorted(cumulated_BC, target_B1, right=True)  # right: never a candidate of weight 0
    index_B1.clamp_(max=weight_BC.size(1) - 1)  # beyond the end where logits are not finite, which the caller reports
    return (index_B1 if ids_BC is None else ids_BC.gather(1, index_B1)).squeeze(1)


def probabilities(logits_BV: Tensor, rule: Rule, values: Values) -> Tensor:
    """What `draw` draws from, (B, V), if it is not greedy: rows sum to 1, tokens that were filtered out have 0."""
    weight_BC, ids_BC = candidates(logits_BV, rule, values)
    share_BC = weight_BC / weight_BC.sum(dim=-1, keepdim=True)
    return share_BC if ids_BC is None else torch.zeros_like(logits_BV).scatter(-1, ids_BC, share_BC)


def candidates(logits_BV: Tensor, rule: Rule, values: Values) -> tuple[Tensor, Tensor | None]:
    """Weights (B, C), proportional to the probabilities, 0 for what is filtered out, and the ids, likeliest first.

    Ids are None where nothing had to be sorted: candidate c is token c. If tokens tie for the last place of top_k,
    only as many remain as there is room for.
    """
    # The likeliest has weight 1: nothing overflows, however small the temperature.
    weight_BV = ((logits_BV - logits_BV.amax(dim=-1, keepdim=True)) / values.temperature).exp()
    if rule.top_k is not None:
        weight_BC, ids_BC = weight_BV.topk(min(rule.top_k, weight_BV.size(-1)), dim=-1)
        if rule.has_top_p:
            weight_BC = _nucleus(weight_BC, values.top_p * weight_BC.sum(dim=-1, keepdim=True))
    elif rule.has_top_p:
        room_B1 = values.top_p * weight_BV.sum(dim=-1, keepdim=True)
        weight_BC, ids_BC = _likeliest(weight_BV, room_B1)
        weight_BC = _nucleus(weight_BC, room_B1)
    else:
        weight_BC, ids_BC = weight_BV, None
    return weight_BC.masked_fill(weight_BC < values.min_p, 0.0), ids_BC


def _likeliest(weight_BV: Tensor, room_B1: Tensor) -> tuple[Tensor, Tensor]:
    """Weights in falling order with their ids, at least until they add up to `room`.

    A GPU sorts them all, because the host would have to wait for it to learn whether a few are enough. On a CPU
    sorting costs more than trying, and only the rows that need it are sorted.
    """
    if weight_BV.device.type != "cpu":
        return weight_BV.sort(dim=-1, descending=True)
    first_BC, ids_BC = weight_BV.topk(min(NUCLEUS_FIRST, weight_BV.size(-1)), dim=-1)
    is_short_B = (first_BC.sum(dim=-1, keepdim=True) < room_B1).squeeze(1)
    if not is_short_B.any():
        return first_BC, ids_BC
    n_more = weight_BV.size(-1) - first_BC.size(-1)
    weight_BC, ids_BC = torch.nn.functional.pad(first_BC, (0, n_more)), torch.nn.functional.pad(ids_BC, (0, n_more))
    weight_BC[is_short_B], ids_BC[is_short_B] = sorted_weights(weight_BV[is_short_B])
    return weight_BC, ids_BC


def sorted_weights(weight_BV: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (float32 on a CPU) in falling order with their ids, equal ones by their ids.

    The bits of a float that is not negative have its order. So one number of 64 bits holds weight and id, and numpy
    sorts such numbers by vector instructions, several times as fast as torch sorts floats.
    """
    last = weight_BV.size(-1) - 1
    keys_BV = (weight_BV.view(torch.int32).long() << 32) | torch.arange(last, -1, -1)
    keys_BV = torch.from_numpy(np.sort(keys_BV.numpy(), axis=-1)[:, ::-1].copy())
    return (keys_BV >> 32).int().view(torch.float32), last - (keys_BV & 0xFFFFFFFF)


def _nucleus(sorted_BC: Tensor, room_B1: Tensor) -> Tensor:
    """Weights in falling order, with 0 for those before which likelier ones fill `room`."""
    likelier_BC = sorted_BC.cumsum(dim=-1) - sorted_BC
    return sorted_BC.masked_fill(likelier_BC >= room_B1, 0.0)
