"""A tokenizer that was made elsewhere: how it is described, and how it is read.

In: a folder with

    tokenizer.json            in the format of Hugging Face's `tokenizers`; it decides every id
    gristmill_tokenizer.json  its sha256, the engine, the number of ids of the model, and the roles of special tokens

Out: a Tokenizer. Byte-level byte-pair encoding runs in tiktoken if its split pattern is one that we know and its
merges follow from the order of its ids (merges.py); everything else runs in `tokenizers`.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from model.data.byte_alphabet import VALUES, bytes_of
from model.data.merges import merges
from model.data.tokenizer import DESCRIPTION_FILE, FORMAT, IMPORTED, NO_TOKEN, Tokenizer
from model.data.tokenizer_json import (
    PATTERNS,
    added_of,
    checked_json,
    merges_of,
    model_type,
    normalizers_of,
    pattern_of,
    pre_tokenizers_of,
    vocabulary_of,
)
from model.data.tokenizer_library import LibraryEngine
from model.data.tokenizer_tiktoken import TiktokenEngine

TOKENIZER_JSON = "tokenizer.json"
ROLES = ("bos", "eos", "pad", "unk", "cls", "sep", "mask")
WORD_START, WORD_PART = "\u2581", "##"  # of Unigram and SentencePiece, and of WordPiece
Engine = Literal["tiktoken", "tokenizers"]


def describe_imported(
    raw: bytes,
    content: Mapping[str, Any],
    *,
    vocab_size: int,
    special: Mapping[str, int],
    end_of_text: int,
    opening: tuple[int, ...],
    closing: tuple[int, ...],
    stops: frozenset[int],
) -> dict[str, Any]:
    """The description of a checked tokenizer.json with the bytes `raw`."""
    engine, unmerged = engine_of(content)
    return {
        "format": FORMAT,
        "vocabulary": IMPORTED,
        "engine": engine,
        "unmerged": unmerged,
        "vocab_size": vocab_size,
        "special_tokens": dict(special),
        "end_of_text": end_of_text,
        "opening": list(opening),
        "closing": list(closing),
        "stops": sorted(stops),
        "tokenizer_json_sha256": hashlib.sha256(raw).hexdigest(),
    }


def load_imported(directory: Path, description: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer in `directory`. Raises ValueError if its files do not belong together or are not accepted."""
    path = directory / TOKENIZER_JSON
    if not path.is_file():
        raise ValueError(f"{directory} holds no tokenizer: {TOKENIZER_JSON} is missing; import the model again")
    raw = path.read_bytes()
    if hashlib.sha256(raw).hexdigest() != description.get("tokenizer_json_sha256"):
        raise ValueError(f"{directory / DESCRIPTION_FILE} does not describe {path.name} beside it; import it again")
    content = checked_json(path, raw)
    _check_description(directory / DESCRIPTION_FILE, description, content)
    try:
        return tokenizer_of_json(content, description)
    except ValueError as error:
        raise ValueError(f"{path}: {error}; import the model again") from error


def tokenizer_of_json(content: Mapping[str, Any], description: Mapping[str, Any]) -> Tokenizer:
    ranks = byte_ranks(content, set(description["unmerged"])) if description["engine"] == "tiktoken" else {}
    is_byte_level = any(step["type"] == "ByteLevel" for step in pre_tokenizers_of(content))
    engine = _tiktoken(content, ranks) if ranks else LibraryEngine(content)
    opens_with_space = _opens_with_space(content)
    opening, closing = tuple(description["opening"]), tuple(description["closing"])
    return Tokenizer(
        engine=engine,
        tokens=token_texts(content, description["vocab_size"], is_byte_level),
        ranks=ranks,
        special=description["special_tokens"],
        end_of_text=description["end_of_text"],
        opening=opening,
        closing=closing,
        stops=frozenset(description["stops"]),
        is_lossless=is_byte_level and _keeps_texts(content),
        opens_with_space=opens_with_space,
        control={entry["content"]: entry["id"] for entry in added_of(content) if entry.get("special")},
    )


def engine_of(content: Mapping[str, Any]) -> tuple[Engine, list[int]]:
    """The engine that gives the ids of tokenizer.json, and for tiktoken the ids that no merge produces."""
    normalizes = [step["type"] for step in normalizers_of(content)]
    if model_type(content) != "BPE" or pattern_of(content) is None or normalizes not in ([], ["NFC"]):
        return "tokenizers", []
    model, whole = content["model"], byte_ranks(content, set())
    if not whole or model.get("byte_fallback") or not _are_plain(content):
        return "tokenizers", []
    if model.get("unk_token") and not _has_all_bytes(content):
        return "tokenizers", []
    listed = [(bytes_of(left), bytes_of(right)) for left, right in merges_of(content)]
    produced = {left + right for left, right in listed if left is not None and right is not None}
    ranks = {token: rank for token, rank in whole.items() if len(token) == 1 or token in produced}
    if model.get("ignore_merges"):
        ranks = whole  # a whole word that is a token is that token, as in tiktoken, even if no merge produces it
    position = {pair: i for i, pair in enumerate(listed)}
    positions = [position.get(pair, -1) for pair in merges(ranks)]
    if len(positions) != len(produced) or -1 in positions or positions != sorted(positions):
        return "tokenizers", []
    return "tiktoken", sorted(rank for token, rank in whole.items() if token not in ranks)


def byte_ranks(content: Mapping[str, Any], unmerged: set[int]) -> dict[bytes, int]:
    """Token -> id in the order of ids, without added tokens; empty if a token is not in the alphabet of bytes."""
    added = {entry["content"] for entry in added_of(content)}
    ordered = sorted(vocabulary_of(content).items(), key=lambda item: item[1])
    ranks = {bytes_of(text): i for text, i in ordered if text not in added and i not in unmerged}
    return {} if None in ranks else {token: i for token, i in ranks.items() if token is not None}


def token_texts(content: Mapping[str, Any], vocab_size: int, is_byte_level: bool) -> list[bytes]:
    """The text of every id, NO_TOKEN for those that are no token."""
    text_of: Callable[[str], bytes] = _byte_level if is_byte_level else _piece
    if model_type(content) == "WordPiece":
        text_of = _word_piece
    texts = [NO_TOKEN] * vocab_size
    for token, token_id in vocabulary_of(content).items():
        texts[token_id] = text_of(token)
    for entry in added_of(content):
        texts[entry["id"]] = entry["content"].encode("utf-8", "replace")
    return texts


def _tiktoken(content: Mapping[str, Any], ranks: Mapping[bytes, int]) -> TiktokenEngine:
    found = {entry["content"]: entry["id"] for entry in added_of(content) if not entry.get("special")}
    normalised = None
    if normalizers_of(content):
        from tokenizers.normalizers import NFC

        normalised = NFC().normalize_str
    return TiktokenEngine(ranks, PATTERNS[str(pattern_of(content))], found, normalised)


def _are_plain(content: Mapping[str, Any]) -> bool:
    """Whether added tokens are found exactly as they are written."""
    found = [entry for entry in added_of(content) if not entry.get("special")]
    flags = ("lstrip", "rstrip", "single_word", "normalized")
    return not any(entry.get(flag) for entry in found for flag in flags)


def _keeps_texts(content: Mapping[str, Any]) -> bool:
    prefixed = [
        step.get("add_prefix_space", True) for step in pre_tokenizers_of(content) if step["type"] == "ByteLevel"
    ]
    return not normalizers_of(content) and not any(prefixed) and _has_all_bytes(content)


def _has_all_bytes(content: Mapping[str, Any]) -> bool:
    return vocabulary_of(content).keys() >= VALUES.keys()


def _opens_with_space(content: Mapping[str, Any]) -> bool:
    if model_type(content) == "WordPiece":
        return True
    prepends = any(step["type"] == "Prepend" for step in normalizers_of(content))
    return prepends or any(
        step.get("prepend_scheme", "always") != "never" and step.get("add_prefix_space", True)
        for step in pre_tokenizers_of(content)
        if step["type"] in ("Metaspace", "ByteLevel")
    )


def _byte_level(token: str) -> bytes:
    content = bytes_of(token)
    return token.encode("utf-8", "replace") if content is None else content


def _word_piece(token: str) -> bytes:
    return (token.removeprefix(WORD_PART) if token.startswith(WORD_PART) else f" {token}").encode("utf-8", "replace")


def _piece(token: str) -> bytes:
    if len(token) == len("<0x00>") and token.startswith("<0x") and token.endswith(">"):
        try:
            return bytes([int(token[3:5], 16)])
        except ValueError:
            pass
    return token.replace(WORD_START, " ").encode("utf-8", "replace")


def _check_description(path: Path, description: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    size, special = description.get("vocab_size"), description.get("special_tokens")
    size = size if isinstance(size, int) else 0
    ids = [description.get("end_of_text")]
    for name in ("opening", "closing", "stops", "unmerged"):
        ids += description[name] if isinstance(description.get(name), list) else [None]
    ids += special.values() if isinstance(special, dict) and set(special) <= set(ROLES) else [None]
    is_sound = all(type(one) is int and 0 <= one < size for one in ids)
    if not is_sound or description.get("engine") not in ("tiktoken", "tokenizers"):
        raise ValueError(f"{path}: a part is missing, or an id is outside the vocabulary; import the model again")
    largest = max((*vocabulary_of(content).values(), *(entry["id"] for entry in added_of(content))))
    if largest >= size:
        raise ValueError(f"{path}: the tokenizer has an id {largest}, but the model only {size} ids")
    if description["engine"] == "tiktoken" and (pattern_of(content) is None or not byte_ranks(content, set())):
        raise ValueError(f"{path}: tiktoken cannot run this tokenizer; import the model again")
