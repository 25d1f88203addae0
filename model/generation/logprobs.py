"""How likely the model itself found the tokens that were drawn, and which it found likelier.

In: logits (B, V) as the model computed them. Out: a TokenLogprob for each row that asks for it. The distribution is
the model's own, before temperature, penalties, filters and constraints, as OpenAI's API reports it: so a token of a
greedy text, or one that a constraint enforced, may have any probability.

Legend: B rows, V vocab, C likeliest tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    token: int
    logprob: float  # natural logarithm, at most 0
    top: tuple[tuple[int, float], ...] = ()  # the likeliest tokens with theirs, the likeliest first


def token_logprobs(logits_BV: Tensor, ids: Sequence[int], counts: Sequence[int | None]) -> list[TokenLogprob | None]:
    """`counts`: of each row, how many of the likeliest it asks for; None = it asks for nothing."""
    places = [place for place, count in enumerate(counts) if count is not None]
    found: list[TokenLogprob | None] = [None] * len(ids)
    if not places:
        return found
    device = logits_BV.device
    log_BV = logits_BV[torch.tensor(places, device=device)].log_softmax(dim=-1)
    drawn = [ids[place] for place in places]
    own = log_BV.gather(1, torch.tensor(drawn, device=device).unsqueeze(1)).squeeze(1).tolist()
    most = min(max(count or 0 for count in counts), logits_BV.size(-1))
    top_BC, top_ids_BC = log_BV.topk(most, dim=-1)
    for place, token, logprob, *top in zip(places, drawn, own, top_ids_BC.tolist(), top_BC.tolist(), strict=True):
        found[place] = TokenLogprob(token, logprob, tuple(zip(*top, strict=True))[: counts[place]])
    return found
