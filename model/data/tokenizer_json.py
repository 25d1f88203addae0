"""Hugging Face's tokenizer.json: read, and checked before anything of it is run.

In: the bytes of a file that somebody else made. Out: its content as a dict, of which every part is one that we know.
A regular expression may take exponential time to match, and nothing in its text shows it: only those in SPLITS and
REPLACED are accepted, compared as text. Every id is checked too, because `tokenizers` gives an added token
the next free id instead of its own, and merges from a list that names tokens which do not exist.

Format: the source of `tokenizers` 0.23, which has no other description.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from model.data.vocabularies import LOWER, PUBLISHED, TRAINED_PATTERNS, UPPER

MOST_FILE_BYTES = 256 << 20
MOST_TOKENS, MOST_TOKEN_CHARACTERS = 2_000_000, 20_000
DIGITS_FIRST = "digits + gpt-2"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_AS_QWEN2 = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORDS = (rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*")
# Split pattern by name, as tiktoken runs it. The names are those of llama.cpp where it has one.
PATTERNS = {
    **TRAINED_PATTERNS,
    **{name: vocabulary.pattern for name, vocabulary in PUBLISHED.items()},
    "llama3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|" + _AS_QWEN2.replace("{digits}", "{1,3}"),
    "tekken": "|".join((*_WORDS, r"\p{N}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+")),
    # In one pattern what `tokenizers` does in two steps: each digit is cut out, and the rest is split as in GPT-2, so
    # that white space before a digit is at the end of its piece.
    DIGITS_FIRST: r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+(?![^\s\p{N}])|\s+",
}
# Regular expression in a file -> name. {1,3}+ of tiktoken is a repeated count in the engine of `tokenizers`.
SPLITS = {pattern.replace("{1,3}+", "{1,3}"): name for name, pattern in PATTERNS.items() if name != DIGITS_FIRST}
REPLACED = {" {2,}": "two spaces or more", r"\s+": "white space"}  # the same for what a normalizer replaces
NORMALIZERS = (
    *("NFC", "NFD", "NFKC", "NFKD", "Nmt", "Precompiled", "BertNormalizer", "ByteLevel"),
    *("Lowercase", "StripAccents", "Strip", "Prepend", "Replace"),
)
PRE_TOKENIZERS = (
    *("BertPreTokenizer", "Whitespace", "WhitespaceSplit", "CharDelimiterSplit", "Punctuation", "Digits"),
    *("Metaspace", "ByteLevel", "Split", "UnicodeScripts"),
)
MODELS = ("BPE", "WordPiece", "Unigram")
MOST_STEPS, MOST_PREPENDED = 16, 8
REMEDY = "take the tokenizer from the model's publisher, or another model"


def checked_json(path: Path, raw: bytes) -> dict[str, Any]:
    """The content of tokenizer.json. Raises ValueError naming `path` if any part is unknown, wrong or too large."""
    if len(raw) > MOST_FILE_BYTES:
        raise ValueError(f"{path}: {len(raw):,} bytes, expected at most {MOST_FILE_BYTES:,}; {REMEDY}")
    try:
        content = json.loads(raw)
        if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
            raise TypeError("expected an object with an object `model`")
    except (ValueError, RecursionError, TypeError) as error:
        raise ValueError(f"{path}: not a tokenizer in the format of `tokenizers` ({error}); {REMEDY}") from error
    try:
        _check_parts(content)
        _check_ids(content)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: a part is missing or of another type ({error!r}); {REMEDY}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}; {REMEDY}") from error
    return content


def vocabulary_of(content: Mapping[str, Any]) -> dict[str, int]:
    """Token of the model -> id, without added tokens that are not in it."""
    model = content["model"]
    if model_type(content) == "Unigram":
        return {piece: i for i, (piece, _) in enumerate(model["vocab"])}
    return model["vocab"]


def added_of(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    return content.get("added_tokens") or []


def model_type(content: Mapping[str, Any]) -> str:
    """Old files do not name the type; it follows from what they contain."""
    model = content["model"]
    found = model.get("type")
    if found is None:
        found = "BPE" if "merges" in model else "Unigram" if isinstance(model.get("vocab"), list) else "WordPiece"
    return str(found)


def steps(part: dict[str, Any] | None, inner: str) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer, a pre-tokenizer or a post-processor, which may be a sequence of sequences."""
    if part is None:
        return
    if part["type"] == "Sequence":
        for one in part[inner]:
            yield from steps(one, inner)
    else:
        yield part


def normalizers_of(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list(steps(content.get("normalizer"), "normalizers"))


def pre_tokenizers_of(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    return list(steps(content.get("pre_tokenizer"), "pretokenizers"))


def pattern_of(content: Mapping[str, Any]) -> str | None:
    """Name in PATTERNS of how a byte-level vocabulary splits texts, None if in no way that tiktoken can run."""
    found = pre_tokenizers_of(content)
    if not found or found[-1]["type"] != "ByteLevel" or found[-1].get("add_prefix_space", True):
        return None
    splits_itself = found[-1].get("use_regex", True)
    match [one["type"] for one in found]:
        case ["ByteLevel"] if splits_itself:
            return "gpt-2"
        case ["Split", "ByteLevel"] if not splits_itself and _keeps_matches(found[0]):
            return SPLITS.get(found[0]["pattern"].get("Regex", ""))
        case ["Digits", "ByteLevel"] if splits_itself and found[0]["individual_digits"]:
            return DIGITS_FIRST
    return None


def _keeps_matches(split: Mapping[str, Any]) -> bool:
    """Both ways keep every match as a word, because our patterns leave nothing between two matches."""
    return (split["behavior"], split["invert"]) in (("Isolated", False), ("Removed", True))


def _check_parts(content: Mapping[str, Any]) -> None:
    if model_type(content) not in MODELS:
        raise ValueError(f"model type {model_type(content)!r}, expected {', '.join(MODELS)}")
    if content["model"].get("dropout"):
        raise ValueError("dropout of merges is on, so that ids would be random")
    for part in normalizers_of(content):
        if part["type"] not in NORMALIZERS:
            raise ValueError(f"normalizer {part['type']!r}, expected {', '.join(NORMALIZERS)}")
        if part["type"] == "Replace":
            _check_pattern(part["pattern"], REPLACED)
        _check_growth(part)
    for part in pre_tokenizers_of(content):
        if part["type"] not in PRE_TOKENIZERS:
            raise ValueError(f"pre-tokenizer {part['type']!r}, expected {', '.join(PRE_TOKENIZERS)}")
        if part["type"] == "Split":
            _check_pattern(part["pattern"], SPLITS)
    for part in steps(content.get("post_processor"), "processors"):
        if part["type"] in ("BertProcessing", "RobertaProcessing"):
            _check_named(part["cls"], part["sep"])
    for parts in (normalizers_of(content), pre_tokenizers_of(content)):
        n_byte_level = sum(part["type"] == "ByteLevel" for part in parts)
        if len(parts) > MOST_STEPS or n_byte_level > 1:
            raise ValueError(
                f"{len(parts)} steps, {n_byte_level} of them of bytes, expected at most {MOST_STEPS}, one of bytes"
            )


def _check_growth(part: Mapping[str, Any]) -> None:
    """A few steps that each make a text longer would fill the memory with a short one."""
    if part["type"] == "Replace" and len(part["content"]) > max(1, len(part["pattern"].get("String", " "))):
        raise ValueError(f"the normalizer replaces {part['pattern']} by a longer text, {part['content'][:80]!r}")
    if part["type"] == "Replace" and not part["pattern"].get("String", " "):
        raise ValueError("the normalizer replaces an empty text")
    if part["type"] == "Prepend" and len(part["prepend"]) > MOST_PREPENDED:
        raise ValueError(f"the normalizer prepends {len(part['prepend']):,} characters to a text")


def _check_named(*tokens: Any) -> None:
    """Special tokens of a post-processor, each with its id."""
    for token in tokens:
        if not isinstance(token, list) or [type(part) for part in token] != [str, int]:
            raise ValueError(f"the post-processor has {str(token)[:80]}, expected a token and its id")


def _check_pattern(pattern: Mapping[str, str], known: Mapping[str, str]) -> None:
    if "Regex" in pattern and pattern["Regex"] not in known:
        shown, names = pattern["Regex"][:100], ", ".join(known.values())
        raise ValueError(f"the regular expression {shown!r} is not one of those that we run, which are: {names}")


def _check_ids(content: Mapping[str, Any]) -> None:
    vocabulary, added = vocabulary_of(content), added_of(content)
    if not vocabulary or len(vocabulary) + len(added) > MOST_TOKENS:
        raise ValueError(f"{len(vocabulary) + len(added):,} tokens, expected 1 to {MOST_TOKENS:,}")
    texts = {**{entry["content"]: entry["id"] for entry in added}, **vocabulary}
    if len(vocabulary) != len(content["model"]["vocab"]):
        raise ValueError("a token is in the vocabulary twice")
    for text, token_id in texts.items():
        if not isinstance(text, str) or type(token_id) is not int or not 0 <= token_id < MOST_TOKENS:
            raise ValueError(f"token {str(text)[:80]!r} has the id {token_id!r}, expected 0 to {MOST_TOKENS - 1:,}")
        if len(text) > MOST_TOKEN_CHARACTERS:
            raise ValueError(f"a token of {len(text):,} characters, expected at most {MOST_TOKEN_CHARACTERS:,}")
    if any(not entry["content"] for entry in added):
        raise ValueError("an added token without text")
    if moved := [entry for entry in added if texts[entry["content"]] != entry["id"]]:
        entry = moved[0]
        raise ValueError(
            f"the added token {entry['content']!r} has the id {entry['id']}, but {texts[entry['content']]} elsewhere"
        )
    by_id: dict[int, str] = {}
    for text, token_id in texts.items():
        if by_id.setdefault(token_id, text) != text:
            raise ValueError(f"tokens {by_id[token_id]!r} and {text!r} have the same id {token_id}")
    if model_type(content) == "BPE":
        _check_merges(content["model"], vocabulary)
    if model_type(content) == "Unigram":
        _check_scores(content["model"])


def _check_merges(model: Mapping[str, Any], vocabulary: Mapping[str, int]) -> None:
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise ValueError("merges with a prefix or suffix of words are not supported")
    for number, merge in enumerate(model["merges"], 1):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if len(pair) != 2 or not all(part in vocabulary for part in (*pair, "".join(pair))):
            raise ValueError(f"merge {number} is {str(merge)[:80]!r}, expected two tokens that make a third one")


def _check_scores(model: Mapping[str, Any]) -> None:
    scores = [score for _, score in model["vocab"]]
    if not all(isinstance(score, int | float) and abs(score) < 1e9 for score in scores):
        raise ValueError("a score of a token is no finite number")
    unknown = model.get("unk_id")
    if unknown is not None and not (isinstance(unknown, int) and 0 <= unknown < len(scores)):
        raise ValueError(f"unk_id is {unknown!r}, expected an id of the vocabulary")


def merges_of(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The merges of byte-pair encoding, which old files write as one text with a space."""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in content["model"]["merges"])
    return [(left, right) for left, right in pairs]
