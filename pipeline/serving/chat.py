"""Opens a conversation with a model, and keeps conversations in files.

In: the folder of a decoder, or a file with one message per line. Out: a ChatSession, or messages. A line of a file is
a JSON object with a role and a content, which is what other programs call a message.

torch is imported where it is used, because Dagster loads modules of this folder.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from model.data.chat import AUTO, CHAT_TEMPLATE, Message, checked, load_chat_template
from model.data.tokenizer import TOKENIZER
from pipeline.serving.generate import loaded_decoder, own_system_message
from pipeline.store.shards import replacing

if TYPE_CHECKING:
    from model.generation.chat_session import ChatSession


def open_session(directory: Path, template: str = AUTO) -> "ChatSession":
    """A conversation with the decoder in `directory` in which nothing was said yet, but for the system message that
    it was tuned with, if there is one.

    Raises ValueError when there is no decoder, or when the template does not go with its tokenizer.
    """
    from model.generation.chat_session import ChatSession
    from model.generation.decode import pack

    decoder, tokenizer = loaded_decoder(directory)
    session = ChatSession(pack(decoder), load_chat_template(tokenizer, directory / TOKENIZER, template))
    session.set_system(own_system_message(directory))
    return session


def has_own_template(directory: Path) -> bool:
    return (directory / TOKENIZER / CHAT_TEMPLATE).is_file()


def read_messages(path: Path) -> list[Message]:
    """The conversation in a file; empty lines are skipped. Raises ValueError with the line that is wrong."""
    messages = []
    for number, line in enumerate(path.read_text("utf-8").split("\n"), start=1):
        if line.strip():
            messages.append(_message(line, f"{path}, line {number}"))
    if not messages:
        raise ValueError(f"{path} has no message; a line is an object such as {_line(Message('user', 'Hello'))}")
    if [message.role for message in messages] != ["system"]:
        try:
            checked(messages)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return messages


def write_messages(path: Path, messages: Sequence[Message]) -> None:
    with replacing(path) as part:
        part.write_text("".join(f"{_line(message)}\n" for message in messages), "utf-8")


def _message(line: str, where: str) -> Message:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error})") from error
    if not isinstance(found, dict) or any(not isinstance(found.get(key), str) for key in ("role", "content")):
        raise ValueError(f"{where}: expected an object such as {_line(Message('user', 'Hello'))}, got {line[:80]}")
    return Message(found["role"], found["content"])


def _line(message: Message) -> str:
    return json.dumps(asdict(message), ensure_ascii=False)
