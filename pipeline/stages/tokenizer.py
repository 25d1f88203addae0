"""Stage `tokenizer`: byte-pair encoding, learned by rustbpe on a sample of the train split, run by tiktoken.

In: split's shards. Out: tokenizer.tiktoken (tiktoken's own format: base64 of a token, space, rank, a line a token)
and tokenizer.json (split pattern with the name that llama.cpp and `tokenizers` know it by, special tokens, vocabulary
size, sha256 of the ranks). The sample is the train documents with the lowest hash(seed, page_id). A corpus that is
too small for the wanted vocabulary gives a smaller one. `load_tokenizer` checks every line of what it reads.

rustbpe and tiktoken are imported where they are used.
"""

import base64
import binascii
import hashlib
import itertools
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow.compute as pc

from pipeline.stages.engine import n_usable_cores
from pipeline.stages.records import SPLIT_CORPUS, Shards, TokenizerFile
from pipeline.stages.shards import read_table, shard_paths, text_digest, write_bytes, write_text
from pipeline.stages.store import Outcome, Stage, Work

RANKS_FILE = "tokenizer.tiktoken"
DESCRIPTION_FILE = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"
N_BYTE_VALUES = 256
# As in the tokenizer files of Qwen2 and GPT-2; llama.cpp picks its own implementation by the name.
PATTERNS = {
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
# tiktoken panics on a run of a million spaces, with an exception that `except Exception` does not catch, and takes
# quadratic time in a long word: both are cut. Python's \s covers all that \s matches there.
SHORTEST_LONG_RUN = 4096
LONGEST_WORD = 65_536
LONG_RUN = re.compile(rf"\s{{{SHORTEST_LONG_RUN}}}|\S{{{LONGEST_WORD}}}")
BUFFER_DOCUMENTS = 256  # that rustbpe holds at once
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig:
    vocab_size: Annotated[int, "tokens, with the end-of-text token; at least 257"] = 4096
    pattern: Annotated[Literal["qwen2", "gpt-2"], "how text is cut into words before merging"] = "qwen2"
    sample_bytes: Annotated[int, "of the train split that merges are learned from; above 0"] = 16_000_000
    seed: Annotated[int, "of the choice of the sample"] = 1

    def __post_init__(self) -> None:
        if self.vocab_size <= N_BYTE_VALUES:
            raise ValueError(
                f"vocab_size={self.vocab_size} is below {N_BYTE_VALUES + 1}: a token a byte and end-of-text"
            )
        if self.pattern not in PATTERNS:
            raise ValueError(f"pattern={self.pattern!r}, expected one of {', '.join(PATTERNS)}")
        if self.sample_bytes < 1:
            raise ValueError(f"sample_bytes={self.sample_bytes} is not above 0")


class Tokenizer:
    """Text to token ids and back, without loss for any text that has a UTF-8 form."""

    def __init__(self, ranks: dict[bytes, int], pattern: str, end_of_text: int) -> None:
        import tiktoken

        self.vocab_size = len(ranks) + 1
        self.end_of_text = end_of_text
        self._encoding = tiktoken.Encoding(
            "gristmill", pat_str=pattern, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: end_of_text}
        )

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text: a special token that is spelled out in it is text as well."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str], n_threads: int = 0) -> list[list[int]]:
        """Ids of each text. `n_threads`: 0 = as many as this process may use cores."""
        pieces = [_encodable_pieces(text) for text in texts]
        flat = list(itertools.chain.from_iterable(pieces))
        if (n_threads or n_usable_cores()) == 1 or len(flat) == 1:
            encoded = iter([self._encoding.encode_ordinary(piece) for piece in flat])
        else:
            n_threads = n_threads or n_usable_cores()
            encoded = iter(self._encoding.encode_ordinary_batch(flat, num_threads=n_threads))
        return [next(encoded) if len(own) == 1 else [token for _ in own for token in next(encoded)] for own in pieces]

    def encode_array(self, text: str) -> np.ndarray:
        """Ids of ordinary text, uint32: as `encode`, without a Python number a token."""
        parts = [self._encoding.encode_to_numpy(piece, disallowed_special=()) for piece in _encodable_pieces(text)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; a part of a character becomes U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        ids = list(ids)
        if outside := [token for token in ids if not 0 <= token < self.vocab_size]:
            raise ValueError(f"token id {outside[0]} is outside 0 to {self.vocab_size - 1}")
        return self._encoding.decode_bytes(ids)


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer in `directory`. ValueError says what is wrong with its files."""
    path, ranks_path = directory / DESCRIPTION_FILE, directory / RANKS_FILE
    for file in (path, ranks_path):
        if not file.is_file():
            raise ValueError(f"{directory} holds no tokenizer: {file.name} is missing")
    try:
        description = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}); build the tokenizer again") from error
    raw = ranks_path.read_bytes()
    ranks = read_ranks(ranks_path, raw)
    expected = _description(description.get("pattern_name") if isinstance(description, dict) else None, raw, ranks)
    if description != expected:
        wrong = [
            name for name in expected if not isinstance(description, dict) or description.get(name) != expected[name]
        ]
        raise ValueError(
            f"{path} does not describe {RANKS_FILE} beside it: {', '.join(wrong) or 'unknown entries'} differ;"
            " build the tokenizer again"
        )
    return Tokenizer(ranks, expected["pattern"], expected["special_tokens"][END_OF_TEXT])


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
                f"{path}, line {i + 1}: {line[:80]!r}, expected base64 of a new token, a space and {i} ({error})"
            ) from error
    if missing := [value for value in range(N_BYTE_VALUES) if bytes([value]) not in ranks]:
        raise ValueError(f"{path}: {len(missing)} of 256 byte values are no token, first {missing[0]:#04x}")
    return ranks


def train_tokenizer(cfg: TokenizerConfig, inputs: tuple[Shards], work: Work) -> Outcome:
    sample = _sample(cfg, shard_paths(inputs[0].directory))
    n_bytes = sum(size for rows in sample.values() for _, size in rows)
    ranks = train_ranks(
        _sampled_texts(sample, lambda done: work.progress(done, n_bytes, "bytes")),
        cfg.vocab_size - 1,
        PATTERNS[cfg.pattern],
    )
    vocab_size = len(ranks) + 1
    if vocab_size < cfg.vocab_size:
        log.warning("the corpus gives %d tokens, not the %d of vocab_size", vocab_size, cfg.vocab_size)
    raw = b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items())
    write_bytes(work.directory / RANKS_FILE, raw)
    description = _description(cfg.pattern, raw, ranks)
    write_text(work.directory / DESCRIPTION_FILE, json.dumps(description, indent=1) + "\n")
    measures = {"vocab_size": vocab_size, "sample_bytes": n_bytes, **_bytes_per_token(work, inputs[0])}
    return Outcome(rows=vocab_size, measures=measures)


TOKENIZER = Stage(name="tokenizer", version=1, function=train_tokenizer, handle=TokenizerFile, libraries=("rustbpe",))


def train_ranks(texts: Iterable[str], n_tokens: int, pattern: str) -> dict[bytes, int]:
    """Token -> rank in the order of ranks, at most `n_tokens` of them; fewer where nothing is left to merge."""
    import rustbpe

    logging.getLogger("rustbpe").setLevel(logging.WARNING)  # it tells every hundredth of its way
    trainer = rustbpe.Tokenizer()  # pyright: ignore[reportAttributeAccessIssue]
    trainer.train_from_iterator(iter(texts), n_tokens, buffer_size=BUFFER_DOCUMENTS, pattern=pattern)
    pairs = sorted((rank, bytes(token)) for token, rank in trainer.get_mergeable_ranks())
    return {token: rank for rank, token in pairs}


def _description(pattern_name: Any, raw: bytes, ranks: dict[bytes, int]) -> dict[str, Any]:
    if pattern_name not in PATTERNS:
        raise ValueError(f"{DESCRIPTION_FILE}: pattern_name is {pattern_name!r}, expected {' or '.join(PATTERNS)}")
    return {
        "pattern_name": pattern_name,
        "pattern": PATTERNS[pattern_name],
        "special_tokens": {END_OF_TEXT: len(ranks)},
        "vocab_size": len(ranks) + 1,
        "ranks_sha256": hashlib.sha256(raw).hexdigest(),
    }


def _encodable_pieces(text: str) -> list[str]:
    """`text`, cut inside runs that are too long for tiktoken; one piece for nearly any text."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"the text has no UTF-8 form: character {error.start} is the lone surrogate {text[error.start]!r}"
            ) from error
    if len(text) < SHORTEST_LONG_RUN or not _may_hold_long_run(text):
        return [text]
    ends = [match.end() for match in LONG_RUN.finditer(text)]
    return [text[start:end] for start, end in itertools.pairwise([0, *ends, len(text)])]


def _may_hold_long_run(text: str) -> bool:
    """False where LONG_RUN cannot match: any run that it wants fills a block of half its length from end to end.

    The pattern itself takes as long as half of the encoding, because it is tried at every character.
    """
    half = SHORTEST_LONG_RUN // 2
    if any(text[i].isspace() and text[i : i + half].isspace() for i in range(0, len(text) - half + 1, half)):
        return True
    half = LONGEST_WORD // 2
    blocks = (text[i : i + half] for i in range(0, len(text) - half + 1, half))
    return any(block.split(maxsplit=1) == [block] for block in blocks)


def _sample(cfg: TokenizerConfig, paths: Sequence[Path]) -> dict[Path, list[tuple[int, int]]]:
    """Shard -> (row, bytes) of the documents to learn from, in the order of their hashes until sample_bytes."""
    found = []
    for path in paths:
        table = read_table(path, SPLIT_CORPUS).select(["page_id", "split", "text"])
        sizes = pc.call_function("binary_length", [table["text"]])
        columns = (table["page_id"].to_pylist(), table["split"].to_pylist(), sizes.to_pylist())
        for row, (page_id, side, size) in enumerate(zip(*columns, strict=True)):
            if side == "train":
                found.append((text_digest("sample", str(cfg.seed), page_id), path, row, size))
    if not found:
        raise ValueError(
            "no document is in the train split, so there is nothing to learn a tokenizer from; see `split`"
        )
    sample: dict[Path, list[tuple[int, int]]] = {}
    left = cfg.sample_bytes
    for _, path, row, size in sorted(found):
        sample.setdefault(path, []).append((row, min(size, left)))
        left -= size
        if left <= 0:
            break
    return sample


def _sampled_texts(sample: dict[Path, list[tuple[int, int]]], done: Callable[[int], None]) -> Iterator[str]:
    n_bytes = 0
    for path in sorted(sample):
        texts = read_table(path, columns=["text"])["text"]
        for row, size in sorted(sample[path]):
            yield texts[row].as_py().encode()[:size].decode("utf-8", "ignore")  # the last one is cut
            n_bytes += size
        done(n_bytes)


def _bytes_per_token(work: Work, corpus: Shards, limit: int = 1_000_000) -> dict[str, float]:
    """Of validation documents, in the order of shards, up to `limit` bytes; nothing where there are none."""
    tokenizer = load_tokenizer(work.directory)
    n_bytes = n_tokens = 0
    for path in shard_paths(corpus.directory):
        table = read_table(path, columns=["split", "text"])
        held_out = table.filter(pc.call_function("equal", [table["split"], "validation"]))["text"]
        texts = held_out.to_pylist()
        n_bytes += sum(len(text.encode()) for text in texts)
        n_tokens += sum(map(len, tokenizer.encode_batch(texts)))
        if n_bytes >= limit:
            break
    return {"bytes_per_token": n_bytes / n_tokens} if n_tokens else {}
