"""Stage `tokenize`: documents to token shards, shuffled once, out of core.

In: split's shards and a tokenizer. Out: train/, validation/ and test/ with NNNNN.arrow files and tokens.json, as
model/token_shards.py says, and encoded/: the tokens of each input shard, which are remembered by shard and tokenizer.
Steps: encode shard by shard in worker processes; sort the documents of a split by hash(seed, page_id); gather them
from the memory-mapped encoded shards into files of at most shard_tokens tokens.
"""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import xxhash

from model.token_shards import DESCRIPTION, SPLITS, TokenShard, read_token_shard, token_schema, write_token_shard
from pipeline.stages.engine import Done, Failed
from pipeline.stages.records import SPLIT_CORPUS, Counts, Shards, TokenizerFile
from pipeline.stages.shards import read_table, replacing, shard_paths, write_text
from pipeline.stages.store import Outcome, Stage, Work, map_shards
from pipeline.stages.tokenizer import Tokenizer, load_tokenizer

ENCODED_FOLDER = "encoded"
ENCODING_VERSION = 1  # raise with any change that gives other tokens for equal text and tokenizer
BATCH_DOCUMENTS = 64
OPEN_SHARDS = 256  # memory-mapped at once: below the usual limit of open files


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeConfig:
    shard_tokens: Annotated[int, "tokens a file; a longer document has a file of its own; above 0"] = 50_000_000
    seed: Annotated[int, "of the order of documents"] = 1

    def __post_init__(self) -> None:
        if self.shard_tokens < 1:
            raise ValueError(f"shard_tokens={self.shard_tokens} is not above 0")


@dataclass(frozen=True, slots=True)
class EncodeItem:
    """A shard to encode; `digest` tells apart tokenizers that lay in one folder."""

    path: Path
    tokenizer: Path
    digest: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """A shard's documents; those of row i are tokens[ends[i - 1]:ends[i]]."""

    document_ids: list[str]
    n_bytes: list[int]
    tokens: np.ndarray  # uint16 or uint32
    ends: np.ndarray  # int64
    vocab_size: int


@dataclass(frozen=True, slots=True)
class Order:
    """The documents of one split, shuffled: row `rows[i]` of encoded shard `shards[i]`."""

    shards: np.ndarray  # int32
    rows: np.ndarray  # int32
    n_tokens: np.ndarray  # int64


def tokenize(cfg: TokenizeConfig, inputs: tuple[Shards, TokenizerFile], work: Work) -> Outcome:
    corpus, file = inputs
    counts = encode_shards(corpus, file, work)
    if not counts.kept:
        raise ValueError(
            f"{corpus.directory} holds no document, so there is nothing to tokenise; see `dedup`, `filter`"
        )
    tokenizer = load_tokenizer(file.directory)
    description = {
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
        "tokenizer": file.digest,
        "splits": {},
    }
    paths = shard_paths(corpus.directory)
    encoded = [(work.directory / ENCODED_FOLDER / path.name).with_suffix(".arrow") for path in paths]
    opened = functools.lru_cache(OPEN_SHARDS)(read_token_shard)
    done = 0
    for side in SPLITS:
        order = shuffled(paths, encoded, side, cfg.seed)
        shutil.rmtree(work.directory / side, ignore_errors=True)  # of a build that was killed
        totals = {"documents": len(order.rows), "tokens": int(order.n_tokens.sum()), "bytes": 0}
        for i, (first, last) in enumerate(file_ranges(order.n_tokens, cfg.shard_tokens)):
            path = work.directory / side / f"{i:05d}.arrow"
            totals["bytes"] += write_gathered(path, encoded, opened, order, slice(first, last), tokenizer.vocab_size)
            done += last - first
            work.progress(done, counts.kept, "documents")
        description["splits"][side] = totals
    write_text(work.directory / DESCRIPTION, json.dumps(description, indent=1) + "\n")
    return Outcome(
        rows=counts.kept,
        counts=counts,
        measures=_measures(description["splits"]),
        content=(DESCRIPTION, *(f"{side}/*.arrow" for side in SPLITS)),
    )


TOKENIZE = Stage(name="tokenize", version=1, function=tokenize, handle=Shards, libraries=("tiktoken",))


def encode_shards(corpus: Shards, file: TokenizerFile, work: Work) -> Counts:
    """encoded/<shard>.arrow for every shard; seed and shard_tokens are no part of what a shard is remembered by."""
    libraries = json.loads(work.recipe)[2]
    recipe = json.dumps(["encoded", ENCODING_VERSION, libraries, file.digest])
    return map_shards(
        dataclasses.replace(work, directory=work.directory / ENCODED_FOLDER, recipe=recipe),
        (corpus,),
        read=lambda path: [EncodeItem(path, file.directory, file.digest)],
        function=encode_shard,
        write=_write_encoded,
        unit="documents",
    )


def encode_shard(item: EncodeItem) -> Encoded:
    """Runs in a worker process."""
    tokenizer = _tokenizer(item.tokenizer, item.digest)
    dtype = token_schema(tokenizer.vocab_size).field("tokens").type.value_type.to_pandas_dtype()
    table = read_table(item.path, SPLIT_CORPUS)
    documents, n_bytes = [np.zeros(0, dtype)], []
    for start in range(0, table.num_rows, BATCH_DOCUMENTS):
        texts = table["text"].slice(start, BATCH_DOCUMENTS).to_pylist()
        for text, ids in zip(texts, tokenizer.encode_batch(texts, n_threads=1), strict=True):
            documents.append(np.array([tokenizer.end_of_text, *ids], dtype))
            n_bytes.append(len(text.encode()))
    ends = np.cumsum([len(document) for document in documents[1:]], dtype=np.int64)
    return Encoded(table["id"].to_pylist(), n_bytes, np.concatenate(documents), ends, tokenizer.vocab_size)


def shuffled(paths: list[Path], encoded: list[Path], side: str, seed: int) -> Order:
    """A pure function of the seed and of the page ids of the split."""
    keys, shards, rows, n_tokens = ([] for _ in range(4))
    for i, (path, tokens) in enumerate(zip(paths, encoded, strict=True)):
        table = read_table(path, columns=["page_id", "split"])
        own = np.flatnonzero(np.array(table["split"].to_pylist(), object) == side)
        page_ids = table["page_id"].take(pa.array(own, pa.int64())).to_pylist()
        keys.append(np.array([_key(page_id, seed) for page_id in page_ids], np.uint64))
        shards.append(np.full(len(own), i, np.int32))
        rows.append(own.astype(np.int32))
        n_tokens.append(np.diff(read_token_shard(tokens).offsets)[own])
    if not keys:
        return Order(*(np.zeros(0, dtype) for dtype in (np.int32, np.int32, np.int64)))
    order = np.argsort(np.concatenate(keys), kind="stable")
    return Order(np.concatenate(shards)[order], np.concatenate(rows)[order], np.concatenate(n_tokens)[order])


def file_ranges(n_tokens: np.ndarray, most: int) -> Iterator[tuple[int, int]]:
    """Runs of documents that hold at most `most` tokens each, or one document that is longer."""
    ends = np.cumsum(n_tokens)
    first = 0
    while first < len(ends):
        before = int(ends[first - 1]) if first else 0
        last = max(first + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield first, last
        first = last


def write_gathered(
    path: Path, encoded: list[Path], opened: Callable[[Path], TokenShard], order: Order, part: slice, vocab_size: int
) -> int:
    """One token shard with the documents of `order[part]`; the bytes of their texts."""
    ids, n_bytes, documents = [], [], []
    for i, row in zip(order.shards[part].tolist(), order.rows[part].tolist(), strict=True):
        shard = opened(encoded[i])
        ids.append(shard.document_ids[row].as_py())
        n_bytes.append(int(shard.n_bytes[row]))
        documents.append(shard.tokens[shard.offsets[row] : shard.offsets[row + 1]])
    with replacing(path) as file:
        write_token_shard(file, ids, n_bytes, documents, vocab_size)
    return sum(n_bytes)


@functools.lru_cache(maxsize=1)
def _tokenizer(directory: Path, digest: str) -> Tokenizer:
    return load_tokenizer(directory)


def _key(page_id: str, seed: int) -> int:
    return xxhash.xxh3_64_intdigest(f"{seed} {page_id}".encode())


def _write_encoded(part: Path, items: list[EncodeItem], answers: list[Done | Failed]) -> Counts:
    answer = answers[0]
    if isinstance(answer, Failed):  # a document cannot be at fault: any text has tokens
        raise RuntimeError(f"{items[0].path}: {answer.reason} while it was encoded: {answer.detail}")
    shard: Encoded = answer.value
    documents = np.split(shard.tokens, shard.ends[:-1]) if len(shard.ends) else []
    with replacing(part / "kept.arrow") as file:
        write_token_shard(file, shard.document_ids, shard.n_bytes, documents, shard.vocab_size)
    return Counts(rows_in=len(documents), kept=len(documents))


def _measures(splits: dict[str, dict[str, int]]) -> dict[str, float]:
    totals = {f"{side}_tokens": splits[side]["tokens"] for side in SPLITS}
    n_bytes, n_tokens, n_documents = (
        sum(splits[side][name] for side in SPLITS) for name in ("bytes", "tokens", "documents")
    )
    # without the end-of-text tokens, of which a document has one and which stand for no bytes
    return {**totals, "bytes_per_token": n_bytes / max(1, n_tokens - n_documents)}
