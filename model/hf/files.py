"""Model folders in the layout of Hugging Face, both ways.

In: a folder with config.json and safetensors, in one file or several. Out: the model, and the labels of a classifier.
Or the reverse: a folder that transformers, vLLM and the converters of llama.cpp open, with the tokenizer, the
defaults of generation, the chat template if there is one, and a model card.

A folder appears whole, and replaces only an earlier export (model/hf/replacing.py). Pickled weights
(pytorch_model.bin) are refused, and code in a folder is never run.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from model.generation.sample_config import SampleConfig
from model.hf.card import model_card
from model.hf.config import config_from_hf, config_to_hf, family_of, kind_in
from model.hf.family import CLASSIFIER, DECODER, ENCODER
from model.hf.replacing import EXPORT, replacing_export
from model.hf.tokenizer import ExportedTokenizer
from model.hf.weights import model_to_hf, weights_from_hf
from model.network.decoder import Decoder
from model.network.encoder import Encoder, MaskedLM
from model.network.heads import SequenceClassifier, TaskHead
from model.network.registry import KINDS, Config, Labels, Problem, kind_of
from model.network.shape import DecoderConfig, EncoderConfig
from model.network.size_check import check_size, shapes_in
from model.training.files import CONFIG, WEIGHTS, read_json, read_tensors, write_json, write_tensors

INDEX, GENERATION, CARD = "model.safetensors.index.json", "generation_config.json", "README.md"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
POSITIONS = "model.embed_positions.weight"
MAX_SHARD_BYTES = 5_000_000_000  # the limit of transformers before version 5


Model = Decoder | Encoder | MaskedLM | TaskHead


def read_model(directory: Path) -> tuple[Model, Labels | None]:
    """The model in a folder, of the kind that its config.json names, on the CPU in float32, in evaluation mode, and
    the labels of its classes, if it has any.

    ValueError names what we cannot compute, or a weight that is unknown or missing.
    """
    config = read_config(directory)
    kind = KINDS[kind_in(config)]
    labels = _labels_in(config, directory) if kind.has_labels else None
    model = cast(Model, kind.build(_read_shape(directory, config), labels or ()))
    weights_from_hf(model, model.cfg, _read_weights(directory))
    return model.eval(), labels


def read_folder(directory: Path) -> Decoder:
    """As `read_model`. ValueError when the folder holds no decoder."""
    return cast(Decoder, _only(directory, DECODER)[0])


def read_classifier(directory: Path) -> tuple[SequenceClassifier, Labels]:
    """As `read_model`. ValueError when the folder holds no classifier."""
    return cast(tuple[SequenceClassifier, Labels], _only(directory, CLASSIFIER))


def _only(directory: Path, kind: str) -> tuple[Model, Labels | None]:
    found = kind_in(read_config(directory))
    if found != kind:
        raise ValueError(f"{directory / CONFIG}: describes {KINDS[found].title}, expected {KINDS[kind].title}")
    return read_model(directory)


def _labels_in(config: Mapping[str, Any], directory: Path) -> Labels:
    names = config.get("id2label")
    if not isinstance(names, dict) or len(names) < 2 or set(names) != set(map(str, range(len(names)))):
        raise ValueError(f"{directory / CONFIG}: id2label={names!r} must name the classes 0, 1, ...")
    labels = tuple(str(names[str(i)]) for i in range(len(names)))
    if len(set(labels)) < len(labels):
        twice, _ = Counter(labels).most_common(1)[0]
        raise ValueError(f"{directory / CONFIG}: id2label has the class {twice!r} twice; name each class once")
    return labels


def write_folder(
    directory: Path,
    model: Model,
    *,
    tokenizer: ExportedTokenizer | None = None,
    labels: Labels | None = None,
    problem: Problem = "single_label",
    dtype: str = "float32",
    notes: Mapping[str, str] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> list[Path]:
    """Write the folder and return its files, the weights first.

    `labels` are those of a classifier, in the order of its classes, and `problem` is how many of them a text has;
    `dtype` (float32, float16 or bfloat16) is that of
    the weights; `notes` are lines of the model card. Raises ValueError when no family has the model's switches, when
    a weight does not fit into `dtype`, or when `directory` contains anything but an earlier export.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} must be one of {', '.join(DTYPES)}")
    is_decoder = isinstance(model, Decoder)
    if tokenizer is not None and isinstance(model.cfg, EncoderConfig):
        model = _with_their_positions(model, labels, tokenizer)
    config = {**config_to_hf(model.cfg, labels, kind_of(model), problem), "torch_dtype": dtype}
    for name, token_id in tokenizer.special_ids.items() if tokenizer is not None else ():
        # transformers does not train the row of the padding token, which is another token in ours; in RoBERTa it is
        # where positions begin.
        if name != "pad_token" or not (is_decoder or f"{name}_id" in family_of(model.cfg).fixed):
            config[f"{name}_id"] = token_id
    weights = model_to_hf(model, model.cfg, DTYPES[dtype])
    with replacing_export(directory) as part:
        names = _write_weights(part, weights, max_shard_bytes)
        write_json(part / CONFIG, config)
        if isinstance(model, Decoder):
            write_json(part / GENERATION, generation_config(model.cfg, tokenizer))
        for name, content in tokenizer.files.items() if tokenizer is not None else ():
            (part / name).write_text(content, "utf-8")
        (part / CARD).write_text(model_card(model, config, tokenizer, notes or {}), "utf-8")
        others = sorted(path.name for path in part.iterdir() if path.name not in names)
        write_json(part / EXPORT, {"format": 1, "files": [*names, *others]})
    return [directory / name for name in (*names, *others, EXPORT)]


def _with_their_positions(model: Model, labels: Labels | None, tokenizer: ExportedTokenizer) -> Model:
    """A RoBERTa as a BERT of the same layers, where the tokenizer has a token of texts in the place of padding.

    transformers counts the positions of a RoBERTa without token 1, which it takes for padding wherever it is.
    """
    padding = family_of(model.cfg).fixed.get("pad_token_id")
    if padding is None or tokenizer.special_ids.get("pad_token") in padding:
        return model
    assert isinstance(model.cfg, EncoderConfig)
    weights = model.state_dict()
    weights[POSITIONS] = weights[POSITIONS][model.cfg.position_offset :]
    with torch.random.fork_rng([]):
        bert = KINDS[kind_of(model)].build(replace(model.cfg, position_offset=0), labels or ())
    bert.load_state_dict(weights)
    return cast(Model, bert)


def generation_config(cfg: DecoderConfig, tokenizer: ExportedTokenizer | None) -> dict[str, Any]:
    """Content of generation_config.json: our defaults of sampling, and the tokens that begin and end a text."""
    defaults = SampleConfig()
    return {
        "max_new_tokens": min(defaults.max_new_tokens, max(1, cfg.max_seq_len // 2)),
        "do_sample": True,
        "temperature": defaults.temperature,
        "top_k": defaults.top_k or 0,  # 0 = all; without a value transformers takes 50
        "top_p": 1.0 if defaults.top_p is None else defaults.top_p,
        "min_p": defaults.min_p,
        "repetition_penalty": defaults.repetition_penalty,
        **({f"{name}_id": token_id for name, token_id in tokenizer.special_ids.items()} if tokenizer else {}),
        **({"eos_token_id": list(tokenizer.stops)} if tokenizer and len(tokenizer.stops) > 1 else {}),
    }


def _write_weights(part: Path, weights: Mapping[str, Tensor], max_shard_bytes: int) -> list[str]:
    """Write the weights in one file, or in several with an index. Returns the names of the files."""
    shards: list[dict[str, Tensor]] = [{}]
    n_bytes = 0
    for name, weight in weights.items():
        if shards[-1] and n_bytes + weight.nbytes > max_shard_bytes:
            shards.append({})
            n_bytes = 0
        shards[-1][name] = weight
        n_bytes += weight.nbytes
    metadata = {"format": "pt"}  # required by transformers
    if len(shards) == 1:
        write_tensors(part / WEIGHTS, shards[0], metadata)
        return [WEIGHTS]
    names = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        write_tensors(part / name, shard, metadata)
    file_of_weight = {weight: name for name, shard in zip(names, shards, strict=True) for weight in shard}
    total = sum(weight.nbytes for weight in weights.values())
    write_json(part / INDEX, {"metadata": {"total_size": total}, "weight_map": file_of_weight})
    return [*names, INDEX]


def read_config(directory: Path) -> dict[str, Any]:
    if not (directory / CONFIG).exists():
        raise ValueError(f"{directory} is not a Hugging Face folder: it has no {CONFIG}")
    return read_json(directory / CONFIG)


def _read_shape(directory: Path, config: dict[str, Any]) -> Config:
    """The shape that `config` describes. ValueError when the weights do not fit it, before any memory is taken."""
    shapes = {name: shape for path in weight_files(directory) for name, shape in shapes_in(path).items()}
    try:
        cfg = config_from_hf(config, n_tensors=len(shapes))
    except ValueError as error:
        raise ValueError(f"{directory / CONFIG}: {error}") from error
    check_size(cfg, shapes, directory / CONFIG)
    if isinstance(cfg, EncoderConfig) and kind_in(config) == ENCODER:
        pooler = f"{family_of(cfg).pooler}.weight"
        has_pooler = any(pooler.endswith(f".{name}") or name == pooler for name in shapes)
        return replace(cfg, has_pooler=has_pooler)
    return cfg


def _read_weights(directory: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = {}
    for path in weight_files(directory):
        tensors = read_tensors(path)
        if twice := sorted(weights.keys() & tensors.keys()):
            raise ValueError(f"{path}: {twice[0]} is also in another file of {directory}; a weight must be in one")
        weights |= tensors
    file_of_weight = {} if (directory / WEIGHTS).exists() else read_json(directory / INDEX)["weight_map"]
    if missing := sorted(file_of_weight.keys() - weights.keys()):
        file = file_of_weight[missing[0]]
        raise ValueError(f"{directory / INDEX}: {missing[0]} is not in {file}, where it should be")
    return weights


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a folder: one, or those that its index names."""
    if (directory / WEIGHTS).exists():
        return [directory / WEIGHTS]
    if not (directory / INDEX).exists():
        pickled = [path.name for end in ("*.bin", "*.pt*", "*.ckpt", "*.pkl") for path in sorted(directory.glob(end))]
        found = f"; {pickled[0]} is pickled, may run code, and is not read" if pickled else ""
        raise ValueError(f"{directory} has neither {WEIGHTS} nor {INDEX}{found}")
    index = read_json(directory / INDEX)
    file_of_weight = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(file_of_weight, dict) or not all(isinstance(name, str) for name in file_of_weight.values()):
        raise ValueError(f"{directory / INDEX}: weight_map must say which file contains each weight")
    names = sorted(set(file_of_weight.values()))
    if outside := [name for name in names if Path(name).name != name or name == ".."]:
        raise ValueError(f"{directory / INDEX}: {outside[0]!r} points outside the folder")
    return [directory / name for name in names]
