"""POST /v1/chat/completions: answers to a conversation, as OpenAI's API has it.

In: messages of text, and how the answer is to be written. Out: the answers, whole or as server-sent events: the first
event of a choice has its role, the last one its finish_reason. Without a system message the model gets the one that
it was tuned with, if any. A conversation that is longer than the model reads is refused (context_length_exceeded)
unless the request has "truncation": "auto", which leaves out its oldest questions, as `gristmill chat` does.
"""

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from model.data.chat import Message, with_system
from model.data.chat_fitting import fitted
from pipeline.serving.api.calls import Call, event
from pipeline.serving.api.errors import shown, wrong
from pipeline.serving.api.fields import Fields, checked_text
from pipeline.serving.api.limits import Limits
from pipeline.serving.api.loaded import CHAT, TextModel
from pipeline.serving.api.logprobs import logprobs_of
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

ROLES = {"developer": "system"}  # by OpenAI's name
TRUNCATIONS = ("disabled", "auto")
BETWEEN = "\n\n"  # messages of the same role, which most templates have one of at a time
UNSUPPORTED = {"tools": ([],), "functions": ([],), "audio": (), "modalities": (["text"],), "web_search_options": ()}
ADVICE = {"tools": 'leave it out, or send "tool_choice": "none"'}


async def chat(call: Call, fields: Fields) -> None:
    async with call.serving(fields, CHAT) as serving:
        model, name = serving.model, serving.name
        assert isinstance(model, TextModel)
        sent = sent_as(fields)
        job = await asyncio.to_thread(job_of, fields, model, call.limits)
        call.noted.texts["messages"] = fields.get("messages")
        about = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "created": int(time.time()),
            "model": name,
            "system_fingerprint": serving.found.version,
        }
        written = Written(model, [job], call.noted, call.limits.request_seconds)
        if sent.is_streamed:
            await call.stream(_events(about, written, job, sent, model))
            return
        choices = await written.choices()
        call.noted.texts["answers"] = [one.text for one in choices]
        answers = [_answer(number, one, job, model) for number, one in enumerate(choices)]
        await call.reply({**about, "object": "chat.completion", "choices": answers, "usage": written.usage})


def job_of(fields: Fields, model: TextModel, limits: Limits) -> Job:
    """What the engine is to write. Raises ApiError for a field that is wrong or not supported."""
    if fields.get("tool_choice") != "none":
        fields.refuse_unsupported(UNSUPPORTED, ADVICE)
    fields.refuse_unsupported({key: values for key, values in UNSUPPORTED.items() if key != "tools"}, ADVICE)
    n = fields.whole("n", 1, limits.max_choices) or 1
    n_logprobs = fields.whole("top_logprobs", 0, MOST_LOGPROBS)
    if n_logprobs is not None and not fields.flag("logprobs"):
        raise wrong("top_logprobs is only allowed with logprobs = true", "top_logprobs")
    prompt = _prompt(fields, model, limits)
    asked = n_new_tokens(fields, ("max_completion_tokens", "max_tokens"), len(prompt), model, limits)
    n_new = asked or min(model.context - len(prompt), limits.max_new_tokens)
    return Job(
        prompt=prompt,
        cfg=sample_config(fields, n_new, model.template.stops),
        n=n,
        constraint=constraint_of(fields, model, limits),
        n_logprobs=(n_logprobs or 0) if fields.flag("logprobs") else None,
    )


def _prompt(fields: Fields, model: TextModel, limits: Limits) -> list[int]:
    messages = with_system(messages_of(fields), model.system)
    truncation = fields.one_of("truncation", TRUNCATIONS)
    try:
        if truncation == "auto":
            asked = [fields.whole(name, 1, 2**31) for name in ("max_completion_tokens", "max_tokens")]
            n_new = min(next((one for one in asked if one), limits.max_new_tokens), model.context // 2)
            return fitted(model.template, messages, model.context - n_new, is_open=True).rendered.ids.tolist()
        return model.template.prompt(messages)
    except ValueError as error:
        raise wrong(f"messages: {error}", "messages") from error


def messages_of(fields: Fields) -> list[Message]:
    """The messages, those of the same role that follow each other as one."""
    given = fields.required("messages", "a list of messages")
    if not isinstance(given, list) or not given:
        fields.refuse("messages", "a list of one or more messages")
    read = [_message(one, f"messages[{place}]") for place, one in enumerate(given)]
    merged = []
    for role, group in itertools.groupby(read, key=lambda message: message.role):
        messages = list(group)
        if role == "tool":
            merged += messages
        else:
            merged.append(Message(role, BETWEEN.join(message.content for message in messages)))
    return merged


def _message(given: Any, place: str) -> Message:
    if not isinstance(given, dict):
        raise wrong(f"{place} is {shown(given)}, expected an object with role and content", place)
    fields = Fields(given, place)
    role = fields.required("role", "system, user, assistant or tool")
    if not isinstance(role, str):
        fields.refuse("role", "system, user, assistant or tool")
    fields.refuse_unsupported({"tool_calls": ([],), "function_call": (), "audio": ()}, {})
    content = given.get("content")
    if isinstance(content, list):
        content = "".join(_part(one, f"{place}.content[{number}]") for number, one in enumerate(content))
    if not isinstance(content, str):
        fields.refuse("content", "a text, or a list of parts of type text")
    return Message(ROLES.get(role, role), checked_text(content, f"{place}.content"))


def _part(given: Any, place: str) -> str:
    if not isinstance(given, dict) or given.get("type") != "text" or not isinstance(given.get("text"), str):
        raise wrong(f'{place} is {shown(given)}, expected {{"type": "text", "text": ...}}', place)
    return given["text"]


def _answer(number: int, choice: Choice, job: Job, model: TextModel) -> dict[str, Any]:
    return {
        "index": number,
        "message": {"role": "assistant", "content": choice.text, "refusal": None},
        "logprobs": logprobs_of(choice.tokens, job, model),
        "finish_reason": choice.finish,
    }


async def _events(
    about: dict[str, Any], written: Written, job: Job, sent: Sent, model: TextModel
) -> AsyncIterator[bytes]:
    about = {**about, "object": "chat.completion.chunk"}
    usage = {"usage": None} if sent.includes_usage else {}

    def chunk(number: int, delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> bytes:
        choice = {"index": number, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return event({**about, "choices": [choice], **usage})

    begun: set[int] = set()
    async for number, delta in written.deltas():
        if number not in begun:
            begun.add(number)
            yield chunk(number, {"role": "assistant", "content": ""})
        if delta.text or (delta.tokens and job.n_logprobs is not None):
            yield chunk(number, {"content": delta.text}, logprobs_of(delta.tokens, job, model))
        if delta.finish is not None:
            yield chunk(number, {}, finish=delta.finish)
    if sent.includes_usage:
        yield event({**about, "choices": [], "usage": written.usage})
