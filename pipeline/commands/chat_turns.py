"""The turns of `gristmill chat`: an answer on the screen, how it is stopped, and what is said about it.

In: a ChatSession whose last message is to be answered. Out: the answer on standard output, piece by piece, and notes
on standard error. At a terminal Ctrl-C stops the answer, whose text so far stays in the conversation, and what the
model writes is shown without controls that could steer the terminal.
"""

import contextlib
import dataclasses
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.commands.models import shown

if TYPE_CHECKING:
    from model.generation.chat_session import Answer, ChatSession
    from model.generation.sample_config import SampleConfig

LONG = "the conversation is long; /clear begins a new one"


@dataclasses.dataclass
class Chat:
    session: "ChatSession"
    cfg: "SampleConfig"
    is_terminal: bool
    knows_of_dropped: bool = False  # the user was told that the oldest messages are not read any more
    files: set[Path] = dataclasses.field(default_factory=set)  # that this chat loaded or saved

    def answer_open_question(self) -> bool:
        """Answers the last message of a conversation that was loaded, if it is not the model's."""
        messages = self.session.messages
        return not messages or messages[-1].role in ("assistant", "system") or self.answer()

    def answer(self) -> bool:
        """Writes the answer to the last message."""
        from model.training.placement import each_explained

        with stopped_by_ctrl_c(self.is_terminal) as is_stopped:
            answer = self.session.answer(self.cfg, is_stopped)
            self._say_what_is_read(answer)
            try:
                with contextlib.closing(each_explained(answer.pieces, LONG)) as pieces:
                    for piece in pieces:
                        print(shown(piece), end="", flush=True)
            except KeyboardInterrupt:
                if not self.is_terminal:
                    raise
            finally:
                print(flush=True)
        self._say_how_it_ended(answer)
        return True

    def _say_what_is_read(self, answer: "Answer") -> None:
        if answer.is_cut:
            note("the message is longer than the model can read: its beginning is left out")
        if answer.n_dropped and not self.knows_of_dropped:
            self.knows_of_dropped = True
            note("the conversation is longer than the model reads: the oldest messages are left out from now on")

    def _say_how_it_ended(self, answer: "Answer") -> None:
        if answer.ending == "longest answer":
            note(f"the answer ended at {self.cfg.max_new_tokens:,} tokens; /set tokens=N allows more")
        elif answer.ending == "end of the context":
            note("the answer ended where the context of the model ends")
        elif answer.ending == "stopped" and self.is_terminal:
            was_kept = self.session.messages[-1:] and self.session.messages[-1].role == "assistant"
            note("stopped" if was_kept else "stopped before the first word; the question is forgotten")


@contextlib.contextmanager
def stopped_by_ctrl_c(is_terminal: bool) -> Iterator[Callable[[], bool]]:
    """Gives a function that says whether Ctrl-C was pressed. A second one interrupts what is being computed; where
    input or output is no terminal, the first one does."""
    was_pressed = threading.Event()

    def handle(*_: object) -> None:
        if was_pressed.is_set():
            raise KeyboardInterrupt
        was_pressed.set()

    before = signal.signal(signal.SIGINT, handle) if is_terminal else None
    try:
        yield was_pressed.is_set
    finally:
        if is_terminal:
            signal.signal(signal.SIGINT, before)


def note(text: str) -> None:
    """Says something about the chat, perhaps with a message in it, which may come from a file of somebody else."""
    from pipeline.corpus.shown_text import with_visible_controls

    sys.stdout.flush()
    print(f"[{with_visible_controls(text)}]", file=sys.stderr, flush=True)
