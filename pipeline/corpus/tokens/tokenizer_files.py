"""The files of a tokenizer: which there are, and how those of ours are written.

In: ranks and the name of a split pattern. Out: four files, the two that model/data/tokenizer.py reads, and the
equivalent ones for Hugging Face:

    tokenizer.tiktoken, gristmill_tokenizer.json  determine every id, see model/data/tokenizer.py
    tokenizer.json, tokenizer_config.json         the same for transformers and `tokenizers`, see hf_tokenizer.py
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import xxhash

from model.data.tokenizer import (
    DESCRIPTION_FILE,
    RANKS_FILE,
    TOKENIZER,
    describe,
    files_of,
    load_tokenizer,
    read_description,
)
from model.data.vocabularies import END_OF_TEXT, MASK, ranks_file
from pipeline.corpus.tokens.hf_tokenizer import (
    TOKENIZER_CONFIG_JSON,
    TOKENIZER_JSON,
    tokenizer_config_json,
    tokenizer_json,
)
from pipeline.store.records import Checkpoint, TokenizerFile
from pipeline.store.shards import file_digest, text_digest, write_bytes, write_text

IDENTITY_FILES = (RANKS_FILE, DESCRIPTION_FILE)


def write_tokenizer(directory: Path, ranks: Mapping[bytes, int], pattern_name: str) -> None:
    """Writes all files of a tokenizer. `pattern_name`: one of TRAINED_PATTERNS, or a published vocabulary."""
    raw = ranks_file(ranks)
    description = describe(pattern_name, raw, len(ranks))
    hugging_face = tokenizer_json(ranks, description["pattern"], description["special_tokens"])
    write_bytes(directory / RANKS_FILE, raw)
    write_text(directory / TOKENIZER_JSON, hugging_face)
    write_text(directory / TOKENIZER_CONFIG_JSON, tokenizer_config_json(END_OF_TEXT))
    write_text(directory / DESCRIPTION_FILE, _description_text(description))


def tokenizer_files(directory: Path) -> list[str]:
    """Names of the files of the tokenizer in `directory`, ours or imported, which belong to every model that uses it.

    Raises ValueError if there is no tokenizer.
    """
    names = files_of(directory)
    if DESCRIPTION_FILE not in names:
        raise ValueError(f"{directory} holds no tokenizer: {DESCRIPTION_FILE} is missing; build it again")
    return names


def tokenizer_in(model: Checkpoint) -> TokenizerFile:
    """The tokenizer of a model as an input of `tokenize`, which does not depend on the weights beside it."""
    directory = model.directory / TOKENIZER
    return TokenizerFile(
        stage=model.stage,
        directory=directory,
        fingerprint=model.fingerprint,
        digest=tokenizer_digest(directory),
        rows=load_tokenizer(directory).vocab_size,
    )


def tokenizer_digest(directory: Path) -> str:
    """The digest of what decides every id of a text; for a tokenizer of ours that of the output of the stage
    `tokenizer`, also if an encoder has added its mask token, which no text contains."""
    names = [name for name in IDENTITY_FILES if name in tokenizer_files(directory)]
    names += [] if RANKS_FILE in names else [TOKENIZER_JSON]
    digests = {name: file_digest(directory / name) for name in names}
    description = read_description(directory / DESCRIPTION_FILE)
    if MASK in (special := dict(description.get("special_tokens", {}))):
        del special[MASK]
        plain = {**description, "special_tokens": special, "vocab_size": description["vocab_size"] - 1}
        digests[DESCRIPTION_FILE] = xxhash.xxh3_128(_description_text(plain).encode()).hexdigest()
    return text_digest(*(part for name in sorted(names) for part in (name, digests[name])))


def _description_text(description: Mapping[str, Any]) -> str:
    return json.dumps(description, indent=1) + "\n"
