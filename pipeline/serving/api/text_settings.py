"""How a text is to be written, by the fields of a request.

In: the fields that OpenAI's clients send for chat and completions alike, and three of our own (top_k, min_p,
repetition_penalty, as other servers name them). Out: a SampleConfig, a constraint, and how the answer is sent.
Without a field the default is that of `gristmill chat`; without a seed each request draws anew. A field that would
change the text and that is not supported is refused by its name.
"""

import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from model.generation.sample_config import SampleConfig
from pipeline.serving.api.errors import wrong
from pipeline.serving.api.fields import Fields
from pipeline.serving.api.limits import Limits
from pipeline.serving.api.loaded import TextModel

if TYPE_CHECKING:
    from model.generation.constraints import Constraint

MOST_STOPS, MOST_LOGPROBS = 16, 20
LEAST_TOP_P = 1e-6  # what 0, which OpenAI allows, means
SEEDS = 2**63
UNSUPPORTED = {  # fields of both routes that would change the text -> values with which they do not
    "frequency_penalty": (0, 0.0),
    "presence_penalty": (0, 0.0),
    "logit_bias": ({},),
}
ADVICE = {
    "frequency_penalty": "use repetition_penalty (above 1: less repetition)",
    "presence_penalty": "use repetition_penalty (above 1: less repetition)",
}
FORMATS = ("text", "json_object", "json_schema")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sent:
    """How the answer is sent."""

    is_streamed: bool
    includes_usage: bool  # in a last chunk of a stream


def sent_as(fields: Fields) -> Sent:
    options = fields.object("stream_options")
    is_streamed = fields.flag("stream")
    if options.values and not is_streamed:
        raise wrong("stream_options is only allowed with stream = true", "stream_options")
    return Sent(is_streamed=is_streamed, includes_usage=options.flag("include_usage"))


def sample_config(fields: Fields, n_new: int, stops: Iterable[int]) -> SampleConfig:
    """`n_new`: longest new text in tokens; `stops`: the tokens that end it."""
    fields.refuse_unsupported(UNSUPPORTED, ADVICE)
    default = SampleConfig()
    temperature = fields.number("temperature", 0, 2)
    top_p, min_p = fields.number("top_p", 0, 1), fields.number("min_p", 0, 1)
    top_k = fields.whole("top_k", -1, 2**31)
    penalty = fields.number("repetition_penalty", 0.01, 10)
    seed = fields.whole("seed", -SEEDS, SEEDS)
    stop = fields.texts("stop", MOST_STOPS)
    if "" in stop:
        raise wrong("stop contains an empty text; leave it out", "stop")
    return SampleConfig(
        max_new_tokens=n_new,
        temperature=default.temperature if temperature is None else temperature,
        top_k=default.top_k if top_k is None else top_k if top_k > 0 else None,
        top_p=None if top_p in (None, 1) else max(top_p, LEAST_TOP_P),
        min_p=min_p,
        repetition_penalty=penalty,
        stop=tuple(dict.fromkeys(stop)),
        stop_ids=tuple(sorted(stops)),
        seed=secrets.randbits(62) if seed is None else seed % SEEDS,
    )


def n_new_tokens(fields: Fields, names: Iterable[str], n_prompt: int, model: TextModel, limits: Limits) -> int | None:
    """Longest new text: what the request asks for, at most what the server allows and what the context has room for.

    None if the request does not say. Raises ApiError for a prompt that leaves no room for a token.
    """
    asked = [value for name in names if (value := fields.whole(name, 1, 2**31)) is not None]
    room = model.context - n_prompt
    if room < 1:
        raise wrong(
            f"the model reads at most {model.context:,} tokens, and the request has {n_prompt:,}, which leaves no"
            " room for an answer; shorten it",
            "messages" if fields.get("messages") is not None else "prompt",
            "context_length_exceeded",
        )
    return min(asked[0], room, limits.max_new_tokens) if asked else None


def constraint_of(fields: Fields, model: TextModel, limits: Limits) -> "Constraint | None":
    """What the text may be by response_format; None = anything. Compiling a schema takes a while."""
    asked = fields.object("response_format")
    kind = asked.one_of("type", FORMATS)
    if kind == "text":
        return None
    schema: Any = None
    if kind == "json_schema":
        schema = asked.object("json_schema").required("schema", "a JSON Schema")
        if (size := len(json.dumps(schema))) > limits.max_schema_bytes:
            raise wrong(
                f"the schema has {size:,} bytes, at most {limits.max_schema_bytes:,} are allowed", "response_format"
            )
    try:
        return model.json_constraint(schema)
    except (ValueError, RecursionError) as error:
        raise wrong(f"response_format: {error}", "response_format") from error
