"""How likely a decoder considers each of several fixed choices as the continuation of each prompt.

In: prompts with a common opening (an instruction and shots, which are solved examples), and choices. Out: the
log-likelihood of every choice after every prompt, in nats. A choice is encoded together with what precedes it and its
tokens are those behind the tokens of the prompt alone (prompt_encoding.py).

Steps: the opening passes once and its keys and values are copied to all rows; prompts of similar length pass
together; then, choice by choice, the tokens of a choice but its last pass behind the prompt, whose keys and values
all choices share. Only the positions that predict a token of a choice go through the head. A prompt that does not fit
the context loses shots, the first ones first, and then its own beginning.

Legend: N prompts, C choices, B rows of a pass, T position, D d_model, V vocab.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.data.examples import padded
from model.data.tokenizer import Tokenizer
from model.generation.prompt import Opening
from model.generation.prompt_encoding import ChatPrompts, TextPrompts
from model.network.decoder import Decoder
from model.network.kv_cache import KVCache
from model.training.machine import precision
from model.training.memory import memory_explained

TOKENS_PER_PASS = {"cpu": 1 << 8, "cuda": 1 << 16}  # a small pass stays in a CPU's cache: 1.6 times as fast as 2^11
CACHED_TOKENS = {"cpu": 1 << 13, "cuda": 1 << 16}  # of all rows of a pass with what precedes them
SHORTEST_OPENING = 16  # tokens that are worth a pass of their own
OPENINGS_KEPT = 4
PROMPTS_AT_ONCE = 512  # whose ids are in memory as numbers of Python, once for each choice


@dataclass(frozen=True, slots=True)
class Likelihoods:
    nats_NC: np.ndarray  # float64, logarithms, so at most 0
    tokens_NC: np.ndarray  # int64, tokens of each choice


@dataclass(frozen=True, slots=True)
class _Row:
    """The ids of one prompt with every choice."""

    shared: list[int]  # the beginning, the same with all choices
    tails: list[list[int]]  # what follows with each choice
    n_before: list[int]  # how many ids of each tail still belong to the prompt
    n_shots: int
    is_cut: bool


class ChoiceScorer:
    """Scores the choices of one task. Keys and values of the opening are kept from call to call."""

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        choices: Sequence[str],
        opening: Opening | ChatPrompts | None = None,
        *,
        max_tokens: int | None = None,
        tokens_per_pass: int | None = None,
    ) -> None:
        """`max_tokens`, by default the context, limits a prompt with opening and choice. `tokens_per_pass`, padding
        included, changes speed and memory, not the result."""
        if not choices or "" in choices:
            raise ValueError(f"choices={list(choices)} must be one or more texts that are not empty")
        self.model, self.tokenizer, self.choices = model, tokenizer, list(choices)
        self.prompts = opening if isinstance(opening, ChatPrompts) else TextPrompts(tokenizer, opening or Opening())
        self.max_tokens = min(max_tokens or model.cfg.max_seq_len, model.cfg.max_seq_len)
        self.device = next(model.parameters()).device
        kind = "cpu" if self.device.type == "cpu" else "cuda"
        self.tokens_per_pass, self.cached_tokens = tokens_per_pass or TOKENS_PER_PASS[kind], CACHED_TOKENS[kind]
        self._openings: dict[tuple[int, ...], KVCache] = {}  # by its ids

    @torch.inference_mode()
    def likelihoods(self, prompts: Sequence[str]) -> Likelihoods:
        """Of every choice after every prompt, in the order of `prompts`.

        Raises ValueError for a choice as long as the context, and OutOfMemory.
        """
        n_choices = len(self.choices)
        parts = [(np.zeros((0, n_choices)), np.zeros((0, n_choices), np.int64))]
        advice = f"{self.tokens_per_pass:,} tokens passed at once; give a smaller tokens_per_pass"
        with precision(self.device), memory_explained(advice):
            for first in range(0, len(prompts), PROMPTS_AT_ONCE):
                parts.append(self._scored(self._rows(prompts[first : first + PROMPTS_AT_ONCE])))
        return Likelihoods(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def n_beyond(self, prompts: Sequence[str]) -> tuple[int, int]:
        """How many prompts lose shots, and how many also lose their own beginning; nothing is computed for that."""
        n_shortened = n_cut = 0
        for first in range(0, len(prompts), PROMPTS_AT_ONCE):
            for row in self._rows(prompts[first : first + PROMPTS_AT_ONCE]):
                n_shortened += row.n_shots < self.prompts.n_shots
                n_cut += row.is_cut
        return n_shortened, n_cut

    # Encoding.

    def _rows(self, prompts: Sequence[str]) -> list[_Row]:
        found: dict[int, _Row] = {}
        for n_shots in range(self.prompts.n_shots, -1, -1):
            places = [place for place in range(len(prompts)) if place not in found]
            for place, row in zip(places, self._encoded([prompts[i] for i in places], n_shots), strict=True):
                if n_shots == 0 or not row.is_cut:
                    found[place] = row
        return [found[place] for place in range(len(prompts))]

    def _encoded(self, prompts: Sequence[str], n_shots: int) -> Iterator[_Row]:
        contexts, ids = self.prompts.encoded(prompts, self.choices, n_shots)
        n_choices = len(self.choices)
        for place, context in enumerate(contexts):
            yield self._row(len(context), ids[place * n_choices : (place + 1) * n_choices], n_shots)

    def _row(self, n_context: int, of_choices: list[list[int]], n_shots: int) -> _Row:
        start = list(self.prompts.start)
        if not start and (not n_context or not n_common(of_choices)):
            start = [self.tokenizer.end_of_text]  # something has to precede the first token that is predicted
        most = self.max_tokens - len(start) + 1  # the last token is predicted, but not read
        n_dropped = max(0, max(map(len, of_choices)) - most)
        first = [min(n_context, len(ids) - 1) for ids in of_choices]  # token of each choice
        if n_dropped > min(first) - (not start):
            longest = self.choices[int(np.argmax([len(ids) for ids in of_choices]))]
            raise ValueError(
                f"the choice {longest[:60]!r} leaves no room for a prompt among {self.max_tokens} tokens; shorten it"
            )
        kept = [[*start, *ids[n_dropped:]] for ids in of_choices]
        first = [len(start) + one - n_dropped for one in first]
        n_shared = min(n_common(kept), *first)
        return _Row(
            shared=kept[0][:n_shared],
            tails=[ids[n_shared:] for ids in kept],
            n_before=[one - n_shared for one in first],
            n_shots=n_shots,
            is_cut=n_dropped > 0,
        )

    # Passes.

    def _scored(self, rows: Sequence[_Row]) -> tuple[np.ndarray, np.ndarray]:
        nats_NC = np.zeros((len(rows), len(self.choices)))
        for opening, places in self._passes(rows):
            nats_NC[places] = self._pass([rows[place] for place in places], opening).cpu().numpy()
        tokens = [[len(tail) - n for tail, n in zip(row.tails, row.n_before, strict=True)] for row in rows]
        return nats_NC, np.array(tokens, np.int64)

    def _passes(self, rows: Sequence[_Row]) -> Iterator[tuple[KVCache | None, list[int]]]:
        """Numbers of rows that pass together, of similar length, and the cache of their opening."""
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        openings: dict[int, list[int]] = {}
        for place, row in enumerate(rows):
            if row.n_shots not in openings:
                openings[row.n_shots] = [*self.prompts.start, *self.prompts.opening(row.n_shots)]
            n_opening = min(n_common([openings[row.n_shots], row.shared]), len(row.shared) - 1)
            groups[tuple(row.shared[: n_opening if n_opening >= SHORTEST_OPENING else 0])].append(place)
        for ids, places in groups.items():
            opening = self._read(ids) if ids else None
            places.sort(key=lambda place: -len(rows[place].shared))
            while places:
                n_rows = self._n_together(rows[places[0]], len(ids))
                yield opening, places[:n_rows]
                del places[:n_rows]

    def _n_together(self, longest: _Row, n_opening: int) -> int:
        width, tail = len(longest.shared) - n_opening, max(map(len, longest.tails))
        if len(longest.shared) + 2 * tail > self.model.cfg.max_seq_len:  # another row may have a longer tail
            return 1
        return max(1, min(self.tokens_per_pass // width, self.cached_tokens // (n_opening + width + tail)))

    def _read(self, ids: tuple[int, ...]) -> KVCache:
        """The cache of an opening."""
        if ids not in self._openings:
            while len(self._openings) >= OPENINGS_KEPT:
                del self._openings[next(iter(self._openings))]
            cache = self.model.new_cache(1, len(ids))
            self.model.trunk(torch.tensor([ids], device=self.device), cache=cache)
            self._openings[ids] = cache
        return self._openings[ids]

    def _pass(self, rows: Sequence[_Row], opening: KVCache | None) -> Tensor:
        """Log-likelihoods, float64 (B, C)."""
        n_opening = opening.lengths[0] if opening is not None else 0
        batch = padded([np.array(row.shared[n_opening:], np.int64) for row in rows])
        ids_BT, lengths_B = batch["ids_BT"].to(self.device), batch["lengths_B"].to(self.device)
        n_rest = max(len(tail) for row in rows for tail in row.tails) - 1  # tokens of a tail that are read
        cache = None
        if opening is not None or n_rest:
            cache = self.model.new_cache(len(rows), n_opening + ids_BT.size(1) + n_rest)
        if cache is not None and opening is not None:
            cache.fill(opening)
        x_BTD = self.model.trunk(ids_BT, cache=cache)
        x_BD = x_BTD[torch.arange(len(rows), device=self.device), lengths_B - 1]
        first_BC = self._tensor([[tail[0] for tail in row.tails] for row in rows])
        is_of_choice_BC = self._tensor([[n == 0 for n in row.n_before] for row in rows])
        nats_BC = self.model.lm_head(x_BD).float().log_softmax(dim=-1).gather(1, first_BC).double() * is_of_choice_BC
        for choice in range(len(self.choices) if n_rest else 0):
            assert cache is not None
            cache.truncate([len(row.shared) for row in rows])
            nats_BC[:, choice] += self._rest(rows, choice, cache)
        return nats_BC

    def _rest(self, rows: Sequence[_Row], choice: int, cache: KVCache) -> Tensor:
        """Of the tokens of a tail but its first, float64 (B,)."""
        tails = [row.tails[choice] for row in rows]
        nats_B = torch.zeros(len(rows), dtype=torch.float64, device=self.device)
        if max(map(len, tails)) == 1:
            return nats_B
        read = padded([np.array(tail[:-1], np.int64) for tail in tails])["ids_BT"].to(self.device)
        places = [
            (row, place, tail[place])
            for row, tail in enumerate(tails)
            for place in range(max(1, rows[row].n_before[choice]), len(tail))
        ]
        row_N, place_N, target_N = self._tensor(places).reshape(-1, 3).unbind(1)
        logits_NV = self.model.lm_head(self.model.trunk(read, cache=cache)[row_N, place_N - 1]).float()
        return nats_B.index_add(0, row_N, -F.cross_entropy(logits_NV, target_N, reduction="none").double())

    def _tensor(self, values: Sequence[Sequence[int]]) -> Tensor:
        return torch.tensor(values, dtype=torch.int64, device=self.device)


def n_common(ids: Sequence[Sequence[int]]) -> int:
    """Length of the common beginning."""
    least = min(map(len, ids))
    return next((i for i in range(least) if any(one[i] != ids[0][i] for one in ids[1:])), least)
