"""Turns the parts of a row into a conversation: from messages, or from an instruction or prompt with its answer.

In: the values of a row by the names of its parts. Out: the messages of a system, user, assistant or tool, ending with
the last answer; or a drop reason. Forms of rows, found from the parts that a row has, or declared:

    messages      [{"role": "user", "content": "..."}, ...], as OpenAI writes them; calls of tools become text
    sharegpt      [{"from": "human", "value": "..."}, ...]
    alpaca        an instruction, perhaps with an input, and the output
    prompt        a prompt and its completion, as texts or as messages

Which messages may follow each other is checked in model/data/chat.py; the reasons here name what is wrong in data.
"""

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from model.data.chat import ANSWERS, ChatTemplate, Conversation, Message, Rendered, with_system
from model.data.examples import valid
from pipeline.corpus.examples.paths import shown
from pipeline.corpus.examples.rows import Row

FORMS = {  # name -> parts that a row of this form has
    "messages": ("messages",),
    "sharegpt": ("conversations",),
    "prompt": ("prompt", "completion"),
    "alpaca": ("instruction", "output"),
}
PARTS = ("messages", "conversations", "prompt", "completion", "instruction", "input", "output", "system")
ROLE_KEYS, TEXT_KEYS = ("role", "from"), ("content", "value")
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatbot", "chatgpt", "function_call"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "tool_response"), "tool"),
}
TOOL_CALL = "<tool_call>\n{}\n</tool_call>"
MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string(), False), pa.field("content", pa.large_string(), False)]))


class Refused(ValueError):
    """A row is no conversation; `reason` is its drop reason, `detail` what is wrong."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail

    def row(self, parts: Iterable[Any]) -> Row:
        """The dropped row, with the first part that there is as its text."""
        given = next((part for part in parts if part is not None), "")
        return Row(str(given), reason=self.reason, detail=self.detail)


def form_of(parts: Mapping[str, Any]) -> str | None:
    """The first form whose parts the row has; None if there is none."""
    return next((form for form, names in FORMS.items() if all(parts[name] is not None for name in names)), None)


def conversation_in(parts: Mapping[str, Any], form: str | None = None) -> Conversation:
    """The conversation of a row. `form` None = the one that the row has. Raises Refused if there is none."""
    found = form or form_of(parts)
    if found is None:
        raise Refused("no_answer" if parts["instruction"] or parts["prompt"] else "no_messages")
    messages = _messages(parts, found)
    if (system := parts["system"]) not in (None, "") and not (messages and messages[0].role == "system"):
        messages = [Message("system", text_of(system, "system")), *messages]
    return checked_messages(messages)


def _messages(parts: Mapping[str, Any], form: str) -> list[Message]:
    if form in ("messages", "sharegpt"):
        return listed_messages(parts[FORMS[form][0]])
    if form == "alpaca":
        question = question_of(parts["instruction"], parts["input"])
        return [question, Message("assistant", text_of(parts["output"], "assistant"))]
    prompt, completion = parts["prompt"], parts["completion"]
    before = listed_messages(prompt) if is_list_of_messages(prompt) else [Message("user", text_of(prompt, "user"))]
    answer = (
        listed_messages(completion)
        if is_list_of_messages(completion)
        else [Message("assistant", text_of(completion, "assistant"))]
    )
    return [*before, *answer]


def question_of(instruction: Any, given: Any) -> Message:
    """The message of a user that holds an instruction, and what it is about."""
    texts = (text_of(instruction, "user"), text_of(given, "user"))
    return Message("user", "\n\n".join(text for text in texts if text.strip()))


def is_list_of_messages(value: Any) -> bool:
    """Whether it is a list of messages; a table has it as JSON."""
    known = _json(value) if isinstance(value, str) else value
    return isinstance(known, list) and all(isinstance(one, dict) for one in known)


def _json(text: str) -> Any:
    if not text.lstrip().startswith(("[", "{")):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def listed_messages(value: Any) -> list[Message]:
    messages = _json(value) if isinstance(value, str) else value
    if not isinstance(messages, list) or not all(isinstance(one, dict) for one in messages):
        raise Refused("not_messages", "" if value is None else shown(value))
    return [_message(one) for one in messages]


def _message(one: Mapping[str, Any]) -> Message:
    name = next((one[key] for key in ROLE_KEYS if one.get(key) is not None), None)
    role = ROLES.get(str(name).strip().lower())
    if role is None:
        raise Refused("unknown_role", shown(name))
    content = next((one[key] for key in TEXT_KEYS if one.get(key) is not None), None)
    calls = [TOOL_CALL.format(_call(call)) for call in one.get("tool_calls") or ()]
    text = text_of(content, role)
    return Message(role, "\n".join([*([text] if text or not calls else []), *calls]))


def text_of(content: Any, role: str) -> str:
    """The text of a message. A list of parts must be of texts alone."""
    if content is None:
        return ""
    if isinstance(content, list):
        given = [one.get("text") if isinstance(one, dict) else one for one in content]
        parts = [part for part in given if isinstance(part, str)]
        if len(parts) < len(given):
            kinds = {str(one.get("type")) for one in content if isinstance(one, dict) and "text" not in one}
            raise Refused(f"{role}_not_text", ", ".join(sorted(kinds)) or shown(content))
        return valid("".join(parts))
    if isinstance(content, dict | bool):
        raise Refused(f"{role}_not_text", shown(content))
    return valid(str(content))


def _call(call: Any) -> str:
    """Name and arguments of the call of a tool, in JSON."""
    function = call.get("function", call) if isinstance(call, dict) else call
    if not isinstance(function, dict):
        return json.dumps(function, ensure_ascii=False)
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        known = _json(arguments)
        arguments = arguments if known is None else known
    return json.dumps({"name": function.get("name"), "arguments": arguments}, ensure_ascii=False)


def checked_messages(messages: list[Message]) -> Conversation:
    """The messages up to the last answer. Raises Refused for those that are no conversation."""
    if not messages:
        raise Refused("no_messages")
    last = max((place for place, one in enumerate(messages) if one.role == "assistant"), default=None)
    if last is None:
        raise Refused("no_answer")
    messages = messages[: last + 1]
    for place, one in enumerate(messages):
        if one.role == "system" and place:
            raise Refused("system_not_first")
        if one.role in ("user", "assistant") and not one.content.strip():
            name = {"user": "question", "assistant": "answer"}[one.role]
            raise Refused(f"empty_{name}" if not one.content else f"{name}_only_white_space")
    turns = [one.role for one in messages if one.role != "system"]
    if turns[0] != "user":
        raise Refused(f"starts_with_{turns[0]}")
    for before, after in itertools.pairwise(turns):
        if before == after and before != "tool":
            raise Refused(f"two_of_{before}_in_a_row")
    return tuple(messages)


def conversation_of(messages: Sequence[Mapping[str, str]], system: str = "") -> Conversation:
    """A conversation from a row of examples, with the system message `system` if it has none."""
    return tuple(with_system([Message(one["role"], one["content"]) for one in messages], system))


def rendered_by_name(
    template: ChatTemplate,
    ids: Sequence[str],
    conversations: Sequence[Conversation],
    trained: Sequence[str] | None = ANSWERS,
) -> list[Rendered]:
    """The conversations of examples. Raises ValueError for one that the template refuses, with its id in `ids`."""
    try:
        return template.rendered(conversations, trained=trained)
    except ValueError:
        for name, one in zip(ids, conversations, strict=True):
            try:
                template.rendered([one], trained=trained)
            except ValueError as error:
                raise ValueError(f"example {name}: {error}; remove the row, or choose another template") from error
        raise
