"""Settings from a shell: `key=value` texts as values of the types that dataclasses declare.

In: texts and types. Out: values by name. ValueError names the setting, what was given and what is allowed.
"""

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from model.network.shape import DecoderShape
from model.training.config import TrainConfig

BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


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
            raise ValueError(f"--set {setting}: {no_such_setting(key, allowed)}")
        try:
            values[key] = parse_value(hints[key], text)
        except ValueError as error:
            raise ValueError(f"--set {setting}: {error}") from None
    return values


def no_such_setting(name: str, allowed: Iterable[str]) -> str:
    """The message for an unknown name: the nearest of those that are allowed, and all of them."""
    names = list(allowed)
    nearest = "".join(f" did you mean {near}?" for near in difflib.get_close_matches(name, names, n=1))
    return f"no such setting;{nearest} there are {', '.join(names)}"


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
