"""Turns the parts of a row into a preference: a conversation, and two ways to go on with it.

In: the values of a row by the names of its parts. Out: the messages of the prompt, and those of the chosen and of the
rejected continuation; or a drop reason. Forms of rows:

    prompt, chosen, rejected               texts, or lists of messages; the answers may repeat the prompt, and a
                                           prompt may name its speakers as below
    instruction, input, chosen, rejected   an instruction, perhaps with an input, and texts as answers
    chosen, rejected                       two whole conversations with a common beginning: lists of messages, or
                                           texts with "Human:" and "Assistant:" at the beginnings of paragraphs

Texts of answers lose their outer white space. A common beginning ends before the first message that differs. Each
continuation has an answer of the assistant as its last message.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from model.data.chat import ChatTemplate, Message
from model.data.pairs import EncodedPairs, encoded_pairs
from pipeline.corpus.examples.conversations import (
    Refused,
    checked_messages,
    conversation_of,
    is_list_of_messages,
    listed_messages,
    question_of,
    rendered_by_name,
    text_of,
)

PARTS = ("prompt", "chosen", "rejected", "instruction", "input", "system")
OPTIONAL = ("prompt", "instruction", "input", "system")
SHOWN_IDS = 5  # in a warning
SPEAKER = re.compile(r"(?:^\s*|\n\n)(Human|Assistant):[ \t]*")
ROLE_OF = {"Human": "user", "Assistant": "assistant"}

log = logging.getLogger(__name__)


class Preferred(NamedTuple):
    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]


def preference_in(parts: Mapping[str, Any]) -> Preferred:
    """The preference of a row. Raises Refused if there is none."""
    for side in ("chosen", "rejected"):
        if parts[side] is None or parts[side] in ("", []):
            raise Refused(f"no_{side}")
    prompt = _prompt(parts)
    whole = [_whole(prompt, parts[side]) for side in ("chosen", "rejected")]
    if (system := parts["system"]) not in (None, "") and whole[0][:1] and whole[0][0].role != "system":
        whole = [[Message("system", text_of(system, "system")), *one] for one in whole]
    chosen, rejected = (checked_messages(one) for one in whole)
    if chosen == rejected:
        raise Refused("equal_answers")
    n_common = next(
        (place for place, both in enumerate(zip(chosen, rejected, strict=False)) if both[0] != both[1]),
        min(len(chosen), len(rejected)),
    )
    if n_common == 0 or n_common in (len(chosen), len(rejected)):
        raise Refused("no_common_prompt" if n_common == 0 else "one_answer_continues_the_other")
    if chosen[n_common].role != "assistant" or rejected[n_common].role != "assistant":
        raise Refused("different_questions")
    return Preferred(chosen[:n_common], chosen[n_common:], rejected[n_common:])


def _prompt(parts: Mapping[str, Any]) -> list[Message]:
    """The messages before the answers; none where the answers are whole conversations."""
    if parts["prompt"] not in (None, "", []):
        if is_list_of_messages(parts["prompt"]):
            return listed_messages(parts["prompt"])
        text = text_of(parts["prompt"], "user")
        return _asked(text) if text.lstrip().startswith("Human:") else [Message("user", text)]
    if parts["instruction"] is not None:
        return [question_of(parts["instruction"], parts["input"])]
    return []


def _whole(prompt: Sequence[Message], answer: Any) -> list[Message]:
    """The conversation with one of the answers."""
    if is_list_of_messages(answer):
        messages = listed_messages(answer)
    elif prompt:
        messages = [Message("assistant", text_of(answer, "assistant").strip())]
    else:
        messages = _spoken(text_of(answer, "assistant"))
    repeats = messages[: len(prompt)] == list(prompt)
    return messages if repeats else [*prompt, *messages]


def _asked(text: str) -> list[Message]:
    """The messages of a prompt in which every speaker is named; at its end the answer may be opened."""
    messages = _spoken(text)
    is_open = messages[-1].role == "assistant" and not messages[-1].content
    return messages[:-1] if is_open else messages


def _spoken(text: str) -> list[Message]:
    """The messages of a text in which every speaker is named."""
    before, *parts = SPEAKER.split(text)
    if before.strip() or not parts:
        raise Refused("no_prompt")
    return [Message(ROLE_OF[name], said.strip()) for name, said in zip(parts[::2], parts[1::2], strict=True)]


def encoded_preferences(
    template: ChatTemplate,
    system: str,
    ids: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    *,
    max_tokens: int,
    truncation_side: str,
    shares_beginning: bool,
) -> EncodedPairs:
    """The pairs of rows of examples, with the system message `system` where they have none. Pairs of which no
    difference is read are left out and logged. Raises ValueError if none is left, or the template refuses one."""
    prompts = [conversation_of(row["prompt"], system) for row in rows]
    sides = [
        rendered_by_name(
            template, ids, [[*before, *conversation_of(row[side])] for before, row in zip(prompts, rows, strict=True)]
        )
        for side in ("chosen", "rejected")
    ]
    found = encoded_pairs(
        ids,
        template.rendered(prompts, is_open=True),
        *sides,
        max_tokens=max_tokens,
        truncation_side=truncation_side,
        shares_beginning=shares_beginning,
    )
    if found.left_out:
        log.warning(
            "of %s of %s pairs no difference of their answers is among the %s tokens that are read; they are not"
            " used: %s",
            *(f"{len(found.left_out):,}", f"{len(ids):,}", f"{max_tokens:,}"),
            ", ".join(found.left_out[:SHOWN_IDS]) + (" ..." if len(found.left_out) > SHOWN_IDS else ""),
        )
    if not found.ids:
        raise ValueError(
            f"of none of {len(ids):,} pairs a difference of their answers is read: at most {max_tokens:,} tokens of"
            ' each conversation are (max_tokens); raise it, or set truncation_side to "left"'
        )
    return found
