"""Texts that a classifier likes: a decoder writes several, and the classifier decides which one goes on.

In: prompts, a decoder, and a score of whole texts, such as the log-probability of a label. Out: one text for each
prompt. Two ways, which differ in when the classifier decides:

    rerank   several texts are written to the end, and the best one is taken
    steer    after every few tokens the best one is taken, and all continue from it

The value of a text is its score, plus how fluent the decoder finds its new tokens (their mean log-probability). The
decoder is not changed, and only texts that it draws by itself are ever compared, so that fluency is lost slowly.

Token by token (FUDGE, arXiv:2104.05218) a classifier has to judge every likely next token, of beginnings that end
within a word; ours are trained on whole texts. A decision every few tokens asks it once for each segment.

Legend: B rows of a pass, T position, N candidates or target positions, M a part of these, D d_model.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.data.examples import padded
from model.data.tokenizer import Tokenizer
from model.generation.generate import checked_prompts, generate
from model.generation.sample_config import SampleConfig
from model.generation.text_stream import TextStream
from model.network.decoder import Decoder
from model.training.machine import precision
from model.training.memory import memory_explained

Score = Callable[[Sequence[str]], np.ndarray]  # texts -> float64 (N,), higher is better
LOGITS_AT_ONCE = 64  # positions
ROWS_PER_PASS = 8  # candidates whose log-probabilities are computed at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Guidance:
    by: Literal["rerank", "steer"] = "steer"
    n_samples: int = 8  # candidates for each prompt, at least 1; 1 = not guided
    segment: int = 12  # tokens between two decisions of `steer`, at least 1
    fluency: float = 0.5  # weight of the mean log-probability of a token in nats beside the score, at least 0

    def __post_init__(self) -> None:
        if self.by not in ("rerank", "steer"):
            raise ValueError(f"by={self.by!r} must be rerank or steer")
        if self.n_samples < 1 or self.segment < 1:
            raise ValueError(f"n_samples={self.n_samples} and segment={self.segment} must be at least 1")
        if not 0 <= self.fluency < float("inf"):
            raise ValueError(f"fluency={self.fluency} must be at least 0, which leaves the choice to the score")


@dataclass(slots=True)
class _Draft:
    """The text of one prompt so far."""

    place: int  # in the list of prompts
    prompt: list[int]
    opening: str  # what the score reads before the new text
    new: list[int] = field(default_factory=list)
    is_over: bool = False


def controlled_text(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    cfg: SampleConfig,
    score: Score,
    guidance: Guidance | None = None,
    *,
    openings: Sequence[str] | None = None,
) -> list[str]:
    """The new text of each prompt, which depends on that prompt and its place in `prompts` alone.

    `score` judges the opening of a prompt together with its new text; None = the text of the prompt. Raises
    ValueError as `generate`, and for scores that are not numbers.
    """
    checked_prompts(prompts, [cfg] * len(prompts), model.cfg.vocab_size, model.cfg.max_seq_len)
    if openings is None:
        openings = [_text(tokenizer, prompt) for prompt in prompts]
    of_prompts = zip(range(len(prompts)), map(list, prompts), openings, strict=True)
    drafts = [_Draft(place, prompt, opening) for place, prompt, opening in of_prompts]
    writer = _Writer(model, tokenizer, cfg, score, guidance or Guidance())
    n_tokens = writer.guidance.segment if writer.guidance.by == "steer" else cfg.max_new_tokens
    for n_before in range(0, cfg.max_new_tokens, n_tokens):
        if unfinished := [draft for draft in drafts if not draft.is_over]:
            writer.extend(unfinished, n_before, min(n_tokens, cfg.max_new_tokens - n_before))
    return [_text(tokenizer, draft.new, cfg.stop) for draft in drafts]


@dataclass(frozen=True, slots=True)
class _Writer:
    model: Decoder
    tokenizer: Tokenizer
    cfg: SampleConfig
    score: Score
    guidance: Guidance

    def extend(self, drafts: Sequence[_Draft], n_before: int, n_new: int) -> None:
        """Appends to each draft the best of its candidates of at most `n_new` tokens."""
        n = self.guidance.n_samples
        of_rows = [draft for draft in drafts for _ in range(n)]
        parts = self._candidates(of_rows, n_before, n_new)
        values_N = self._values(of_rows, parts)
        for number, draft in enumerate(drafts):
            row = number * n + int(values_N[number * n : (number + 1) * n].argmax())
            draft.new += parts[row]
            text = _text(self.tokenizer, draft.new)
            draft.is_over = len(parts[row]) < n_new or any(stop in text for stop in self.cfg.stop)

    def _candidates(self, of_rows: Sequence[_Draft], n_before: int, n_new: int) -> list[list[int]]:
        """New ids for each row; no two draws of a text share their random numbers."""
        n = self.guidance.n_samples
        part = dataclasses.replace(self.cfg, max_new_tokens=n_new, stop=(), keep_prompt_end=True)
        first = [(draft.place * self.cfg.max_new_tokens + n_before) * n for draft in of_rows]
        contexts = [[*draft.prompt, *draft.new] for draft in of_rows]
        return generate(self.model, contexts, part, row_numbers=[one + i % n for i, one in enumerate(first)])

    def _values(self, of_rows: Sequence[_Draft], parts: Sequence[list[int]]) -> np.ndarray:
        rows = list(zip(of_rows, parts, strict=True))
        texts = [draft.opening + _text(self.tokenizer, [*draft.new, *part], self.cfg.stop) for draft, part in rows]
        values_N = np.asarray(self.score(texts), np.float64)
        if values_N.shape != (len(texts),) or np.isnan(values_N).any():
            raise ValueError(f"the score of {len(texts)} texts has the shape {values_N.shape}, or is no number")
        if not self.guidance.fluency or self.guidance.n_samples == 1:
            return values_N
        contexts = [[*draft.prompt, *draft.new] for draft in of_rows]
        return values_N + self.guidance.fluency * mean_log_probabilities(self.model, contexts, parts)


@torch.inference_mode()
def mean_log_probabilities(
    model: Decoder, prompts: Sequence[Sequence[int]], continuations: Sequence[Sequence[int]]
) -> np.ndarray:
    """Mean log-probability in nats of the tokens of each continuation behind its prompt, float64 (N,); 0 for an empty
    one. Of what is longer than the context the end is read."""
    device = next(model.parameters()).device
    texts = [[*a, *b][-model.cfg.max_seq_len - 1 :] for a, b in zip(prompts, continuations, strict=True)]
    counts = [min(len(one), len(text) - 1) for one, text in zip(continuations, texts, strict=True)]
    sums_N = np.zeros(len(texts))
    order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    with precision(device), memory_explained(f"{ROWS_PER_PASS} texts passed at once; compare fewer"):
        for first in range(0, len(order), ROWS_PER_PASS):
            rows = order[first : first + ROWS_PER_PASS]
            ids_BT = padded([np.array(texts[row][:-1]) for row in rows])["ids_BT"].to(device)
            x_BTD = model.trunk(ids_BT)
            last = [range(len(texts[row]) - 1 - counts[row], len(texts[row]) - 1) for row in rows]  # of the targets
            targets = [texts[row][place + 1] for row, places in zip(rows, last, strict=True) for place in places]
            x_ND = torch.cat([x_BTD[b, places.start : places.stop] for b, places in enumerate(last)])
            values_N = _log_probabilities(model, x_ND, torch.tensor(targets, device=device))
            ends = np.cumsum([len(places) for places in last])[:-1]
            sums_N[rows] = [part.sum() for part in np.split(values_N.double().cpu().numpy(), ends)]
    return sums_N / np.maximum(counts, 1)


def _log_probabilities(model: Decoder, x_ND: Tensor, targets_N: Tensor) -> Tensor:
    """Of the targets, float32 (N,); the logits of a few at a time are in memory."""
    parts = zip(x_ND.split(LOGITS_AT_ONCE), targets_N.split(LOGITS_AT_ONCE), strict=True)
    return torch.cat([-F.cross_entropy(model.lm_head(x_MD).float(), of_M, reduction="none") for x_MD, of_M in parts])


def _text(tokenizer: Tokenizer, ids: Sequence[int], stop: Sequence[str] = ()) -> str:
    """The text of ids up to a stop string, without special tokens."""
    special = set(tokenizer.special.values())
    stream = TextStream(tokenizer.decode_bytes, stop)
    return "".join([stream.push(token) for token in ids if token not in special]) + stream.finish()
