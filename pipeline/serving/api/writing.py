"""Has a decoder write the texts of one request, and counts what they took.

In: jobs for the engine of a model, one for each prompt. Out: pieces of text with the number of their choice, as they
become final: choice = number of the prompt x n + number of the sample. A text that takes longer than a request may
ends as at its longest length. Whatever ends the iteration, also the departure of the client, gives the slots back.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.serving.api.calls import Noted
from pipeline.serving.api.errors import busy, unavailable, wrong
from pipeline.serving.api.loaded import TextModel
from pipeline.serving.engine import Busy, Closed, Delta, Job, Ticket

STOPPED_SECONDS = 10.0  # after which a client may ask again for a model that has stopped
COUNT_SECONDS = 2.0  # for the engine to end what was cancelled


@dataclass(slots=True)
class Choice:
    """One text, once it is complete."""

    text: str = ""
    tokens: list[Any] = field(default_factory=list)
    finish: str = "length"


class Written:
    """The texts of a request. Raises ApiError when there is no room for it, or a job is wrong."""

    def __init__(self, model: TextModel, jobs: Sequence[Job], noted: Noted, seconds: float) -> None:
        self.jobs, self.noted = jobs, noted
        self.deadline = asyncio.get_running_loop().time() + seconds
        self.tickets: list[Ticket] = []
        self.usage: dict[str, Any] = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
        try:
            for job in jobs:
                self.tickets.append(model.engine.submit(job))
        except Busy as error:
            self.cancel()
            raise busy("too many requests are waiting for this model; try again later", error.retry_after) from error
        except Closed as error:
            self.cancel()
            raise unavailable("the model was stopped", "stopped", STOPPED_SECONDS) from error
        except ValueError as error:
            self.cancel()
            raise wrong(str(error)) from error

    def cancel(self) -> None:
        for ticket in self.tickets:
            ticket.cancel()

    async def deltas(self) -> AsyncIterator[tuple[int, Delta]]:
        """Choice and piece; every choice ends with one that has a finish."""
        unfinished = {place * job.n + sample for place, job in enumerate(self.jobs) for sample in range(job.n)}
        try:
            async for choice, delta in self._until_deadline():
                if delta.text or delta.tokens:
                    self.noted.wrote()
                if delta.finish is not None:
                    unfinished.discard(choice)
                yield choice, delta
            for choice in sorted(unfinished):
                yield choice, Delta(choice % self.jobs[0].n, "", (), "length")
        finally:
            self.cancel()
            await asyncio.shield(self._count())

    async def _until_deadline(self) -> AsyncIterator[tuple[int, Delta]]:
        pieces = aiter(_merged(self.tickets, [job.n for job in self.jobs]))
        while True:
            try:
                async with asyncio.timeout_at(self.deadline):
                    item = await anext(pieces)
            except (StopAsyncIteration, TimeoutError):
                return
            yield item

    async def choices(self) -> list[Choice]:
        found = [Choice() for job in self.jobs for _ in range(job.n)]
        async for number, delta in self.deltas():
            choice = found[number]
            choice.text += delta.text
            choice.tokens += delta.tokens
            choice.finish = delta.finish or choice.finish
        return found

    async def _count(self) -> None:
        cached = 0
        for ticket in self.tickets:
            with contextlib.suppress(Exception):  # what failed was told to the reader already
                async with asyncio.timeout(COUNT_SECONDS):
                    async for _ in ticket:  # what was cancelled is over before the next step of the engine
                        pass
            try:
                usage = ticket.usage
            except RuntimeError:
                continue
            self.usage["prompt_tokens"] += usage.prompt_tokens
            self.usage["completion_tokens"] += usage.completion_tokens
            cached += usage.cached_tokens
        self.usage["total_tokens"] = self.usage["prompt_tokens"] + self.usage["completion_tokens"]
        self.noted.used({**self.usage, "cached_tokens": cached})
        self.usage["prompt_tokens_details"] = {"cached_tokens": cached}


async def _merged(tickets: Sequence[Ticket], n_each: Sequence[int]) -> AsyncIterator[tuple[int, Delta]]:
    """What several tickets give, in the order in which it comes."""
    if len(tickets) == 1:
        async for delta in tickets[0]:
            yield delta.sample, delta
        return
    queue: asyncio.Queue[tuple[int, Delta] | BaseException | None] = asyncio.Queue()

    async def forward(ticket: Ticket, first: int) -> None:
        try:
            async for delta in ticket:
                queue.put_nowait((first + delta.sample, delta))
            queue.put_nowait(None)
        except Exception as error:
            queue.put_nowait(error)

    firsts = [sum(n_each[:place]) for place in range(len(tickets))]
    tasks = [asyncio.ensure_future(forward(*one)) for one in zip(tickets, firsts, strict=True)]
    try:
        n_open = len(tasks)
        while n_open:
            item = await queue.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                n_open -= 1
                continue
            yield item
    finally:
        for task in tasks:
            task.cancel()
