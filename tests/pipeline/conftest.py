"""Fixtures that several stages' tests share."""

import json
import runpy
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from model.data.token_shards import write_token_shard
from model.network.decoder import new_decoder
from model.network.encoder import new_masked_lm
from model.network.registry import describe, save_model
from model.network.shape import DecoderConfig, EncoderConfig, switches_of
from pipeline.corpus.tokens.tokenizer import TOKENIZER, TokenizerConfig
from pipeline.corpus.tokens.tokenizer_files import tokenizer_in
from pipeline.store.engine import Done
from pipeline.store.records import DOCUMENT, FILTERED, SPLIT_CORPUS, Checkpoint, Counts, Shards, TokenizerFile
from pipeline.store.shards import text_digest, write_rows
from pipeline.store.store import Outcome, Stage, Store


@pytest.fixture(scope="session")
def writers() -> SimpleNamespace:
    """The functions of file_writers.py, which write small files of every format."""
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("file_writers.py"))))


@pytest.fixture(scope="session")
def byte_tokenizer(tmp_path_factory) -> TokenizerFile:
    """A tokenizer whose tokens are the 256 bytes and end of text (id 256)."""
    folder = tmp_path_factory.mktemp("byte_tokenizer")
    (folder / "corpus").mkdir()
    write_rows(
        folder / "corpus" / "x.parquet",
        [neutral_row(SPLIT_CORPUS) | {"text": "some text", "split": "train"}],
        SPLIT_CORPUS,
    )
    corpus = Shards(stage="split", directory=folder / "corpus", fingerprint="c", digest="c", rows=1)
    return Store(root=folder / "store").build(TOKENIZER, TokenizerConfig(vocab_size=257), corpus).handle


class InThisProcess:
    """An engine without workers, so that a test costs no processes. Errors are not caught."""

    def map(self, function: Callable, items: Any, **limits: Any) -> Iterator[Done]:
        return (Done(function(item)) for item in items)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(root=tmp_path / "store", engine=InThisProcess())


@dataclass(frozen=True, kw_only=True)
class WrittenDocuments:
    rows: tuple[tuple[str, str, str, str], ...]  # shard, source, name, text
    shards: tuple[str, ...]


def _write_documents(cfg: WrittenDocuments, inputs: tuple, work: Any) -> Outcome:
    by_shard = defaultdict(list, {shard: [] for shard in cfg.shards})
    for shard, source, name, text in cfg.rows:
        by_shard[shard].append(document_row(source, name, text))
    for shard, rows in by_shard.items():
        write_rows(work.directory / f"{shard}.parquet", rows, FILTERED)
    return Outcome(rows=len(cfg.rows), counts=Counts(rows_in=len(cfg.rows), kept=len(cfg.rows)))


def neutral_row(schema: pa.Schema) -> dict[str, Any]:
    """A row that says nothing: null where that is allowed, else 0, an empty text or an empty list."""
    return {field.name: None if field.nullable else _neutral(field.type) for field in schema}


@pytest.fixture
def neutral_document() -> dict[str, Any]:
    """A row of a corpus, see `neutral_row`."""
    return neutral_row(SPLIT_CORPUS)


def _neutral(kind: pa.DataType) -> Any:
    if pa.types.is_nested(kind):
        return []
    return "" if pa.types.is_string(kind) or pa.types.is_large_string(kind) else pa.scalar(0).cast(kind).as_py()


def document_row(source: str, name: str, text: str) -> dict[str, Any]:
    return {
        **neutral_row(FILTERED),
        "id": text_digest(" ".join(text.casefold().split())),
        "page_id": name,
        "source": source,
        "url": f"file:///{source}/{name}.txt",
        "title": None,
        "licence": None,
        "text": text,
        "language": "en",
        "n_words": len(text.split()),
    }


@pytest.fixture
def written_documents(store: Store) -> Callable[..., Shards]:
    """Documents as `filter` leaves them, from rows (shard, source, name, text)."""
    stage = Stage(name="filter", version=1, function=_write_documents, handle=Shards)

    def write(rows: Any, *, shards: tuple[str, ...] = ()) -> Shards:
        return store.build(stage, WrittenDocuments(rows=tuple(map(tuple, rows)), shards=shards)).handle

    return write


@pytest.fixture
def cleaned() -> Callable[..., Shards]:
    """Document shards as `clean` leaves them, from {url: text} and the name of their source."""

    def write(store: Store, texts: dict[str, str], *, n_shards: int = 2, source: str = "mill") -> Shards:
        def documents(cfg: Any, inputs: tuple, work: Any) -> Outcome:
            for i in range(n_shards):
                rows = [
                    neutral_row(DOCUMENT)
                    | {"id": text_digest(text), "page_id": url, "source": source, "url": url, "text": text}
                    for url, text in sorted(texts.items())[i::n_shards]
                ]
                write_rows(work.directory / f"{source}-{i:05d}.parquet", rows, DOCUMENT)
            return Outcome(rows=len(texts), counts=Counts(rows_in=len(texts), kept=len(texts)))

        stage = Stage(name="clean", version=1, function=documents, handle=Shards)
        return store.build(stage, {"key": text_digest(source, *texts, *texts.values())}).handle

    return write


@pytest.fixture
def split_corpus(store: Store) -> Callable[..., Shards]:
    """A finished output of `split` from rows that need not be whole; a shard a source, or `n_shards` of them."""

    def write(rows: list[dict[str, Any]], n_shards: int | None = None) -> Shards:
        def divided(cfg: Any, inputs: tuple, work: Any) -> Outcome:
            shards: dict[str, list[dict[str, Any]]] = {}
            for i, row in enumerate(rows):
                shard = row["source"] if n_shards is None else f"{row['source']}-{i % n_shards}"
                shards.setdefault(shard, []).append(neutral_row(SPLIT_CORPUS) | row)
            for shard, own in shards.items():
                write_rows(work.directory / f"{shard}.parquet", own, SPLIT_CORPUS)
            return Outcome(rows=len(rows), counts=Counts(rows_in=len(rows), kept=len(rows)))

        stage = Stage(name="split", version=1, function=divided, handle=Shards)
        key = text_digest(str(n_shards), *(str(sorted(row.items())) for row in rows))
        return store.build(stage, {"key": key}).handle

    return write


@pytest.fixture(scope="session")
def write_decoder(byte_tokenizer) -> Callable[..., Checkpoint]:
    """Writes a decoder of any shape with random weights, whose tokens are bytes: what a training begins with. `std`:
    of its head."""

    def write(folder: Path, *, std: float = 0.1, **shape: int) -> Checkpoint:
        network = DecoderConfig(vocab_size=257, **shape)
        decoder = new_decoder(network, seed=0)
        torch.nn.init.normal_(decoder.lm_head.weight, std=std, generator=torch.Generator().manual_seed(0))
        shutil.copytree(byte_tokenizer.directory, folder / "tokenizer")
        save_model(folder, decoder, describe(network))
        return Checkpoint(stage="base", directory=folder, fingerprint="b", digest="b", rows=0)

    return write


@pytest.fixture(scope="session")
def embedder(tmp_path_factory, byte_tokenizer) -> Checkpoint:
    """A tiny encoder with random weights, whose tokens are bytes."""
    shape = {"n_layers": 1, "n_heads": 2, "n_kv_heads": 2, "d_model": 16, "d_head": 8, "d_ff": 32, "max_seq_len": 256}
    network = EncoderConfig(vocab_size=257, tie_embeddings=True, **shape, **switches_of("bert"))
    folder = tmp_path_factory.mktemp("embedder")
    shutil.copytree(byte_tokenizer.directory, folder / "tokenizer")
    save_model(folder, new_masked_lm(network, seed=1), describe(network))
    return Checkpoint(stage="base", directory=folder, fingerprint="e", digest="e", rows=0)


@pytest.fixture
def base(tmp_path, write_decoder) -> Checkpoint:
    """A tiny decoder: what a training continues from."""
    shape = {"n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_model": 16, "d_head": 8, "d_ff": 32, "max_seq_len": 16}
    return write_decoder(tmp_path / "base", std=0.2, **shape)


@pytest.fixture
def mixed_tokens(tmp_path, base) -> Shards:
    """Token shards in the vocabulary of `base`, of the sources manual, guide and wiki."""
    words, folder = {"manual": "set the ", "guide": "open a ", "wiki": "was born "}, tmp_path / "mixed_tokens"
    for split, n in (("train", 12), ("validation", 3), ("test", 3)):
        (folder / split).mkdir(parents=True)
        texts = [(name, f"{i} {word * (3 + i % 4)}") for i in range(n) for name, word in words.items()]
        tokens = [np.array([256, *text.encode()]) for _, text in texts]
        names, n_bytes = [f"{split}-{i}" for i in range(len(texts))], [len(text) for _, text in texts]
        path = folder / split / "00000.arrow"
        write_token_shard(path, names, n_bytes, tokens, 257, sources=[name for name, _ in texts])
    description = {"vocab_size": 257, "end_of_text": 256, "tokenizer": tokenizer_in(base).digest}
    (folder / "tokens.json").write_text(json.dumps(description))
    return Shards(stage="tokenize", directory=folder, fingerprint="m", digest="m", rows=36)
