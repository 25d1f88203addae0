"""The content of a tokenizer.json for a model that has none.

In: the lines of BERT's vocab.txt; vocab.json and merges.txt of GPT-2 and RoBERTa; or the metadata of a GGUF file.
Out: the dict that `tokenizers` would write for the same tokenizer. A GGUF file names its split pattern; the steps are
those of llama.cpp for that name. Sources: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md#tokenizer,
arXiv:1609.08144 section 4.1 (WordPiece), arXiv:1808.06226 (SentencePiece).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from model.data.byte_alphabet import bytes_of, characters
from model.data.tokenizer_imported import WORD_PART, WORD_START
from model.data.tokenizer_json import DIGITS_FIRST, PATTERNS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of tokens in a GGUF file
# tokenizer.ggml.pre -> name in PATTERNS, for patterns that are one regular expression.
GGUF_PATTERNS = {
    "gpt-2": "gpt-2",
    "qwen2": "qwen2",
    "deepseek-r1-qwen": "qwen2",
    "llama-bpe": "llama3",
    "llama3": "llama3",
    "llama-v3": "llama3",
    "tekken": "tekken",
    "gpt-4o": "o200k_base",
}
GGUF_DIGITS_FIRST = ("smollm", "starcoder", "refact", "command-r", "codeshell")
IGNORES_MERGES = ("llama-bpe", "llama3", "llama-v3", "tekken")  # a whole word that is a token is not merged
GGUF_MODELS = ("gpt2", "llama", "bert")
MOST_PIECE_CHARACTERS = 512  # of SentencePiece, whose every division in two is looked up; published ones have 48
FLAGS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def added_token(content: str, token_id: int, *, special: bool) -> dict[str, Any]:
    return {"id": token_id, "content": content, **FLAGS, "special": special}


def text_of(token: Any) -> str | None:
    """A special token of tokenizer_config.json, which is a text or an object with `content`."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None


def word_piece(vocabulary: Mapping[str, int], config: Mapping[str, Any]) -> dict[str, Any]:
    """WordPiece as in BERT, by the settings of tokenizer_config.json."""
    roles = {
        name: text_of(config.get(f"{name}_token")) or f"[{name.upper()}]"
        for name in ("unk", "sep", "pad", "cls", "mask")
    }
    special = [token for token in roles.values() if token in vocabulary]
    if missing := [roles[name] for name in ("unk", "cls", "sep") if roles[name] not in vocabulary]:
        raise ValueError(f"the vocabulary of WordPiece has no {missing[0]!r}")
    cls, sep = ([roles[name], vocabulary[roles[name]]] for name in ("cls", "sep"))
    return {
        **_whole([added_token(token, vocabulary[token], special=True) for token in special]),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
            "strip_accents": config.get("strip_accents"),
            "lowercase": config.get("do_lower_case", True),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {"type": "BertProcessing", "sep": sep, "cls": cls},
        "decoder": {"type": "WordPiece", "prefix": WORD_PART, "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": roles["unk"],
            "continuing_subword_prefix": WORD_PART,
            "max_input_chars_per_word": 100,
            "vocab": dict(vocabulary),
        },
    }


def byte_pairs(
    vocabulary: Mapping[str, int],
    merges: Sequence[Sequence[str]],
    pattern: str = "gpt-2",
    *,
    added: Sequence[Mapping[str, Any]] = (),
    add_prefix_space: bool = False,
    ignore_merges: bool = False,
) -> dict[str, Any]:
    """Byte-pair encoding of bytes as in GPT-2. `pattern`: a name in PATTERNS."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "trim_offsets": True}
    splits: dict[str, Any] = {**byte_level, "use_regex": True}
    if pattern == DIGITS_FIRST:
        digits = {"type": "Digits", "individual_digits": True}
        splits = {"type": "Sequence", "pretokenizers": [digits, splits]}
    elif pattern != "gpt-2":
        regex = {"Regex": PATTERNS[pattern].replace("{1,3}+", "{1,3}")}
        split = {"type": "Split", "pattern": regex, "behavior": "Isolated", "invert": False}
        splits = {"type": "Sequence", "pretokenizers": [split, {**byte_level, "use_regex": False}]}
    return {
        **_whole(added),
        "pre_tokenizer": splits,
        "decoder": {**byte_level, "use_regex": True},
        "model": _bpe(vocabulary, merges) | {"ignore_merges": ignore_merges},
    }


def sentence_pieces(
    vocabulary: Mapping[str, int],
    scores: Sequence[float],
    unknown: str | None,
    *,
    added: Sequence[Mapping[str, Any]] = (),
    add_prefix_space: bool = True,
) -> dict[str, Any]:
    """Byte-pair encoding of SentencePiece as in Llama 2: two neighbours merge by the score of what they make."""
    if longest := next((piece for piece in vocabulary if len(piece) > MOST_PIECE_CHARACTERS), None):
        raise ValueError(f"a piece has {len(longest):,} characters, expected at most {MOST_PIECE_CHARACTERS:,}")
    ranked = sorted(vocabulary, key=lambda piece: (-scores[vocabulary[piece]], vocabulary[piece]))
    merges = [
        (piece[:i], piece[i:])
        for piece in ranked
        for i in range(1, len(piece))
        if piece[:i] in vocabulary and piece[i:] in vocabulary
    ]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": WORD_START}
    prepend = [{"type": "Prepend", "prepend": WORD_START}] if add_prefix_space else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if add_prefix_space else []
    back = {"type": "Replace", "pattern": {"String": WORD_START}, "content": " "}
    return {
        **_whole(added),
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]},
        "pre_tokenizer": None,
        "decoder": {"type": "Sequence", "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip]},
        "model": _bpe(vocabulary, merges) | {"unk_token": unknown, "fuse_unk": True, "byte_fallback": True},
    }


def from_gguf(fields: Mapping[str, Any]) -> dict[str, Any]:
    """By tokenizer.ggml.model and tokenizer.ggml.pre. Raises ValueError for one that we do not have."""
    model, tokens = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.tokens")
    if model not in GGUF_MODELS or not isinstance(tokens, list) or not tokens:
        raise ValueError(
            f"tokenizer.ggml.model is {model!r}, expected {', '.join(GGUF_MODELS)} with a list of tokens"
        )
    types = fields.get("tokenizer.ggml.token_type") or [NORMAL] * len(tokens)
    if len(types) != len(tokens) or not all(isinstance(token, str) for token in tokens):
        raise ValueError(f"{len(types):,} types for {len(tokens):,} tokens")
    kept = {i: token for i, token in enumerate(tokens) if types[i] != UNUSED and token}
    added = [
        added_token(token, i, special=types[i] == CONTROL)
        for i, token in kept.items()
        if types[i] in (CONTROL, USER_DEFINED)
    ]
    if model == "bert":
        return word_piece({_as_word_piece(token, types[i]): i for i, token in kept.items()}, {})
    if model == "llama":
        scores, unknown = fields.get("tokenizer.ggml.scores") or [], fields.get("tokenizer.ggml.unknown_token_id")
        if len(scores) != len(tokens):
            raise ValueError(f"{len(scores):,} scores for {len(tokens):,} tokens")
        prefix = fields.get("tokenizer.ggml.add_space_prefix", True)
        pieces = {token: i for i, token in kept.items()}
        return sentence_pieces(
            pieces,
            scores,
            kept.get(unknown) if isinstance(unknown, int) else None,
            added=added,
            add_prefix_space=prefix,
        )
    vocabulary = {_as_bytes(token, types[i]): i for i, token in kept.items()}
    merges = [str(merge).split(" ") for merge in fields.get("tokenizer.ggml.merges") or []]
    pre = str(fields.get("tokenizer.ggml.pre", "gpt-2"))
    pattern = DIGITS_FIRST if pre in GGUF_DIGITS_FIRST else GGUF_PATTERNS.get(pre)
    if pattern is None:
        known = ", ".join((*GGUF_PATTERNS, *GGUF_DIGITS_FIRST))
        raise ValueError(f"tokenizer.ggml.pre is {pre!r}, expected one of {known}")
    return byte_pairs(vocabulary, merges, pattern, added=added, ignore_merges=pre in IGNORES_MERGES)


def _whole(added: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": sorted(added, key=lambda entry: entry["id"]),
        "normalizer": None,
        "post_processor": None,
    }


def _bpe(vocabulary: Mapping[str, int], merges: Sequence[Sequence[str]]) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": dict(vocabulary),
        "merges": [list(merge) for merge in merges],
    }


def _as_bytes(token: str, kind: int) -> str:
    """A token that is not written in the alphabet of bytes is plain text, unless it is an added one."""
    is_added = kind in (CONTROL, USER_DEFINED)
    return token if is_added or bytes_of(token) is not None else characters(token.encode())


def _as_word_piece(token: str, kind: int) -> str:
    """llama.cpp marks the beginning of a word, and WordPiece the other parts."""
    if kind in (CONTROL, UNKNOWN, USER_DEFINED) or (token.startswith("[") and token.endswith("]")):
        return token
    return token.removeprefix(WORD_START) if token.startswith(WORD_START) else WORD_PART + token
