"""Imports the tokenizer of a model that was made elsewhere.

In: a folder in the format of Hugging Face (tokenizer.json; or vocab.txt of BERT; or vocab.json and merges.txt of
GPT-2 and RoBERTa), or the metadata of a GGUF file; and the number of ids of the model. Out: a folder that
`load_tokenizer` and transformers read: tokenizer.json, tokenizer_config.json, chat template, and
gristmill_tokenizer.json. Nothing is executed. tokenizer.json is kept as it is, except that truncation and padding,
which would cut ids silently, are switched off, and that the settings of
tokenizer_config.json which transformers puts above it are written into it.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from model.data.tokenizer import DESCRIPTION_FILE, Tokenizer, load_tokenizer
from model.data.tokenizer_imported import ROLES, TOKENIZER_JSON, describe_imported
from model.data.tokenizer_json import (
    MOST_FILE_BYTES,
    added_of,
    checked_json,
    model_type,
    normalizers_of,
    steps,
    vocabulary_of,
)
from model.hf.tokenizer import CHAT_TEMPLATE, TOKENIZER_CONFIG_JSON
from model.hf.tokenizer_build import added_token, byte_pairs, from_gguf, text_of, word_piece
from model.training.files import read_json, write_json

SPECIAL_TOKENS_MAP, GENERATION_CONFIG, MODEL_CONFIG = (
    "special_tokens_map.json",
    "generation_config.json",
    "config.json",
)
VOCAB_TXT, VOCAB_JSON, MERGES_TXT = "vocab.txt", "vocab.json", "merges.txt"
OPENS_DOCUMENTS = "<|endoftext|>"
# A model that was trained on conversations ends its turn with one of these, which not every config names.
ENDS = (OPENS_DOCUMENTS, "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<end_of_turn>", "<|end|>")
GGUF_ROLES = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "unk": "unknown_token_id",
    "sep": "seperator_token_id",  # spelled so in the format
    "pad": "padding_token_id",
    "cls": "cls_token_id",
    "mask": "mask_token_id",
}
GGUF_STOPS = ("eos_token_id", "eot_token_id", "eom_token_id")
ROBERTA_TOKENS = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "cls_token": "<s>",
    "sep_token": "</s>",
    "unk_token": "<unk>",
    "pad_token": "<pad>",
    "mask_token": "<mask>",
}
# Setting of tokenizer_config.json -> field of the normalizer of BERT, which transformers changes by it.
BERT_SETTINGS = {
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def import_tokenizer(source: Path, out: Path, vocab_size: int) -> Tokenizer:
    """Write the tokenizer in the folder `source` to `out`, for a model of `vocab_size` ids.

    Raises ValueError if there is none, or a part of it is not accepted.
    """
    config = _object(source / TOKENIZER_CONFIG_JSON)
    named = _object(source / SPECIAL_TOKENS_MAP)
    config = {**{name: named[name] for name in named if name.endswith("_token")}, **config}
    config.pop("auto_map", None)  # names code of the publisher, which nothing here may run
    content = _content_in(source, config)
    _apply(config, content)
    stops = [_object(source / name).get("eos_token_id") for name in (GENERATION_CONFIG, MODEL_CONFIG)]
    found = [one for ids in stops for one in (ids if isinstance(ids, list) else [ids]) if type(one) is int]
    out.mkdir(parents=True, exist_ok=True)
    if (source / CHAT_TEMPLATE).is_file():
        shutil.copyfile(source / CHAT_TEMPLATE, out / CHAT_TEMPLATE)
    return _write(content, config, out, vocab_size, found)


def import_gguf_tokenizer(fields: Mapping[str, Any], out: Path, vocab_size: int) -> Tokenizer:
    """Write the tokenizer in the metadata of a GGUF file to `out`, for a model of `vocab_size` ids."""
    try:
        content = from_gguf(fields)
        texts = {token_id: token for token, token_id in vocabulary_of(content).items()}
        config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        for role, name in GGUF_ROLES.items():
            if (token_id := fields.get(f"tokenizer.ggml.{name}")) is not None:
                if token_id not in texts:
                    raise ValueError(f"tokenizer.ggml.{name} is {token_id!r}, which is no token")
                config[f"{role}_token"] = texts[token_id]
        stops = [one for name in GGUF_STOPS if type(one := fields.get(f"tokenizer.ggml.{name}")) is int]
    except (TypeError, IndexError) as error:
        raise ValueError(f"the GGUF file describes no tokenizer ({error}); take it from its publisher") from error
    except ValueError as error:
        raise ValueError(f"the tokenizer of the GGUF file: {error}; take another model") from error
    if fields.get("tokenizer.ggml.model") != "bert":
        for name, default in (("add_bos_token", fields["tokenizer.ggml.model"] == "llama"), ("add_eos_token", False)):
            config[name] = bool(fields.get(f"tokenizer.ggml.{name}", default))
    if isinstance(template := fields.get("tokenizer.chat_template"), str):
        config["chat_template"] = template
    if isinstance(length := fields.get(f"{fields.get('general.architecture')}.context_length"), int):
        config["model_max_length"] = length
    _apply(config, content)
    out.mkdir(parents=True, exist_ok=True)
    return _write(content, config, out, vocab_size, stops)


def _write(
    content: dict[str, Any], config: dict[str, Any], out: Path, vocab_size: int, stops: list[int]
) -> Tokenizer:
    """Write the files of a tokenizer, the description last, and read them as everybody will."""
    raw = (json.dumps(content, ensure_ascii=False) + "\n").encode("utf-8", "surrogatepass")
    path = out / TOKENIZER_JSON
    checked = checked_json(path, raw)
    ids = {**vocabulary_of(checked), **{entry["content"]: entry["id"] for entry in added_of(checked)}}
    if (largest := max(ids.values())) >= vocab_size:
        raise ValueError(
            f"{path}: the tokenizer has an id {largest:,}, but the model only {vocab_size:,} ids, so that they do not"
            " belong together; import both from one place"
        )
    special = {role: ids[text] for role in ROLES if (text := text_of(config.get(f"{role}_token"))) in ids}
    controls = {entry["content"]: entry["id"] for entry in added_of(checked) if entry.get("special")}
    try:
        opening, closing = _around(checked, config, special)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(
            f"{path}: the post-processor is not one that we know ({error}); take another model"
        ) from error
    end_of_text = special.get("cls", controls.get(OPENS_DOCUMENTS, special.get("bos", special.get("eos"))))
    if end_of_text is None:
        raise ValueError(f"{path}: no token can open a document: neither cls, bos, eos nor {OPENS_DOCUMENTS} exists")
    ends = {controls[name] for name in ENDS if name in controls}
    description = describe_imported(
        raw,
        checked,
        vocab_size=vocab_size,
        special=special,
        end_of_text=end_of_text,
        opening=opening if opening or closing else (end_of_text,),
        closing=closing,
        stops=frozenset(
            {*ends, *([special["eos"]] if "eos" in special else ()), *(i for i in stops if 0 <= i < vocab_size)}
        ),
    )
    path.write_bytes(raw)
    template = _chat_template(config.pop("chat_template", None))
    if template is not None and not (out / CHAT_TEMPLATE).exists():
        (out / CHAT_TEMPLATE).write_text(template, "utf-8")
    write_json(out / TOKENIZER_CONFIG_JSON, config)
    write_json(out / DESCRIPTION_FILE, description)
    try:
        return load_tokenizer(out)
    except ValueError:
        (out / DESCRIPTION_FILE).unlink()
        raise


def _content_in(source: Path, config: dict[str, Any]) -> dict[str, Any]:
    """tokenizer.json, or what it would be."""
    if (source / TOKENIZER_JSON).is_file():
        return checked_json(source / TOKENIZER_JSON, _bytes(source / TOKENIZER_JSON))
    if (source / VOCAB_TXT).is_file():
        lines = _text_in(source / VOCAB_TXT).removesuffix("\n").split("\n")
        return word_piece({token.rstrip("\r"): i for i, token in enumerate(lines)}, config)
    if (source / VOCAB_JSON).is_file() and (source / MERGES_TXT).is_file():
        lines = _text_in(source / MERGES_TXT).split("\n")
        merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
        return _of_merges(_object(source / VOCAB_JSON), merges, source, config)
    raise ValueError(
        f"{source} contains no tokenizer that we read: expected {TOKENIZER_JSON}, or {VOCAB_TXT}, or {VOCAB_JSON}"
        f" with {MERGES_TXT}; convert it with transformers: AutoTokenizer.from_pretrained(...).save_pretrained(...)"
    )


def _of_merges(
    vocabulary: Mapping[str, int], merges: list[list[str]], source: Path, config: dict[str, Any]
) -> dict[str, Any]:
    """The tokenizer of GPT-2, or that of RoBERTa, which puts `<s>` and `</s>` around a text."""
    content = byte_pairs(vocabulary, merges, add_prefix_space=bool(config.get("add_prefix_space", False)))
    if _object(source / MODEL_CONFIG).get("model_type") != "roberta" and "cls_token" not in config:
        config.setdefault("bos_token", OPENS_DOCUMENTS)
        config.setdefault("eos_token", OPENS_DOCUMENTS)
        return content
    for name, token in ROBERTA_TOKENS.items():
        config.setdefault(name, token)
    around = {name: text_of(config[f"{name}_token"]) for name in ("cls", "sep")}
    content["post_processor"] = {"type": "RobertaProcessing", "trim_offsets": True, "add_prefix_space": False} | {
        name: [text, vocabulary.get(str(text))] for name, text in around.items()
    }
    return content


def _apply(config: dict[str, Any], content: dict[str, Any]) -> None:
    """Write into `content` what transformers reads from tokenizer_config.json, without what would cut ids."""
    content["truncation"] = content["padding"] = None
    if model_type(content) == "WordPiece":  # a config need not name the tokens of BERT
        names = ((f"{role}_token", f"[{role.upper()}]") for role in ("unk", "sep", "pad", "cls", "mask"))
        for name, text in names:
            config.setdefault(name, text)
    for step in steps(content.get("post_processor"), "processors"):
        if step["type"] == "RobertaProcessing":
            config.setdefault("cls_token", step["cls"][0])
            config.setdefault("sep_token", step["sep"][0])
    for step in normalizers_of(content):
        if step["type"] == "BertNormalizer":
            step.update({field: config[name] for name, field in BERT_SETTINGS.items() if name in config})
    vocabulary, added = vocabulary_of(content), {entry["content"] for entry in added_of(content)}
    names = {text for role in ROLES if (text := text_of(config.get(f"{role}_token"))) is not None}
    missing = sorted((vocabulary[text], text) for text in names - added if text in vocabulary)
    content["added_tokens"] = [*added_of(content), *(added_token(text, i, special=True) for i, text in missing)]


def _around(
    content: Mapping[str, Any], config: Mapping[str, Any], special: Mapping[str, int]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids before and after a text, as the post-processor adds them, or as the config orders."""
    opening: tuple[int, ...] = ()
    closing: tuple[int, ...] = ()
    for step in steps(content.get("post_processor"), "processors"):
        if step["type"] in ("BertProcessing", "RobertaProcessing"):
            opening, closing = (step["cls"][1],), (step["sep"][1],)
        elif step["type"] == "TemplateProcessing":
            opening, closing = _of_template(step)
        elif step["type"] != "ByteLevel":
            raise ValueError(f"{step['type']!r}, expected TemplateProcessing or that of BERT or RoBERTa")
    if isinstance(config.get("add_bos_token"), bool):
        opening = (special["bos"],) if config["add_bos_token"] and "bos" in special else ()
    if isinstance(config.get("add_eos_token"), bool):
        closing = (special["eos"],) if config["add_eos_token"] and "eos" in special else ()
    return opening, closing


def _of_template(step: Mapping[str, Any]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    before: list[int] = []
    after: list[int] = []
    parts = before
    for piece in step["single"]:
        if "Sequence" in piece:
            parts = after
        else:
            parts += step["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    return tuple(before), tuple(after)


def _chat_template(template: Any) -> str | None:
    """The Jinja text of a chat template, of which a config may have several by name."""
    if isinstance(template, list):
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is none."""
    if not path.is_file():
        return {}
    _check_size(path)
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f"{path} contains a {type(found).__name__}, expected an object")
    return found


def _bytes(path: Path) -> bytes:
    _check_size(path)
    return path.read_bytes()


def _text_in(path: Path) -> str:
    try:
        return _bytes(path).decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error}); take it from its publisher again") from error


def _check_size(path: Path) -> None:
    if (size := path.stat().st_size) > MOST_FILE_BYTES:
        raise ValueError(f"{path}: {size:,} bytes, expected at most {MOST_FILE_BYTES:,}")
