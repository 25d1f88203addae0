"""The jobs that an engine is writing: who has a slot, who waits for one, and how much memory all of them take.

In: tickets that join, and calls of `step` by the thread of the engine, which alone uses a Writer. Out: Deltas in the
tickets. The cache is a rectangle, slots times the longest row, that grows with what the rows have read, not with what
they may read one day. When it can't grow any further, the sample that came last is taken out and goes on later, from
what it has written; so every sample gets to its end, and the first one is never stopped.
"""

import time
from collections import deque
from collections.abc import Sequence

from model.generation.batch import Batch, Drawn, Row
from model.generation.logprobs import TokenLogprob
from model.generation.prefix_cache import PrefixCache
from model.generation.slots import Slots
from model.generation.text_stream import DecodeBytes, TextStream
from model.network.decoder import Decoder
from model.network.kv_cache import KVCache
from pipeline.serving.engine_ticket import Delta, Ticket, Usage, tell

READ_SECONDS = 0.6  # that the texts of others may stand still while prompts are read
FIRST_READ, LEAST_READ, MOST_READ = 256, 64, 4096  # tokens of a pass that reads: the first one, and the limits
PAUSE_PER_ROW = 0.0015  # seconds in which a reader need not be told again, for each text that is written
LEAST_LEN = 256  # tokens that a slot has room for at least; twice as many when they are too few, and so on


class Sample:
    """One text of a job."""

    def __init__(self, ticket: Ticket, number: int, decode_bytes: DecodeBytes) -> None:
        job = ticket.job
        writing = None if job.constraint is None else job.constraint.begin()
        self.ticket, self.number = ticket, number
        self.row = Row(0, job.cfg, number, job.prompt, writing, job.n_logprobs)
        self.context: Sequence[int] = job.prompt  # what it continues when it joins
        self._decode_bytes, self._text = decode_bytes, TextStream(decode_bytes, job.cfg.stop)
        self._tokens: list[tuple[int, TokenLogprob]] = []  # of text that is held back, and where each begins
        self._n_read = self._n_final = 0  # bytes of all tokens, and of the text that is final

    def delta(self, drawn: Drawn) -> Delta:
        """What became final by this token."""
        text = ""
        if drawn.token is not None:
            if drawn.logprob is not None:
                self._tokens.append((self._n_read, drawn.logprob))
                self._n_read += len(self._decode_bytes([drawn.token]))
            text = self._text.push(drawn.token)
        finish = "stop" if self._text.is_done else drawn.finish
        if finish is not None:
            return self.last(finish, text)
        self._n_final += len(text.encode())
        return Delta(self.number, text, self._final_tokens())

    def last(self, finish: str, text: str = "") -> Delta:
        """What is left when no token follows."""
        text += self._text.finish()
        self._n_final += len(text.encode())
        is_cut = self._text.is_done
        tokens = self._final_tokens() if is_cut else tuple(one for _, one in self._tokens)
        return Delta(self.number, text, tokens, "stop" if is_cut else finish)  # type: ignore[arg-type]

    def _final_tokens(self) -> tuple[TokenLogprob, ...]:
        """The tokens that begin in the text that is final."""
        is_all = self._n_final >= self._n_read and not self._text.is_done
        n = sum(is_all or start < self._n_final for start, _ in self._tokens)
        final = tuple(one for _, one in self._tokens[:n])
        del self._tokens[:n]
        return final


class Open:
    """A ticket whose samples are being written."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket, self.started_at = ticket, time.monotonic()
        self.n_cached = self.n_completed = 0
        self.n_left = ticket.job.n  # samples that are not over
        self.twins: list[Sample] = []  # that wait until the first sample has read the prompt

    @property
    def usage(self) -> Usage:
        return Usage(len(self.ticket.job.prompt), self.n_cached, self.n_completed)


class Writer:
    def __init__(
        self,
        model: Decoder,
        decode_bytes: DecodeBytes,
        *,
        n_slots: int,
        most_tokens: int,
        most_read: int | None,
        prefixes: PrefixCache,
        max_seconds: float | None,
    ) -> None:
        """`most_tokens`: slots times longest row, at least max_seq_len. `most_read`: tokens of a pass that reads;
        None = as many as take about READ_SECONDS."""
        self.model, self.n_slots, self.most_tokens = model, n_slots, most_tokens
        self._most_read, self._adapts = most_read or FIRST_READ, most_read is None
        self.prefixes, self.max_seconds = prefixes, max_seconds
        self._decode_bytes = decode_bytes
        self.open: dict[Ticket, Open] = {}
        self.paused: deque[Sample] = deque()  # have no slot at the moment
        self._samples: dict[Row, Sample] = {}  # with a slot, in the order of joining
        self._untold: dict[Ticket, None] = {}  # have text that their readers do not know of
        self.n_prompt = self.n_cached = self.n_completed = self.n_passes = 0
        self._batch = self._new_batch()
        self.cache_bytes = self._size_of_cache()

    def _new_batch(self) -> Batch:
        n_tokens = min(LEAST_LEN, self.model.cfg.max_seq_len)
        return Batch(
            self.model, self.n_slots, n_tokens, most_read=self._most_read, cache=self.model.new_cache(1, n_tokens)
        )

    @property
    def n_rows(self) -> int:
        return len(self._samples)

    def _size_of_cache(self) -> int:
        cache = self._cache
        return cache.n_rows * cache.max_len * cache.bytes_per_token

    # Joining and leaving.

    def join(self, ticket: Ticket) -> None:
        """Opens a ticket; its samples join when there is room."""
        opened = self.open[ticket] = Open(ticket)
        try:
            first, *opened.twins = (Sample(ticket, i, self._decode_bytes) for i in range(ticket.job.n))
        except Exception as error:  # a constraint that can't begin
            self.close(ticket, error)
            return
        self.n_prompt += len(ticket.job.prompt)
        self.paused.append(first)
        self.fill_slots()

    def fill_slots(self) -> None:
        """Those that were taken out or wait go on, in order, as far as there is room."""
        while self.paused and self._has_room(1, len(self.paused[0].context) + 1):
            sample = self.paused.popleft()
            part = self._cache.part([self.n_rows])
            n_read = self.prefixes.put_into(part, sample.context)
            if sample.row.n_new == 0 and sample.number == 0:
                self.open[sample.ticket].n_cached = n_read
                self.n_cached += n_read
            self._batch.join(sample.row, context=sample.context, n_read=n_read)
            self._samples[sample.row] = sample

    @property
    def _slots(self) -> Slots:
        return self._batch.slots

    @property
    def _cache(self) -> KVCache:
        assert self._slots.cache is not None
        return self._slots.cache

    def _has_room(self, n_more: int, length: int) -> bool:
        """Whether so many rows of this length fit beside the others; if they do, the cache has room for them now."""
        cache = self._cache
        n_rows, length = self.n_rows + n_more, min(length, self.model.cfg.max_seq_len)
        if n_rows > self.n_slots:
            return False
        if n_rows <= cache.n_rows and length <= cache.max_len:
            return True
        longest, most = max([length, *map(len, self._slots.contexts)]), self.model.cfg.max_seq_len
        count, size = _rounded(n_rows, 1, self.n_slots), _rounded(longest, LEAST_LEN, most)
        if count * size > self.most_tokens:  # then all that is left at once, not a little more at every step
            count, size = n_rows, min(self.most_tokens // n_rows, most)
        if size < longest:
            return False
        self._slots.resize(count, size)
        self.cache_bytes = self._size_of_cache()
        return True

    def _leave(self, sample: Sample, *, keeps: bool) -> None:
        row = sample.row
        if keeps and row.n_new:
            self.prefixes.keep(self._cache.part([row.slot]), self._slots.contexts[row.slot])
        self._batch.leave(row)
        del self._samples[row]

    def _pause_last(self) -> None:
        """Takes out the sample that joined last."""
        sample = next(reversed(self._samples.values()))
        sample.context = list(self._slots.contexts[sample.row.slot])
        self._leave(sample, keeps=True)
        self.paused.appendleft(sample)

    def close(self, ticket: Ticket, error: BaseException | None = None) -> None:
        """The ticket is over, with all its samples."""
        opened = self.open.pop(ticket)
        for sample in [one for one in self._samples.values() if one.ticket is ticket]:
            self._leave(sample, keeps=error is None)
        self.paused = deque(one for one in self.paused if one.ticket is not ticket)
        self._untold.pop(ticket, None)  # which is told of its end
        ticket.end(opened.usage, error)

    def close_all(self, error: BaseException) -> None:
        """Every ticket is over; nothing of the batch is used again, because a pass may have failed within it."""
        for waiting in (self._samples, self.paused, self._untold):
            waiting.clear()
        for ticket in list(self.open):
            self.open.pop(ticket).ticket.end(Usage(len(ticket.job.prompt), 0, 0), error)
        self._batch = self._new_batch()

    # Writing.

    def step(self) -> list[Ticket]:
        """One pass over the model, if a sample has a slot. Returns the tickets that are over."""
        over = self._out_of_time()
        self._make_room()
        if not self._samples:
            return over
        for drawn in self._pass():
            sample = self._samples.get(drawn.row)
            if sample is None:  # another sample of its ticket failed in this pass
                continue
            try:
                over += self._deliver(sample, drawn)
            except Exception as error:
                over.append(sample.ticket)
                self.close(sample.ticket, error)
        self._tell()
        return over

    def _pass(self) -> list[Drawn]:
        """One pass; one that read tells how many tokens the next one may read."""
        began = time.monotonic()
        found = self._batch.step()
        seconds, n_read = time.monotonic() - began, self._slots.n_last_read
        self.n_passes += 1
        if self._adapts and n_read >= LEAST_READ:  # fewer tokens say little of how long many take
            affordable = int(n_read * READ_SECONDS / max(seconds, 1e-6))
            self._most_read = min(max(affordable, LEAST_READ), 2 * self._most_read, MOST_READ)
            self._slots.most_read = self._most_read
        return found

    def _tell(self) -> None:
        now, pause = time.monotonic(), PAUSE_PER_ROW * len(self._samples)
        due = [ticket for ticket in self._untold if ticket.is_due(now, pause)]
        tell(due)
        for ticket in due:
            del self._untold[ticket]

    def _make_room(self) -> None:
        """For the next token of each row."""
        while self._samples:
            longest = max(len(context) for context in self._slots.contexts)
            if longest <= self._cache.max_len or self._has_room(0, longest):
                return
            self._pause_last()

    def _deliver(self, sample: Sample, drawn: Drawn) -> list[Ticket]:
        if drawn.error is not None:
            raise drawn.error
        opened = self.open[sample.ticket]
        if opened.twins:
            self._begin_twins(opened, sample)
        is_first = sample.row.n_new == 1 and drawn.token is not None
        if is_first:
            self.prefixes.keep(self._cache.part([sample.row.slot]), sample.row.prompt)
        opened.n_completed += drawn.token is not None
        self.n_completed += drawn.token is not None
        delta = sample.delta(drawn)
        sample.ticket.put([delta])
        self._untold[sample.ticket] = None
        return [] if delta.finish is None else self._finish(sample)

    def _begin_twins(self, opened: Open, first: Sample) -> None:
        """The other samples of a job, now that its prompt is read."""
        twins, opened.twins = opened.twins, []
        for sample in twins:
            if not self.paused and self._has_room(1, len(sample.context) + 1):
                self._batch.join_copy(sample.row, first.row)
                self._samples[sample.row] = sample
            else:
                self.paused.append(sample)

    def _finish(self, sample: Sample) -> list[Ticket]:
        """A sample is over, and with the last one its ticket."""
        self._leave(sample, keeps=True)
        opened = self.open[sample.ticket]
        opened.n_left -= 1
        if opened.n_left:
            return []
        self.close(sample.ticket)
        return [sample.ticket]

    def _out_of_time(self) -> list[Ticket]:
        """Ends what took too long, with what is written."""
        if self.max_seconds is None:
            return []
        late = [one for one in self.open.values() if time.monotonic() - one.started_at > self.max_seconds]
        for opened in late:
            left = [*self._samples.values(), *self.paused, *opened.twins]
            opened.ticket.put([one.last("length") for one in left if one.ticket is opened.ticket])
            self.close(opened.ticket)
        return [one.ticket for one in late]


def _rounded(number: int, least: int, most: int) -> int:
    """`number` or more: `least` times a power of two, at most `most`."""
    while least < number:
        least *= 2
    return min(least, most)
