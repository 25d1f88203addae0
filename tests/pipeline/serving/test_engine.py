"""The engine: a job's text is that of `generate`, whoever shares the batch; how single jobs fail and end."""

import asyncio
import dataclasses

import pytest

from model.generation.generate import generate_text
from pipeline.serving.engine import Closed, Delta, Engine, Job, Ticket
from tests.model.generation.test_generate import CONFIG, GREEDY, PER_ROW, PROMPTS, decoder_of, letters


@pytest.fixture(scope="module")
def model():
    """In float64, so that rounding, which differs with the batch, decides nothing."""
    return decoder_of(CONFIG).double()


def texts_of(ticket: Ticket) -> list[str]:
    texts = [""] * ticket.job.n
    for delta in ticket:
        texts[delta.sample] += delta.text
    return texts


def expected(model, job: Job) -> list[str]:
    """By `generate`, which writes beyond the context where the engine ends."""
    n_new = min(job.cfg.max_new_tokens, CONFIG.max_seq_len - len(job.prompt) + 1)
    return generate_text(model, [job.prompt] * job.n, dataclasses.replace(job.cfg, max_new_tokens=n_new), letters)


JOBS = [
    Job(prompt=prompt, cfg=cfg, n=1 + i % 2) for i, (prompt, cfg) in enumerate(zip(PROMPTS, PER_ROW, strict=True))
]


@pytest.mark.parametrize("n_slots", [1, 3, 32])
def test_engine_text_is_that_of_generate_whoever_shares_the_batch(model, n_slots):
    with Engine(model, letters, n_slots=n_slots, most_read=4) as engine:
        tickets = [engine.submit(job) for job in JOBS]
        assert [texts_of(ticket) for ticket in tickets] == [expected(model, job) for job in JOBS]


def test_engine_streams_to_an_event_loop(model):
    async def read(ticket: Ticket) -> list[Delta]:
        return [delta async for delta in ticket]

    async def read_all() -> list[list[Delta]]:
        return await asyncio.gather(*(read(engine.submit(job)) for job in JOBS))

    with Engine(model, letters) as engine:
        streams = asyncio.run(read_all())
    for job, deltas in zip(JOBS, streams, strict=True):
        texts = ["".join(one.text for one in deltas if one.sample == sample) for sample in range(job.n)]
        assert texts == expected(model, job)
        assert [delta.finish for delta in deltas if delta.finish] == ["length"] * job.n


def test_engine_that_is_closed_ends_every_ticket(model):
    engine = Engine(model, letters, n_slots=1)
    tickets = [engine.submit(Job(prompt=[1], cfg=GREEDY)) for _ in range(9)]
    engine.close()
    n_closed = 0
    for ticket in tickets:
        try:
            list(ticket)
        except Closed:
            n_closed += 1
    assert n_closed
    with pytest.raises(Closed):
        engine.submit(Job(prompt=[1], cfg=GREEDY))
