"""config.json of Hugging Face and our DecoderConfig or EncoderConfig, both ways.

In: a config.json as a dict, in the form of transformers 4 (rope_theta, rope_scaling) or 5 (rope_parameters). Out: the
config of a decoder or an encoder. Or the reverse, in a form that both versions read. A field that asks for something
which we cannot compute is refused by its name, and so are switches of ours that no family has.
"""

from collections.abc import Mapping
from typing import Any

from model.hf.families import FAMILIES
from model.hf.family import CLASSIFIER, DECODER, ENCODER, MASKED_LM, Family
from model.network.registry import Config, Problem
from model.network.shape import DecoderConfig, EncoderConfig, RopeScaling

ROPE_THETA = 10_000.0  # transformers' default where a config names none
LARGEST = 1e15  # of any size; beyond it floats skip whole numbers
PROBLEM_TYPES: Mapping[Problem, str] = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
}
FULL, SLIDING = "full_attention", "sliding_attention"
# ModernBERT's, where a config names none.
LOCAL_ATTENTION, GLOBAL_EVERY, GLOBAL_THETA = 128, 3, 160_000.0
# Ours -> theirs, of rope_scaling; linear has the factor alone.
LLAMA3_SCALING = {
    "factor": "factor",
    "low_freq_factor": "low_freq_factor",
    "high_freq_factor": "high_freq_factor",
    "original_max_seq_len": "original_max_position_embeddings",
}


def family_of(cfg: Config) -> Family:
    """The family that has this model's switches. ValueError names those of the nearest one that differ."""
    trunk = ENCODER if isinstance(cfg, EncoderConfig) else DECODER
    families = {name: family for name, family in FAMILIES.items() if family.trunk == trunk}
    misfits = {name: _misfits(family, cfg) for name, family in families.items()}
    for name, found in misfits.items():
        if not found:
            return families[name]
    nearest = min(misfits, key=lambda name: len(misfits[name]))
    raise ValueError(
        f"no family of Hugging Face has {'an encoder' if trunk == ENCODER else 'a decoder'} with these switches; the"
        f" nearest, {nearest}, differs in {'; '.join(misfits[nearest])} (known: {', '.join(families)})"
    )


def _misfits(family: Family, cfg: Config) -> list[str]:
    found = [
        f"{name}={getattr(cfg, name)!r}, it has {value!r}"
        for name, value in family.switches.items()
        if getattr(cfg, name) != value
    ]
    for switches in family.flags.values():
        if len({getattr(cfg, name) for name in switches}) > 1:
            found.append(" and ".join(f"{name}={getattr(cfg, name)}" for name in switches) + ", it has them equal")
    for ours, values in family.choices.values():
        if getattr(cfg, ours) not in values.values():
            found.append(f"{ours}={getattr(cfg, ours)!r}, it has {' or '.join(map(repr, values.values()))}")
    if not family.is_grouped and cfg.n_kv_heads != cfg.n_heads:
        found.append(f"n_kv_heads={cfg.n_kv_heads}, it has n_heads={cfg.n_heads}")
    if family.d_model_is == "heads" and cfg.d_model != cfg.n_heads * cfg.d_head:
        found.append(f"d_model={cfg.d_model}, it has n_heads * d_head={cfg.n_heads * cfg.d_head}")
    if family.d_model_is == "multiple_of_heads" and cfg.d_model % cfg.n_heads:
        found.append(f"d_model={cfg.d_model}, it has a multiple of n_heads={cfg.n_heads}")
    if cfg.sliding_window is not None:
        n_sliding = len(set(cfg.sliding_layers))
        if family.window == "none" or (family.window == "every_layer" and n_sliding < cfg.n_layers):
            has = "none" if family.window == "none" else "it in every layer"
            found.append(f"sliding_window={cfg.sliding_window} in {n_sliding} layers, it has {has}")
    return found


def config_to_hf(
    cfg: Config, labels: tuple[str, ...] | None = None, kind: str | None = None, problem: Problem = "single_label"
) -> dict[str, Any]:
    """config.json in the family of `cfg`; with `labels`, that of a sequence classifier. `kind` (of
    model/network/registry.py) is by default what pretraining makes: a decoder, or a masked language model."""
    family = family_of(cfg)
    if kind is None:
        kind = CLASSIFIER if labels is not None else DECODER if family.trunk == DECODER else MASKED_LM
    config: dict[str, Any] = {
        "architectures": [family.architectures[kind]],
        "model_type": family.model_type,
        **{theirs: getattr(cfg, ours) for ours, theirs in family.sizes.items()},
        **{theirs: getattr(cfg, switches[0]) for theirs, switches in family.flags.items()},
        **{theirs: _key_of(values, getattr(cfg, ours)) for theirs, (ours, values) in family.choices.items()},
        **family.written,
        **{theirs: values[0] for theirs, values in family.fixed.items()},
        "torch_dtype": "float32",  # the name of transformers 4, which 5 reads too
    }
    if labels is not None:
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
        config["label2id"] = {label: i for i, label in enumerate(labels)}
    if kind == CLASSIFIER:
        config["problem_type"] = PROBLEM_TYPES[problem]
    if isinstance(cfg, EncoderConfig):
        config["max_position_embeddings"] = cfg.n_positions
        return config | (_windows_and_rope_to_hf(cfg) if cfg.positions == "rotary" else {})
    if cfg.positions == "learned":
        return config | {"n_ctx": cfg.max_seq_len}  # llama.cpp's own converter reads it
    return config | _window_to_hf(cfg, family) | _rope_to_hf(cfg)


def _key_of(values: Mapping[Any, Any], value: Any) -> Any:
    return next(key for key, found in values.items() if found == value)


def kind_in(config: Mapping[str, Any]) -> str:
    """Kind of model (model/network/registry.py) whose class a config.json names; a bare encoder, or a decoder, if it
    names none that we have."""
    names, model_type = config.get("architectures"), config.get("model_type")
    name = names[0] if isinstance(names, list) and names else None
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    kinds: dict[Any, str] = {}
    for one in FAMILIES.values():
        kinds |= {**one.read_as, **{architecture: kind for kind, architecture in one.architectures.items()}}
    default = DECODER if family is None else family.trunk
    return kinds.get(name, default) if isinstance(name, str) else default


def problem_in(config: Mapping[str, Any]) -> Problem:
    """Whether the texts of a sequence classifier have one label or any number."""
    given = config.get("problem_type")
    found: list[Problem] = [ours for ours, theirs in PROBLEM_TYPES.items() if given == theirs]
    if kind_in(config) == CLASSIFIER and given is not None and not found:
        raise ValueError(f"problem_type={given!r} is not supported, only {', '.join(PROBLEM_TYPES.values())}")
    return found[0] if found else "single_label"


def _window_to_hf(cfg: DecoderConfig, family: Family) -> dict[str, Any]:
    if family.window == "every_layer":
        return {"sliding_window": cfg.sliding_window}
    if family.window == "none":
        return {}
    first = min(cfg.sliding_layers, default=cfg.n_layers)
    return {
        "use_sliding_window": cfg.sliding_window is not None,
        "sliding_window": cfg.sliding_window,
        "max_window_layers": first,  # transformers before 4.53 reads no other field
        "layer_types": [SLIDING if layer in cfg.sliding_layers else FULL for layer in range(cfg.n_layers)],
    }


def _windows_and_rope_to_hf(cfg: EncoderConfig) -> dict[str, Any]:
    """Of an encoder whose layers with a window have a base of their own for the rotary wavelengths."""
    kinds = [SLIDING if layer in cfg.sliding_layers else FULL for layer in range(cfg.n_layers)]
    local_theta = cfg.rope_theta if cfg.local_rope_theta is None else cfg.local_rope_theta
    every = next(
        (n for n in range(1, cfg.n_layers + 1) if kinds == [SLIDING if i % n else FULL for i in range(cfg.n_layers)]),
        None,
    )
    return {
        "local_attention": LOCAL_ATTENTION if cfg.sliding_window is None else cfg.sliding_window,
        "layer_types": kinds,
        "rope_parameters": {
            FULL: {"rope_type": "default", "rope_theta": cfg.rope_theta},
            SLIDING: {"rope_type": "default", "rope_theta": local_theta},
        },
        # transformers 4 reads these instead of the two before.
        "global_rope_theta": cfg.rope_theta,
        "local_rope_theta": local_theta,
        **({} if every is None else {"global_attn_every_n_layers": every}),
    }


def _rope_to_hf(cfg: DecoderConfig) -> dict[str, Any]:
    scaling: dict[str, Any] = {"rope_type": "default"}
    if cfg.rope_scaling is not None:
        names = LLAMA3_SCALING if cfg.rope_scaling.kind == "llama3" else {"factor": "factor"}
        values = {theirs: getattr(cfg.rope_scaling, ours) for ours, theirs in names.items()}
        scaling = {"rope_type": cfg.rope_scaling.kind, **values}
    return {
        "rope_theta": cfg.rope_theta,
        "rope_scaling": None if cfg.rope_scaling is None else scaling,
        "rope_parameters": {**scaling, "rope_theta": cfg.rope_theta},
    }


def config_from_hf(config: Mapping[str, Any], n_tensors: int | None = None) -> Config:
    """ValueError names the family or the field that we cannot compute, or the field that is missing.

    `n_tensors` is the number of tensors in the weight files; a config with more layers than that is refused before
    anything is built for each layer.
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"config.json contains a {type(config).__name__}, expected an object")
    model_type = config.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise ValueError(f"model_type={model_type!r}: only {', '.join(FAMILIES)} can be read")
    _refuse_what_we_cannot(config, family)
    problem_in(config)
    values: dict[str, Any] = {**family.switches, **_sizes(config, family)}
    if n_tensors is not None and values["n_layers"] > n_tensors:
        layers = f"{family.sizes['n_layers']}={values['n_layers']}"
        raise ValueError(f"{layers} layers, but the weight files hold {n_tensors} tensors in all")
    given = {**family.defaults, **config}
    for theirs, switches in family.flags.items():
        values |= dict.fromkeys(switches, _flag(given, theirs))
    for theirs, (ours, allowed) in family.choices.items():
        values[ours] = allowed[_chosen(given, theirs, tuple(allowed))]
    if family.trunk == ENCODER:
        values["max_seq_len"] -= values["position_offset"]
        return EncoderConfig(**values, **_windows_and_rope_from_hf(config, family, values["n_layers"]))
    if family.switches["positions"] == "rotary":
        values |= _window_from_hf(config, family, values["n_layers"]) | _rope_from_hf(config, values["max_seq_len"])
    return DecoderConfig(**values)


def _chosen(config: Mapping[str, Any], name: str, allowed: tuple[Any, ...]) -> Any:
    """One of a few values, the first where a config has none."""
    value = config.get(name, allowed[0])
    if not any(type(value) is type(one) and value == one for one in allowed):
        raise ValueError(f"{name}={value!r} is not supported, only {', '.join(map(repr, allowed))}")
    return value


def _refuse_what_we_cannot(config: Mapping[str, Any], family: Family) -> None:
    for name, allowed in family.fixed.items():
        if name in config and config[name] not in allowed:
            raise ValueError(f"{name}={config[name]!r} is not supported, only {allowed[0]!r}")
    if config.get("quantization_config"):
        raise ValueError("quantization_config: quantised weights are not supported")
    if config.get("auto_map"):
        raise ValueError("auto_map: the model is defined by code of its own folder, which is never run")
    if config.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise ValueError(f"partial_rotary_factor={config['partial_rotary_factor']} is not supported, only 1.0")


def _sizes(config: Mapping[str, Any], family: Family) -> dict[str, Any]:
    given = {**family.defaults, **config}
    sizes = {ours: given[theirs] for ours, theirs in family.sizes.items() if given.get(theirs) is not None}
    for ours, value in sizes.items():
        if _type_of(ours) is bool and not isinstance(value, bool):
            raise ValueError(f"{family.sizes[ours]}={value!r} must be true or false")
        if _type_of(ours) is not bool and _number(family.sizes[ours], value) != value // 1 and _type_of(ours) is int:
            raise ValueError(f"{family.sizes[ours]}={value!r} must be a whole number")
    sizes = {ours: _type_of(ours)(value) for ours, value in sizes.items()}
    if "n_heads" in sizes and "d_model" in sizes:  # transformers' rules for a missing field
        derived = {"n_kv_heads": sizes["n_heads"], "d_head": sizes["d_model"] // (sizes["n_heads"] or 1)}
        if "n_inner" in given:
            derived["d_ff"] = 4 * sizes["d_model"]
        sizes = derived | sizes
    if missing := [theirs for ours, theirs in family.sizes.items() if ours not in sizes]:
        raise ValueError(f"config.json lacks {', '.join(missing)}")
    return sizes


def _type_of(size: str) -> type[int] | type[float] | type[bool]:
    return {"norm_eps": float, "tie_embeddings": bool}.get(size, int)


def _layer_types(config: Mapping[str, Any], n_layers: int) -> list[str] | None:
    kinds = config.get("layer_types")
    if kinds is None:
        return None
    if not isinstance(kinds, list | tuple) or not all(isinstance(kind, str) for kind in kinds):
        raise ValueError(f"layer_types={kinds!r} must be a list of names")
    if unknown := sorted(set(kinds) - {FULL, SLIDING}):
        raise ValueError(f"layer_types contains {unknown[0]!r}, supported are only {FULL!r}, {SLIDING!r}")
    if len(kinds) != n_layers:
        raise ValueError(f"layer_types has {len(kinds)} entries, num_hidden_layers is {n_layers}")
    return list(kinds)


def _windows_and_rope_from_hf(config: Mapping[str, Any], family: Family, n_layers: int) -> dict[str, Any]:
    """Of an encoder; {} where its family has neither."""
    if family.window != "two_sided":
        return {}
    kinds = _layer_types(config, n_layers)
    if kinds is None:
        every = _whole(config, "global_attn_every_n_layers", GLOBAL_EVERY)
        kinds = [SLIDING if layer % every else FULL for layer in range(n_layers)]
    layers = tuple(layer for layer, kind in enumerate(kinds) if kind == SLIDING)
    window = _whole(config, "local_attention", LOCAL_ATTENTION)
    return {
        "rope_theta": _theta(config, FULL, "global_rope_theta", GLOBAL_THETA),
        "local_rope_theta": _theta(config, SLIDING, "local_rope_theta", ROPE_THETA),
        **({"sliding_window": window, "sliding_layers": layers} if layers else {}),
    }


def _whole(config: Mapping[str, Any], name: str, default: int) -> int:
    value = default if config.get(name) is None else config[name]
    if type(value) is not int or value < 1:
        raise ValueError(f"{name}={repr(value)[:40]} must be a whole number of at least 1")
    return value


def _theta(config: Mapping[str, Any], kind: str, old_name: str, default: float) -> float:
    """rope_theta of the layers of one kind: in rope_parameters (transformers 5) or under a name of its own (4)."""
    of_kinds = config.get("rope_parameters") or {}
    rope = of_kinds.get(kind) or {} if isinstance(of_kinds, Mapping) else None
    if not isinstance(rope, Mapping) or config.get("rope_scaling"):
        raise ValueError("rope_parameters must be an object with one for each kind of layer, and rope_scaling null")
    if rope.get("rope_type", "default") != "default":
        raise ValueError(f"rope_type={rope['rope_type']!r} is not supported for an encoder, only 'default'")
    return _number(f"rope_theta of {kind}", rope.get("rope_theta") or config.get(old_name) or default)


def _window_from_hf(config: Mapping[str, Any], family: Family, n_layers: int) -> dict[str, Any]:
    kinds = _layer_types(config, n_layers)
    window = config.get("sliding_window", family.defaults.get("sliding_window"))
    for name, value in (("sliding_window", window), ("max_window_layers", config.get("max_window_layers"))):
        if value is not None and type(value) is not int:
            raise ValueError(f"{name}={value!r} must be a whole number")
    if kinds is None and (window is None or family.window == "none"):
        return {}
    if family.window == "layer_types":
        window = window if _flag(config, "use_sliding_window") else None
        if kinds is None:
            first = config.get("max_window_layers", family.defaults["max_window_layers"])
            first = n_layers if first is None or window is None else first
            kinds = [SLIDING if layer >= first else FULL for layer in range(n_layers)]
    else:
        expected = SLIDING if family.window == "every_layer" and window is not None else FULL
        if kinds is not None and set(kinds) != {expected}:
            raise ValueError(f"layer_types={kinds!r} is not supported for {family.model_type}, only {expected!r}")
        kinds = [expected] * n_layers
    layers = tuple(layer for layer, kind in enumerate(kinds) if kind == SLIDING)
    if layers and window is None:
        raise ValueError(f"layer_types has {SLIDING!r}, but use_sliding_window and sliding_window name no window")
    return {"sliding_window": window, "sliding_layers": layers} if layers else {}


def _rope_from_hf(config: Mapping[str, Any], max_seq_len: int) -> dict[str, Any]:
    """rope_theta and rope_scaling of our config. Where both fields exist, transformers 5 reads rope_scaling."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not isinstance(rope, Mapping) or any(isinstance(value, Mapping) for value in rope.values()):
        raise ValueError("rope_parameters: a setting per kind of layer is not supported, only one for all")
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = _number("rope_theta", rope.get("rope_theta") or config.get("rope_theta") or ROPE_THETA)
    if rope.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise ValueError(f"partial_rotary_factor={rope['partial_rotary_factor']} is not supported, only 1.0")
    if kind == "default":
        return {"rope_theta": theta}
    if kind not in ("linear", "llama3"):
        raise ValueError(f"rope_type={kind!r} is not supported, only 'default', 'linear', 'llama3'")
    names = LLAMA3_SCALING if kind == "llama3" else {"factor": "factor"}
    given = {"original_max_position_embeddings": max_seq_len, **rope}  # transformers' default
    if missing := [theirs for theirs in names.values() if theirs not in given]:
        raise ValueError(f"rope_parameters lacks {', '.join(missing)}, which rope_type={kind!r} needs")
    values: dict[str, Any] = {ours: _number(theirs, given[theirs]) for ours, theirs in names.items()}
    if "original_max_seq_len" in values:
        values["original_max_seq_len"] = int(values["original_max_seq_len"])
    return {"rope_theta": theta, "rope_scaling": RopeScaling(kind=kind, **values)}


def _flag(config: Mapping[str, Any], name: str) -> bool:
    """A switch that is off where a config has none. A text such as "false" would count as true."""
    if not isinstance(value := config.get(name), bool | None):
        raise ValueError(f"{name}={repr(value)[:40]} must be true or false")
    return bool(value)


def _number(name: str, value: Any) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not -LARGEST <= value <= LARGEST:  # also nan
        raise ValueError(f"{name}={repr(value)[:40]} must be a number of at most {LARGEST:g}")
    return float(value)
