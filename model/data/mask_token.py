"""The tokenizer of an encoder: one of ours with a mask token more.

In: the folder of a tokenizer of ours. Out: a folder with the same files, in which <|mask|> is the last token; for
transformers it is also the token with this role. Token shards of the first are read by an encoder of the second,
because all other ids are the same.
"""

import json
import shutil
from pathlib import Path

from model.data.tokenizer import DESCRIPTION_FILE, RANKS_FILE, describe, files_of, load_tokenizer, read_description
from model.data.vocabularies import MASK

TOKENIZER_JSON, TOKENIZER_CONFIG_JSON = "tokenizer.json", "tokenizer_config.json"


def write_with_mask(source: Path, out: Path) -> None:
    """Write the tokenizer of `source` into `out` with the mask token, or as it is where it has one.

    Raises ValueError where `source` holds no tokenizer, or one of others that has no mask token.
    """
    tokenizer, description = load_tokenizer(source), read_description(source / DESCRIPTION_FILE)
    mask_id = n_tokens_with_mask(source) - 1
    out.mkdir(parents=True, exist_ok=True)
    for name in files_of(source):
        shutil.copyfile(source / name, out / name)
    if "mask" in tokenizer.special:
        return
    raw = (source / RANKS_FILE).read_bytes()
    described = describe(description["pattern_name"], raw, len(tokenizer.ranks), has_mask=True)
    _write(out / DESCRIPTION_FILE, described)
    if (source / TOKENIZER_JSON).is_file():
        content = json.loads((source / TOKENIZER_JSON).read_text("utf-8"))
        content["model"]["vocab"][MASK] = mask_id
        content["added_tokens"].append({**content["added_tokens"][0], "id": mask_id, "content": MASK})
        _write(out / TOKENIZER_JSON, content, indent=None)
    if (source / TOKENIZER_CONFIG_JSON).is_file():
        config = json.loads((source / TOKENIZER_CONFIG_JSON).read_text("utf-8"))
        _write(out / TOKENIZER_CONFIG_JSON, {**config, "mask_token": MASK})


def n_tokens_with_mask(source: Path) -> int:
    """The number of ids of the tokenizer that `write_with_mask` makes of `source`; errors as there."""
    tokenizer = load_tokenizer(source)
    if "mask" in tokenizer.special:
        return tokenizer.vocab_size
    if not (source / RANKS_FILE).is_file():
        raise ValueError(f"{source} has no mask token, so an encoder cannot be trained on its token shards")
    return tokenizer.vocab_size + 1


def _write(path: Path, content: dict, indent: int | None = 1) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False, indent=indent) + "\n", "utf-8")
