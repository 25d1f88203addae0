"""The commands inside `gristmill chat`: lines that begin with a slash.

In: a chat and such a line. Out: a change of the chat, and whether it goes on. A command raises ValueError for what it
was not given or cannot do.
"""

import dataclasses
import typing
from collections.abc import Callable
from pathlib import Path

from pipeline.commands.chat_turns import Chat, note

SETTINGS = {  # names as the options of the command line have them -> fields of SampleConfig
    "tokens": "max_new_tokens",
    **{name: name for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "seed")},
}


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    arguments: str
    text: str
    run: Callable[[Chat, str], bool]  # with what follows the name; whether the chat goes on


def obeyed(chat: Chat, line: str) -> bool:
    """Runs the command in a line; returns whether the chat goes on."""
    from pipeline.store.settings import did_you_mean

    name, _, rest = line.partition(" ")
    if name not in COMMANDS:
        raise ValueError(
            f"{name} is no command{did_you_mean(name, list(COMMANDS))} (/help lists them; a message that begins with"
            " a slash is written with two)"
        )
    return COMMANDS[name].run(chat, rest.strip())


def loaded(chat: Chat, file: str) -> None:
    """The conversation in `file` takes the place of that of the chat."""
    from pipeline.serving.chat import read_messages

    path = Path(file)
    chat.session.begin(read_messages(path))
    chat.knows_of_dropped = False
    chat.files.add(path.resolve())


def without_none(text: str) -> str | None:
    """A system message; the word none stands for no message."""
    return None if text == "none" else text


def _help(chat: Chat, rest: str) -> bool:
    width = max(len(f"{name} {command.arguments}") for name, command in COMMANDS.items())
    for name, command in COMMANDS.items():
        print(f"  {f'{name} {command.arguments}':<{width}}  {command.text}")
    print("  Ctrl-C stops an answer; a line that ends with a backslash goes on in the next one.")
    return True


def _system(chat: Chat, text: str) -> bool:
    if text:
        chat.session.set_system(without_none(text))
        note("the system message is " + ("gone" if text == "none" else "set") + " for all further answers")
    else:
        note("there is no system message" if chat.session.system is None else chat.session.system)
    return True


def _set(chat: Chat, text: str) -> bool:
    from model.training.settings import parse_value

    hints, values = typing.get_type_hints(type(chat.cfg)), {}
    for setting in text.split():
        name, equals, value = setting.partition("=")
        if not equals or name not in SETTINGS:
            raise ValueError(f"/set {setting}: expected NAME=VALUE, where NAME is one of {', '.join(SETTINGS)}")
        try:
            values[SETTINGS[name]] = parse_value(hints[SETTINGS[name]], value)
        except ValueError as error:
            raise ValueError(f"/set {setting}: {error}") from error
    chat.cfg = dataclasses.replace(chat.cfg, **values)
    note(" ".join(f"{name}={_written(getattr(chat.cfg, field))}" for name, field in SETTINGS.items()))
    return True


def _written(value: object) -> str:
    """A value as `/set` reads it."""
    if isinstance(value, tuple):
        return ",".join(value)
    return "none" if value is None else str(value)


def _undo(chat: Chat, rest: str) -> bool:
    question = chat.session.undo()
    if question is None:
        raise ValueError("there is nothing to take back")
    note(f"taken back: {question}")
    return True


def _again(chat: Chat, rest: str) -> bool:
    question = chat.session.undo()
    if question is None:
        raise ValueError("there is no question that could be answered again")
    chat.session.say(question)
    return chat.answer()


def _save(chat: Chat, file: str) -> bool:
    from pipeline.serving.chat import write_messages

    path = _named(file, "/save").resolve()
    if not chat.session.messages:
        raise ValueError("there is no message to save")
    if path.exists() and path not in chat.files:
        raise ValueError(f"{path} exists, and is not of this chat; give another name")
    write_messages(path, chat.session.messages)
    chat.files.add(path)
    note(f"{len(chat.session.messages)} messages are in {path}")
    return True


def _load(chat: Chat, file: str) -> bool:
    loaded(chat, str(_named(file, "/load")))
    note(f"{len(chat.session.messages)} messages are read")
    return chat.answer_open_question()


def _named(file: str, command: str) -> Path:
    if not file:
        raise ValueError(f"{command} needs the name of a file, for instance {command} talk.jsonl")
    return Path(file).expanduser()


def _clear(chat: Chat, rest: str) -> bool:
    chat.session.begin([message for message in chat.session.messages if message.role == "system"])
    chat.knows_of_dropped = False
    note("a new conversation" + ("" if chat.session.system is None else ", with the system message as before"))
    return True


COMMANDS = {
    "/help": Command("", "lists the commands", _help),
    "/system": Command("[TEXT]", "sets the system message, shows it, or removes it with the text none", _system),
    "/set": Command("[NAME=VALUE...]", "changes settings of sampling, for instance temperature=0.2; shows all", _set),
    "/undo": Command("", "takes back the last question and its answer", _undo),
    "/again": Command("", "answers the last question again", _again),
    "/save": Command("FILE", "writes the conversation, one message a line, as JSON", _save),
    "/load": Command("FILE", "goes on with a conversation that was saved", _load),
    "/clear": Command("", "begins a new conversation; the system message stays", _clear),
    "/exit": Command("", "ends the chat, as Ctrl-D does", lambda chat, rest: False),
}
