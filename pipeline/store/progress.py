"""Shows progress while stages work: the step, its current stage, items, rate and time left.

In: `Show` calls of the stages (stage, items done, total number of items if known, unit), and `begin` and `end` of
each step. Out: a live line if the stream is a terminal, otherwise a plain line every ten seconds. Every finished step
leaves one line.

Code that creates a Store takes its `show` from `current_show()`, which reports to the display that `displayed` has
opened in this process. Without a display (in the Dagster UI, which has the logs of its runs) reports are ignored.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

from rich.console import Console
from rich.text import Text

from pipeline.store.store import Show

PLAIN_SECONDS = 10.0  # between two lines of a step if the stream is not a terminal
LIVE_SECONDS = 0.2  # between two updates of the live line


@dataclass(kw_only=True, slots=True)
class Stint:
    """Progress of the stage that works at the moment."""

    stage: str
    unit: str
    started: float  # seconds of the clock at its first call
    first: int  # items that were done then: the rate counts only later ones
    done: int
    total: int | None

    def text(self, now: float) -> str:
        """For instance "clean 1,200 of 3,400 pages, 210/s, 0:10 left"."""
        items = f"{self.done:,}" + (f" of {self.total:,}" if self.total is not None else "")
        parts = [f"{self.stage} {items} {self.unit}"]
        rate = (self.done - self.first) / max(now - self.started, 1e-9)
        if self.done > self.first and now > self.started:
            parts.append(f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s")
            if self.total is not None:
                parts.append(f"{duration_text((self.total - self.done) / rate)} left")
        return ", ".join(parts)


class Display:
    """Displays steps on a stream, one after the other; `n_steps` is their number, if known."""

    def __init__(self, stream: TextIO, n_steps: int | None = None, clock: Callable[[], float] = time.monotonic):
        self.stream = stream
        self.live = stream.isatty()
        self.n_steps = n_steps
        self.n_begun = 0
        self.clock = clock
        self.name = ""
        self.started = clock()
        self.drawn = clock()  # when the last line was written
        self.stint: Stint | None = None
        self.status = None  # rich's live line

    def begin(self, name: str) -> None:
        self.n_begun += 1
        self.name = name
        self.started = self.drawn = self.clock()
        self.stint = None
        if self.live:
            self._open_live_line()

    def show(self, stage: str, done: int, total: int | None, unit: str) -> None:
        now = self.clock()
        if self.stint is None or self.stint.stage != stage or done < self.stint.done:
            self.stint = Stint(stage=stage, unit=unit, started=now, first=done, done=done, total=total)
        self.stint.done, self.stint.total, self.stint.unit = done, total, unit
        if now - self.drawn >= (LIVE_SECONDS if self.live else PLAIN_SECONDS):
            self.drawn = now
            self._draw(self.stint.text(now))

    def end(self, note: str = "") -> None:
        """End the step; `note` describes its result."""
        seconds = self.clock() - self.started
        self.close()
        self._line(f"{self._prefix()}{self.name:<28} {seconds:7.1f} s  {note}".rstrip())

    def close(self) -> None:
        if self.status is not None:
            self.status.stop()
            self.status = None

    def _prefix(self) -> str:
        return f"[{self.n_begun:2}/{self.n_steps}] " if self.n_steps else ""

    def _draw(self, text: str) -> None:
        if self.status is not None:
            self.status.update(Text(f"{self._prefix()}{self.name}: {text}"))
        else:
            self._line(f"{self._prefix()}{self.name}: {text}")

    def _line(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def _open_live_line(self) -> None:
        self.close()
        self.status = Console(file=self.stream).status(Text(f"{self._prefix()}{self.name}"))
        self.status.start()


def clock_text(seconds: float) -> str:
    """Minutes and seconds as m:ss, hours as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration_text(seconds: float) -> str:
    """A long time in words, for instance "12 days"; a short one as clock_text."""
    for unit, length in (("years", 365.25 * 24 * 3600), ("days", 24 * 3600.0)):
        if seconds >= 3 * length:
            return f"{seconds / length:,.0f} {unit}"
    return clock_text(seconds)


_display: Display | None = None


@contextmanager
def displayed(n_steps: int | None = None, stream: TextIO | None = None) -> Iterator[Display]:
    """A display to which `current_show()` of this process reports until the block ends."""
    global _display
    _display = Display(stream or sys.stdout, n_steps)
    try:
        yield _display
    finally:
        _display.close()
        _display = None


def current_show() -> Show:
    """The function to which a Store of this process reports its progress."""
    return _forward


def _forward(stage: str, done: int, total: int | None, unit: str) -> None:
    if _display is not None:
        _display.show(stage, done, total, unit)
