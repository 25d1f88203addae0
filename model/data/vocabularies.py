"""The vocabularies that a tokenizer may have: split pattern, special tokens, size, and the format of their ranks.

In: nothing, or the content of a file of ranks. Out: TRAINED_PATTERNS, the split patterns of a vocabulary that was
trained here, by the name under which llama.cpp and `tokenizers` know them; PUBLISHED, the vocabularies that are the
same for everybody, each with the sha256 that tiktoken itself pins for its ranks. Source: tiktoken 0.14
(tiktoken_ext/openai_public.py) for patterns, special tokens and hashes.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

END_OF_TEXT = "<|endoftext|>"
MASK = "<|mask|>"  # the last token of an encoder of ours
TRAINED = "trained"
# Qwen2's and GPT-2's as in their tokenizer files: llama.cpp picks its own implementation by the name.
TRAINED_PATTERNS = {
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "gpt-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
}
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"


@dataclass(frozen=True, kw_only=True, slots=True)
class Vocabulary:
    pattern: str
    special_tokens: Mapping[str, int]
    n_ranks: int
    vocab_size: int  # largest id + 1, as tiktoken's n_vocab; ids between ranks and special tokens are no token
    ranks_sha256: str  # of the file in tiktoken's format


PUBLISHED = {
    "gpt2": Vocabulary(
        pattern=(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"),
        special_tokens={END_OF_TEXT: 50256},
        n_ranks=50256,
        vocab_size=50257,
        ranks_sha256="306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    ),
    "cl100k_base": Vocabulary(
        pattern=(
            r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
            r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
        ),
        special_tokens={
            END_OF_TEXT: 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
        n_ranks=100256,
        vocab_size=100277,
        ranks_sha256="223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
    "o200k_base": Vocabulary(
        pattern="|".join(
            (
                rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+{CONTRACTION}",
                rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*{CONTRACTION}",
                r"\p{N}{1,3}",
                r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
                r"\s*[\r\n]+",
                r"\s+(?!\S)",
                r"\s+",
            )
        ),
        special_tokens={END_OF_TEXT: 199999, "<|endofprompt|>": 200018},
        n_ranks=199998,
        vocab_size=200019,
        ranks_sha256="446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
}


def ranks_file(ranks: Mapping[bytes, int]) -> bytes:
    """tiktoken's format: base64 of a token, space, rank, one line per token."""
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items())


def parsed_ranks(content: bytes) -> dict[bytes, int]:
    """Of a file in tiktoken's format that is known to be well formed."""
    fields = content.split()
    return dict(zip(map(binascii.a2b_base64, fields[::2]), map(int, fields[1::2]), strict=True))
