"""Adapters in the files of peft, both ways: adapter_config.json and adapter_model.safetensors.

In: a folder of adapters of ours (model/training/adapters.py). Out: a folder that peft loads onto the exported base.
Or the reverse: a folder of peft's, whose adapters a model of ours gets. Steps: our layers and theirs are paired by
the rules of the family; A and B are the same matrices in both.

Where their layer joins several of ours (queries, keys and values of GPT-2), the joined adapter has A stacked and B in
blocks, with a rank of its own; read back, each of ours has the joined A and its own rows of B. Both are exact. Ranks
and scales that differ between layers are brought to one by zeros and by factors of B. What is more than A and B, or
changes the base (DoRA, biases, PiSSA), is refused, and so is adapter_model.bin, which is pickled.

"Theirs" is a name of Hugging Face. Legend: I and O width in and out, R rank.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from model.hf.config import family_of
from model.hf.replacing import EXPORT, replacing_export
from model.hf.weights import FLOATS, names_by, to_ours, to_theirs
from model.network.lora import add_lora, linears_of_blocks
from model.network.lora_config import BASE, LoraConfig, lora_in
from model.network.registry import KINDS, Config, config_of, kind_of
from model.training.files import (
    CONFIG,
    WEIGHTS,
    check_same_shapes,
    read_json,
    read_tensors,
    write_json,
    write_tensors,
)

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLED = "adapter_model.bin"
PREFIX = "base_model.model."
ENDS = (".lora_A.weight", ".lora_B.weight")
TASK_TYPES = {
    "decoder": "CAUSAL_LM",
    "sequence_classifier": "SEQ_CLS",
    "token_classifier": "TOKEN_CLS",
    "span_classifier": "QUESTION_ANS",
}
# Settings of peft that change what A and B mean, or the base, wherever they have another value than these.
REQUIRED = {"peft_type": ("LORA",), "bias": ("none",), "init_lora_weights": (True, False, "gaussian", "orthogonal")}
REFUSED = (
    "use_dora", "lora_bias", "use_qalora", "use_bdlora", "layer_replication", "trainable_token_indices",
    "target_parameters", "alora_invocation_tokens", "megatron_config", "arrow_config", "kasa_config", "velora_config",
    "monteclora_config", "corda_config", "lora_ga_config", "ensure_weight_tying",
)  # fmt: skip


class Factors(NamedTuple):
    a_RI: Tensor
    b_OR: Tensor


def write_adapter(directory: Path, adapter: Path, base_name: str | None = None) -> list[Path]:
    """Write the adapters in the folder `adapter` as peft's files, and return these.

    `base_name`: the folder or repository of the exported base, for peft's base_model_name_or_path.
    """
    description = read_json(adapter / CONFIG)
    kind, cfg, lora = description["kind"], config_of(description), lora_in(description)
    rules = family_of(cfg).rules_of(kind)
    tensors = read_tensors(adapter / WEIGHTS)
    factors = {
        name.removesuffix(".lora_a"): Factors(tensors[name], tensors[name.removesuffix("a") + "b"])
        for name in tensors
        if name.endswith(".lora_a")
    }
    head = {name: weight for name, weight in tensors.items() if not name.endswith((".lora_a", ".lora_b"))}
    head = to_theirs(head, rules, cfg.n_layers)
    joined = {theirs: _joined(factors, ours) for theirs, ours in _pairs(kind, cfg) if factors.keys() & set(ours)}
    weights = {f"{PREFIX}{name}": weight.contiguous() for name, weight in head.items()}
    for theirs, pair in joined.items():
        weights |= {f"{PREFIX}{theirs}{end}": factor for end, factor in zip(ENDS, pair, strict=True)}
    config = {
        "peft_type": "LORA",
        "task_type": TASK_TYPES.get(kind),
        "base_model_name_or_path": base_name,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": sorted(joined),
        "rank_pattern": {theirs: n for theirs, pair in joined.items() if (n := pair.a_RI.size(0)) != lora.rank},
        "modules_to_save": sorted({name.rpartition(".")[0] for name in head}) or None,
        "fan_in_fan_out": any(rule.transposed for rule in rules),
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
    }
    config["alpha_pattern"] = {theirs: n * lora.scale for theirs, n in config["rank_pattern"].items()}
    names = [ADAPTER_WEIGHTS, ADAPTER_CONFIG]
    with replacing_export(directory) as part:
        write_tensors(part / ADAPTER_WEIGHTS, weights, {"format": "pt", BASE: description["lora"][BASE]})
        write_json(part / ADAPTER_CONFIG, config)
        write_json(part / EXPORT, {"format": 1, "files": names})
    return [directory / name for name in names]


def read_adapter(directory: Path, model: nn.Module, base_sha256: str | None = None) -> None:
    """Give `model`, the base, the adapters in a folder of peft's. They can be trained further, or merged.

    `base_sha256` is that of the base's weights in our format, which adapters that we have written name.
    ValueError names what our adapters cannot compute, or a tensor that is unknown or misshapen.
    """
    config = _read_config(directory)
    tensors, named = _read_tensors(directory / ADAPTER_WEIGHTS)
    if base_sha256 is not None and named not in (None, base_sha256):
        raise ValueError(f"{directory}: these adapters belong to a base with the sha256 {named}, not {base_sha256}")
    kind, cfg = kind_of(model), model.cfg  # type: ignore[union-attr]
    where, pairs = str(directory / ADAPTER_WEIGHTS), dict(_pairs(kind, cfg))  # type: ignore[arg-type]
    factors, scales = _factors_of(tensors, config, model, pairs, where)
    rank = max(pair.a_RI.size(0) for pair in factors.values())
    scale = next(iter(scales.values())) if len(set(scales.values())) == 1 else 1.0
    every = {name for name, _ in linears_of_blocks(model)}
    targets = () if factors.keys() == every else tuple(sorted(factors))
    head = {name.removeprefix(PREFIX): weight for name, weight in tensors.items() if not name.endswith(ENDS)}
    head = to_ours(head, family_of(cfg).rules_of(kind), cfg.n_layers)  # type: ignore[arg-type,union-attr]
    in_trunk = {id(weight) for weight in model.trunk.parameters()}  # type: ignore[union-attr,operator]
    own = {name: weight for name, weight in model.named_parameters() if id(weight) not in in_trunk}
    check_same_shapes(f"{where}, modules_to_save", own if head else {}, head)
    add_lora(model, LoraConfig(rank=rank, alpha=rank * scale, targets=targets), seed=0, trains_head=bool(head))
    with torch.no_grad():
        for name, weight in head.items():
            own[name].copy_(weight)
        for name, pair in factors.items():
            n_rank, layer = pair.a_RI.size(0), model.get_submodule(name)
            layer.get_parameter("lora_a").zero_()[:n_rank] = pair.a_RI
            layer.get_parameter("lora_b").zero_()[:, :n_rank] = pair.b_OR * (scales[name] / scale)


def _pairs(kind: str, cfg: Config) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(their layer, the layers of ours that it joins) of every linear layer of the blocks."""
    with torch.device("meta"):
        model = KINDS[kind].build(cfg, ("", ""))
    ours_of_blocks = {name for name, _ in linears_of_blocks(model)}
    rules = family_of(cfg).rules_of(kind)
    if not rules:
        yield from ((name, (name,)) for name in ours_of_blocks)
    for theirs, ours, _ in names_by(rules, cfg.n_layers):
        layers = tuple(name.removesuffix(".weight") for name in ours)
        if theirs.endswith(".weight") and set(layers) <= ours_of_blocks:
            yield theirs.removesuffix(".weight"), layers


def _joined(factors: Mapping[str, Factors], ours: tuple[str, ...]) -> Factors:
    if len(ours) == 1:
        return factors[ours[0]]
    if missing := sorted(set(ours) - factors.keys()):
        raise ValueError(
            f"{missing[0]} has no adapter, but {', '.join(ours)} are one layer in this family's files: train adapters"
            " on all of them, or on none"
        )
    pairs = [factors[name] for name in ours]
    return Factors(torch.cat([a_RI for a_RI, _ in pairs]), torch.block_diag(*(b_OR for _, b_OR in pairs)))


def _factors_of(
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    model: nn.Module,
    pairs: Mapping[str, tuple[str, ...]],
    where: str,
) -> tuple[dict[str, Factors], dict[str, float]]:
    """Factors and scale of each of our layers that has an adapter in the file."""
    theirs = sorted({name.removeprefix(PREFIX).removesuffix(e) for name in tensors for e in ENDS if name.endswith(e)})
    if not theirs:
        raise ValueError(f"{where}: holds no adapters, expected names that end in {' and '.join(ENDS)}")
    if unknown := [name for name in theirs if name not in pairs]:
        raise ValueError(f"{where}: {unknown[0]} is no linear layer of a block; adapters of ours are for those alone")
    factors, scales = {}, {}
    for name in theirs:
        layers = [model.get_submodule(ours) for ours in pairs[name]]
        widths, d_in = [layer.out_features for layer in layers], layers[0].in_features
        got = {end: tensors[key] for end in ENDS if (key := f"{PREFIX}{name}{end}") in tensors}
        rank = next((max(1, got[end].size(0)) for end in ENDS[:1] if end in got and got[end].ndim == 2), 1)
        expected = torch.empty(rank, d_in, device="meta"), torch.empty(sum(widths), rank, device="meta")  # type: ignore[arg-type,call-overload]
        check_same_shapes(f"{where}, {name}", dict(zip(ENDS, expected, strict=True)), got)
        a_RI, b_OR = (got[end].float() for end in ENDS)
        for ours, part_OR in zip(pairs[name], b_OR.split(widths), strict=True):  # type: ignore[arg-type]
            factors[ours], scales[ours] = Factors(a_RI, part_OR), _scale(config, name, rank)
    return factors, scales


def _scale(config: Mapping[str, Any], name: str, rank: int) -> float:
    """What the output of their layer `name` is multiplied by: arXiv:2106.09685, or with rsLoRA arXiv:2312.03732."""
    patterns = config.get("alpha_pattern") or {}
    key = next((one for one in patterns if f".{name}".endswith(f".{one}")), None)
    alpha = config["lora_alpha"] if key is None else patterns[key]
    return alpha / (rank**0.5 if config.get("use_rslora") else rank)


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / ADAPTER_CONFIG
    if not path.exists():
        raise ValueError(f"{directory} is not a folder of peft's: it has no {ADAPTER_CONFIG}")
    config = read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected an object")
    for name, allowed in REQUIRED.items():
        if config.get(name, allowed[0]) not in allowed:
            raise ValueError(f"{path}: {name}={config[name]!r} is not supported, expected {allowed[0]!r}")
    if refused := [name for name in REFUSED if config.get(name)]:
        raise ValueError(
            f"{path}: {refused[0]}={config[refused[0]]!r} is not supported; merge these adapters in peft"
        )
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict) or any(type(alpha) not in (int, float) for alpha in patterns.values()):
        raise ValueError(f"{path}: alpha_pattern={str(patterns)[:80]} must have a number for each name of a layer")
    if any(not re.fullmatch(r"[\w.]+", key) for key in patterns):
        raise ValueError(f"{path}: alpha_pattern has regular expressions, expected names of layers")
    if not isinstance(config.get("lora_alpha"), int | float):
        raise ValueError(f"{path}: lora_alpha={config.get('lora_alpha')!r} must be a number")
    return config


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors, and the sha256 of the base that the file names, if it names one."""
    if not path.exists():
        found = f"; {PICKLED} is pickled, may run code, and is not read" if (path.parent / PICKLED).exists() else ""
        raise ValueError(f"{path.parent} has no {ADAPTER_WEIGHTS}{found}")
    tensors = read_tensors(path)
    for name, weight in tensors.items():
        if weight.dtype not in FLOATS or not weight.isfinite().all():
            raise ValueError(f"{path}: {name} has numbers that are not finite floats; fetch it again")
    with safe_open(path, "pt") as file:
        return tensors, (file.metadata() or {}).get(BASE)
