"""Conversations to token ids: written once, for training, evaluation, chat and every export.

In: messages, a chat template in Jinja and a tokenizer. Out: the ids, and which of them a model is trained to write.
Steps: render the template; find the messages in what it wrote; turn the special tokens of the template into their
ids and all text between them into ids as text. A message that spells out a special token stays text.

An answer begins where the template's own generation prompt ends, and is encoded from there on its own: so the ids of
a prompt are always the first ids of the conversation with its answer, and a model is trained on what it will read.
Supervised of a message are its text and all that follows up to the first special token, which ends the turn.

The template of a base may be hostile: it runs in Jinja's sandbox, without files. Jinja is imported where it is used.
"""

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.data.chat_templates import TEMPLATES
from model.data.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")
ANSWERS = ("assistant",)
CHAT_TEMPLATE = "chat_template.jinja"
AUTO = "auto"


@dataclass(frozen=True, slots=True)
class Message:
    role: str  # one of ROLES
    content: str


Conversation = Sequence[Message]


@dataclass(frozen=True, slots=True)
class Rendered:
    ids: np.ndarray  # int64 (T,)
    is_supervised: np.ndarray  # bool (T,): a model is trained to write this token


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a rendered conversation: a special token, or a text without any."""

    text: str
    token: int | None  # id of a special token; None = a text
    is_supervised: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatTemplate:
    """A template with the tokenizer that it was made for."""

    source: str  # Jinja
    tokenizer: Tokenizer
    variables: Mapping[str, str]  # bos_token and eos_token, those that exist
    template: Any  # compiled
    stops: frozenset[int]  # tokens that end an answer

    def rendered(
        self, conversations: Sequence[Conversation], *, trained: Sequence[str] | None = ANSWERS, is_open: bool = False
    ) -> list[Rendered]:
        """The ids of each conversation. `trained`: roles whose messages are supervised; None = everything but the
        first token. `is_open`: the conversation ends with what an answer begins with.

        Raises ValueError for a conversation that `checked` refuses, or that the template refuses or changes.
        """
        pieces = [self.pieces(one, trained=trained, is_open=is_open) for one in conversations]
        texts = [piece.text for one in pieces for piece in one if piece.token is None]
        ids_of = iter(self.tokenizer.encode_batch(texts))
        rendered = []
        for one in pieces:
            parts = [(next(ids_of) if piece.token is None else [piece.token], piece.is_supervised) for piece in one]
            ids = np.array([token for part, _ in parts for token in part], np.int64)
            is_supervised = np.repeat([flag for _, flag in parts], [len(part) for part, _ in parts]).astype(bool)
            if trained is None:
                is_supervised = np.arange(len(ids)) > 0
            rendered.append(Rendered(ids, is_supervised))
        return rendered

    def prompt(self, conversation: Conversation) -> list[int]:
        """The ids that a model continues with its answer."""
        return self.rendered([conversation], is_open=True)[0].ids.tolist()

    def pieces(
        self, conversation: Conversation, *, trained: Sequence[str] | None = ANSWERS, is_open: bool = False
    ) -> list[Piece]:
        """The conversation in parts that are encoded on their own."""
        checked(conversation)
        frames, contents = self._divided(conversation, is_open)
        roles = ANSWERS if trained is None else trained
        pieces = _Pieces(self.tokenizer.control)
        pieces.frame(frames[0])
        for message, content, frame in zip(conversation, contents, frames[1:], strict=True):
            pieces.content(content, is_supervised=message.role in roles, is_answer=message.role == "assistant")
            pieces.frame(frame)
        return pieces.finished()

    def text(self, conversation: Conversation, *, is_open: bool = False) -> str:
        """What the template writes. Raises ValueError where it refuses the conversation."""
        from jinja2 import TemplateError

        messages = [dataclasses.asdict(message) for message in conversation]
        try:
            return self.template.render(messages=messages, add_generation_prompt=is_open, **self.variables)
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise ValueError(f"the chat template refuses the conversation ({error})") from error

    def _divided(self, conversation: Conversation, is_open: bool) -> tuple[list[str], list[str]]:
        """What the template writes around the messages, and the messages as it writes them: whole, or without white
        space at their ends."""
        marks = [f"\ue000{place}\ue001" for place in range(len(conversation))]
        marked = [Message(one.role, mark) for one, mark in zip(conversation, marks, strict=True)]
        frames = re.split("\ue000[0-9]+\ue001", self.text(marked, is_open=is_open))
        text, contents = self.text(conversation, is_open=is_open), []
        if len(frames) != len(conversation) + 1 or not text.startswith(frames[0]):
            raise ValueError("the chat template leaves out a message, repeats one, or changes with its text")
        place = len(frames[0])
        for number, (message, frame) in enumerate(zip(conversation, frames[1:], strict=True), start=1):
            whole = message.content
            forms = (whole, whole.strip(), whole.lstrip(), whole.rstrip())
            content = next((form for form in forms if text.startswith(form + frame, place)), None)
            if content is None:
                raise ValueError(f"the chat template changes message {number} ({message.role})")
            contents.append(content)
            place += len(content) + len(frame)
        if place != len(text):
            raise ValueError("the chat template writes more behind a conversation, depending on its text")
        return frames, contents


class _Pieces:
    """Collects the parts of a conversation from left to right."""

    def __init__(self, control: Mapping[str, int]) -> None:
        self.control, self.pieces = control, list[Piece]()
        names = sorted(control, key=len, reverse=True)
        self.pattern = re.compile(f"({'|'.join(map(re.escape, names))})") if names else None
        self.text, self.is_supervised = "", False  # of the text that is being collected

    def content(self, text: str, *, is_supervised: bool, is_answer: bool) -> None:
        if is_supervised or is_answer:
            self._close()
        self.is_supervised = is_supervised
        self.text += text

    def frame(self, text: str) -> None:
        """A text of the template; what is before its first special token still belongs to the message."""
        parts = [text] if self.pattern is None else self.pattern.split(text)
        for number, part in enumerate(parts):
            if number % 2 == 0:
                self.text += part
                continue
            was_supervised = self.is_supervised
            self._close()
            self.pieces.append(Piece(part, self.control[part], was_supervised))

    def finished(self) -> list[Piece]:
        self._close()
        return self.pieces

    def _close(self) -> None:
        if self.text:
            self.pieces.append(Piece(self.text, None, self.is_supervised))
        self.text, self.is_supervised = "", False


def checked(conversation: Conversation) -> None:
    """Raises ValueError unless a conversation is perhaps a system message, and then questions and answers in turn;
    the messages of tools may stand between them."""
    roles = [message.role for message in conversation]
    if unknown := next((role for role in roles if role not in ROLES), None):
        raise ValueError(f"the role {unknown!r} is not known; expected {', '.join(ROLES)}")
    if "system" in roles[1:]:
        raise ValueError("a system message is not the first message")
    turns = [role for role in roles if role != "system"]
    if not turns:
        raise ValueError("the conversation has no message of the user")
    if turns[0] != "user":
        raise ValueError(f"the conversation starts with the {turns[0]}, expected the user")
    for before, after in itertools.pairwise(turns):
        if before == after and before != "tool":
            raise ValueError(f"two messages of the {before} follow each other")


def chat_template(tokenizer: Tokenizer, source: str) -> ChatTemplate:
    """Raises ValueError for a template with an error, and for one that does not end an answer by a special token."""
    variables = {
        f"{role}_token": tokenizer.tokens[tokenizer.special[role]].decode()
        for role in ("bos", "eos")
        if role in tokenizer.special
    }
    made = ChatTemplate(
        source=source,
        tokenizer=tokenizer,
        variables={"bos_token": "", "eos_token": ""} | variables,
        template=_compiled(source),
        stops=tokenizer.stops,
    )
    probe = [Message("user", "Question?"), Message("assistant", "Answer.")]
    ends = [piece.token for piece in made.pieces(probe) if piece.is_supervised and piece.token is not None]
    if not ends:
        raise ValueError(
            "the chat template ends an answer by no special token of the tokenizer, so that a model could not learn"
            f" to stop; the tokenizer has {', '.join(sorted(tokenizer.control)) or 'none'}"
        )
    return dataclasses.replace(made, stops=tokenizer.stops | {ends[0]})


def load_chat_template(tokenizer: Tokenizer, directory: Path, name: str = AUTO) -> ChatTemplate:
    """The template `name` of TEMPLATES for the tokenizer in `directory`; "auto" is the one that the tokenizer came
    with, or alpaca, which needs no tokens of its own. Raises ValueError as `chat_template`."""
    path = directory / CHAT_TEMPLATE
    if name != AUTO:
        return chat_template(tokenizer, TEMPLATES[name])
    if not path.is_file():
        return chat_template(tokenizer, TEMPLATES["alpaca"])
    try:
        return chat_template(tokenizer, path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _compiled(source: str) -> Any:
    """The template with the functions that transformers gives to one, in a sandbox without a loader of files."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    environment.globals["raise_exception"] = refuse
    try:
        return environment.from_string(source)
    except TemplateError as error:
        line = getattr(error, "lineno", None)
        where = "" if line is None else f", line {line}"
        raise ValueError(f"not a chat template{where}: {error}") from error
