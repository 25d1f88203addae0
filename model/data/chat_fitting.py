"""A conversation that is longer than a model can read, or than a row of training may be: what of it is read.

In: a conversation, its template and a number of tokens. Out: the conversation with no more tokens, and what was done
to it. Steps: with side "left" the oldest questions are left out, each with all that followed it; the system message
and the last question stay. If that does not suffice, and always with side "right", an end of the conversation is cut:
of its ids, so that an answer that is trained on has no end; but before an answer is written, of the text of the last
message, on the given side, because the model needs the tokens around it.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from model.data.chat import ANSWERS, ChatTemplate, Conversation, Message
from model.data.chat_pieces import Rendered

Side = Literal["left", "right"]


@dataclass(frozen=True, slots=True)
class Fitted:
    rendered: Rendered
    conversation: Conversation  # the messages that are left
    n_dropped: int = 0  # messages that were left out
    is_cut: bool = False  # whether an end is cut


def fitted(
    template: ChatTemplate,
    conversation: Conversation,
    max_tokens: int,
    *,
    side: Side = "left",
    trained: Sequence[str] | None = ANSWERS,
    is_open: bool = False,
) -> Fitted:
    """The conversation in at most `max_tokens` ids; the other arguments as in `ChatTemplate.rendered`.

    Raises ValueError if `is_open` and the conversation is too long even without the text of its last message.
    """

    def rendered(conversation: Conversation) -> Rendered:
        return template.rendered([conversation], trained=trained, is_open=is_open)[0]

    def is_fit(conversation: Conversation) -> bool:
        return len(rendered(conversation).ids) <= max_tokens

    whole = rendered(conversation)
    if len(whole.ids) <= max_tokens:
        return Fitted(whole, conversation)
    if side == "left" and len(kept := without_oldest(template, conversation, max_tokens, is_open=is_open)) < len(
        conversation
    ):
        rest = fitted(template, kept, max_tokens, side=side, trained=trained, is_open=is_open)
        return Fitted(rest.rendered, rest.conversation, len(conversation) - len(kept), rest.is_cut)
    if not is_open:
        return Fitted(Rendered(whole.ids[:max_tokens], whole.is_supervised[:max_tokens]), conversation, is_cut=True)
    lengths = range(len(conversation[-1].content))
    n_kept = bisect.bisect_left(lengths, True, key=lambda n: not is_fit(_with_last(conversation, n, side))) - 1
    if n_kept < 0:
        n_others = len(rendered(_with_last(conversation, 0, side)).ids)
        raise ValueError(
            f"the conversation has {n_others:,} tokens without the text of its last message, but only"
            f" {max_tokens:,} can be read; shorten the messages before it, or begin a new conversation"
        )
    kept = _with_last(conversation, n_kept, side)
    return Fitted(rendered(kept), kept, is_cut=True)


def without_oldest(
    template: ChatTemplate, conversation: Conversation, max_tokens: int, *, is_open: bool = False
) -> Conversation:
    """What is left of a conversation of more than `max_tokens` ids without its oldest questions, each with all that
    followed it: as much as fits, and at least the last question."""
    later = [place for place, message in enumerate(conversation) if message.role == "user"][1:]
    if not later:
        return conversation

    def is_fit(start: int) -> bool:
        return len(template.rendered([_from(conversation, start)], is_open=is_open)[0].ids) <= max_tokens

    return _from(conversation, later[min(bisect.bisect_left(later, True, key=is_fit), len(later) - 1)])


def with_newest(
    template: ChatTemplate,
    conversations: Sequence[Conversation],
    rendered: Sequence[Rendered],
    max_tokens: int,
    trained: Sequence[str] | None = ANSWERS,
) -> list[Rendered]:
    """The `rendered` conversations; those of more than `max_tokens` ids as `without_oldest` leaves them."""
    return [
        whole
        if len(whole.ids) <= max_tokens
        else template.rendered([without_oldest(template, one, max_tokens)], trained=trained)[0]
        for one, whole in zip(conversations, rendered, strict=True)
    ]


def _from(conversation: Conversation, start: int) -> list[Message]:
    """The conversation from the question at `start`, behind its system message."""
    system = [message for message in conversation[:1] if message.role == "system"]
    return [*system, *conversation[start:]]


def _with_last(conversation: Conversation, n_kept: int, side: Side) -> list[Message]:
    """The conversation with `n_kept` characters of its last message; cut on `side`."""
    *others, last = conversation
    text = last.content[:n_kept] if side == "right" else last.content[len(last.content) - n_kept :]
    return [*others, Message(last.role, text)]
