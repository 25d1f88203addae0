"""The engine of a server: one thread writes the texts of many requests at once (continuous batching).

In: Jobs from any thread or event loop. Out: a Ticket for each, which streams what becomes final. Steps of a round:
drop what was cancelled; let jobs that wait join, as far as slots and memory go; one pass over the model
(model/generation/batch.py); tell each ticket its text. A prompt is read a part at a time, so that the texts of others
go on meanwhile, and only the part of it that no earlier text began with (model/generation/prefix_cache.py); several
samples of a job read it once.

The text of a job is that of `generate` with the same prompt, settings and seed, whoever shares the batch, up to
rounding. It ends where the context does, because a server that slides the context would read it again and again.
What goes wrong in one job ends that job; what goes wrong in a pass ends those that took part in it.
"""

import atexit
import dataclasses
import logging
import threading
import time
from collections import deque
from typing import Self

import torch

from model.generation.constraints import checked_constraints
from model.generation.generate import checked_prompts
from model.generation.prefix_cache import PrefixCache
from model.generation.text_stream import DecodeBytes
from model.network.decoder import Decoder
from model.training.machine import free_memory
from pipeline.serving.engine_ticket import Busy, Closed, Delta, Job, Ticket, Usage
from pipeline.serving.engine_writing import Writer

__all__ = ["Busy", "Closed", "Delta", "Engine", "EngineState", "Job", "Ticket", "Usage"]
PREFIX_CONTEXTS = 16  # whole contexts that the prefixes may fill, where memory allows
SHARE_OF_MEMORY = {"slots": 0.25, "prefixes": 0.125}  # of what is free when the engine starts
FIRST_ESTIMATE, LONGEST_ESTIMATE = 1.0, 60.0  # seconds of retry_after: before any job is over, and at most
N_TIMED = 64  # jobs that ended last, by which the throughput is measured
LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class EngineState:
    """What an engine does at the moment, and what it did since its start."""

    is_running: bool  # False = its thread has ended
    accepts: bool  # new jobs; False = it is drained or closed, or has failed
    n_slots: int
    n_rows: int  # samples that are written
    n_waiting: int  # jobs
    cache_bytes: int
    prefix_bytes: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    n_passes: int


class Engine:
    def __init__(
        self,
        model: Decoder,
        decode_bytes: DecodeBytes,
        *,
        n_slots: int = 32,
        max_waiting: int = 64,
        most_read: int | None = None,
        max_new_tokens: int | None = None,
        max_seconds: float | None = None,
        cache_bytes: int | None = None,
        prefix_bytes: int | None = None,
    ) -> None:
        """Starts the thread. Nobody else may run `model` while the engine has it.

        `n_slots`: samples that are written at once, where memory allows; `max_waiting`: jobs that wait for one.
        `most_read`: tokens of prompts in one pass, None = by how fast the model reads. `max_new_tokens`,
        `max_seconds`: of a job, which then ends with "length"; None = no limit but its own and that of the context.
        `cache_bytes`: of the keys and values of all slots, at least those of one context, and twice as many for the
        moment in which they grow; `prefix_bytes`: of beginnings that are kept, 0 = none; None = by what is free.
        """
        if n_slots < 1 or max_waiting < 0 or (most_read is not None and most_read < 1):
            raise ValueError(f"{n_slots=} and {most_read=} must be at least 1, {max_waiting=} at least 0")
        context = model.new_cache(1, 1).bytes_per_token * model.cfg.max_seq_len
        free = free_memory(next(model.parameters()).device)
        if cache_bytes is None:
            cache_bytes = min(int(free * SHARE_OF_MEMORY["slots"]), n_slots * context)
        if prefix_bytes is None:
            prefix_bytes = min(int(free * SHARE_OF_MEMORY["prefixes"]), PREFIX_CONTEXTS * context)
        self.model, self.n_slots, self.max_waiting = model, n_slots, max_waiting
        self._max_new_tokens = max_new_tokens
        self._writer = Writer(
            model,
            decode_bytes,
            n_slots=n_slots,
            most_tokens=max(cache_bytes, context) * model.cfg.max_seq_len // context,
            most_read=most_read,
            prefixes=PrefixCache(prefix_bytes),
            max_seconds=max_seconds,
        )
        self._changed = threading.Condition()  # guards all that follows
        self._waiting: deque[Ticket] = deque()
        self._cancelled: list[Ticket] = []
        self._ended_at: deque[float] = deque(maxlen=N_TIMED)
        self._is_draining = self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a daemon thread must not be inside torch when the interpreter ends

    # For everybody.

    def submit(self, job: Job) -> Ticket:
        """Raises Busy when the queue is full, Closed when the engine takes nothing more, ValueError for a bad job."""
        ticket = Ticket(self._checked(job), self._cancel)
        with self._changed:
            if self._is_draining or not self._thread.is_alive():
                raise Closed("this engine takes no more requests: it is being closed, or it failed")
            if len(self._waiting) >= self.max_waiting and not self._has_free_slot():
                raise Busy(len(self._waiting), self._retry_after())
            self._waiting.append(ticket)
            self._changed.notify_all()
        return ticket

    @property
    def state(self) -> EngineState:
        writer, prefixes = self._writer, self._writer.prefixes
        return EngineState(
            is_running=self._thread.is_alive(),
            accepts=not self._is_draining and self._thread.is_alive(),
            n_slots=self.n_slots,
            n_rows=writer.n_rows,
            n_waiting=len(self._waiting),
            cache_bytes=writer.cache_bytes,
            prefix_bytes=prefixes.n_bytes,
            prompt_tokens=writer.n_prompt,
            cached_tokens=writer.n_cached,
            completion_tokens=writer.n_completed,
            n_passes=writer.n_passes,
        )

    def drain(self, timeout: float | None = None) -> bool:
        """Finishes what runs and waits, and accepts nothing new. Whether all was over within `timeout` seconds."""
        with self._changed:
            self._is_draining = True
            self._changed.notify_all()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def close(self) -> None:
        """Ends everything after the pass that runs: open tickets raise Closed."""
        with self._changed:
            self._is_draining = self._is_closing = True
            self._changed.notify_all()
        self._thread.join()
        atexit.unregister(self.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _checked(self, job: Job) -> Job:
        cfg = self.model.cfg
        if job.n < 1:
            raise ValueError(f"n={job.n} must be at least 1")
        if job.n_logprobs is not None and not 0 <= job.n_logprobs <= cfg.vocab_size:
            raise ValueError(f"n_logprobs={job.n_logprobs} must lie between 0 and {cfg.vocab_size}, or be None")
        prompt = checked_prompts([job.prompt], [job.cfg], cfg.vocab_size, cfg.max_seq_len)[0]
        limits = (job.cfg.max_new_tokens, cfg.max_seq_len - len(prompt) + 1, self._max_new_tokens)
        n_new = min(limit for limit in limits if limit is not None)
        checked_constraints(job.constraint, [n_new], [bool(job.cfg.stop)])
        settings = dataclasses.replace(job.cfg, max_new_tokens=n_new)
        return dataclasses.replace(job, prompt=prompt, cfg=settings)

    def _has_free_slot(self) -> bool:
        return len(self._waiting) + self._writer.n_rows + len(self._writer.paused) < self.n_slots

    def _retry_after(self) -> float:
        """Seconds between two jobs that ended, at the pace of the last ones."""
        ended = self._ended_at
        if len(ended) < 2:
            return FIRST_ESTIMATE
        return min(max((time.monotonic() - ended[0]) / (len(ended) - 1), FIRST_ESTIMATE), LONGEST_ESTIMATE)

    def _cancel(self, ticket: Ticket) -> None:
        with self._changed:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
                ticket.end(Usage(len(ticket.job.prompt), 0, 0))
            else:
                self._cancelled.append(ticket)

    # In the thread.

    @torch.inference_mode()
    def _run(self) -> None:
        error: BaseException = Closed("the engine was closed before this request was over")
        try:
            while self._goes_on():
                self._round()
        except BaseException as failure:  # a mistake of ours: whoever waits must learn of it
            LOG.exception("the engine failed, and takes no more requests")
            error = failure
        finally:
            with self._changed:
                self._is_draining = True
                waiting = [*self._waiting]
                self._waiting.clear()
            for ticket in [*self._writer.open, *waiting]:
                ticket.end(Usage(len(ticket.job.prompt), 0, 0), error)
            self._writer.open.clear()

    def _goes_on(self) -> bool:
        """Waits until there is something to do; False if nothing will be."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._writer.open or self._is_draining)
            return not self._is_closing and bool(self._waiting or self._writer.open)

    def _round(self) -> None:
        writer = self._writer
        with self._changed:
            cancelled, self._cancelled = self._cancelled, []
            for ticket in cancelled:
                if ticket in writer.open:
                    writer.close(ticket)
        try:
            writer.fill_slots()
            while (ticket := self._next()) is not None:
                writer.join(ticket)
            over = writer.step()
        except Exception as error:  # such as memory that ran out in a pass; nothing is known of the rows then
            LOG.exception("a pass failed; %d requests end with its error", len(writer.open))
            writer.close_all(error)
            return
        now = time.monotonic()
        with self._changed:
            self._ended_at.extend([now] * len(over))

    def _next(self) -> Ticket | None:
        """The ticket that joins now: none while samples that are written wait for a slot themselves."""
        with self._changed:
            is_free = not self._writer.paused and self._writer.n_rows < self.n_slots
            return self._waiting.popleft() if is_free and self._waiting else None
