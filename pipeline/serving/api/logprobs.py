"""Log-probabilities of tokens in OpenAI's two forms: that of chat, and the older one of completions.

In: the tokens of a choice with their logarithms, of the model's own distribution, before temperature and penalties.
Out: JSON. A token that is part of a character has U+FFFD as its text and its bytes beside it.
"""

from collections.abc import Sequence
from typing import Any

from model.generation.logprobs import TokenLogprob
from pipeline.serving.api.loaded import TextModel
from pipeline.serving.engine import Job

LEAST = -9999.0  # in place of -inf, which is no JSON


def logprobs_of(tokens: Sequence[TokenLogprob], job: Job, model: TextModel) -> dict[str, Any] | None:
    """Those of a chat; None if the request did not ask for them."""
    if job.n_logprobs is None:
        return None
    content = [
        {**_one(one.token, one.logprob, model), "top_logprobs": [_one(*pair, model) for pair in one.top]}
        for one in tokens
    ]
    return {"content": content, "refusal": None}


def _one(token: int, logprob: float, model: TextModel) -> dict[str, Any]:
    of_token = model.tokenizer.decode_bytes([token])
    return {"token": _text(of_token), "logprob": max(LEAST, logprob), "bytes": list(of_token)}


def completion_logprobs(
    tokens: Sequence[TokenLogprob], job: Job, model: TextModel, offset: int
) -> dict[str, Any] | None:
    """Those of a completion, whose first token begins `offset` characters behind the start of the text."""
    if job.n_logprobs is None:
        return None
    texts = [_text(model.tokenizer.decode_bytes([one.token])) for one in tokens]
    offsets = []
    for text in texts:
        offsets.append(offset)
        offset += len(text)
    return {
        "tokens": texts,
        "token_logprobs": [max(LEAST, one.logprob) for one in tokens],
        "top_logprobs": [_likeliest(one, model) for one in tokens] if job.n_logprobs else None,
        "text_offset": offsets,
    }


def _likeliest(one: TokenLogprob, model: TextModel) -> dict[str, float]:
    found: dict[str, float] = {}
    for token, logprob in one.top:
        found.setdefault(_text(model.tokenizer.decode_bytes([token])), max(LEAST, logprob))
    return found


def _text(of_token: bytes) -> str:
    return of_token.decode("utf-8", "replace")
