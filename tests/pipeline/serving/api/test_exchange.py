"""Clients that leave, models that are exchanged, and a server that is stopped: nobody else notices."""

import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest
import requests

from pipeline.commands.serve_sources import Local, found_in
from pipeline.serving.api.limits import Limits
from pipeline.serving.api.loaded import Found
from pipeline.store.layout import Layout
from tests.pipeline.serving.api.tiny_models import CONTEXT, Running, running, write_writer

LONG = {
    "model": "writer",
    "messages": [{"role": "user", "content": "Hello"}],
    "max_tokens": CONTEXT - 200,
    "temperature": 0,
}
SHORT = LONG | {"max_tokens": 5}
SECONDS = 20.0  # until something that should happen is given up


def until(happened: Callable[[], bool]) -> float:
    """Seconds until it is so."""
    started = time.monotonic()
    while not happened():
        assert time.monotonic() - started < SECONDS
        time.sleep(0.01)
    return time.monotonic() - started


def busy(server: Running) -> float:
    return server.metric("gristmill_slots_busy", model="writer")


@contextlib.contextmanager
def streaming(server: Running, body: dict) -> Iterator[Iterator[bytes]]:
    """The lines of an answer that has begun."""
    with requests.post(f"{server.url}/v1/chat/completions", json=body, stream=True, timeout=60) as answer:
        lines = (line for line in answer.iter_lines() if line)
        next(lines)
        yield lines


@pytest.mark.parametrize("stream", [True, False])
def test_client_that_disconnects_frees_its_slots_within_a_second(server, stream):
    until(lambda: busy(server) == 0)
    body = requests.Request("POST", server.url + "/v1/chat/completions", json=LONG | {"stream": stream, "n": 3})
    prepared = body.prepare()
    head = "".join(f"{name}: {value}\r\n" for name, value in prepared.headers.items())
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(f"POST {prepared.path_url} HTTP/1.1\r\nHost: 127.0.0.1\r\n{head}\r\n".encode())
        connection.sendall(prepared.body)
        until(lambda: busy(server) == 3)
    assert until(lambda: busy(server) == 0) < 1
    until(lambda: any(line["status"] in (200, 499) and line["completion_tokens"] for line in server.log))


def test_stream_that_is_closed_by_the_client_frees_its_slot(server, client):
    with client.chat.completions.create(**LONG, stream=True) as stream:
        next(iter(stream))
        assert busy(server) == 1
    assert until(lambda: busy(server) == 0) < 1


@dataclass
class Switched:
    """A source whose model a test changes."""

    layout: Layout
    folder: Path
    is_broken: bool = False
    cleaned: list[Path] = None

    def key(self) -> str:
        return str(self.folder)

    def found(self) -> Found:
        folder = self.folder
        cleanup = (lambda: self.cleaned.append(folder)) if self.cleaned is not None else (lambda: None)
        return found_in(folder, str(folder), folder.name, cleanup=cleanup)


def test_model_that_is_being_loaded_is_told_of_and_answers_once_it_is_there(tiny_models, tmp_path):
    source, may_load = Switched(Layout(tmp_path), tiny_models["writer"]), threading.Event()
    found = source.found
    source.found = lambda: may_load.wait(SECONDS) and found()
    with running([], tmp_path, sources={"writer": source}, waits=False) as server:
        answer = server.post("/v1/chat/completions", SHORT)
        assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == "model_loading"
        assert server.get("/readyz").status_code == 503 and server.get("/healthz").status_code == 200
        assert server.get("/v1/models/writer").json()["gristmill"]["ready"] is False
        may_load.set()
        until(lambda: server.get("/readyz").status_code == 200)
        assert server.post("/v1/chat/completions", SHORT).status_code == 200


@pytest.fixture
def two(tiny_models, byte_tokenizer, tmp_path) -> tuple[Path, Path]:
    return tiny_models["writer"], write_writer(byte_tokenizer.directory, tmp_path / "second", seed=5)


def test_exchange_while_streaming_drops_nothing_and_new_requests_get_the_new_model(two, tmp_path):
    source = Switched(Layout(tmp_path), two[0], cleaned=[])
    with running([], tmp_path, sources={"writer": source}, poll_seconds=0.05) as server:
        one = server.post("/v1/chat/completions", SHORT).json()
        with streaming(server, LONG | {"stream": True}) as lines:
            source.folder = two[1]
            until(lambda: server.get("/v1/models").json()["data"][0]["gristmill"]["version"] == "second")
            other = server.post("/v1/chat/completions", SHORT).json()
            assert (one["system_fingerprint"], other["system_fingerprint"]) == ("writer", "second")
            assert one["choices"][0]["message"] != other["choices"][0]["message"]
            assert source.cleaned == [] and server.metric("gristmill_retired_models") == 1
            assert all(b'"finish_reason": null' in next(lines) for _ in range(50))
        until(lambda: source.cleaned == [two[0]])  # the old one is closed once nobody uses it
        assert server.metric("gristmill_exchanges_total", model="writer", result="ok") == 2


def test_version_that_cannot_be_loaded_leaves_the_old_one_and_is_not_tried_again(two, tmp_path, caplog):
    source = Switched(Layout(tmp_path), two[0])
    with running([], tmp_path, sources={"writer": source}, poll_seconds=0.02) as server:
        damaged = tmp_path / "damaged"
        shutil.copytree(two[1], damaged)
        (damaged / "model.safetensors").write_bytes(b"no weights")
        source.folder = damaged
        until(lambda: server.metric("gristmill_exchanges_total", model="writer", result="failed") == 1)
        assert server.post("/v1/chat/completions", SHORT).json()["system_fingerprint"] == "writer"
        assert server.get("/readyz").status_code == 200
        source.folder = two[1]
        until(lambda: server.post("/v1/chat/completions", SHORT).json()["system_fingerprint"] == "second")
        assert server.metric("gristmill_exchanges_total", model="writer", result="failed") == 1
    assert "writer: the model was not exchanged" in caplog.text and "writer stays" in caplog.text


def test_folder_that_was_written_anew_is_another_model(tiny_models, tmp_path, byte_tokenizer):
    folder = write_writer(byte_tokenizer.directory, tmp_path / "model")
    source = Local(Layout(tmp_path), str(folder))
    before = source.key()
    assert source.key() == before
    until(lambda: write_writer(byte_tokenizer.directory, folder, seed=5) and source.key() != before)


def test_stopped_server_finishes_what_runs_and_says_that_it_is_not_ready(tiny_models, tmp_path):
    with running([str(tiny_models["writer"])], tmp_path) as server:
        with streaming(server, LONG | {"stream": True, "max_tokens": 400}) as lines:
            server.server.loop.call_soon_threadsafe(server.server.drain)
            last = list(lines)[-2:]
        assert b'"finish_reason": "length"' in last[0] and last[1] == b"data: [DONE]"
        server.thread.join(SECONDS)
        assert not server.thread.is_alive()
        with pytest.raises(requests.ConnectionError):
            server.get("/healthz")


def test_answer_that_outlasts_the_drain_ends_and_the_server_stops(tiny_models, tmp_path):
    with running([str(tiny_models["writer"])], tmp_path, drain_seconds=0.2) as server:
        with streaming(server, LONG | {"stream": True}) as lines:
            server.server.loop.call_soon_threadsafe(server.server.drain)
            with pytest.raises(requests.exceptions.ChunkedEncodingError):
                list(lines)
        server.thread.join(SECONDS)
        assert not server.thread.is_alive()


def test_answer_that_takes_longer_than_a_request_may_ends_as_at_its_longest_length(tiny_models, tmp_path):
    limits = Limits(request_seconds=0.3)
    with running([str(tiny_models["writer"])], tmp_path, limits=limits) as server:
        found = server.post("/v1/chat/completions", LONG).json()
        assert found["choices"][0]["finish_reason"] == "length"
        assert 0 < found["usage"]["completion_tokens"] < LONG["max_tokens"]
        assert len(found["choices"][0]["message"]["content"]) <= found["usage"]["completion_tokens"]
        with streaming(server, LONG | {"stream": True, "n": 2}) as lines:
            ends = [line for line in lines if b'"finish_reason": "length"' in line]
        assert len(ends) == 2


def test_many_clients_at_once_get_the_texts_that_they_get_alone(server):
    alone = [
        server.post("/v1/completions", {"model": "writer", "prompt": f"{i}", "seed": i}).json() for i in range(8)
    ]
    found: dict[int, str] = {}

    def ask(i: int) -> None:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as own:
            pieces = own.completions.create(model="writer", prompt=f"{i}", seed=i, stream=True)
            found[i] = "".join(one.choices[0].text for one in pieces)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(SECONDS)
    assert found == {i: one["choices"][0]["text"] for i, one in enumerate(alone)}
