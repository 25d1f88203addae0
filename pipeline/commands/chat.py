"""`gristmill chat`: a conversation with a model, at a terminal or as a filter.

In: a model, and lines. Out: its answers, streamed (chat_turns.py). A line that begins with a slash is a command
(chat_commands.py); one that ends with a backslash goes on in the next line. At a terminal Ctrl-D ends the chat, and
after a mistake it goes on. Where input or output is no terminal, each line is a message, its answer is printed
unchanged, and the first mistake ends the command.
"""

import contextlib
import os
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from model.data.examples import valid
from pipeline.commands.chat_commands import loaded, obeyed, without_none
from pipeline.commands.chat_turns import Chat, note
from pipeline.commands.models import sample_config
from pipeline.store.layout import folder_or_current, layout_from_environment

if TYPE_CHECKING:
    from model.generation.chat_session import ChatSession

PROMPT, CONTINUED = "> ", ". "
HINT = "Ctrl-D or /exit ends the chat, /help lists the commands"


def run_chat(args: Namespace) -> int:
    cfg = sample_config(args)
    folder = folder_or_current(layout_from_environment(), args.model)
    from pipeline.serving.chat import open_session

    session = open_session(folder, args.template)
    chat = Chat(session, cfg, is_terminal=sys.stdin.isatty() and sys.stdout.isatty())
    own_system = session.system
    if args.load is not None:
        loaded(chat, args.load)
    if args.system is not None or session.system is None:
        session.set_system(own_system if args.system is None else without_none(args.system))
    note(opening_line(args, folder, session))
    texts = typed() if chat.is_terminal else piped()
    goes_on = _tried(chat, chat.answer_open_question)
    while goes_on and (text := next(texts, None)) is not None:
        goes_on = _tried(chat, lambda text=text: taken(chat, text))
    return 0


def taken(chat: Chat, text: str) -> bool:
    """Does what the user typed: obeys a command, or answers a message. Returns whether the chat goes on."""
    if text.startswith("/") and not text.startswith("//"):
        return obeyed(chat, text)
    if text.strip():
        chat.session.say(valid(text.removeprefix("/") if text.startswith("//") else text))
        return chat.answer()
    return True


def _tried(chat: Chat, step: Callable[[], bool]) -> bool:
    """What `step` returns: whether the chat goes on. At a terminal it does after a mistake, too."""
    if not chat.is_terminal:
        return step()
    try:
        return step()
    except (ValueError, OSError) as error:
        note(" ".join(str(error).split()))
        return True


def typed() -> Iterator[str]:
    """What is typed or pasted at a terminal, with the history and the keys of readline, until Ctrl-D."""
    with contextlib.suppress(ImportError):
        import readline  # which gives input() its keys and its history

        # Python turns this off; without it, each line that is pasted would be a message of its own.
        if os.environ.get("TERM", "dumb") != "dumb":
            readline.parse_and_bind("set enable-bracketed-paste on")
    while True:
        try:
            text = input(PROMPT)
            while text.endswith("\\"):
                text = text.removesuffix("\\") + "\n" + input(CONTINUED)
        except KeyboardInterrupt:
            print()
            note(HINT)
        except EOFError:
            print()
            return
        else:
            yield text


def piped() -> Iterator[str]:
    text = ""
    for line in sys.stdin:
        text += line.removesuffix("\n")
        if text.endswith("\\"):
            text = text.removesuffix("\\") + "\n"
            continue
        yield text
        text = ""
    if text:
        yield text


def opening_line(args: Namespace, folder: Path, session: "ChatSession") -> str:
    """Which template is used, and what a new user has to know."""
    from model.data.chat import AUTO
    from pipeline.serving.chat import has_own_template

    if args.template != AUTO:
        template = f"with the chat template {args.template}, which was asked for"
    elif has_own_template(folder):
        template = "with the chat template that it came with"
    else:
        template = "with the chat template alpaca, because it came without one"
    return f"{args.model} {template}; it reads {session.model.cfg.max_seq_len:,} tokens. {HINT}."
