"""Stage `tokenize`: writes the documents, mixed by source weight and shuffled once on disk, to token shards.

In: split's shards and a tokenizer. Out: train/, validation/ and test/ with NNNNN.arrow files and tokens.json, as
model/data/token_shards.py describes; mixture.md, what each source contributes to the train stream; dropped/ with the
documents that a weight below 1 leaves out of it; encoded/: the tokens of each input shard, cached by shard and
tokenizer. Steps: encode shard by shard in worker processes (encode.py); compute the number of copies of each document
in the train stream (mixture.py); sort the documents of each split by hash(seed, copy, page_id) and write them into
files of at most shard_tokens tokens (shuffle.py).
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pyarrow as pa

from model.data.token_shards import DESCRIPTION, SPLITS
from model.data.tokenizer import Tokenizer, load_tokenizer
from pipeline.corpus.tokens.encode import ENCODED_FOLDER, encode_shards, offsets_of, read_encoded
from pipeline.corpus.tokens.mixture import LEFT_OUT, Mixture, described, mixture_table, write_left_out
from pipeline.corpus.tokens.shuffle import DOCUMENT_BYTES, Documents, TokenFiles, in_order, order_keys
from pipeline.store.records import Counts, Shards, TokenizerFile
from pipeline.store.settings import Count, check_values
from pipeline.store.shards import DROPPED_FOLDER, shard_paths, write_text
from pipeline.store.store import NOT_IDENTITY, Outcome, Stage, Work

MIXTURE = "mixture.md"
SCRATCH = ".shuffle"
TRAIN = SPLITS[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeConfig:
    shard_tokens: Annotated[Count, "Largest number of tokens per file; a longer document has a file of its own."] = (
        50_000_000
    )
    seed: Annotated[
        int,
        "Seed for the order of the documents, and for choosing documents of a source whose weight is"
        " no whole number.",
    ] = 1
    rehydration: Annotated[
        Literal["none", "fineweb2"],
        "How documents that had many near-duplicates are repeated in the train split: not at all, or as in FineWeb2.",
    ] = "none"
    shuffle_memory_mb: Annotated[
        Count,
        "Memory in megabytes that shuffling may use, not counting the file that it writes. Does not"
        " change the result.",
    ] = field(default=128, metadata=NOT_IDENTITY)

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizeRecipe:
    """Everything that determines the output of `tokenize`; `weights` contains only the weights that are not 1."""

    config: TokenizeConfig
    weights: Mapping[str, float] = field(default_factory=dict)


def tokenize(recipe: TokenizeRecipe, inputs: tuple[Shards, TokenizerFile], work: Work) -> Outcome:
    corpus, file = inputs
    cfg = recipe.config
    tokenizer = load_tokenizer(file.directory)  # first, so that a bad file is reported before the work
    n_documents = encode_shards(corpus, file, work).kept
    if not n_documents:
        raise ValueError(
            f"{corpus.directory} contains no documents, so there is nothing to tokenise; look at what `dedup` and"
            " `filter` dropped"
        )
    for folder in (*SPLITS, DROPPED_FOLDER, SCRATCH):
        shutil.rmtree(work.directory / folder, ignore_errors=True)  # left by a build that was killed
    paths = shard_paths(corpus.directory)
    encoded = [(work.directory / ENCODED_FOLDER / path.name).with_suffix(".arrow") for path in paths]
    mixture = Mixture(weights=recipe.weights, rehydration=cfg.rehydration, seed=cfg.seed)
    mixture.fit(encoded)
    counts = Counts(rows_in=n_documents, kept=n_documents)
    if n_left_out := write_left_out(mixture, paths, encoded, work.directory / DROPPED_FOLDER):
        counts.kept -= n_left_out
        counts.drop(LEFT_OUT, n_left_out)
    totals = write_splits(cfg, mixture, encoded, tokenizer, work)
    _refuse_empty_train(mixture, totals)
    n_train = sum(share.documents for share in mixture.sources.values()) - n_left_out
    totals[TRAIN]["repeats"] = totals[TRAIN]["documents"] - n_train
    sources = described(mixture, totals[TRAIN]["tokens"])
    description = {
        "vocab_size": tokenizer.vocab_size,
        "end_of_text": tokenizer.end_of_text,
        "tokenizer": file.digest,
        "splits": totals,
        "sources": sources,
    }
    write_text(work.directory / MIXTURE, mixture_table(sources))
    write_text(work.directory / DESCRIPTION, json.dumps(description, indent=1) + "\n")
    return Outcome(
        rows=counts.kept,
        counts=counts,
        measures=_measures(totals, sources),
        content=(DESCRIPTION, *(f"{side}/*.arrow" for side in SPLITS)),
    )


TOKENIZE = Stage(
    name="tokenize", version=3, function=tokenize, handle=Shards, libraries=("regex", "tiktoken", "tokenizers")
)


def write_splits(
    cfg: TokenizeConfig, mixture: Mixture, encoded: Sequence[Path], tokenizer: Tokenizer, work: Work
) -> dict[str, dict[str, int]]:
    """Split -> number of documents, tokens and bytes in its files."""
    limit = cfg.shuffle_memory_mb * 1_000_000
    n_documents, done, totals = sum(mixture.n_documents.values()), 0, {}
    for side in SPLITS:
        files = TokenFiles(work.directory / side, cfg.shard_tokens, tokenizer.vocab_size)
        n_bytes = mixture.n_bytes[side] + DOCUMENT_BYTES * mixture.n_documents[side]
        stream = in_order(_stream(mixture, encoded, side, cfg.seed), n_bytes, limit, work.directory / SCRATCH)
        for documents in stream:
            files.write(documents)
            done += len(documents.tokens)
            work.progress(done, max(done, n_documents), "documents")
        files.close()
        totals[side] = files.totals
    return totals


def _stream(mixture: Mixture, encoded: Sequence[Path], side: str, seed: int) -> Iterator[Documents]:
    """The documents of a split in the order of the encoded shards, each with its copies in the mixture."""
    few = side != TRAIN  # documents of the batch: the tokens of the others are not read
    for path in encoded:
        for batch in read_encoded(path, mapped=few):
            split = batch.column("split").to_numpy(zero_copy_only=False)
            copies = np.where(split == side, mixture.copies(batch), 0)
            rows = np.repeat(np.arange(batch.num_rows), copies)
            if not len(rows):
                continue
            first = np.repeat(np.cumsum(copies) - copies, copies)
            page_ids = batch.column("page_id").take(pa.array(rows)).to_pylist()
            flat, offsets = offsets_of(batch.column("tokens"))
            spans = zip(offsets[rows].tolist(), offsets[rows + 1].tolist(), strict=True)
            tokens = [flat[start:end].copy() if few else flat[start:end] for start, end in spans]
            keys = order_keys(page_ids, (np.arange(len(rows)) - first).tolist(), seed)
            n_bytes = batch.column("n_bytes").to_numpy()[rows]
            ids, sources = (batch.column(name).take(pa.array(rows)) for name in ("id", "source"))
            yield Documents(keys, ids, sources, n_bytes, tokens)


def _refuse_empty_train(mixture: Mixture, totals: Mapping[str, Mapping[str, int]]) -> None:
    if mixture.sources and not totals[TRAIN]["documents"]:
        weights = ", ".join(f"{source} {weight:g}" for source, weight in sorted(mixture.weights.items()))
        raise ValueError(
            f"the weights of the sources ({weights}) leave no document in the train stream; give one of"
            f" {', '.join(sorted(mixture.sources))} a weight above 0"
        )


def _measures(
    totals: Mapping[str, Mapping[str, int]], sources: Mapping[str, Mapping[str, float]]
) -> dict[str, float]:
    n_bytes, n_tokens, n_documents = (
        sum(totals[side][name] for side in SPLITS) for name in ("bytes", "tokens", "documents")
    )
    return {
        **{f"{side}_tokens": totals[side]["tokens"] for side in SPLITS},
        # without the end-of-text tokens, one per document, which represent no bytes
        "bytes_per_token": n_bytes / max(1, n_tokens - n_documents),
        **{f"{name}_{source}": value for source, share in sources.items() for name, value in share.items()},
    }
