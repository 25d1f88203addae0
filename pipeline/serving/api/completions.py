"""POST /v1/completions: texts that continue prompts, as OpenAI's older API has it.

In: a prompt or several, each a text or a list of token ids, and how the texts are to be written. Out: the texts,
whole or as server-sent events. A prompt is read as `gristmill generate` reads it: without a chat template.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from pipeline.serving.api.calls import Call, event
from pipeline.serving.api.errors import wrong
from pipeline.serving.api.fields import Fields, checked_text
from pipeline.serving.api.limits import Limits
from pipeline.serving.api.loaded import COMPLETIONS, TextModel
from pipeline.serving.api.logprobs import completion_logprobs
from pipeline.serving.api.text_settings import (
    MOST_LOGPROBS,
    Sent,
    constraint_of,
    n_new_tokens,
    sample_config,
    sent_as,
)
from pipeline.serving.api.writing import Choice, Written
from pipeline.serving.engine import Job

DEFAULT_TOKENS = 16  # that of OpenAI
UNSUPPORTED = {"suffix": ("",)}
ADVICE = {"suffix": "a model of this server continues a text, it does not fill a gap"}


async def completions(call: Call, fields: Fields) -> None:
    async with call.serving(fields, COMPLETIONS) as serving:
        model, name = serving.model, serving.name
        assert isinstance(model, TextModel)
        sent, echoes = sent_as(fields), fields.flag("echo")
        prompts, jobs = await asyncio.to_thread(jobs_of, fields, model, call.limits)
        call.noted.texts["prompts"] = prompts
        about = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": name,
            "system_fingerprint": serving.found.version,
        }
        echoed = [prompt if echoes else "" for prompt, job in zip(prompts, jobs, strict=True) for _ in range(job.n)]
        written = Written(model, jobs, call.noted, call.limits.request_seconds)
        if sent.is_streamed:
            await call.stream(_events(about, written, jobs[0], sent, model, echoed))
            return
        choices = await written.choices()
        call.noted.texts["answers"] = [one.text for one in choices]
        texts = [_choice(number, one, jobs[0], model, echoed[number]) for number, one in enumerate(choices)]
        await call.reply({**about, "choices": texts, "usage": written.usage})


def jobs_of(fields: Fields, model: TextModel, limits: Limits) -> tuple[list[str], list[Job]]:
    """The prompts as texts, and what the engine is to write for each."""
    fields.refuse_unsupported(UNSUPPORTED, ADVICE)
    prompts = _prompts(fields)
    n = fields.whole("n", 1, limits.max_choices) or 1
    best_of = fields.whole("best_of", 1, limits.max_choices)
    if best_of not in (None, n):
        raise wrong(f"best_of is {best_of} and n is {n}; this server does not choose among texts", "best_of")
    if n * len(prompts) > limits.max_choices:
        raise wrong(
            f"{len(prompts)} prompts with n = {n} ask for {n * len(prompts)} texts, at most {limits.max_choices} are"
            " allowed",
            "prompt",
        )
    n_logprobs = fields.whole("logprobs", 0, MOST_LOGPROBS)
    if n_logprobs is not None and fields.flag("echo"):
        raise wrong("logprobs of an echoed prompt are not supported; leave out echo", "logprobs")
    constraint = constraint_of(fields, model, limits)
    jobs = []
    for prompt in prompts:
        ids = _ids(prompt, model)
        n_new = n_new_tokens(fields, ("max_tokens",), len(ids), model, limits)
        n_new = n_new or min(DEFAULT_TOKENS, model.context - len(ids))
        cfg = sample_config(fields, n_new, model.tokenizer.stops)
        jobs.append(Job(prompt=ids, cfg=cfg, n=n, constraint=constraint, n_logprobs=n_logprobs))
    return [one if isinstance(one, str) else model.tokenizer.decode(one) for one in prompts], jobs


def _prompts(fields: Fields) -> list[str | list[int]]:
    given = fields.get("prompt")
    if given is None:
        return [""]  # a document from its beginning
    if isinstance(given, str):
        return [checked_text(given, "prompt")]
    expected = "a text, a list of texts, a list of token ids, or a list of such lists"
    if not isinstance(given, list) or not given:
        fields.refuse("prompt", expected)
    if is_ids(given):
        given = [given]
    if not all(isinstance(one, str) or (isinstance(one, list) and one and is_ids(one)) for one in given):
        fields.refuse("prompt", expected)
    return [checked_text(one, "prompt") if isinstance(one, str) else one for one in given]


def is_ids(values: Sequence[Any]) -> bool:
    """Whether these are ids of tokens."""
    return all(isinstance(one, int) and not isinstance(one, bool) for one in values)


def _ids(prompt: str | list[int], model: TextModel) -> list[int]:
    tokenizer = model.tokenizer
    if isinstance(prompt, str):
        return [*tokenizer.opening, *tokenizer.encode(prompt)] or [tokenizer.end_of_text]
    if outside := [one for one in prompt if not 0 <= one < tokenizer.vocab_size]:
        raise wrong(
            f"prompt has the token id {outside[0]}, the model has those from 0 to {tokenizer.vocab_size - 1}",
            "prompt",
        )
    return prompt


def _choice(number: int, choice: Choice, job: Job, model: TextModel, echoed: str) -> dict[str, Any]:
    logprobs = completion_logprobs(choice.tokens, job, model, 0)
    return {"index": number, "text": echoed + choice.text, "logprobs": logprobs, "finish_reason": choice.finish}


async def _events(
    about: dict[str, Any], written: Written, job: Job, sent: Sent, model: TextModel, echoed: list[str]
) -> AsyncIterator[bytes]:
    usage = {"usage": None} if sent.includes_usage else {}
    offsets = [0] * len(echoed)
    for number, text in enumerate(echoed):
        if text:
            choice = {"index": number, "text": text, "logprobs": None, "finish_reason": None}
            yield event({**about, "choices": [choice], **usage})
    async for number, delta in written.deltas():
        if delta.text or delta.finish is not None or (delta.tokens and job.n_logprobs is not None):
            logprobs = completion_logprobs(delta.tokens, job, model, offsets[number])
            offsets[number] += sum(map(len, logprobs["tokens"])) if logprobs else 0
            choice = {"index": number, "text": delta.text, "logprobs": logprobs, "finish_reason": delta.finish}
            yield event({**about, "choices": [choice], **usage})
    if sent.includes_usage:
        yield event({**about, "choices": [], "usage": written.usage})
