"""What a user changes in a preset, and what follows from it: from `field=value` to a whole shape and training plan.

In: a Preset and changes by the names of DecoderShape's and TrainConfig's fields, as values or as text from a shell.
Out: a Preset. A width or a number of heads that is changed takes along what hangs on it, unless that is changed too:
d_head, d_ff, n_kv_heads, the micro-batch of a smaller batch, the context of a longer row.
"""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from model.hf.families import FAMILIES, NO_BIASES
from model.training.config import DecoderShape, TrainConfig
from model.training.presets import Preset, d_ff_of

BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def changed(preset: Preset, changes: Mapping[str, Any], family: str | None = None) -> Preset:
    """`preset` with other values of some fields, and what follows from them. ValueError names what does not fit.

    `family` (a name of model/hf/families.py) sets the switches that make it one; `changes` go before them.
    """
    changes = dict(changes)
    if family is not None:
        changes = switches_of(family) | changes
    if "seq_len" in changes:
        changes.setdefault("max_seq_len", changes["seq_len"])
    if "d_model" in changes or "n_heads" in changes:
        d_model = changes.get("d_model", preset.shape.d_model)
        n_heads = changes.get("n_heads", preset.shape.n_heads)
        if "d_head" not in changes:
            if n_heads < 1 or d_model < 1 or d_model % n_heads:
                raise ValueError(f"d_model={d_model} is not a multiple of n_heads={n_heads}")
            changes["d_head"] = d_model // n_heads
    d_model, mlp = (changes.get(name, getattr(preset.shape, name)) for name in ("d_model", "mlp"))
    if (d_model, mlp) != (preset.shape.d_model, preset.shape.mlp):
        changes.setdefault("d_ff", d_ff_of(d_model) if mlp == "swiglu" else 4 * d_model)
    if "n_heads" in changes:
        changes.setdefault("n_kv_heads", changes["n_heads"])
    if "rows" in changes and changes["rows"] > 0 and preset.train.micro_batch is not None:
        limit = min(changes["rows"], preset.train.micro_batch)
        changes.setdefault("micro_batch", max(n for n in range(1, limit + 1) if changes["rows"] % n == 0))
    return Preset(
        shape=dataclasses.replace(preset.shape, **_of_fields(DecoderShape, changes)),
        train=dataclasses.replace(preset.train, **_of_fields(TrainConfig, changes)),
    )


def switches_of(family: str) -> dict[str, Any]:
    """What makes a decoder one of `family`. ValueError names the families that there are."""
    if family not in FAMILIES:
        raise ValueError(f"family={family!r} must be one of {', '.join(FAMILIES)}")
    one = FAMILIES[family]
    eps = one.defaults[one.sizes["norm_eps"]]
    return {**NO_BIASES, **one.switches, "norm_eps": eps, **({"tie_embeddings": True} if family == "gpt2" else {})}


def parsed_changes(settings: Sequence[str]) -> dict[str, Any]:
    """`field=value` texts as changes of a preset. ValueError as in `parsed_settings`."""
    hints = typing.get_type_hints(DecoderShape) | typing.get_type_hints(TrainConfig)
    return parsed_settings(settings, hints, sorted(hints))


def parsed_settings(settings: Sequence[str], hints: Mapping[str, Any], allowed: Sequence[str]) -> dict[str, Any]:
    """`key=value` texts as values of the types in `hints`. ValueError names the setting, what was given and what is
    `allowed`."""
    values = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ValueError(f"--set {setting}: expected KEY=VALUE")
        if key not in hints:
            raise ValueError(f"--set {setting}: no such setting; there are {', '.join(allowed)}")
        try:
            values[key] = parse_value(hints[key], text)
        except ValueError as error:
            raise ValueError(f"--set {setting}: {error}") from None
    return values


def parse_value(hint: Any, text: str) -> Any:
    """`text` as a value of the type `hint`: true or false, a,b,c for a list, JSON for a table, none for no value."""
    if get_origin(hint) is Annotated:
        return parse_value(get_args(hint)[0], text)
    if get_origin(hint) in (Union, types.UnionType):
        (inner,) = (kind for kind in get_args(hint) if kind is not types.NoneType)
        return None if text.lower() == "none" else parse_value(inner, text)
    if get_origin(hint) is Literal:
        if text not in get_args(hint):
            raise ValueError(f"expected one of {', '.join(get_args(hint))}")
        return text
    if get_origin(hint) is tuple:
        return tuple(parse_value(get_args(hint)[0], part.strip()) for part in text.split(",") if part.strip())
    if hint is bool:
        if text.lower() not in BOOLEANS:
            raise ValueError("expected true or false")
        return BOOLEANS[text.lower()]
    if hint is int or hint is float:
        try:
            return hint(text)
        except ValueError:
            raise ValueError(f"expected {'a whole number' if hint is int else 'a number'}") from None
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _parsed_table(hint, text)
    return text


def _parsed_table(cls: type, text: str) -> Any:
    try:
        return cls(**json.loads(text))
    except (TypeError, json.JSONDecodeError) as error:
        names = ", ".join(f.name for f in dataclasses.fields(cls))
        raise ValueError(f"expected a JSON object with some of {names} ({error})") from None


def _of_fields(kind: type, changes: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(kind)}
    return {name: value for name, value in changes.items() if name in names}
