"""Byte-pair encoding: trained by rustbpe on the train split, run by tiktoken.

In: the corpus. Out: a folder with tokenizer.tiktoken (tiktoken's own format: base64 token, space, rank, a line) and
tokenizer.json (pattern, special tokens, size, digest of the ranks). Every byte is a token, so that any text comes
back as it was; special tokens in a text are ordinary text.

Steps: take documents of the train split in the order of hash(seed, page id) until sample_bytes; learn merges; write.
The split patterns are those that llama.cpp and Hugging Face's tokenizers know by name, so that exports work there.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pipeline.stages.records import Shards, TokenizerFile
from pipeline.stages.shards import read_table, shard_paths, text_digest, write_bytes, write_text
from pipeline.stages.store import Outcome, Stage, Work

RANKS_FILE = "tokenizer.tiktoken"
DESCRIPTION_FILE = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
N_BYTES = 256
PATTERNS = {
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "qwen2": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+",
}
# tiktoken's regular expressions backtrack over white space without a bound, and its merging slows down on long
# words: longer runs are cut before they get there. No text of people holds such runs.
LONGEST_SPACE = 512
LONGEST_WORD = 8192
PIECE = re.compile(rf"\s{{{LONGEST_SPACE}}}|\S{{{LONGEST_WORD}}}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    vocab_size: Annotated[int, "tokens, the special one included; at least 257 (all bytes and end of text)"] = 4096
    sample_bytes: Annotated[int, "bytes of training text that merges are learned from; at least 1"] = 20_000_000
    pattern: Annotated[Literal["gpt-2", "qwen2"], "how text is cut into words first, by its name in llama.cpp"] = (
        "qwen2"
    )
    seed: Annotated[int, "which documents the sample holds"] = 0

    def __post_init__(self) -> None:
        if self.vocab_size <= N_BYTES:
            raise ValueError(
                f"vocab_size={self.vocab_size} must be at least {N_BYTES + 1}: all bytes and end of text"
            )
        if self.sample_bytes < 1:
            raise ValueError(f"sample_bytes={self.sample_bytes} must be at least 1")
        if self.pattern not in PATTERNS:
            raise ValueError(f"pattern={self.pattern!r} must be one of {', '.join(PATTERNS)}")


class Tokenizer:
    """Text to ids and back. Built by `load_tokenizer`."""

    def __init__(self, ranks: dict[bytes, int], pattern: str) -> None:
        import tiktoken

        self.end_of_text = len(ranks)
        self.vocab_size = len(ranks) + 1
        self._encoding = tiktoken.Encoding(
            name="gristmill", pat_str=pattern, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: self.end_of_text}
        )

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; the name of a special token in it is ordinary text. ValueError for a lone surrogate."""
        _refuse_surrogates(text)
        return [token for piece in _pieces(text) for token in self._encoding.encode_ordinary(piece)]

    def encode_batch(self, texts: Sequence[str], n_threads: int = 2) -> list[list[int]]:
        """`encode` of each text, on several threads."""
        for text in texts:
            _refuse_surrogates(text)
        pieces = [list(_pieces(text)) for text in texts]
        encoded = iter(
            self._encoding.encode_ordinary_batch([p for part in pieces for p in part], num_threads=n_threads)
        )
        return [[token for _ in part for token in next(encoded)] for part in pieces]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        return self._encoding.decode_bytes(list(ids))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`; bytes that are no UTF-8 (a character cut in half) become U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")


def train_tokenizer(cfg: TokenizerConfig, inputs: tuple[Shards], work: Work) -> Outcome:
    """Raises ValueError when the train split is empty or too small for `vocab_size`."""
    import rustbpe

    (corpus,) = inputs
    sample = _sample(corpus, cfg)
    if not sample:
        raise ValueError(
            f"{corpus.directory}: the train split holds no document; a tokenizer needs text to learn from"
        )
    work.progress(0, len(sample), "documents")
    trainer = rustbpe.Tokenizer()
    pieces = (piece for text in sample for piece in _pieces(text))
    trainer.train_from_iterator(pieces, vocab_size=cfg.vocab_size - 1, pattern=PATTERNS[cfg.pattern])
    ranks = sorted((rank, bytes(token)) for token, rank in trainer.get_mergeable_ranks())
    if len(ranks) != cfg.vocab_size - 1:
        raise ValueError(
            f"vocab_size={cfg.vocab_size} is more than {sum(map(len, sample))} characters of training text give;"
            f" the largest possible is {len(ranks) + 1}: lower vocab_size, or collect more text"
        )
    content = b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in ranks)
    write_bytes(work.directory / RANKS_FILE, content)
    description = {
        "pattern_name": cfg.pattern,
        "pattern": PATTERNS[cfg.pattern],
        "special_tokens": {END_OF_TEXT: len(ranks)},
        "vocab_size": cfg.vocab_size,
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    write_text(work.directory / DESCRIPTION_FILE, json.dumps(description, indent=1))
    work.progress(len(sample), len(sample), "documents")
    tokenizer = load_tokenizer(work.directory)
    held_out = list(_texts(corpus, "validation")) or sample[:100]
    n_tokens = sum(map(len, tokenizer.encode_batch(held_out)))
    n_bytes = sum(len(text.encode()) for text in held_out)
    measures = {"bytes_per_token": n_bytes / n_tokens, "sample_documents": float(len(sample))}
    return Outcome(rows=cfg.vocab_size, measures=measures)


TOKENIZER = Stage(
    name="tokenizer", version=1, function=train_tokenizer, handle=TokenizerFile, libraries=("rustbpe", "tiktoken")
)


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer in `directory`. ValueError names what is wrong with its files."""
    try:
        description = json.loads((directory / DESCRIPTION_FILE).read_text())
        content = (directory / RANKS_FILE).read_bytes()
        pattern, expected = description["pattern"], description["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{directory} is no tokenizer: {error!r}; it needs {DESCRIPTION_FILE}, {RANKS_FILE}"
        ) from error
    if (got := hashlib.sha256(content).hexdigest()) != expected:
        raise ValueError(f"{directory / RANKS_FILE}: sha256 {got}, expected {expected}; delete the folder and rerun")
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in content.splitlines())}
    return Tokenizer(ranks, pattern)


def _sample(corpus: Shards, cfg: TokenizerConfig) -> list[str]:
    """Training texts in the order of hash(seed, page id), until sample_bytes are reached."""
    order = sorted(
        (text_digest(str(cfg.seed), page_id), path, row)
        for path in shard_paths(corpus.directory)
        for row, (page_id, split) in enumerate(_columns(path, ["page_id", "split"]))
        if split == "train"
    )
    texts = {path: read_table(path, columns=["text"])["text"] for path in {path for _, path, _ in order}}
    sample, n_bytes = [], 0
    for _, path, row in order:
        if n_bytes >= cfg.sample_bytes:
            break
        sample.append(texts[path][row].as_py())
        n_bytes += len(sample[-1].encode())
    return sample


def _columns(path: Path, names: list[str]) -> list[tuple]:
    table = read_table(path, columns=names)
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))


def _texts(corpus: Shards, wanted: str) -> Iterator[str]:
    for path in shard_paths(corpus.directory):
        yield from (text for text, split in _columns(path, ["text", "split"]) if split == wanted)


def _pieces(text: str) -> Iterator[str]:
    """`text` in parts without overlong runs; joined they are `text` again."""
    start = 0
    for match in PIECE.finditer(text):
        yield text[start : match.end()]
        start = match.end()
    if start < len(text):
        yield text[start:]


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"text holds a lone surrogate at character {error.start}: it is not valid Unicode"
        ) from error
