"""A tokenizer: read from its folder, and run.

In: a folder with the two files that decide every id,

    tokenizer.tiktoken        tiktoken's own format: base64 of a token, space, rank, one line per token
    gristmill_tokenizer.json  which vocabulary this is: split pattern by name and text, special tokens, vocabulary
                              size, sha256 of the ranks

or, for a tokenizer that was made elsewhere, tokenizer.json instead of the ranks (tokenizer_imported.py). Out: a
Tokenizer. `load_tokenizer` checks all of what it reads. tiktoken and `tokenizers` are imported where they are used.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from model.data.offsets import Pieces
from model.data.token_shards import TokenShard
from model.data.tokenizer_tiktoken import N_BYTE_VALUES, TiktokenEngine
from model.data.vocabularies import END_OF_TEXT, MASK, PUBLISHED, TRAINED, TRAINED_PATTERNS, parsed_ranks

TOKENIZER = "tokenizer"  # folder of a model
RANKS_FILE, DESCRIPTION_FILE = "tokenizer.tiktoken", "gristmill_tokenizer.json"
# What belongs to a tokenizer beside these, where it exists: for transformers, and what an export passes on.
OTHER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)
CHECKED_DOCUMENTS = 8  # of a shard: another tokenizer fails at the first
SHORT_BYTES, MOST_CHANGE = 64, 2  # a text of fewer bytes may change its length by more than this factor
IMPORTED = "imported"  # name of a vocabulary that was made elsewhere
FORMAT = 2  # of the description; before it, tokenizer.json was ours
NO_TOKEN = "\ufffd".encode()  # what an id between ranks and special tokens stands for


class Engine(Protocol):
    """Text to ids, by tiktoken or by Hugging Face's `tokenizers`."""

    def encode_batch(self, texts: Sequence[str], n_threads: int) -> list[list[int]]: ...
    def encode_array(self, text: str) -> np.ndarray: ...
    def encode_offsets(self, texts: Sequence[str]) -> list[Pieces]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Tokenizer:
    """Text to token ids and back. A special token that is spelled out in a text is text as well."""

    engine: Engine
    tokens: Sequence[bytes]  # the text of every id; NO_TOKEN for an id that is no token
    ranks: Mapping[bytes, int]  # the tokens of byte-pair encoding that tiktoken merges; empty for other engines
    special: Mapping[str, int]  # of bos, eos, pad, unk, cls, sep and mask those that exist
    end_of_text: int  # opens every document in token shards
    opening: tuple[int, ...]  # the model expects these before a text
    closing: tuple[int, ...] = ()  # and these after it
    stops: frozenset[int]  # a model ends its text with one of these
    is_lossless: bool  # whether every text with a UTF-8 form is decoded to itself
    opens_with_space: bool = False  # whether the first word of a text has a space before it when it is decoded
    control: Mapping[str, int] = field(default_factory=dict)  # all special tokens by their text, as templates have it

    @property
    def vocab_size(self) -> int:
        """Largest id + 1 of the model, so that some ids may be no tokens."""
        return len(self.tokens)

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone, without `opening` and `closing`."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], n_threads: int = 0) -> list[list[int]]:
        """Ids of each text. `n_threads`: 0 = as many as this process may use cores."""
        for text in texts:
            _check_encodable(text)
        return self.engine.encode_batch(texts, n_threads)

    def encode_array(self, text: str) -> np.ndarray:
        """Ids of the text, uint32: as `encode`, without a Python number a token."""
        _check_encodable(text)
        return self.engine.encode_array(text)

    def encode_offsets(self, texts: Sequence[str]) -> list[Pieces]:
        """Ids of each text, as `encode`, and which of its characters they cover (model/data/offsets.py)."""
        for text in texts:
            _check_encodable(text)
        return self.engine.encode_offsets(texts)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; a part of a character, and an id that is no token, becomes U+FFFD."""
        text = self.decode_bytes(ids).decode("utf-8", "replace")
        return text.removeprefix(" ") if self.opens_with_space else text

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of each token in turn, so that the bytes of a text may come in parts."""
        ids = list(ids)
        if outside := [token for token in ids if not 0 <= token < self.vocab_size]:
            raise ValueError(f"token id {outside[0]} is outside 0 to {self.vocab_size - 1}")
        return b"".join(map(self.tokens.__getitem__, ids))

    def n_bytes(self, ids: Iterable[int]) -> int:
        """UTF-8 bytes of the text of `ids`."""
        n = len(content := self.decode_bytes(ids))
        return n - content.startswith(b" ") if self.opens_with_space else n


def tokenizer_of(
    ranks: Mapping[bytes, int], pattern: str, special_tokens: Mapping[str, int], vocab_size: int
) -> Tokenizer:
    """A tokenizer of ours, in which the end-of-text token opens a text, ends it and pads."""
    tokens = [NO_TOKEN] * vocab_size
    for token, rank in (*ranks.items(), *((name.encode(), rank) for name, rank in special_tokens.items())):
        tokens[rank] = token
    end_of_text = special_tokens[END_OF_TEXT]
    mask = {"mask": special_tokens[MASK]} if MASK in special_tokens else {}
    return Tokenizer(
        engine=TiktokenEngine(ranks, pattern),
        tokens=tokens,
        ranks=ranks,
        special=dict.fromkeys(("bos", "eos", "pad"), end_of_text) | mask,
        end_of_text=end_of_text,
        opening=(end_of_text,),
        stops=frozenset({end_of_text}),
        is_lossless=True,
        control=dict(special_tokens),
    )


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer in `directory`. ValueError says what is wrong with its files."""
    path, ranks_path = directory / DESCRIPTION_FILE, directory / RANKS_FILE
    if not path.is_file():
        earlier = " (it was made by an earlier version)" if ranks_path.is_file() else ""
        raise ValueError(
            f"{directory} holds no tokenizer: {path.name} is missing{earlier}; build the tokenizer again"
        )
    description = read_description(path)
    if description.get("vocabulary") == IMPORTED:
        from model.data.tokenizer_imported import load_imported  # which needs the class above

        return load_imported(directory, description)
    if not ranks_path.is_file():
        raise ValueError(f"{directory} holds no tokenizer: {RANKS_FILE} is missing; build the tokenizer again")
    raw = ranks_path.read_bytes()
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
    named = description.get("special_tokens")
    expected = describe(name, raw, len(ranks), has_mask=isinstance(named, dict) and MASK in named)
    if wrong := sorted(name for name in {*expected, *description} if description.get(name) != expected.get(name)):
        raise ValueError(
            f"{path} does not describe {RANKS_FILE} beside it: {', '.join(wrong)} differ; build the tokenizer again"
        )
    return tokenizer_of(ranks, expected["pattern"], expected["special_tokens"], expected["vocab_size"])


def files_of(directory: Path) -> list[str]:
    """Names of the files of the tokenizer in `directory`, which belong beside a model that uses it."""
    return [name for name in (RANKS_FILE, DESCRIPTION_FILE, *OTHER_FILES) if (directory / name).is_file()]


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
    """ValueError when the first documents of `shards` do not come back from `tokenizer` as texts of their length.

    A tokenizer that changes texts, for instance to lower case, gives back about their length, but not for a text in a
    script that it does not have: half of the documents are enough.
    """
    for shard in shards[:1]:
        n_checked = min(CHECKED_DOCUMENTS, len(shard.n_bytes))
        wrong = [i for i in range(n_checked) if not _is_made_by(tokenizer, shard, i)]
        if len(wrong) > (0 if tokenizer.is_lossless else n_checked // 2):
            raise ValueError(
                f"{shard.path}: document {shard.document_ids[wrong[0]]} was not written by this tokenizer of"
                f" {tokenizer.vocab_size} tokens; give the one that made the shards, or tokenise again"
            )


def _is_made_by(tokenizer: Tokenizer, shard: TokenShard, i: int) -> bool:
    ids = shard.tokens[shard.offsets[i] : shard.offsets[i + 1]].tolist()
    if ids[:1] != [tokenizer.end_of_text] or max(ids) >= tokenizer.vocab_size:
        return False
    n_bytes, expected = tokenizer.n_bytes(ids[1:]), int(shard.n_bytes[i])
    is_near = expected < SHORT_BYTES or expected / MOST_CHANGE <= n_bytes <= expected * MOST_CHANGE
    return n_bytes == expected or (is_near and not tokenizer.is_lossless)


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


def describe(pattern_name: str, raw: bytes, n_ranks: int, *, has_mask: bool = False) -> dict[str, Any]:
    """The description of a file of ranks; `has_mask`: with the mask token of an encoder, which comes last."""
    published = PUBLISHED.get(pattern_name)
    special_tokens = dict(published.special_tokens) if published else {END_OF_TEXT: n_ranks}
    vocab_size = published.vocab_size if published else n_ranks + 1
    return {
        "format": FORMAT,
        "vocabulary": pattern_name if published else TRAINED,
        "pattern_name": pattern_name,
        "pattern": published.pattern if published else TRAINED_PATTERNS[pattern_name],
        "special_tokens": special_tokens | ({MASK: vocab_size} if has_mask else {}),
        "vocab_size": vocab_size + has_mask,
        "ranks_sha256": hashlib.sha256(raw).hexdigest(),
    }


def read_description(path: Path) -> dict[str, Any]:
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
