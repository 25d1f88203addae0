"""Continue a text: sample token after token from a decoder.

In: a prompt's ids. Out: new ids, one list a sample. Steps: logits of the last position; temperature; keep the k
likeliest; keep the smallest set that holds probability p (arXiv:1904.09751); draw. With a cache each token costs
one position; without it the whole context, with the same result.

When the context is full, both go on from its newest half: cached keys carry the positions they were made with, and
so cannot slide.

Legend: B samples, T position, V vocab.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.decoder import Decoder


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    max_new_tokens: int = 100
    temperature: float = 0.8  # 0 = always the likeliest token
    top_k: int | None = None  # None = all tokens
    top_p: float | None = 0.95  # above 0, up to 1; None = all tokens
    stop_id: int | None = None  # ends a sample and is not part of it
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature} must not be negative")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1, or None for all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must lie above 0 and up to 1, or be None for all tokens")


@torch.inference_mode()
def generate(
    model: Decoder, prompt: Sequence[int], cfg: SampleConfig, *, n_samples: int = 1, use_cache: bool = True
) -> list[list[int]]:
    """`n_samples` continuations of `prompt`, without the prompt. Raises ValueError when the prompt is empty."""
    if not prompt:
        raise ValueError("the prompt holds no token; begin with the end-of-text id to start from nothing")
    device = model.model.embed_tokens.weight.device
    generator = torch.Generator(device=device).manual_seed(cfg.seed)
    max_seq_len = model.cfg.max_seq_len
    context_BT = torch.tensor([list(prompt)[-max_seq_len:]] * n_samples, device=device)
    cache = model.new_cache(n_samples) if use_cache else None
    samples: list[list[int]] = [[] for _ in range(n_samples)]
    is_done = [False] * n_samples
    for _ in range(cfg.max_new_tokens):
        if context_BT.size(1) > max_seq_len:
            context_BT = context_BT[:, -max(1, max_seq_len // 2) :]
            if cache is not None:
                cache.clear()
        x_BTD = model.trunk(context_BT[:, cache.position if cache is not None else 0 :], cache=cache)
        ids_B = draw(model.lm_head(x_BTD[:, -1]).float(), cfg, generator)
        context_BT = torch.cat([context_BT, ids_B.unsqueeze(1)], dim=1)
        for row, token in enumerate(ids_B.tolist()):
            is_done[row] |= token == cfg.stop_id
            if not is_done[row]:
                samples[row].append(token)
        if all(is_done):
            break
    return samples


def draw(logits_BV: Tensor, cfg: SampleConfig, generator: torch.Generator) -> Tensor:
    """One id a row, int64."""
    if cfg.temperature == 0:
        return logits_BV.argmax(dim=-1)
    return torch.multinomial(probabilities(logits_BV, cfg), 1, generator=generator).squeeze(1)


def probabilities(logits_BV: Tensor, cfg: SampleConfig) -> Tensor:
    """What `draw` draws from, for a temperature above 0: rows sum to 1, tokens that were cut have 0."""
    sorted_BV, order_BV = (logits_BV / cfg.temperature).sort(dim=-1, descending=True)
    if cfg.top_k is not None:
        sorted_BV[:, cfg.top_k :] = -torch.inf
    sorted_BV = sorted_BV.softmax(dim=-1)
    if cfg.top_p is not None:
        before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV  # probability of the likelier tokens
        sorted_BV = sorted_BV.masked_fill(before_BV >= cfg.top_p, 0.0)
        sorted_BV = sorted_BV / sorted_BV.sum(dim=-1, keepdim=True)
    return torch.zeros_like(sorted_BV).scatter(-1, order_BV, sorted_BV)
