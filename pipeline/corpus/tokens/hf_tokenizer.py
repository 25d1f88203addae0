"""Writes tokenizer.json and tokenizer_config.json, so that transformers and `tokenizers` load our vocabularies.

In: ranks, split pattern and special tokens. Out: the texts of both files; no library of Hugging Face is needed to
write them. The ids are equal to ours. As in our tokenizer, a special token that is spelled out in a text is encoded
as plain text: AutoTokenizer reads this from tokenizer_config.json, `tokenizers` needs `encode_special_tokens` to be
true.
"""

import json
from collections.abc import Mapping
from typing import Any

from model.data.byte_alphabet import characters
from model.data.merges import merges

TOKENIZER_JSON, TOKENIZER_CONFIG_JSON = "tokenizer.json", "tokenizer_config.json"


def tokenizer_json(ranks: Mapping[bytes, int], pattern: str, special_tokens: Mapping[str, int]) -> str:
    """The content of tokenizer.json, which `tokenizers.Tokenizer.from_file` reads."""
    names = dict(zip(ranks, map(characters, ranks), strict=True))
    pairs = ((names[left], names[right]) for left, right in merges(ranks))
    content: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_added(name, token_id) for name, token_id in special_tokens.items()],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": onig(pattern)}, "behavior": "Isolated", "invert": False},
                _byte_level(),
            ],
        },
        "post_processor": None,
        "decoder": _byte_level(),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            # special tokens too: an added token that is not in the vocabulary would get the next free id, not its own
            "vocab": {**{names[token]: rank for token, rank in ranks.items()}, **special_tokens},
            "merges": [f"{left} {right}" for left, right in pairs],
        },
    }
    return json.dumps(content, ensure_ascii=False) + "\n"


def tokenizer_config_json(end_of_text: str) -> str:
    """The content of tokenizer_config.json, from which AutoTokenizer reads the roles of the special tokens."""
    content = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": end_of_text,  # precedes every document, as in our token shards
        "eos_token": end_of_text,
        "pad_token": end_of_text,
        "split_special_tokens": True,
        "clean_up_tokenization_spaces": False,
    }
    return json.dumps(content, indent=1) + "\n"


def onig(pattern: str) -> str:
    """`pattern` for the regex engine of `tokenizers`, in which {1,3}+ is a repeated count, not a possessive one.

    The last count of an alternative never needs to backtrack, so a greedy count is equivalent.
    """
    return pattern.replace("{1,3}+", "{1,3}")


def _added(name: str, token_id: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": name, **flags}


def _byte_level() -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
