"""Writes tokenizer.json and tokenizer_config.json, so that transformers and `tokenizers` load our vocabularies.

In: ranks, split pattern and special tokens. Out: the texts of both files; no library of Hugging Face is needed to
write them. The ids are equal to ours. As in our tokenizer, a special token that is spelled out in a text is encoded
as plain text: AutoTokenizer reads this from tokenizer_config.json, `tokenizers` needs `encode_special_tokens` to be
true.

tiktoken merges any two neighbours whose bytes are a token, lowest rank first (and takes a whole word that is a token
as it is: `ignore_merges`); `tokenizers` merges the pairs of a list, in the order of the list. One pair per token is
enough: neighbours merge inside a part of a word as they would in isolation, until a merge crosses its border, and
then the token never arises. So the pair is the last merge of the token's own bytes.
"""

import heapq
import json
from collections.abc import Iterator, Mapping
from typing import Any

TOKENIZER_JSON, TOKENIZER_CONFIG_JSON = "tokenizer.json", "tokenizer_config.json"
# Bytes that represent themselves in a vocabulary of the GPT-2 kind; the others get characters from U+0100 on.
PRINTABLE = (*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100))
OTHERS = tuple(value for value in range(256) if value not in PRINTABLE)
CHARACTERS = {**{value: chr(value) for value in PRINTABLE}, **{value: chr(256 + i) for i, value in enumerate(OTHERS)}}
AS_CHARACTERS = "".join(CHARACTERS[value] for value in range(256))  # for bytes read as Latin-1
LONG_TOKEN = 48  # bytes from which a heap finds the next merge faster than a scan of all pairs


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


def characters(token: bytes) -> str:
    """`token` in the alphabet of byte-level vocabularies: one visible character per byte."""
    return token.decode("latin-1").translate(AS_CHARACTERS)


def merges(ranks: Mapping[bytes, int]) -> Iterator[tuple[bytes, bytes]]:
    """The last merge of every token that merging can produce, in the order of ranks, which must be consecutive."""
    for token in ranks:
        if len(token) > 1:
            pair = _last_merge(ranks, token) if len(token) < LONG_TOKEN else _last_merge_by_heap(ranks, token)
            if pair is not None:
                yield pair


def _last_merge(ranks: Mapping[bytes, int], token: bytes) -> tuple[bytes, bytes] | None:
    none = len(ranks)
    parts = [token[i : i + 1] for i in range(len(token))]
    pairs = [ranks.get(token[i : i + 2], none) for i in range(len(token) - 1)]  # rank of part i and the next one
    while len(parts) > 2:
        lowest = min(pairs)
        if lowest == none:
            return None
        i = pairs.index(lowest)
        parts[i] += parts.pop(i + 1)
        del pairs[i]
        if i:
            pairs[i - 1] = ranks.get(parts[i - 1] + parts[i], none)
        if i < len(pairs):
            pairs[i] = ranks.get(parts[i] + parts[i + 1], none)
    return parts[0], parts[1]


def _last_merge_by_heap(ranks: Mapping[bytes, int], token: bytes) -> tuple[bytes, bytes] | None:
    """Like `_last_merge`, in n log n steps: a corpus of one repeated letter gives tokens of 100,000 bytes."""
    end = {i: i + 1 for i in range(len(token))}  # first byte of a part -> its end
    start_before = {
        i: i - 1 for i in range(1, len(token))
    }  # first byte of a part -> first byte of the part before it

    def pair_at(i: int) -> tuple[int, int, int, int] | None:
        middle = end[i]
        if middle == len(token):
            return None
        rank = ranks.get(token[i : end[middle]])
        return None if rank is None else (rank, i, middle, end[middle])

    heap = [pair for i in range(len(token)) if (pair := pair_at(i)) is not None]
    heapq.heapify(heap)
    while heap and len(end) > 2:
        _, i, middle, last = heapq.heappop(heap)
        if end.get(i) != middle or end.get(middle) != last:  # one of the two has merged since
            continue
        end[i] = last
        del end[middle], start_before[middle]
        if last < len(token):
            start_before[last] = i
        around = [i, start_before[i]] if i else [i]
        for pair in map(pair_at, around):
            if pair is not None:
                heapq.heappush(heap, pair)
    return (token[: end[0]], token[end[0] :]) if len(end) == 2 else None


def _added(name: str, token_id: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": name, **flags}


def _byte_level() -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
