"""`--set key=value`: text from a shell to a stage's config, by the types of its dataclass.

In: a config class and `key=value` texts. Out: a config. Numbers and words are written as they are, booleans as true
or false, lists as a,b,c, no value as none.
"""

import dataclasses
import typing
from typing import TypeVar

from model.recipe import parsed_settings

C = TypeVar("C")


def parse_settings(config: type[C], settings: list[str]) -> C:
    """ValueError names the setting, what was given and what is allowed."""
    hints = typing.get_type_hints(config, include_extras=True)
    values = parsed_settings(settings, hints, describe_settings(config))
    missing = [
        field.name
        for field in dataclasses.fields(config)  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING and field.name not in values
    ]
    if missing:
        raise ValueError(f"settings {missing} have no default; give them by --set KEY=VALUE")
    return config(**values)


def describe_settings(config: type) -> list[str]:
    """ "key=default" of every setting."""
    return [
        field.name + ("" if field.default is dataclasses.MISSING else f"={field_text(field.default)}")
        for field in dataclasses.fields(config)
    ]


def field_text(value: object) -> str:
    """A value as one writes it after --set."""
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
