"""The files of a tokenizer: which there are, and how those of ours are written.

In: ranks and the name of a split pattern. Out: four files, the two that model/data/tokenizer.py reads, and the
equivalent ones for Hugging Face:

    tokenizer.tiktoken, gristmill_tokenizer.json  determine every id, see model/data/tokenizer.py
    tokenizer.json, tokenizer_config.json         the same for transformers and `tokenizers`, see hf_tokenizer.py
"""

import json
from collections.abc import Mapping
from pathlib import Path

from model.data.tokenizer import DESCRIPTION_FILE, RANKS_FILE, describe, files_of
from model.data.vocabularies import END_OF_TEXT, ranks_file
from pipeline.corpus.tokens.hf_tokenizer import (
    TOKENIZER_CONFIG_JSON,
    TOKENIZER_JSON,
    tokenizer_config_json,
    tokenizer_json,
)
from pipeline.store.shards import write_bytes, write_text

IDENTITY_FILES = (RANKS_FILE, DESCRIPTION_FILE)


def write_tokenizer(directory: Path, ranks: Mapping[bytes, int], pattern_name: str) -> None:
    """Writes all files of a tokenizer. `pattern_name`: one of TRAINED_PATTERNS, or a published vocabulary."""
    raw = ranks_file(ranks)
    description = describe(pattern_name, raw, len(ranks))
    hugging_face = tokenizer_json(ranks, description["pattern"], description["special_tokens"])
    write_bytes(directory / RANKS_FILE, raw)
    write_text(directory / TOKENIZER_JSON, hugging_face)
    write_text(directory / TOKENIZER_CONFIG_JSON, tokenizer_config_json(END_OF_TEXT))
    write_text(directory / DESCRIPTION_FILE, json.dumps(description, indent=1) + "\n")


def tokenizer_files(directory: Path) -> list[str]:
    """Names of the files of the tokenizer in `directory`, ours or imported, which belong to every model that uses it.

    Raises ValueError if there is no tokenizer.
    """
    names = files_of(directory)
    if DESCRIPTION_FILE not in names:
        raise ValueError(f"{directory} holds no tokenizer: {DESCRIPTION_FILE} is missing; build it again")
    return names
