"""POST /v1/embeddings: vectors of texts, as OpenAI's API has it.

In: a text or several, or lists of token ids. Out: a vector of length 1 for each, as numbers or as base64 of float32
(little-endian), which OpenAI's client asks for. With `dimensions` the first ones are kept and scaled to length 1; a
model that was not trained for that loses quality. A text that is longer than the model reads is refused unless
the request has "truncate": true.
"""

import asyncio
import base64
from typing import Any

import numpy as np

from pipeline.serving.api.calls import Call
from pipeline.serving.api.completions import is_ids
from pipeline.serving.api.errors import wrong
from pipeline.serving.api.fields import Fields, checked_text
from pipeline.serving.api.limits import Limits
from pipeline.serving.api.loaded import EMBEDDINGS, EmbeddingModel, faults_told

FORMATS = ("float", "base64")


async def embeddings(call: Call, fields: Fields) -> None:
    async with call.serving(fields, EMBEDDINGS) as serving:
        model, name = serving.model, serving.name
        assert isinstance(model, EmbeddingModel)
        form = fields.one_of("encoding_format", FORMATS)
        width = fields.whole("dimensions", 1, model.width)
        ids = await asyncio.to_thread(ids_of, fields, model, call.limits)
        parts = []
        with model.worker.place(), faults_told("input"):
            for first in range(0, len(ids), model.AT_ONCE):
                parts.append(await model.worker.run(model.embed, ids[first : first + model.AT_ONCE]))
                call.check_time()
        vectors_ND = np.concatenate(parts)
        if width is not None:
            vectors_ND = vectors_ND[:, :width]
            vectors_ND = vectors_ND / np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-12)
        n_tokens = sum(map(len, ids))
        call.noted.used({"prompt_tokens": n_tokens})
        content = await asyncio.to_thread(_content, vectors_ND, form)
        usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
        await call.reply({"object": "list", "data": content, "model": name, "usage": usage})


def ids_of(fields: Fields, model: EmbeddingModel, limits: Limits) -> list[list[int]]:
    """Ids of each text. Raises ApiError for no text, too many of them, and one that is empty or too long."""
    given = fields.required("input", "a text or a list of texts")
    given = [given] if isinstance(given, str) or (isinstance(given, list) and given and is_ids(given)) else given
    expected = "a text, a list of texts, a list of token ids, or a list of such lists"
    if not isinstance(given, list) or not given:
        fields.refuse("input", expected)
    if len(given) > limits.max_texts:
        raise wrong(f"input has {len(given):,} texts, at most {limits.max_texts:,} are allowed", "input")
    if not all(one and (isinstance(one, str) or (isinstance(one, list) and is_ids(one))) for one in given):
        fields.refuse("input", f"{expected}, none of them empty")
    texts = [checked_text(one, "input") for one in given if isinstance(one, str)]
    encoded = iter(model.encode(texts))
    found = [next(encoded) if isinstance(one, str) else one for one in given]
    n_ids = model.tokenizer.vocab_size
    for place, ids in enumerate(found):
        if outside := [one for one in ids if not 0 <= one < n_ids]:
            raise wrong(f"input has the token id {outside[0]}, the model has those from 0 to {n_ids - 1}", "input")
        if len(ids) > model.context and not fields.flag("truncate"):
            raise wrong(
                f"text {place} has {len(ids):,} tokens, the model reads at most {model.context:,}; cut it, or send"
                ' "truncate": true to have its end left out',
                "input",
                "context_length_exceeded",
            )
    return [model.cut(ids) for ids in found]


def _content(vectors_ND: np.ndarray, form: str) -> list[dict[str, Any]]:
    rows: list[Any] = vectors_ND.tolist()
    if form == "base64":
        rows = [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in vectors_ND]
    return [{"object": "embedding", "index": place, "embedding": row} for place, row in enumerate(rows)]
