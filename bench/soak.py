"""Does the server stay what it is when clients misbehave? 10,000 requests, of which a tenth is broken.

In: folders of models in our format, by default tiny ones that are made here. Out: a Markdown table, printed: how many
requests of each kind were answered with which status, how long they took, how many errors were not in OpenAI's form,
and the memory of the server after each tenth. Every tenth request is cut off in the middle, has a body of 5 MB, is
not UTF-8 or not JSON, or closes its connection while an answer is streamed.

    python -m bench.soak [--requests 10000] [--clients 16] [--models DIR ...]
"""

import argparse
import asyncio
import collections
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from bench.machine import MB, machine
from model.data.vocabularies import TRAINED_PATTERNS
from pipeline.corpus.tokens.tokenizer_files import write_tokenizer
from tests.pipeline.serving.api.tiny_models import write_all

HANGS = 60.0  # seconds after which a request counts as one that hangs
BROKEN_SHARE, TENTHS = 10, 10
TOKENS = 8  # of an answer


@dataclass
class Tally:
    statuses: dict[str, collections.Counter[str]] = field(
        default_factory=lambda: collections.defaultdict(collections.Counter)
    )
    seconds: dict[str, list[float]] = field(default_factory=lambda: collections.defaultdict(list))
    n_misformed: int = 0  # errors that are not in OpenAI's form
    memory: list[float] = field(default_factory=list)  # of the server, after each tenth


def post(path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def good_requests(writer: str, embedder: str | None, judge: str | None) -> list[tuple[str, str, dict]]:
    """Kind, path and body."""
    messages = [{"role": "user", "content": "Who grinds the corn?"}]
    chat = {"model": writer, "messages": messages, "max_tokens": TOKENS}
    found = [
        ("chat", "/v1/chat/completions", chat),
        ("stream", "/v1/chat/completions", chat | {"stream": True, "n": 2}),
        ("completions", "/v1/completions", {"model": writer, "prompt": "The mill", "max_tokens": TOKENS}),
    ]
    if embedder:
        found.append(("embeddings", "/v1/embeddings", {"model": embedder, "input": ["a mill", "a river"]}))
    if judge:
        found.append(("classify", "/v1/classify", {"model": judge, "input": "a happy mill"}))
    return found


def broken_requests(writer: str) -> list[tuple[str, bytes, bool]]:
    """Kind, bytes, and whether the client closes the connection without waiting for the answer."""
    path = "/v1/chat/completions"
    whole = {"model": writer, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 500}
    body = json.dumps(whole).encode()
    return [
        ("broken: cut off", post(path, body)[:-20], True),
        ("broken: 5 MB", post(path, b'{"model": "' + b"a" * 5_000_000 + b'"}'), False),
        ("broken: bad UTF-8", post(path, body.replace(b"Hello", b"\xff\xfe")), False),
        ("broken: no JSON", post(path, body[:-1] + b",,"), False),
        ("broken: no HTTP", b"\x00\x01 hello\r\n\r\n", False),
        ("broken: wrong field", post(path, json.dumps(whole | {"temperature": "hot"}).encode()), False),
        ("broken: left while streaming", post(path, json.dumps(whole | {"stream": True}).encode()), True),
    ]


async def ask(port: int, request: bytes, leaves: bool) -> tuple[str, bytes]:
    """Status and body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(request)
        if leaves:
            await writer.drain()
            await asyncio.sleep(0.01)
            return "left", b""
        answer = await reader.read(-1)
    finally:
        writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return head.split(b" ", 2)[1].decode() if head else "closed", body


def is_openai_error(body: bytes) -> bool:
    try:
        content = json.loads(body)
    except ValueError:
        return False
    return set(content) == {"error"} and set(content["error"]) == {"message", "type", "param", "code"}


async def client(port: int, plan: "itertools.chain", tally: Tally, on_done: object) -> None:
    for kind, request, leaves in plan:
        started = time.perf_counter()
        try:
            async with asyncio.timeout(HANGS):
                status, body = await ask(port, request, leaves)
        except TimeoutError:
            status, body = "hangs", b""
        except OSError as error:
            status, body = type(error).__name__, b""
        tally.seconds[kind].append(time.perf_counter() - started)
        tally.statuses[kind][status] += 1
        if status.isdigit() and int(status) >= 400:
            tally.n_misformed += not is_openai_error(body)
        on_done()  # type: ignore[operator]


async def soak(port: int, server: psutil.Process, plans: Sequence, n_clients: int, tally: Tally) -> None:
    todo, done = iter(plans), itertools.count(1)
    every = max(1, len(plans) // TENTHS)

    def on_done() -> None:
        if next(done) % every == 0:
            tally.memory.append(server.memory_info().rss / MB)

    await asyncio.gather(*(client(port, todo, tally, on_done) for _ in range(n_clients)))


def planned(n: int, models: Sequence[str]) -> list[tuple[str, bytes, bool]]:
    good = [(kind, post(path, json.dumps(body).encode()), False) for kind, path, body in good_requests(*models)]
    broken = broken_requests(models[0])
    plans = [
        broken[place // BROKEN_SHARE % len(broken)] if place % BROKEN_SHARE == 0 else good[place % len(good)]
        for place in range(n)
    ]
    random.Random(0).shuffle(plans)
    return plans


def tiny_models(folder: Path) -> list[str]:
    """A decoder, an encoder and a classifier, with weights drawn at random."""
    write_tokenizer(folder / "bytes", {bytes([value]): value for value in range(256)}, next(iter(TRAINED_PATTERNS)))
    made = write_all(folder / "bytes", folder)
    return [str(made[name]) for name in ("writer", "embedder", "moods")]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--models", nargs="+", help="a decoder, an encoder, a classifier")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = args.models or tiny_models(Path(folder))
        names = ["writer", "embedder", "judge"][: len(models)]
        served = [f"{name}={model}" for name, model in zip(names, models, strict=True)]
        command = [sys.executable, "-u", "-m", "pipeline", "serve", *served, "--port", "0", "--access-log", "none"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as process:
            try:
                lines = iter(process.stdout.readline, "")  # type: ignore[union-attr]
                address = next(line for line in lines if line.startswith("Serving at")).split()[2]
                port, server = int(address.rpartition(":")[2]), psutil.Process(process.pid)
                run(args, port, server, [*names, None, None][:3])
            finally:
                process.terminate()


def run(args: argparse.Namespace, port: int, server: psutil.Process, models: Sequence) -> None:
    tally, started = Tally(), time.perf_counter()
    asyncio.run(soak(port, server, planned(args.requests, models), args.clients, tally))
    seconds = time.perf_counter() - started
    print(f"{machine(1)} {args.requests:,} requests by {args.clients} clients in {seconds:.0f} s.\n")
    print("| request | number | status (number) | median, ms | slowest, s |\n| --- | --- | --- | --- | --- |")
    for kind in sorted(tally.statuses):
        statuses = ", ".join(f"{status} ({n:,})" for status, n in sorted(tally.statuses[kind].items()))
        times = sorted(tally.seconds[kind])
        print(f"| {kind} | {len(times):,} | {statuses} | {1000 * times[len(times) // 2]:.0f} | {times[-1]:.2f} |")
    memory = ", ".join(f"{one:.0f}" for one in tally.memory)
    print(
        f"\nErrors that are not in OpenAI's form: {tally.n_misformed}. Memory of the server in MB after each tenth:"
    )
    print(f"{memory}; the last one is {100 * (tally.memory[-1] / tally.memory[0] - 1):+.1f} % of the first.")
    status, body = asyncio.run(
        ask(port, b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", False)
    )
    busy = [line for line in body.decode().splitlines() if line.startswith("gristmill_slots_busy{")]
    print(f"\nPlaces that are taken at the end ({status}): {'; '.join(busy)}")


if __name__ == "__main__":
    main()
