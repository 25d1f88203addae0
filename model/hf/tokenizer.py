"""The parts of a tokenizer that an export contains: its files, its special tokens, and every token with its id.

In: the folder of a tokenizer of ours (with gristmill_tokenizer.json), or any with Hugging Face's tokenizer.json and
tokenizer_config.json. Out: an ExportedTokenizer.

Our documents open with the end-of-text token, in training and in `gristmill generate`. The exported tokenizer.json of
a tokenizer of ours therefore contains a step that adds it. The files also state how texts become rows (Feeding),
because transformers otherwise pads on the wrong side and never truncates. Everything else in a tokenizer of others is
copied unchanged.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.data.questions import PairLayout
from model.data.tokenizer import IMPORTED
from model.data.tokenizer_json import MODELS, pattern_of, steps, vocabulary_of
from model.training.files import read_json

TOKENIZER_JSON, TOKENIZER_CONFIG_JSON = "tokenizer.json", "tokenizer_config.json"
DESCRIPTION, CHAT_TEMPLATE = "gristmill_tokenizer.json", "chat_template.jinja"
# Copied unchanged, beside the two files that are rewritten.
TAKEN_ALONG = ("special_tokens_map.json", "vocab.json", "merges.txt", "added_tokens.json", DESCRIPTION)
SPECIAL = ("bos_token", "eos_token", "pad_token")


@dataclass(frozen=True, kw_only=True, slots=True)
class Feeding:
    """How texts become rows of token ids for a model."""

    max_tokens: int  # of a row; a longer text is cut
    truncation_side: str  # where a longer text is cut: "right" is its end, "left" its beginning
    padding_side: str  # where a shorter text is padded
    is_task: bool  # whether the model was trained for a task: on texts in which a special token is text
    is_repaired: bool = False  # whether texts are composed (NFC) and stripped first, as our classifiers do
    spells_mask: bool = False  # whether a special token that is spelled out in a text is one, to fill a mask
    has_types: bool = False  # whether the second text of a pair has another token type than the first
    pairs: PairLayout | None = None  # of a question and a text; None = as the tokenizer has it


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedTokenizer:
    files: Mapping[str, str]  # name -> content
    tokens: Mapping[str, int]  # all of them, in the alphabet of byte-level vocabularies -> id
    control: frozenset[int]  # ids without text
    merges: tuple[str, ...]  # "left right", in the order in which they apply
    special_ids: Mapping[str, int]  # of bos_token, eos_token and pad_token those that exist
    pattern_name: str | None  # of the split pattern; None if it is not known
    opens_with_bos: bool
    chat_template: str | None
    stops: tuple[int, ...] = ()  # of a chat model: the tokens that end an answer, first that of the template

    @property
    def end_of_turn(self) -> int | None:
        """The token that ends an answer, for programs that know a single one."""
        return self.stops[0] if self.stops else self.special_ids.get("eos_token")


def read_exported_tokenizer(
    folder: Path,
    vocab_size: int,
    chat_template: str | None = None,
    feeding: Feeding | None = None,
    stops: tuple[int, ...] = (),
) -> ExportedTokenizer:
    """The tokenizer in `folder`, for a model of `vocab_size` tokens whose rows are made as `feeding` says.

    `chat_template` is Jinja text; None = chat_template.jinja of the folder, if there is one. `stops` are those of an
    ExportedTokenizer. Raises ValueError when files are missing or broken, or when the model has fewer tokens (for a
    tokenizer of ours: or more).
    """
    tokenizer, config = _read(folder)
    model, added = _checked(folder / TOKENIZER_JSON, tokenizer)
    tokens = {**vocabulary_of(tokenizer), **{entry["content"]: entry["id"] for entry in added}}
    description = read_json(folder / DESCRIPTION) if (folder / DESCRIPTION).is_file() else None
    is_ours = description is not None and description.get("vocabulary") != IMPORTED
    _check_fits(folder, max(tokens.values(), default=-1) + 1, vocab_size, is_ours=is_ours)
    if feeding is not None:
        _feed(tokenizer, config, tokens, feeding, description)
    special_ids = {name: tokens[text] for name in SPECIAL if (text := _text(config.get(name))) in tokens}
    if chat_template is None and (folder / CHAT_TEMPLATE).is_file():
        chat_template = (folder / CHAT_TEMPLATE).read_text("utf-8")
    opens_with_bos = is_ours and "bos_token" in special_ids
    if opens_with_bos and not _adds_tokens(tokenizer):
        tokenizer["post_processor"] = _opened_with(str(_text(config["bos_token"])), special_ids["bos_token"])
    if chat_template is not None and not (feeding is not None and feeding.is_task):
        config["split_special_tokens"] = False  # a template spells special tokens out as text
    files = {
        TOKENIZER_JSON: json.dumps(tokenizer, ensure_ascii=False) + "\n",
        TOKENIZER_CONFIG_JSON: json.dumps(config, indent=1, ensure_ascii=False) + "\n",
        **{name: (folder / name).read_text("utf-8") for name in TAKEN_ALONG if (folder / name).is_file()},
        **({} if chat_template is None else {CHAT_TEMPLATE: chat_template}),
    }
    return ExportedTokenizer(
        files=files,
        tokens=tokens,
        control=frozenset(entry["id"] for entry in added if entry.get("special")),
        merges=tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", ())),
        special_ids=special_ids,
        pattern_name=_pattern_name(description, tokenizer),
        opens_with_bos=opens_with_bos or (not is_ours and _opens_with(description, special_ids)),
        chat_template=chat_template,
        stops=stops,
    )


def _read(folder: Path) -> tuple[Any, dict[str, Any]]:
    """Content of tokenizer.json, and of tokenizer_config.json."""
    for name in (TOKENIZER_JSON, TOKENIZER_CONFIG_JSON):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} contains no tokenizer to export: {name} is missing")
    tokenizer, config = read_json(folder / TOKENIZER_JSON), read_json(folder / TOKENIZER_CONFIG_JSON)
    if not isinstance(config, dict):
        raise ValueError(f"{folder / TOKENIZER_CONFIG_JSON} contains a {type(config).__name__}, expected an object")
    return tokenizer, config


def _pattern_name(description: Mapping[str, Any] | None, tokenizer: Mapping[str, Any]) -> str | None:
    if description is None:
        return None
    is_imported = description.get("vocabulary") == IMPORTED  # then its parts were checked
    return pattern_of(tokenizer) if is_imported else str(description.get("pattern_name"))


def _opens_with(description: Mapping[str, Any] | None, special_ids: Mapping[str, int]) -> bool:
    """Whether an imported tokenizer puts the beginning-of-text token before a text."""
    return description is not None and description.get("opening") == [special_ids.get("bos_token")]


def _feed(
    tokenizer: dict[str, Any],
    config: dict[str, Any],
    tokens: Mapping[str, int],
    feeding: Feeding,
    description: Mapping[str, Any] | None,
) -> None:
    """Set the fields that say how texts become rows, and a padding token if there is none."""
    config["model_max_length"] = feeding.max_tokens
    config["padding_side"], config["truncation_side"] = feeding.padding_side, feeding.truncation_side
    if _text(config.get("pad_token")) not in tokens:  # without one transformers cannot make a batch
        ends = (_text(config.get(name)) for name in ("eos_token", "bos_token"))
        config["pad_token"] = next((token for token in ends if token in tokens), None)
    if feeding.spells_mask:
        config["split_special_tokens"] = False
    if feeding.has_types:  # without it transformers gives both texts of a pair the type 0
        config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    if not feeding.is_task or description is None:
        return
    config["split_special_tokens"] = True  # one that is spelled out in a text is text, as in training
    if feeding.is_repaired:
        strip = {"type": "Strip", "strip_left": True, "strip_right": True}
        own = [tokenizer["normalizer"]] if tokenizer.get("normalizer") is not None else []
        tokenizer["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "NFC"}, strip, *own]}
    if feeding.pairs is not None and feeding.pairs.null:  # not a pair of BERT or RoBERTa, which the tokenizer makes
        _forget_added_tokens(config)
        tokenizer["post_processor"] = _paired(feeding.pairs, tokens)
    else:
        _open_as_trained(tokenizer, config, tokens, description)


def _open_as_trained(
    tokenizer: dict[str, Any], config: dict[str, Any], tokens: Mapping[str, int], description: Mapping[str, Any]
) -> None:
    """Put the token before a text that our classifiers read there, where an imported tokenizer adds none itself."""
    opening, closing = description.get("opening"), description.get("closing")
    if not opening or closing or _adds_tokens(tokenizer) or config.get("add_bos_token"):
        return
    _forget_added_tokens(config)
    text = next(text for text, token_id in tokens.items() if token_id == opening[0])
    tokenizer["post_processor"] = _opened_with(text, opening[0])


def _adds_tokens(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a step of tokenizer.json puts tokens around a text."""
    return any(step["type"] != "ByteLevel" for step in steps(tokenizer.get("post_processor"), "processors"))


def _forget_added_tokens(config: dict[str, Any]) -> None:
    """Remove what transformers puts above the step in tokenizer.json."""
    config.pop("add_bos_token", None)
    config.pop("add_eos_token", None)


def _checked(path: Path, tokenizer: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The parts `model` and `added_tokens` of a tokenizer.json."""
    try:
        model, added = tokenizer["model"], tokenizer.get("added_tokens") or []
        ids = [*vocabulary_of(tokenizer).values(), *(entry["id"] for entry in added)]
        if model["type"] not in MODELS or not all(type(token_id) is int and token_id >= 0 for token_id in ids):
            raise TypeError(f"model type {model['type']!r}, expected one of {', '.join(MODELS)} with ids from 0")
        if not all(isinstance(entry["content"], str) for entry in added):
            raise TypeError("added_tokens without content")
        if not isinstance(model["merges"] if model["type"] == "BPE" else [], list):
            raise TypeError("no list of merges")
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: not a tokenizer of Hugging Face ({error})") from error
    return model, added


def _check_fits(folder: Path, n_tokens: int, vocab_size: int, is_ours: bool) -> None:
    if n_tokens > vocab_size or (is_ours and n_tokens < vocab_size):
        raise ValueError(
            f"{folder}: the tokenizer has {n_tokens} tokens, the model {vocab_size}, so they do not belong"
            " together; put the tokenizer there that the model was trained with"
        )


def _text(token: Any) -> str | None:
    """A special token of tokenizer_config.json, which is a text or an object with `content`."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None


def _paired(layout: PairLayout, tokens: Mapping[str, int]) -> dict[str, Any]:
    """The step of tokenizer.json that makes a row of a question and a text; what is between them may be any text."""
    texts = {token_id: text for text, token_id in tokens.items()}
    parts = {"opening": layout.opening, "separator": layout.separator, "closing": layout.closing}
    pair = [("opening", 0), ("A", 0), ("separator", 0), ("B", 1), ("closing", 1)]
    single = [("opening", 0), ("A", 0), ("closing", 0)]

    def step(name: str, kind: int) -> dict[str, Any]:
        return {"SpecialToken" if name in parts else "Sequence": {"id": name, "type_id": kind}}

    return {
        "type": "TemplateProcessing",
        "single": [step(*one) for one in single],
        "pair": [step(*one) for one in pair],
        "special_tokens": {
            name: {"id": name, "ids": list(ids), "tokens": [texts[i] for i in ids]} for name, ids in parts.items()
        },
    }


def _opened_with(token: str, token_id: int) -> dict[str, Any]:
    """The step of tokenizer.json that puts `token` before a text."""
    opened = {"SpecialToken": {"id": token, "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [opened, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [opened, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }
