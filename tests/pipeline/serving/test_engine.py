"""The engine: a job's text is that of `generate`, whoever shares the batch; how single jobs fail and end."""

import asyncio
import dataclasses
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from model.generation.generate import generate, generate_text
from model.generation.sample_config import SampleConfig
from pipeline.serving.engine import Busy, Closed, Delta, Engine, Job, Ticket
from tests.model.generation.test_generate import CONFIG, GPT2, GREEDY, PER_ROW, PROMPTS, WINDOW, decoder_of, letters

LONG = dataclasses.replace(CONFIG, max_seq_len=160)
SAMPLED = SampleConfig(max_new_tokens=20, temperature=1.0, top_k=None, top_p=0.9, repetition_penalty=1.2, seed=5)
JOBS = [
    Job(prompt=prompt, cfg=cfg, n=1 + i % 2) for i, (prompt, cfg) in enumerate(zip(PROMPTS, PER_ROW, strict=True))
]


@pytest.fixture(scope="module")
def model():
    """In float64, so that rounding, which differs with the batch, decides nothing."""
    return decoder_of(CONFIG).double()


@pytest.fixture(scope="module")
def long_model():
    """With room for several blocks of a prefix."""
    return decoder_of(LONG).double()


@contextmanager
def held(model, n_passes: int) -> Iterator[threading.Event]:
    """The model stands still after so many passes, until the event is set."""
    goes_on, n_left = threading.Event(), n_passes

    def hold(module, args):
        nonlocal n_left
        n_left -= 1
        if n_left < 0:
            goes_on.wait()

    handle = model.model.embed_tokens.register_forward_pre_hook(hold)
    try:
        yield goes_on
    finally:
        goes_on.set()
        handle.remove()


def texts_of(ticket: Ticket) -> list[str]:
    texts = [""] * ticket.job.n
    for delta in ticket:
        texts[delta.sample] += delta.text
    return texts


def expected(model, job: Job) -> list[str]:
    """By `generate`, which writes beyond the context where the engine ends."""
    n_new = min(job.cfg.max_new_tokens, model.cfg.max_seq_len - len(job.prompt) + 1)
    return generate_text(model, [job.prompt] * job.n, dataclasses.replace(job.cfg, max_new_tokens=n_new), letters)


def ids_of(seed: int, n: int) -> list[int]:
    return torch.randint(0, 61, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("cfg", [CONFIG, GPT2, WINDOW], ids=["qwen3", "gpt2", "window"])
def test_engine_text_is_that_of_generate_whoever_shares_the_batch(cfg):
    model = decoder_of(cfg).double()
    texts = [expected(model, job) for job in JOBS]
    for n_slots, most_read in [(1, 256), (3, 4), (32, 1)]:
        with Engine(model, letters, n_slots=n_slots, most_read=most_read) as engine:
            tickets = [engine.submit(job) for job in JOBS]
            assert [texts_of(ticket) for ticket in tickets] == texts


def test_engine_text_does_not_depend_on_when_it_joined_or_who_was_cancelled(long_model):
    first, second, third = (
        Job(prompt=ids_of(i, 5 + 9 * i), cfg=dataclasses.replace(SAMPLED, seed=i)) for i in range(3)
    )
    with Engine(long_model, letters, most_read=4) as engine, held(long_model, 6) as goes_on:
        deltas = iter(one := engine.submit(first))
        text = next(deltas).text
        dropped, other = engine.submit(dataclasses.replace(third, n=2)), engine.submit(second)
        goes_on.set()
        next(iter(dropped))
        dropped.cancel()
        text += "".join(delta.text for delta in deltas)
        assert [text] == expected(long_model, first) and one.usage.completion_tokens == 20
        assert texts_of(other) == expected(long_model, second)
        assert texts_of(engine.submit(third)) == expected(long_model, third)


def test_engine_same_seed_same_text_and_another_differs(model):
    job = Job(prompt=[3], cfg=dataclasses.replace(PER_ROW[1], max_new_tokens=12), n=3)
    with Engine(model, letters) as engine:
        one, again = texts_of(engine.submit(job)), texts_of(engine.submit(job))
        other = texts_of(engine.submit(dataclasses.replace(job, cfg=dataclasses.replace(job.cfg, seed=8))))
    assert one == again != other and len(set(one)) == 3


def test_engine_samples_of_a_job_read_its_prompt_once(long_model):
    n_read = []
    handle = long_model.model.embed_tokens.register_forward_pre_hook(
        lambda module, args: n_read.append(args[0].numel()) if args[0].size(1) > 1 else None
    )
    job = Job(prompt=ids_of(1, 30), cfg=SAMPLED, n=5)
    with Engine(long_model, letters, n_slots=8) as engine:
        ticket = engine.submit(job)
        texts = texts_of(ticket)
        assert engine.state.n_passes < 30
    handle.remove()
    assert texts == expected(long_model, job)
    assert n_read == [30] and (ticket.usage.prompt_tokens, ticket.usage.completion_tokens) == (30, 100)
    with Engine(long_model, letters, n_slots=2) as engine:  # more samples than slots
        assert texts_of(engine.submit(job)) == expected(long_model, job)


def test_engine_reads_what_was_read_before_no_more_and_writes_the_same(long_model):
    system = ids_of(2, 70)
    job = Job(prompt=[*system, 5, 6, 7], cfg=dataclasses.replace(SAMPLED, stop_ids=()))
    with Engine(long_model, letters) as engine:
        ticket = engine.submit(job)
        assert texts_of(ticket) == expected(long_model, job) and ticket.usage.cached_tokens == 0
        answer = generate(long_model, [job.prompt], dataclasses.replace(job.cfg, stop=()))[0]
        for prompt, n_cached in [
            ([*system, 9, 9], 64),  # another user's, with the same system message
            ([*job.prompt, *answer, 1, 2], 64),  # the next turn; of 95 tokens read before, 64 are whole blocks of 32
            (system[:64], 32),  # its last token has to be read
            ([1, *system], 0),
        ]:
            turn = Job(prompt=prompt, cfg=SAMPLED)
            ticket = engine.submit(turn)
            assert texts_of(ticket) == expected(long_model, turn)
            assert ticket.usage.cached_tokens == n_cached
        state = engine.state
        assert state.cached_tokens == 160 and state.prefix_bytes > 0


def test_engine_keeps_no_more_of_what_was_read_than_memory_allows(long_model):
    block = 32 * long_model.new_cache(1, 1).bytes_per_token
    jobs = [Job(prompt=ids_of(seed % 4, 100), cfg=SAMPLED) for seed in range(6)]
    for n_blocks in (0, 1, 5):
        with Engine(long_model, letters, prefix_bytes=n_blocks * block) as engine:
            for job in jobs:
                assert texts_of(engine.submit(job)) == expected(long_model, job)
            assert engine.state.prefix_bytes == n_blocks * block


def test_engine_with_little_memory_lets_some_wait_and_writes_the_same(long_model):
    """Rows that can't grow any more go on later, from what they have written, drawn and under what they are."""
    one_context = 160 * long_model.new_cache(1, 1).bytes_per_token
    jobs = [Job(prompt=ids_of(i, 20 + i), cfg=dataclasses.replace(SAMPLED, max_new_tokens=70)) for i in range(5)]
    with Engine(long_model, letters, cache_bytes=2 * one_context, prefix_bytes=0) as engine:
        tickets = [engine.submit(dataclasses.replace(job, n=2)) for job in jobs]
        for ticket, job in zip(tickets, jobs, strict=True):
            assert texts_of(ticket) == expected(long_model, dataclasses.replace(job, n=2))
            assert engine.state.cache_bytes <= 2 * one_context
        assert engine.state.n_passes > 71


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


def test_engine_task_that_is_cancelled_frees_its_slot(long_model):
    long = Job(prompt=[1], cfg=dataclasses.replace(GREEDY, max_new_tokens=150))

    async def go() -> list[str]:
        async def read(ticket: Ticket) -> None:
            async for _ in ticket:
                begun.set()

        begun = asyncio.Event()
        tickets = [engine.submit(long), engine.submit(long)]
        tasks = [asyncio.ensure_future(read(ticket)) for ticket in tickets]
        await begun.wait()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        goes_on.set()
        assert all(ticket.is_cancelled for ticket in tickets)
        return [delta.text async for delta in engine.submit(JOBS[0])]

    with Engine(long_model, letters, n_slots=1) as engine, held(long_model, 3) as goes_on:
        assert "".join(asyncio.run(go())) == expected(long_model, JOBS[0])[0]
        assert engine.state.completion_tokens <= 4 + JOBS[0].cfg.max_new_tokens


def test_engine_ends_a_text_at_its_stops_and_tells_why(model):
    ids = generate(model, [[3]], GREEDY)[0]
    text = letters(ids).decode()
    stop = text[4:6]
    for settings, finish, kept in [
        ({"stop": (stop,)}, "stop", text[: text.index(stop)]),
        ({"stop_ids": (ids[5],)}, "stop", letters(ids[: ids.index(ids[5])]).decode()),
        ({"max_new_tokens": 5}, "length", letters(ids[:5]).decode()),
    ]:
        with Engine(model, letters) as engine:
            deltas = list(engine.submit(Job(prompt=[3], cfg=dataclasses.replace(GREEDY, **settings), n_logprobs=0)))
        assert "".join(delta.text for delta in deltas) == kept
        assert [delta.finish for delta in deltas if delta.finish] == [finish] == [deltas[-1].finish]
        tokens = [one.token for delta in deltas for one in delta.tokens]
        assert letters(tokens).decode() == kept and tokens == ids[: len(tokens)]


def test_engine_logprobs_are_those_of_the_model_before_temperature_and_penalties(model):
    cfg = SampleConfig(max_new_tokens=6, temperature=0.4, top_k=3, repetition_penalty=1.5, seed=1)
    with Engine(model, letters) as engine:
        other = engine.submit(Job(prompt=[5, 5], cfg=cfg))
        ticket = engine.submit(Job(prompt=PROMPTS[0], cfg=cfg, n_logprobs=4))
        found = [one for delta in ticket for one in delta.tokens]
        assert all(delta.tokens == () for delta in other)
    ids = generate(model, [PROMPTS[0]], cfg)[0]
    assert [one.token for one in found] == ids
    logits_TV = model(torch.tensor([[*PROMPTS[0], *ids]]))[0, len(PROMPTS[0]) - 1 : -1]
    log_TV = logits_TV.float().log_softmax(-1)
    for one, token, log_V in zip(found, ids, log_TV, strict=True):
        assert one.logprob == pytest.approx(log_V[token].item(), abs=1e-5)
        values, top = log_V.topk(4)
        assert [token for token, _ in one.top] == top.tolist()
        assert [logprob for _, logprob in one.top] == pytest.approx(values.tolist(), abs=1e-5)


def test_engine_job_with_bad_numbers_fails_alone():
    """Neither beside nor after it, in its slot, does any other job meet them."""
    model = decoder_of(LONG).double()
    with torch.no_grad():
        model.model.embed_tokens.weight[60] = float("nan")
    bad = Job(prompt=[*[7] * 50, 60, *[2] * 30], cfg=GREEDY)
    good = [Job(prompt=[7] * n, cfg=dataclasses.replace(GREEDY, stop_ids=(60,))) for n in (2, 90)]
    texts = [expected(model, job) for job in good]
    with Engine(model, letters, n_slots=3, most_read=20) as engine:
        for _ in range(2):
            with pytest.raises(ValueError, match="not finite"):
                list(engine.submit(bad))
            tickets = [engine.submit(job) for job in (good[0], bad, good[1])]
            with pytest.raises(ValueError, match=r"not finite at new token 1 .* earlier checkpoint"):
                list(tickets[1])
            assert [texts_of(ticket) for ticket in (tickets[0], tickets[2])] == texts
        assert engine.state.is_running


class Broken:
    """A constraint with a mistake in one of its parts."""

    least_tokens, may_end, may_continue = 1, False, True

    def __init__(self, where: str) -> None:
        self.where = where

    def begin(self) -> "Broken":
        return self._fail("begin")

    def allowed(self, n_left: int) -> torch.Tensor:
        self._fail("allowed")
        return torch.ones(61, dtype=torch.bool)

    def push(self, token: int) -> None:
        self._fail("push")

    def _fail(self, where: str) -> "Broken":
        if where == self.where:
            raise RuntimeError(f"mistake in {where}")
        return self


@pytest.mark.parametrize("where", ["begin", "allowed", "push"])
def test_engine_job_with_a_broken_constraint_fails_alone(model, where):
    with Engine(model, letters) as engine:
        tickets = [engine.submit(job) for job in JOBS]
        broken = engine.submit(Job(prompt=[4, 5], cfg=GREEDY, n=2, constraint=Broken(where)))
        with pytest.raises(RuntimeError, match=f"mistake in {where}"):
            list(broken)
        assert [texts_of(ticket) for ticket in tickets] == [expected(model, job) for job in JOBS]
        assert texts_of(engine.submit(JOBS[1])) == expected(model, JOBS[1])


def test_engine_pass_that_fails_ends_those_in_it_and_the_engine_goes_on(model, caplog):
    def fail(module, args):
        handle.remove()
        raise RuntimeError("out of memory")

    handle = model.model.embed_tokens.register_forward_pre_hook(fail)
    with Engine(model, letters, n_slots=2) as engine:
        with pytest.raises(RuntimeError, match="out of memory"):
            list(engine.submit(JOBS[0]))
        assert texts_of(engine.submit(JOBS[1])) == expected(model, JOBS[1])
    assert "a pass failed" in caplog.text


def test_engine_whose_thread_ends_tells_everybody(model, caplog):
    def fail(module, args):
        raise SystemExit("killed")

    with held(model, 0) as goes_on:
        handle = model.model.embed_tokens.register_forward_pre_hook(fail)
        engine = Engine(model, letters, n_slots=1)
        tickets = [engine.submit(job) for job in JOBS]
        goes_on.set()
    for ticket in tickets:
        with pytest.raises(SystemExit):
            list(ticket)
    engine.close()
    handle.remove()
    assert not engine.state.is_running and "the engine failed" in caplog.text
    with pytest.raises(Closed, match="takes no more requests"):
        engine.submit(JOBS[0])


def test_engine_whose_queue_is_full_refuses_and_says_when_to_come_again(long_model):
    job = Job(prompt=[1], cfg=dataclasses.replace(GREEDY, max_new_tokens=150))
    with Engine(long_model, letters, n_slots=1, max_waiting=2) as engine, held(long_model, 2) as goes_on:
        deltas = iter(first := engine.submit(job))
        next(deltas)
        waiting = [engine.submit(job) for _ in range(2)]
        with pytest.raises(Busy, match="2 requests wait already") as refusal:
            engine.submit(job)
        assert 0 < refusal.value.retry_after <= 60 and engine.state.n_waiting == 2
        waiting[0].cancel()
        assert not list(waiting[0]) and waiting[0].usage.completion_tokens == 0
        engine.submit(job)  # in its place
        first.cancel()
        goes_on.set()
        assert texts_of(waiting[1]) == expected(long_model, job)


def test_engine_that_drains_finishes_all_and_accepts_nothing_new(model):
    engine = Engine(model, letters, n_slots=2)
    tickets = [engine.submit(job) for job in JOBS]
    assert engine.drain(timeout=60)
    assert [texts_of(ticket) for ticket in tickets] == [expected(model, job) for job in JOBS]
    with pytest.raises(Closed):
        engine.submit(JOBS[0])
    engine.close()


def test_engine_that_is_closed_ends_every_ticket(long_model):
    engine = Engine(long_model, letters, n_slots=2)
    job = Job(prompt=[1], cfg=dataclasses.replace(GREEDY, max_new_tokens=150))
    with held(long_model, 2) as goes_on:
        tickets = [engine.submit(job) for _ in range(5)]
        first = iter(tickets[0])
        next(first)
        closing = threading.Thread(target=engine.close)
        closing.start()
        while engine.state.accepts:
            pass
        goes_on.set()
        closing.join()
    with pytest.raises(Closed, match="closed before this request was over"):
        list(first)
    for ticket in tickets[1:]:
        with pytest.raises(Closed):
            list(ticket)


def test_engine_ends_what_takes_too_long_or_writes_too_much(model):
    with Engine(model, letters, max_seconds=1e-9) as engine:
        deltas = list(engine.submit(Job(prompt=[1, 2], cfg=GREEDY, n=2)))
        assert [(delta.sample, delta.finish) for delta in deltas] == [(0, "length"), (1, "length")]
    with Engine(model, letters, max_new_tokens=3) as engine:
        ticket = engine.submit(Job(prompt=[1, 2], cfg=GREEDY))
        assert list(ticket)[-1].finish == "length" and ticket.usage.completion_tokens == 3


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (Job(prompt=[], cfg=GREEDY), "holds no token"),
        (Job(prompt=[61], cfg=GREEDY), "token id 61"),
        (Job(prompt=[1] * 25, cfg=GREEDY), "25 tokens, the model reads at most 24"),
        (Job(prompt=[1], cfg=GREEDY, n=0), "n=0 must be at least 1"),
        (Job(prompt=[1], cfg=GREEDY, n_logprobs=62), "n_logprobs=62"),
    ],
)
def test_engine_refuses_a_bad_job_at_once(model, job, message):
    with Engine(model, letters) as engine, pytest.raises(ValueError, match=message):
        engine.submit(job)


def test_engine_usage_before_the_end_is_an_error(model):
    with Engine(model, letters) as engine, held(model, 0) as goes_on:
        ticket = engine.submit(JOBS[0])
        with pytest.raises(RuntimeError, match="read it to its end first"):
            _ = ticket.usage
        goes_on.set()
        texts_of(ticket)
        assert ticket.usage.prompt_tokens == 5
