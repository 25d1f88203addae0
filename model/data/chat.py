"""Conversations to token ids: written once, for training, evaluation, chat and every export.

In: messages, a chat template in Jinja and a tokenizer. Out: the ids, and which of them a model is trained to write.
Steps: render the template; find the messages in what it wrote; turn the special tokens of the template into their
ids and all text between them into ids as text. A message that spells out a special token stays text.

An answer begins where the template's own generation prompt ends. The ids of a prompt are always the first ids of the
conversation with its answer (chat_pieces.py), so that a model is trained on what it will read. Supervised of a
message are its text and all that follows up to the first special token, which ends the turn.

A template is trusted with nothing: it may place messages, and remove white space around them (chat_sandbox.py). One
that leaves out, repeats, reorders or changes messages is refused. Jinja is imported where it is used.
"""

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from model.data.chat_pieces import Piece, Pieces, Rendered, encoded
from model.data.chat_templates import TEMPLATES
from model.data.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")
ANSWERS = ("assistant",)
CHAT_TEMPLATE = "chat_template.jinja"
AUTO = "auto"
MARK = re.compile("\ue000([0-9]+)\ue001")  # stands for the text of a message while the template is looked at
NOTHING = {"bos_token": "", "eos_token": "", "tools": None, "documents": None}  # variables of every template
KNOWN_FRAMES = 1000  # sequences of roles whose frames are kept


@dataclass(frozen=True, slots=True)
class Message:
    role: str  # one of ROLES
    content: str


Conversation = Sequence[Message]


@dataclass(frozen=True, slots=True)
class Frames:
    """What a template writes around the messages of a sequence of roles."""

    texts: tuple[str, ...]  # before the first message, between two messages, and behind the last
    starts: Mapping[int, int]  # place of an answer -> where it begins in the text before it, as a prompt ends there


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatTemplate:
    """A template with the tokenizer that it was made for."""

    source: str  # Jinja
    tokenizer: Tokenizer
    variables: Mapping[str, Any]
    template: Any  # compiled
    end_of_turn: int  # with which an answer ends, as a model is trained to write it
    stops: frozenset[int]  # all tokens that end an answer
    known: dict[tuple[tuple[str, ...], bool], Frames] = field(default_factory=dict, compare=False, repr=False)

    def rendered(
        self, conversations: Sequence[Conversation], *, trained: Sequence[str] | None = ANSWERS, is_open: bool = False
    ) -> list[Rendered]:
        """The ids of each conversation. `trained`: roles whose messages are supervised; None = everything but the
        first token. `is_open`: the conversation ends with what an answer begins with.

        Raises ValueError for a conversation that `checked` refuses, or that the template refuses or changes.
        """
        found = encoded(self.tokenizer, [self.pieces(one, trained=trained, is_open=is_open) for one in conversations])
        if trained is None:
            return [Rendered(one.ids, np.arange(len(one.ids)) > 0) for one in found]
        return found

    def prompt(self, conversation: Conversation) -> list[int]:
        """The ids that a model continues with its answer."""
        return self.rendered([conversation], is_open=True)[0].ids.tolist()

    def pieces(
        self, conversation: Conversation, *, trained: Sequence[str] | None = ANSWERS, is_open: bool = False
    ) -> list[Piece]:
        """The conversation in parts: its special tokens, and the texts between them."""
        checked(conversation)
        if is_open and conversation[-1].role == "assistant":
            raise ValueError("the conversation ends with an answer, so that there is nothing to answer")
        frames, contents = self._divided(conversation, is_open)
        roles, pieces = ANSWERS if trained is None else trained, Pieces(self.tokenizer.control)
        for place, (message, content) in enumerate(zip(conversation, contents, strict=True)):
            frame = frames.texts[place]
            start = frames.starts.get(place, len(frame))
            pieces.frame(frame[:start])
            pieces.begin(is_supervised=message.role in roles, is_answer=message.role == "assistant")
            pieces.frame(frame[start:], ends=False)
            pieces.content(content)
        pieces.frame(frames.texts[-1])
        return pieces.finished()

    def text(self, conversation: Conversation, *, is_open: bool = False) -> str:
        """What the template writes. Raises ValueError where it refuses the conversation."""
        from model.data.chat_sandbox import written

        messages = [dataclasses.asdict(message) for message in conversation]
        try:
            return written(self.template, {**self.variables, "messages": messages, "add_generation_prompt": is_open})
        except ValueError as error:
            raise ValueError(f"the chat template refuses the conversation: {error}") from error

    def _divided(self, conversation: Conversation, is_open: bool) -> tuple[Frames, list[str]]:
        """What the template writes around the messages, and the messages as it writes them: whole, or without white
        space at their ends."""
        frames = self.frames(tuple(message.role for message in conversation), is_open)
        text, contents = self.text(conversation, is_open=is_open), []
        if not text.startswith(frames.texts[0]):
            raise ValueError(
                "what the chat template writes before the first message depends on the text of a message"
            )
        place = len(frames.texts[0])
        for number, (message, frame) in enumerate(zip(conversation, frames.texts[1:], strict=True), start=1):
            whole = message.content
            forms = (whole, whole.strip(), whole.lstrip(), whole.rstrip())
            content = next((form for form in forms if text.startswith(form + frame, place)), None)
            if content is None:
                raise ValueError(f"the chat template changes message {number} ({message.role}), or what follows it")
            contents.append(content)
            place += len(content) + len(frame)
        if place != len(text):
            raise ValueError("what the chat template writes behind a conversation depends on the text of a message")
        return frames, contents

    def frames(self, roles: tuple[str, ...], is_open: bool) -> Frames:
        """Raises ValueError where the template leaves out, repeats or reorders messages, or where it begins an answer
        otherwise than it asks for one."""
        if (found := self.known.get((roles, is_open))) is None:
            texts = self._around(roles, is_open)
            found = Frames(texts, self._starts(roles, texts))
            if len(self.known) >= KNOWN_FRAMES:
                self.known.clear()
            self.known[roles, is_open] = found
        return found

    def _around(self, roles: tuple[str, ...], is_open: bool) -> tuple[str, ...]:
        marked = [Message(role, f"\ue000{place}\ue001") for place, role in enumerate(roles)]
        texts = MARK.split(self.text(marked, is_open=is_open))
        if texts[1::2] != [str(place) for place in range(len(roles))]:
            raise ValueError(
                f"of messages of {', '.join(roles)} the chat template leaves out one, repeats one, or changes their"
                " order"
            )
        return tuple(texts[::2])

    def _starts(self, roles: tuple[str, ...], frames: tuple[str, ...]) -> dict[int, int]:
        """Where answers begin, by the place of each; found by what the template writes to ask for one."""
        places = [place for place, role in enumerate(roles) if role == "assistant"]
        known = dict[str, int]()  # by the text before an answer: a long conversation repeats it
        for place in places:
            if frames[place] in known and place != places[-1]:
                continue
            prompt = self._around(roles[:place], True)
            if frames[:place] != prompt[:place] or not frames[place].startswith(prompt[place]):
                raise ValueError(
                    f"the chat template asks for an answer by {prompt[place]!r}, but writes {frames[place]!r} before"
                    " one, so that a model would be trained on something that it does not read later"
                )
            known[frames[place]] = len(prompt[place])
        return {place: known[frames[place]] for place in places}


def with_system(conversation: Conversation, text: str | None) -> list[Message]:
    """The conversation with `text` as its system message, if it has none and there is a text."""
    has_one = len(conversation) > 0 and conversation[0].role == "system"
    return [*conversation] if has_one or not text else [Message("system", text), *conversation]


def checked(conversation: Conversation) -> None:
    """Raises ValueError unless a conversation is perhaps a system message, and then questions and answers in turn;
    the messages of tools may stand between them."""
    roles = [message.role for message in conversation]
    for number, message in enumerate(conversation, start=1):
        if message.role not in ROLES:
            raise ValueError(
                f"the role {message.role!r} of message {number} is not known; expected {', '.join(ROLES)}"
            )
        try:
            message.content.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"message {number} ({message.role}) has no UTF-8 form: character {error.start} is the lone surrogate"
                f" {message.content[error.start]!r}"
            ) from error
    if "system" in roles[1:]:
        raise ValueError(f"message {roles.index('system', 1) + 1} is a system message, but only the first may be one")
    turns = [role for role in roles if role != "system"]
    if not turns:
        raise ValueError("the conversation has no message of the user")
    if turns[0] != "user":
        raise ValueError(f"the conversation starts with the {turns[0]}, expected the user")
    for number, (before, after) in enumerate(itertools.pairwise(roles), start=2):
        if before == after and before != "tool":
            raise ValueError(f"messages {number - 1} and {number} are both of the {before}")


def chat_template(tokenizer: Tokenizer, source: str) -> ChatTemplate:
    """Raises ValueError for a template with an error, and for one that does not end an answer by a special token."""
    from model.data.chat_sandbox import compiled

    special = {f"{role}_token": tokenizer.tokens[token].decode() for role, token in tokenizer.special.items()}
    made = ChatTemplate(
        source=source,
        tokenizer=tokenizer,
        variables={**NOTHING, **special},
        template=compiled(source),
        end_of_turn=tokenizer.end_of_text,
        stops=tokenizer.stops,
    )
    probe = [Message("user", "Question?"), Message("assistant", "Answer.")]
    *_, end = (piece.token for piece in made.pieces(probe) if piece.is_answer)
    if end is None:
        raise ValueError(
            "the chat template ends an answer by no special token of the tokenizer, so that a model could not learn"
            f" to stop; the tokenizer has {', '.join(sorted(tokenizer.control)) or 'none'}"
        )
    return dataclasses.replace(made, end_of_turn=end, stops=tokenizer.stops | {end})


def load_chat_template(tokenizer: Tokenizer, directory: Path, name: str = AUTO) -> ChatTemplate:
    """The template `name` of TEMPLATES for the tokenizer in `directory`; "auto" is the one that the tokenizer came
    with, or alpaca, which needs no tokens of its own. Raises ValueError as `chat_template`."""
    path = directory / CHAT_TEMPLATE
    if name != AUTO and name not in TEMPLATES:
        raise ValueError(f"the chat template {name!r} is not known; expected {AUTO}, {', '.join(TEMPLATES)}")
    if name != AUTO:
        return chat_template(tokenizer, TEMPLATES[name])
    if not path.is_file():
        return chat_template(tokenizer, TEMPLATES["alpaca"])
    try:
        return chat_template(tokenizer, path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
