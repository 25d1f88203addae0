"""Tiny models of every kind, and a server with them in a thread of this process."""

import contextlib
import json
import shutil
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
import torch
from torch import nn

from model.data.spans import tag_names
from model.network.decoder import new_decoder
from model.network.encoder import new_masked_lm
from model.network.heads import new_classifier, new_span_classifier, new_token_classifier
from model.network.registry import describe, save_model
from model.network.shape import DecoderConfig, EncoderConfig, switches_of
from pipeline.commands.serve_sources import sources_of
from pipeline.serving.api.limits import Limits
from pipeline.serving.api.server import Server, Settings, bound, server_of
from pipeline.store.layout import Layout

CONTEXT = 4096  # so long that a text of this length takes seconds
DECODER = DecoderConfig(
    vocab_size=257, n_layers=1, n_heads=2, n_kv_heads=1, d_model=16, d_head=8, d_ff=32, max_seq_len=CONTEXT
)
SHAPE = {"n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "d_model": 32, "d_head": 16, "d_ff": 64, "max_seq_len": 64}
ENCODER = EncoderConfig(vocab_size=257, tie_embeddings=True, **SHAPE, **switches_of("modernbert"))


def write_writer(tokenizer: Path, folder: Path, seed: int = 0) -> Path:
    """A decoder that writes lower-case letters and never ends by itself."""
    model = new_decoder(DECODER, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim == 2:
                weight.normal_(std=0.5, generator=generator)
        letters = model.lm_head.weight[97:123].clone()
        model.lm_head.weight.zero_()
        model.lm_head.weight[97:123] = 4 * letters
    return _written(tokenizer, folder, model, describe(DECODER))


def write_all(tokenizer: Path, folder: Path) -> dict[str, Path]:
    """A model of every kind, by the name under which it is served."""
    labels = ("glad", "sad", "calm")
    classifier, several = (new_classifier(ENCODER, 3, seed=seed) for seed in (0, 1))
    with torch.no_grad():
        for one in (classifier, several):
            one.score.weight.normal_(generator=torch.Generator().manual_seed(1))
    tags = tuple(tag_names(["person", "place"]))
    of_spans = {"max_tokens": 64, "no_answer_threshold": -1e9, "most_answer_tokens": 8}
    models: dict[str, tuple[nn.Module, dict[str, Any]]] = {
        "embedder": (new_masked_lm(ENCODER, seed=0), describe(ENCODER)),
        "moods": (classifier, describe(ENCODER, labels) | {"max_tokens": 32}),
        "topics": (several, describe(ENCODER, labels, problem="multi_label") | {"max_tokens": 32}),
        "names": (
            new_token_classifier(ENCODER, len(tags), seed=0),
            describe(ENCODER, tags, kind="token_classifier") | {"max_tokens": 32},
        ),
        "questions": (new_span_classifier(ENCODER, seed=0), describe(ENCODER, kind="span_classifier") | of_spans),
    }
    found = {name: _written(tokenizer, folder / name, *model) for name, model in models.items()}
    return {"writer": write_writer(tokenizer, folder / "writer"), **found}


def _written(tokenizer: Path, folder: Path, model: nn.Module, description: dict[str, Any]) -> Path:
    shutil.copytree(tokenizer, folder / "tokenizer", dirs_exist_ok=True)
    save_model(folder, model, description)
    return folder


@dataclass
class Running:
    """A server that answers."""

    url: str
    port: int
    server: Server
    log: list[dict[str, Any]]
    thread: threading.Thread

    def post(self, path: str, body: Any = None, **options: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, timeout=60, **options)

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(self.url + path, timeout=60, **options)

    def metric(self, name: str, **labels: str) -> float:
        """A number of /metrics; 0 for one that is not there."""
        wanted = "{" + ",".join(f'{key}="{value}"' for key, value in labels.items()) + "}" if labels else ""
        for line in self.get("/metrics").text.splitlines():
            if line.startswith(f"{name}{wanted} "):
                return float(line.rpartition(" ")[2])
        return 0.0


@contextlib.contextmanager
def running(
    models: Sequence[str], data: Path, *, limits: Limits | None = None, waits: bool = True, **settings: Any
) -> Iterator[Running]:
    """Serves `models`, as the command line names them, until the block ends. `waits`: until they are loaded."""
    ready, log = threading.Event(), list[dict[str, Any]]()
    server, failures = server_of(
        Settings(
            sources=settings.pop("sources", None) or sources_of(Layout(data), models),
            limits=limits or Limits(),
            write_line=lambda line: log.append(json.loads(line)),
            on_ready=lambda served: ready.set(),
            **{"drain_seconds": 10.0, "poll_seconds": None} | settings,
        )
    )
    listening = bound("127.0.0.1", 0)
    port = listening.getsockname()[1]
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    try:
        while waits and thread.is_alive() and not ready.wait(0.05):
            pass
        if failures:
            raise failures[0]
        yield Running(f"http://127.0.0.1:{port}", port, server, log, thread)
    finally:
        if thread.is_alive():
            for _ in range(2):  # the second time it does not wait for what runs
                server.loop.call_soon_threadsafe(server.drain)
        thread.join(60)
        assert not thread.is_alive()
