"""Throughput and waiting of many streaming clients beside one, over the engine itself or over HTTP.

In: --model, a folder with a decoder, in this process; or --url, a running server with --name, one of its models. Out:
a Markdown table, printed. Every client asks again as soon as its answer is complete (a closed loop). Prompts and
answers have different lengths, around --prompt and --tokens; no prompt begins like another one, so that nothing is
saved by what was read before. The answers of one client and of many are the same requests.

- throughput: new tokens of all clients a second, from the first request to the end of the last one that was
  complete while all clients still asked; the goal is four times one client's.
- first token: milliseconds from a request to the first text of its answer, median and 95th percentile. The clients
  begin one after the other within the time of one answer, as they would in life; the goal for the 95th percentile is
  five times one client's. The row "at once" is the worst case: all of them ask at the same moment.
- between tokens: milliseconds between two texts of one answer.

    python -m bench.serving --model DIR [--clients 32] [--prompt 64] [--tokens 48] [--rounds 4] [--threads 1]
    python -m bench.serving --url http://127.0.0.1:8000/v1 --name MODEL
"""

import argparse
import asyncio
import random
import statistics
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from bench.machine import machine
from model.generation.decode import pack
from model.generation.sample_config import SampleConfig
from model.network.registry import load_decoder
from pipeline.serving.engine import Engine, Job

GOAL_THROUGHPUT, GOAL_FIRST = 4.0, 5.0
Ask = Callable[[int, int, int], AsyncIterator[tuple[int, bool]]]
# From the number of a request and the tokens of its prompt and answer: new tokens, and whether they come with a text.


@dataclass
class Figures:
    """What the clients saw."""

    first: list[float] = field(default_factory=list)  # seconds
    gaps: list[float] = field(default_factory=list)
    done: list[tuple[float, float]] = field(default_factory=list)  # when a text came, and how many tokens it has
    n_failed: int = 0
    began: float = 0.0
    ended: float = float("inf")  # when the first client had nothing left to ask

    @property
    def tokens_per_second(self) -> float:
        end = min(self.ended, max(when for when, _ in self.done))
        return sum(n for when, n in self.done if when <= end) / (end - self.began)


def share(values: list[float], part: float) -> float:
    """The value below which `part` of all lie."""
    return sorted(values)[min(len(values) - 1, int(part * len(values)))]


async def client(ask: Ask, requests: list[tuple[int, int, int]], delay: float, figures: Figures) -> None:
    await asyncio.sleep(delay)
    for request in requests:
        began = last = time.perf_counter()
        times, n_tokens = [], 0
        try:
            async for n_new, is_text in ask(*request):
                n_tokens += n_new
                if is_text:
                    now = time.perf_counter()
                    (figures.gaps if times else figures.first).append(now - last)
                    times.append(last := now)
            figures.done += [(when, n_tokens / len(times)) for when in times]
        except Exception as error:
            figures.n_failed += 1
            print(f"failed after {time.perf_counter() - began:.1f} s: {error!r}")
    figures.ended = min(figures.ended, time.perf_counter())


async def measured(ask: Ask, requests: list[list[tuple[int, int, int]]], spread: float) -> Figures:
    """Each client's requests; the clients begin within `spread` seconds."""
    figures = Figures(began=time.perf_counter() + spread)
    delays = [spread * place / len(requests) for place in range(len(requests))]
    await asyncio.gather(*(client(ask, own, delay, figures) for own, delay in zip(requests, delays, strict=True)))
    figures.done = [(when, n) for when, n in figures.done if when >= figures.began]
    return figures


def requests_of(n: int, prompt: int, new: int, seed: int) -> list[tuple[int, int, int]]:
    """Number, tokens of the prompt and of the answer: from half of the usual length to one and a half."""
    draw = random.Random(seed)

    def around(length: int) -> int:
        return draw.randint(length // 2, length * 3 // 2)

    return [(seed * 1000 + place, around(prompt), around(new)) for place in range(n)]


def prompt_of(number: int, length: int, vocab_size: int) -> list[int]:
    draw = random.Random(number)
    return [draw.randrange(vocab_size) for _ in range(length)]


def in_process(engine: Engine, settings: dict[str, float | int | None]) -> Ask:
    vocab_size = engine.model.cfg.vocab_size

    async def ask(number: int, n_prompt: int, n_new: int) -> AsyncIterator[tuple[int, bool]]:
        cfg = SampleConfig(max_new_tokens=n_new, seed=number, **settings)  # type: ignore[arg-type]
        job = Job(prompt=prompt_of(number, n_prompt, vocab_size), cfg=cfg, n_logprobs=None)
        n_known = 0
        async for delta in (ticket := engine.submit(job)):
            n_known += len(delta.text)  # a letter a token
            yield len(delta.text), True
        assert n_known == ticket.usage.completion_tokens

    return ask


def over_http(url: str, name: str, settings: dict[str, float | int | None]) -> Ask:
    """A stream of /v1/completions by OpenAI's own client; the prompt is a text of about as many tokens."""
    from openai import AsyncOpenAI

    openai = AsyncOpenAI(base_url=url, api_key="none", timeout=600, max_retries=0)

    async def ask(number: int, n_prompt: int, n_new: int) -> AsyncIterator[tuple[int, bool]]:
        draw = random.Random(number)
        prompt = " ".join(str(draw.randrange(10)) for _ in range(max(1, n_prompt // 2)))
        asked = {"model": name, "prompt": prompt, "max_tokens": n_new, "seed": number, **settings}
        asked |= {"stream": True, "stream_options": {"include_usage": True}}
        async for chunk in await openai.completions.create(**asked):  # type: ignore[call-overload]
            if chunk.choices:
                yield 0, True
            else:
                yield chunk.usage.completion_tokens, False

    return ask


async def table(ask: Ask, args: argparse.Namespace) -> None:
    lone = requests_of(args.rounds * 3, args.prompt, args.tokens, 1)
    if (await measured(ask, [lone[:1]], 0.0)).n_failed:  # to warm up
        raise SystemExit("the first request failed; nothing is measured")
    one = await measured(ask, [[(number + 500, n_prompt, n_new) for number, n_prompt, n_new in lone]], 0.0)
    spread = (one.done[-1][0] - one.began) / len(lone) * args.clients / 6
    many = [requests_of(args.rounds, args.prompt, args.tokens, seed + 2) for seed in range(args.clients)]
    spread_out = await measured(ask, many, spread)
    other = [requests_of(1, args.prompt, args.tokens, seed + 1002) for seed in range(args.clients)]
    at_once = await measured(ask, other, 0.0)
    at_once.ended = float("inf")  # of one request each, all count
    print(
        "| clients | tokens/s | ratio | first token, ms: median | 95 % | ratio of 95 % | between tokens, ms: median |"
        " 95 % | failed |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, found in (("1", one), (f"{args.clients}", spread_out), (f"{args.clients} at once", at_once)):
        speed, late = found.tokens_per_second, share(found.first, 0.95)
        print(
            f"| {name} | {speed:,.0f} | {speed / one.tokens_per_second:.1f} |"
            f" {statistics.median(found.first) * 1e3:,.0f} | {late * 1e3:,.0f} |"
            f" {late / share(one.first, 0.95):.1f} |"
            f" {statistics.median(found.gaps) * 1e3:,.1f} | {share(found.gaps, 0.95) * 1e3:,.1f} | {found.n_failed} |"
        )
    print(
        f"\nGoals: {GOAL_THROUGHPUT:.0f} times the tokens a second, {GOAL_FIRST:.0f} times the 95 % of first tokens."
    )


async def bench(args: argparse.Namespace) -> None:
    settings: dict[str, float | int | None] = {"temperature": 1.0, "top_p": args.top_p}
    if args.url:
        await table(over_http(args.url, args.name, {key: value for key, value in settings.items() if value}), args)
        return
    model = pack(load_decoder(args.model), args.clients)
    tokens = {"n_slots": args.clients, "max_waiting": 2 * args.clients, "most_read": args.most_read}
    with Engine(model, lambda ids: b"a" * len(ids), **tokens) as engine:
        await table(in_process(engine, {**settings, "top_k": None}), args)
        print(f"\n{engine.state}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--model", type=Path, metavar="DIR")
    where.add_argument("--url", metavar="URL", help="of a server, with /v1")
    parser.add_argument("--name", help="of the model on the server")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--prompt", type=int, default=64, metavar="TOKENS")
    parser.add_argument("--tokens", type=int, default=48, metavar="N", help="new ones an answer")
    parser.add_argument("--rounds", type=int, default=4, metavar="N", help="requests of each client")
    parser.add_argument("--top-p", type=float, dest="top_p")
    parser.add_argument("--most-read", type=int, metavar="TOKENS", help="of prompts in one pass")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(machine(1))
    print(f"{args.threads} threads; prompts of about {args.prompt} tokens, answers of about {args.tokens}.\n")
    asyncio.run(bench(args))


if __name__ == "__main__":
    main()
