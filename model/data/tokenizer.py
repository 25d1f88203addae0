"""A tokenizer: read from its folder, and run.

In: a folder with the two files that decide every id,

    tokenizer.tiktoken        tiktoken's own format: base64 of a token, space, rank, one line per token
    gristmill_tokenizer.json  which vocabulary this is: split pattern by name and text, special tokens, vocabulary
                              size, sha256 of the ranks

Out: a Tokenizer. `load_tokenizer` checks every line of what it reads. Byte-pair encoding: arXiv:1508.07909 section
3.2; tiktoken runs it and is imported where it is used.
"""

import base64
import binascii
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from model.data.token_shards import TokenShard
from model.data.vocabularies import END_OF_TEXT, PUBLISHED, TRAINED, TRAINED_PATTERNS, parsed_ranks
from model.training.machine import n_usable_cores

TOKENIZER = "tokenizer"  # folder of a model
RANKS_FILE, DESCRIPTION_FILE = "tokenizer.tiktoken", "gristmill_tokenizer.json"
CHECKED_DOCUMENTS = 8  # of a shard: another tokenizer fails at the first
FORMAT = 2  # of the description; before it, tokenizer.json was ours
N_BYTE_VALUES = 256
NO_TOKEN = "\ufffd".encode()  # what an id between ranks and special tokens stands for
# tiktoken 0.14 gives up on a million spaces with a panic, which `except Exception` does not catch: its regex engine
# may step back a million times a match. Words of many megabytes take minutes and gigabytes. Such a text is cut into
# words by `regex`, which tiktoken itself depends on, and its words are encoded one by one: the ids are the
# same, except that a word of more than LONGEST_WORD characters is encoded in parts.
LONG_TEXT = 100_000  # characters: a shorter one cannot hold a run that is too long
LONG_RUN = re.compile(r"\s{64,}|\S{64,}")  # any run that matters, each in one step
LONGEST_SPACE, LONGEST_WORD = 100_000, 4_000_000  # characters


class Tokenizer:
    """Text to token ids and back, without loss for any text that has a UTF-8 form."""

    def __init__(
        self, ranks: dict[bytes, int], pattern: str, special_tokens: Mapping[str, int], vocab_size: int
    ) -> None:
        import tiktoken

        self.vocab_size = vocab_size  # largest id + 1
        self.end_of_text = special_tokens[END_OF_TEXT]
        self.ranks = ranks
        self._pattern = pattern
        self._gaps = set(range(len(ranks), vocab_size)) - set(special_tokens.values())
        self._encoding = tiktoken.Encoding(
            "gristmill", pat_str=pattern, mergeable_ranks=ranks, special_tokens=dict(special_tokens)
        )

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text: a special token that is spelled out in it is text as well."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], n_threads: int = 0) -> list[list[int]]:
        """Ids of each text. `n_threads`: 0 = as many as this process may use cores."""
        for text in texts:
            _check_encodable(text)
        hard = {i for i, text in enumerate(texts) if len(text) >= LONG_TEXT and _has_long_run(text)}
        if hard:
            return [self._encode_words(text) if i in hard else self.encode(text) for i, text in enumerate(texts)]
        n_threads = n_threads or n_usable_cores()
        if n_threads == 1 or len(texts) == 1:
            return [self._encoding.encode_ordinary(text) for text in texts]
        return self._encoding.encode_ordinary_batch(list(texts), num_threads=n_threads)

    def encode_array(self, text: str) -> np.ndarray:
        """Ids of ordinary text, uint32: as `encode`, without a Python number a token."""
        _check_encodable(text)
        if len(text) >= LONG_TEXT and _has_long_run(text):
            return np.array(self._encode_words(text), np.uint32)
        return self._encoding.encode_to_numpy(text, disallowed_special=())

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; a part of a character, and an id that is no token, becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        ids = list(ids)
        if outside := [token for token in ids if not 0 <= token < self.vocab_size]:
            raise ValueError(f"token id {outside[0]} is outside 0 to {self.vocab_size - 1}")
        if self._gaps.isdisjoint(ids):
            return self._encoding.decode_bytes(ids)
        return b"".join(NO_TOKEN if token in self._gaps else self._encoding.decode_bytes([token]) for token in ids)

    def n_bytes(self, ids: Iterable[int]) -> int:
        """UTF-8 bytes of the text of `ids`."""
        return len(self.decode_bytes(ids))

    def _encode_words(self, text: str) -> list[int]:
        import regex

        words = (match.group() for match in regex.finditer(self._pattern, text))
        parts = (word[i : i + LONGEST_WORD] for word in words for i in range(0, len(word), LONGEST_WORD))
        return [token for part in parts for token in self._one_word.encode_ordinary(part)]

    @functools.cached_property
    def _one_word(self) -> Any:
        """Merges a whole text without cutting it into words first."""
        import tiktoken

        return tiktoken.Encoding("gristmill_word", pat_str="(?s:.+)", mergeable_ranks=self.ranks, special_tokens={})


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer in `directory`. ValueError says what is wrong with its files."""
    path, ranks_path = directory / DESCRIPTION_FILE, directory / RANKS_FILE
    for file in (ranks_path, path):
        if not file.is_file():
            earlier = " (it was made by an earlier version)" if ranks_path.is_file() else ""
            raise ValueError(
                f"{directory} holds no tokenizer: {file.name} is missing{earlier}; build the tokenizer again"
            )
    description, raw = _read_description(path), ranks_path.read_bytes()
    vocabulary, pattern_name = (str(description.get(name)) for name in ("vocabulary", "pattern_name"))
    if vocabulary in PUBLISHED:
        _check_published(ranks_path, vocabulary, raw)
        name, ranks = vocabulary, parsed_ranks(raw)
    elif vocabulary == TRAINED and pattern_name in TRAINED_PATTERNS:
        name, ranks = pattern_name, read_ranks(ranks_path, raw)
    else:
        raise ValueError(
            f"{path}: vocabulary is {vocabulary!r} with pattern_name {pattern_name!r}, expected {TRAINED!r} with"
            f" {' or '.join(map(repr, TRAINED_PATTERNS))}, or {', '.join(PUBLISHED)}; build the tokenizer again"
        )
    expected = describe(name, raw, len(ranks))
    if wrong := sorted(name for name in {*expected, *description} if description.get(name) != expected.get(name)):
        raise ValueError(
            f"{path} does not describe {RANKS_FILE} beside it: {', '.join(wrong)} differ; build the tokenizer again"
        )
    return Tokenizer(ranks, expected["pattern"], expected["special_tokens"], expected["vocab_size"])


def load_model_tokenizer(model: Path, vocab_size: int) -> Tokenizer:
    """The tokenizer in the folder of a model of `vocab_size` tokens; ValueError when it has more tokens or fewer."""
    tokenizer = load_tokenizer(model / TOKENIZER)
    if tokenizer.vocab_size != vocab_size:
        raise ValueError(
            f"{model}: the tokenizer has {tokenizer.vocab_size} tokens, the model {vocab_size}, so that they do not"
            " belong together; put the tokenizer there that the model was trained with, or train the model again"
        )
    return tokenizer


def check_made_by(tokenizer: Tokenizer, shards: Sequence[TokenShard]) -> None:
    """ValueError when the first documents of `shards` do not come back from `tokenizer` as texts of their length."""
    for shard in shards[:1]:
        for i in range(min(CHECKED_DOCUMENTS, len(shard.n_bytes))):
            ids = shard.tokens[shard.offsets[i] : shard.offsets[i + 1]].tolist()
            inside = all(token < tokenizer.vocab_size for token in ids)
            if not (inside and ids[:1] == [tokenizer.end_of_text] and tokenizer.n_bytes(ids[1:]) == shard.n_bytes[i]):
                raise ValueError(
                    f"{shard.path}: document {shard.document_ids[i]} was not written by this tokenizer of"
                    f" {tokenizer.vocab_size} tokens; give the one that made the shards, or tokenise again"
                )


def read_ranks(path: Path, raw: bytes) -> dict[bytes, int]:
    """Token -> rank of a file in tiktoken's format: ranks count up from 0, every byte value is a token."""
    ranks: dict[bytes, int] = {}
    for i, line in enumerate(raw.splitlines()):
        try:
            token, rank = line.split(b" ")
            if int(rank) != i or ranks.setdefault(base64.b64decode(token, validate=True), i) != i:
                raise ValueError("a rank out of order or a token that was there before")
        except (ValueError, binascii.Error) as error:
            raise ValueError(
                f"{path}, line {i + 1}: {line[:80]!r}, expected base64 of a new token, a space and {i} ({error});"
                " build the tokenizer again"
            ) from error
    if b"" in ranks:
        raise ValueError(f"{path}, line {ranks[b''] + 1}: a token of no bytes; build the tokenizer again")
    if missing := [value for value in range(N_BYTE_VALUES) if bytes([value]) not in ranks]:
        raise ValueError(
            f"{path}: {len(missing)} of 256 byte values are no token, first {missing[0]:#04x}; build the tokenizer"
            " again"
        )
    return ranks


def describe(pattern_name: str, raw: bytes, n_ranks: int) -> dict[str, Any]:
    """What the description of a file of ranks has to say."""
    published = PUBLISHED.get(pattern_name)
    return {
        "format": FORMAT,
        "vocabulary": pattern_name if published else TRAINED,
        "pattern_name": pattern_name,
        "pattern": published.pattern if published else TRAINED_PATTERNS[pattern_name],
        "special_tokens": dict(published.special_tokens) if published else {END_OF_TEXT: n_ranks},
        "vocab_size": published.vocab_size if published else n_ranks + 1,
        "ranks_sha256": hashlib.sha256(raw).hexdigest(),
    }


def _read_description(path: Path) -> dict[str, Any]:
    try:
        description = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not JSON ({error}); build the tokenizer again") from error
    if not isinstance(description, dict) or "format" not in description:
        raise ValueError(f"{path} describes no tokenizer of ours: it has no `format`; build the tokenizer again")
    if description["format"] != FORMAT:
        raise ValueError(
            f"{path}: format is {description['format']!r}, this version reads {FORMAT}; build the tokenizer again, or"
            " use the version that made it"
        )
    return description


def _check_published(path: Path, name: str, raw: bytes) -> None:
    sha256 = hashlib.sha256(raw).hexdigest()
    if sha256 != PUBLISHED[name].ranks_sha256:
        raise ValueError(
            f"{path} has sha256 {sha256}, but {name} has {PUBLISHED[name].ranks_sha256}; build the tokenizer again"
        )


def _check_encodable(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text has no UTF-8 form: character {error.start} is the lone surrogate {text[error.start]!r}"
        ) from error


def _has_long_run(text: str) -> bool:
    """Whether tiktoken would give up on `text`, or need gigabytes for a word of it."""
    return _may_hold_long_run(text) and any(
        match.end() - match.start() >= (LONGEST_SPACE if text[match.start()].isspace() else LONGEST_WORD)
        for match in LONG_RUN.finditer(text)
    )


def _may_hold_long_run(text: str) -> bool:
    """False where it does not: a run that is too long fills a block of half its length from end to end.

    Without these blocks the pattern costs a fifth of the time of encoding, because it is tried at every character.
    """
    size = LONGEST_SPACE // 2
    if any(text[i].isspace() and text[i : i + size].isspace() for i in range(0, len(text) - size + 1, size)):
        return True
    size = LONGEST_WORD // 2
    blocks = (text[i : i + size] for i in range(0, len(text) - size + 1, size))
    return any(block.split(maxsplit=1) == [block] for block in blocks)
