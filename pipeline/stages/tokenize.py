"""Documents to token shards, shuffled once, out of core.

In: the split corpus and its tokenizer. Out: train/, validation/, test/ with Arrow files and tokens.json, as
model/token_shards.py says.

Steps: encode every shard of the corpus in worker processes, remembered a shard and tokenizer; order the documents of
a split by hash(seed, document id); gather them from the memory-mapped results into shards of shard_tokens tokens.
Only ids, hashes and one output shard are in memory at a time.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from model.token_shards import DESCRIPTION, SPLITS, TokenShard, read_token_shard, write_token_shard
from pipeline.stages.engine import Done, Failed
from pipeline.stages.records import Counts, Shards, TokenizerFile
from pipeline.stages.shards import read_table, replacing, text_digest, write_text
from pipeline.stages.store import Outcome, Stage, Work, map_parts
from pipeline.stages.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeConfig:
    seed: Annotated[int, "order of the documents in each split"] = 0
    shard_tokens: Annotated[int, "tokens an Arrow file holds at most, save for a longer document; at least 1"] = (
        10_000_000
    )

    def __post_init__(self) -> None:
        if self.shard_tokens < 1:
            raise ValueError(f"shard_tokens={self.shard_tokens} must be at least 1")


def tokenize(cfg: TokenizeConfig, inputs: tuple[Shards, TokenizerFile], work: Work) -> Outcome:
    corpus, tokenizer_file = inputs
    tokenizer = load_tokenizer(tokenizer_file.directory)
    parts = map_parts(
        work,
        [corpus],
        read=lambda path: [(path, tokenizer_file.directory)],
        function=_encode_shard,
        write=functools.partial(_write_part, tokenizer.vocab_size),
        unit="documents",
        salt=tokenizer_file.digest,
    )
    totals = {split: _gather(cfg, split, list(parts.values()), tokenizer.vocab_size, work) for split in SPLITS}
    description = {
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
        "tokenizer": tokenizer_file.digest,
        "splits": totals,
    }
    write_text(work.directory / DESCRIPTION, json.dumps(description, indent=1))
    rows = sum(total["documents"] for total in totals.values())
    measures = {f"{split}_{what}": float(n) for split, total in totals.items() for what, n in total.items()}
    train = totals["train"]
    return Outcome(
        rows=rows,
        counts=Counts(rows_in=corpus.rows, kept=rows),
        measures={**measures, "bytes_per_token": train["bytes"] / max(1, train["tokens"])},
    )


# rustbpe made the ranks, which count by the tokenizer's digest; tiktoken applies them.
TOKENIZE = Stage(name="tokenize", version=1, function=tokenize, handle=Shards, libraries=("tiktoken",))

Encoded = dict[str, list[tuple[str, int, np.ndarray]]]  # split -> (document id, bytes, ids) a document


@functools.lru_cache(maxsize=1)
def _tokenizer(directory: Path) -> Tokenizer:
    return load_tokenizer(directory)


def _encode_shard(item: tuple[Path, Path]) -> Encoded:
    path, tokenizer_directory = item
    tokenizer = _tokenizer(tokenizer_directory)
    table = read_table(path, columns=["id", "text", "split"])
    encoded: Encoded = {split: [] for split in SPLITS}
    for document_id, text, split in zip(*(table[name].to_pylist() for name in table.column_names), strict=True):
        ids = [tokenizer.end_of_text, *tokenizer.encode(text)]
        encoded[split].append((document_id, len(text.encode()), np.asarray(ids, dtype=np.uint32)))
    return encoded


def _write_part(
    vocab_size: int, part: Path, items: Sequence[tuple[Path, Path]], results: list[Done | Failed]
) -> Counts:
    (result,) = results
    if isinstance(result, Failed):
        raise RuntimeError(f"{items[0][0]}: encoding ended with {result.reason}: {result.detail}")
    for split, documents in result.value.items():
        ids, n_bytes, tokens = zip(*documents, strict=True) if documents else ((), (), ())
        with replacing(part / f"{split}.arrow") as path:
            write_token_shard(path, ids, n_bytes, tokens, vocab_size)
    n_documents = sum(map(len, result.value.values()))
    return Counts(rows_in=n_documents, kept=n_documents)


def _gather(cfg: TokenizeConfig, split: str, parts: list[Path], vocab_size: int, work: Work) -> dict[str, int]:
    """Write one split in the order of hash(seed, document id). Returns its documents, tokens and bytes."""
    shards = [read_token_shard(part / f"{split}.arrow") for part in parts]
    order = sorted(
        (text_digest(str(cfg.seed), document_id), shard, row)
        for shard, source in enumerate(shards)
        for row, document_id in enumerate(source.document_ids.to_pylist())
    )
    totals = {"documents": 0, "tokens": 0, "bytes": 0}
    for number, rows in enumerate(_filled(order, shards, cfg.shard_tokens)):
        documents = [shards[s].tokens[shards[s].offsets[row] : shards[s].offsets[row + 1]] for s, row in rows]
        n_bytes = [int(shards[s].n_bytes[row]) for s, row in rows]
        ids = [shards[s].document_ids[row].as_py() for s, row in rows]
        with replacing(work.directory / split / f"{number:05d}.arrow") as path:
            write_token_shard(path, ids, n_bytes, documents, vocab_size)
        totals["documents"] += len(rows)
        totals["tokens"] += sum(map(len, documents))
        totals["bytes"] += sum(n_bytes)
    return totals


def _filled(
    order: Sequence[tuple[str, int, int]], shards: Sequence[TokenShard], shard_tokens: int
) -> Iterator[list[tuple[int, int]]]:
    """(shard, row) pairs of `order`, cut so that each list holds at most `shard_tokens` tokens."""
    rows, n_tokens = [], 0
    for _, shard, row in order:
        size = int(shards[shard].offsets[row + 1] - shards[shard].offsets[row])
        if rows and n_tokens + size > shard_tokens:
            yield rows
            rows, n_tokens = [], 0
        rows.append((shard, row))
        n_tokens += size
    if rows:
        yield rows
