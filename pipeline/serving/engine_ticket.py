"""What is asked of an engine and what comes back: Job, Delta, Ticket, and the two refusals.

In: what the thread of the engine puts into a ticket. Out: a stream of Deltas for one reader, in a thread (`for`) or
in an event loop (`async for`). The engine never waits for a reader. What came since a reader looked last is one Delta
a sample, and a reader is not told of every token: with many of them, what each does with a Delta, such as an event
over HTTP, may cost more than the token. So it is told of the first and of the last at once, and of others after a
pause that grows with the number of texts.
"""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

from model.generation.batch import Finish
from model.generation.constraints import Constraint
from model.generation.logprobs import TokenLogprob
from model.generation.sample_config import SampleConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What a request wants written."""

    prompt: Sequence[int]  # token ids
    cfg: SampleConfig
    n: int = 1  # samples; sample i draws with number i
    constraint: Constraint | None = None
    n_logprobs: int | None = None  # None = none; k = those of each token and of the k likeliest at its place


@dataclass(frozen=True, slots=True)
class Delta:
    """What became final of one sample. Its text may be empty."""

    sample: int
    text: str
    tokens: tuple[TokenLogprob, ...] = ()  # of the text so far, where the job asks for them
    finish: Finish | None = None  # set in the last Delta of the sample


@dataclass(frozen=True, slots=True)
class Usage:
    """Counts of tokens. `completion_tokens` are those of all samples, without the ids that ended them."""

    prompt_tokens: int
    cached_tokens: int  # of the prompt, whose keys and values were there already
    completion_tokens: int


class Busy(RuntimeError):
    """The queue is full."""

    def __init__(self, n_waiting: int, retry_after: float) -> None:
        super().__init__(f"{n_waiting} requests wait already; try again in {retry_after:.0f} s")
        self.retry_after = retry_after  # seconds until a place is likely to be free


class Closed(RuntimeError):
    """The engine takes no more requests, or was closed while it wrote."""


class Ticket:
    """One job in the engine. It is read once, to its end, by one reader."""

    def __init__(self, job: Job, on_cancel: Callable[["Ticket"], None]) -> None:
        self.job = job
        self.is_cancelled = False
        self._on_cancel = on_cancel
        self._new: list[Delta] = []
        self._told_at: float | None = None
        self._is_over, self._error = False, None
        self._usage: Usage | None = None
        self._changed = threading.Condition()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None

    @property
    def usage(self) -> Usage:
        """After the end; raises RuntimeError before it."""
        if self._usage is None:
            raise RuntimeError("the usage of a ticket is known when it is over; read it to its end first")
        return self._usage

    def cancel(self) -> None:
        """Nobody reads on: the slots are free before the engine's next step. The stream ends without a finish."""
        self.is_cancelled = True
        self._on_cancel(self)

    def put(self, deltas: Sequence[Delta]) -> None:
        """For the engine: what is new. `tell` tells the reader."""
        with self._changed:
            self._new.extend(deltas)

    def is_due(self, now: float, pause: float) -> bool:
        """Whether the reader is to be told now."""
        with self._changed:
            is_end = any(delta.finish is not None for delta in self._new)
        return self._told_at is None or is_end or now - self._told_at >= pause

    def end(self, usage: Usage, error: BaseException | None = None) -> None:
        """For the engine: nothing follows. Only the first call counts."""
        with self._changed:
            if not self._is_over:
                self._is_over, self._error, self._usage = True, error, usage
        tell([self])

    def told(self, now: float) -> tuple[asyncio.AbstractEventLoop, asyncio.Event] | None:
        """Wakes a reader in a thread. Returns what wakes one in an event loop, if that is where it is."""
        self._told_at = now
        with self._changed:
            self._changed.notify_all()
            return None if self._loop is None or self._wake is None else (self._loop, self._wake)

    def _taken(self) -> list[Delta]:
        """What is there. Empty at the end. Raises the error of the job, once all before it was read."""
        deltas, self._new = joined(self._new), []
        if not deltas and self._error is not None:
            raise self._error
        return deltas

    def __iter__(self) -> Iterator[Delta]:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._new or self._is_over)
                    deltas = self._taken()
                if not deltas:
                    return
                yield from deltas
        finally:
            self._abandoned()

    async def __aiter__(self) -> AsyncIterator[Delta]:
        self._wake = wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        try:
            while True:
                wake.clear()
                with self._changed:
                    is_over, deltas = self._is_over, self._taken()
                for delta in deltas:
                    yield delta
                if not deltas:
                    if is_over:
                        return
                    await wake.wait()
        finally:
            self._loop = None
            self._abandoned()

    def _abandoned(self) -> None:
        """A reader that stops before the end wants no more."""
        if not self._is_over:
            self.cancel()


def joined(deltas: Sequence[Delta]) -> list[Delta]:
    """One Delta for each sample among `deltas`."""
    if len({delta.sample for delta in deltas}) == len(deltas):
        return list(deltas)
    of_sample: dict[int, list[Delta]] = {}
    for delta in deltas:
        of_sample.setdefault(delta.sample, []).append(delta)
    return [
        Delta(
            sample,
            "".join(one.text for one in found),
            tuple(token for one in found for token in one.tokens),
            found[-1].finish,
        )
        for sample, found in of_sample.items()
    ]


def tell(tickets: Sequence[Ticket]) -> None:
    """Wakes the readers of these tickets; those of one event loop by one call."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, asyncio.Event]]] = {}
    now = time.monotonic()
    for ticket in tickets:
        if (found := ticket.told(now)) is not None:
            by_loop.setdefault(found[0], []).append((ticket, found[1]))
    for loop, sleeping in by_loop.items():
        try:
            loop.call_soon_threadsafe(_set, [event for _, event in sleeping])
        except RuntimeError:  # the loop is closed, so nobody reads on
            for ticket, _ in sleeping:
                ticket.cancel()


def _set(events: Sequence[asyncio.Event]) -> None:
    for event in events:
        event.set()
