"""Reads settings, wherever they come from: a TOML file, the command line, the launchpad or the record of an output.

In: a frozen dataclass whose fields are annotated with type, range and description, as in
`Annotated[int, Ge(1), "Number of worker processes."]`, and values by name. Out: an instance of the dataclass.

A value must have the type of its field: a text is not a number and true is not 1. A whole number is accepted for a
float and becomes one, and a list becomes a tuple, so that a setting has the same fingerprint wherever it was
read from. A wrong value raises a ValueError with the place, the key, what was given and what is allowed.
"""

import dataclasses
import difflib
import functools
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le, Lt, MinLen

if TYPE_CHECKING:
    from pydantic import TypeAdapter

C = TypeVar("C")
Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
Share = Annotated[float, Gt(0), Le(1)]  # a fraction that is not 0
Text = Annotated[str, MinLen(1)]
OptionalCount = Annotated[int | None, Ge(1)]
OptionalPositive = Annotated[float | None, Gt(0)]
OptionalFraction = Annotated[float | None, Ge(0), Le(1)]
NAMES = {
    int: "a whole number",
    float: "a number",
    str: "a text",
    bool: "true or false",
    dict[str, str]: "a table of texts",
}
MOST_SHOWN = 120  # characters of a wrong value or name in a message
LISTS = {int: "a list of whole numbers", float: "a list of numbers", str: "a list of texts"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A field of a config dataclass, as a user sees it."""

    name: str
    base: Any  # the type without its range and without None
    optional: bool  # whether None is a value
    options: tuple[Any, ...]  # the values (or items of a list) that a Literal allows; empty = no Literal
    limits: str  # the range in words, for instance "from 0 to 1"; "" = no limits
    description: str
    default: Any  # dataclasses.MISSING if a value is required
    adapter: "TypeAdapter[Any]"

    @property
    def expected(self) -> str:
        """Type and range in words, for instance "a number from 0 to 1"."""
        return f"{_expected(self.base)} {self.limits}".strip()


@functools.cache
def settings_of(cls: type) -> dict[str, Setting]:
    """The settings of a config dataclass by name, in the order of its fields."""
    hints = get_type_hints(cls, include_extras=True)
    return {field.name: _setting(field, hints[field.name]) for field in dataclasses.fields(cls)}


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ValueError with the place of a syntax error."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors of Windows begin a file with a mark
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8") from error
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error


def read(cls: type[C], values: Any, where: str, **fixed: Any) -> C:
    """An instance of `cls` from what a user set at `where`; `fixed` are fields that are set elsewhere."""
    required = [name for name, one in settings_of(cls).items() if one.default is MISSING and name not in fixed]
    checked = checked_values(cls, values, where, without=fixed, required=required)
    try:
        return cls(**fixed, **checked)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def checked_values(
    cls: type, values: Any, where: str, *, without: Iterable[str] = (), required: Sequence[str] = ()
) -> dict[str, Any]:
    """Some settings of `cls`, each converted to its type. Settings in `without` cannot be set here."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} is {values!r}, expected a table of settings")
    settings = {name: setting for name, setting in settings_of(cls).items() if name not in without}
    refuse_unknown(where, "key", values, settings)
    if missing := [name for name in required if name not in values]:
        raise ValueError(f"{where}: key `{missing[0]}` is missing; required: {', '.join(required)}")
    try:
        return {name: _checked(settings[name], value) for name, value in values.items()}
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def read_assignments(cls: type[C], assignments: Sequence[str], where: str = "--set") -> C:
    """An instance of `cls` from `key=value` texts: lists are written a,b,c, and `none` is no value."""
    settings, values = settings_of(cls), {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"{where} {assignment}: expected KEY=VALUE")
        refuse_unknown(where, "key", [key], settings, [f"{one.name}{default_text(one)}" for one in settings.values()])
        values[key] = _from_text(settings[key], text)
    return read(cls, values, where)


def read_recorded(cls: type[C], values: Mapping[str, Any]) -> C:
    """An instance of `cls` from the JSON that `literals` made of one (pipeline/store/store.py)."""
    from pydantic import TypeAdapter

    return TypeAdapter(cls).validate_json(json.dumps(values), strict=True, extra="forbid")


def check_values(config: Any) -> None:
    """For `__post_init__`: raises ValueError when a field has a value that its annotation does not allow."""
    for setting in settings_of(type(config)).values():
        _checked(setting, getattr(config, setting.name))


def refuse_unknown(
    where: str, what: str, given: Iterable[str], known: Iterable[str], shown: Iterable[str] | None = None
) -> None:
    """Raises ValueError when a name in `given` is not in `known`, and suggests the nearest known name."""
    known = list(known)
    for name in given:
        if name not in known:
            allowed = ", ".join(known if shown is None else shown) or "none"
            hint = did_you_mean(name, known) or "."
            raise ValueError(f"{where}: unknown {what} `{name[:MOST_SHOWN]}`{hint} Allowed: {allowed}")


def did_you_mean(given: Any, known: Iterable[Any]) -> str:
    """ "; did you mean `x`?" with the nearest of the known names; "" if none is near."""
    close = difflib.get_close_matches(str(given), [str(name) for name in known], n=1)
    return f"; did you mean `{close[0]}`?" if close else ""


def default_text(setting: Setting) -> str:
    """ "=value" as it is written after `--set key`; "" for a setting without a default."""
    return "" if setting.default is MISSING else f"={value_text(setting.default)}"


def value_text(value: Any) -> str:
    """A value as it is written after `--set key=`."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _setting(field: "dataclasses.Field[Any]", hint: Any) -> Setting:
    from pydantic import ConfigDict, TypeAdapter

    base, *metadata = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    optional = get_origin(base) in (Union, UnionType) and NoneType in get_args(base)
    if optional:
        (base,) = [one for one in get_args(base) if one is not NoneType]
    return Setting(
        name=field.name,
        base=base,
        optional=optional,
        options=_options(base),
        limits=_limits(metadata),
        description=" ".join(one for one in metadata if isinstance(one, str)),
        default=field.default if field.default_factory is MISSING else field.default_factory(),
        adapter=TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False)),
    )


def _checked(setting: Setting, value: Any) -> Any:
    from pydantic import ValidationError

    try:
        return setting.adapter.validate_python(tuple(value) if isinstance(value, list) else value)
    except ValidationError as error:
        wrong = [one for one in (value if isinstance(value, list | tuple) else [value]) if one not in setting.options]
        close = did_you_mean(wrong[0], setting.options) if setting.options and wrong else ""
        shown = repr(list(value) if isinstance(value, tuple) else value)
        shown = shown if len(shown) <= MOST_SHOWN else f"{shown[:MOST_SHOWN]} ..."
        raise ValueError(f"{setting.name} is {shown}, expected {setting.expected}{close}") from error


def _from_text(setting: Setting, text: str) -> Any:
    """The value that a text stands for; the text itself if it does not fit the type, so that `read` refuses it."""
    from pydantic import TypeAdapter, ValidationError

    if setting.optional and text.lower() == "none":
        return None
    if get_origin(setting.base) is tuple:
        return tuple(part.strip() for part in text.split(",") if part.strip())
    try:
        return TypeAdapter(setting.base).validate_python(text)
    except ValidationError:
        return text


def _options(base: Any) -> tuple[Any, ...]:
    if get_origin(base) is tuple:
        return _options(get_args(base)[0])
    return get_args(base) if get_origin(base) is Literal else ()


def _expected(base: Any) -> str:
    options = ", ".join(map(str, _options(base)))
    if get_origin(base) is tuple:
        return f"a list with any of {options}" if options else LISTS.get(get_args(base)[0], "a list of tables")
    return f"one of {options}" if options else NAMES.get(base) or getattr(base, "__name__", str(base))


def _limits(metadata: Sequence[Any]) -> str:
    low = next((one for one in metadata if isinstance(one, Ge | Gt)), None)
    high = next((one for one in metadata if isinstance(one, Le | Lt)), None)
    if any(isinstance(one, MinLen) for one in metadata):
        return "that is not empty"
    if isinstance(low, Ge) and isinstance(high, Le):
        return f"from {low.ge:,} to {high.le:,}"
    lowest = "" if low is None else f"of at least {low.ge:,}" if isinstance(low, Ge) else f"above {low.gt:,}"
    highest = "" if high is None else f"at most {high.le:,}" if isinstance(high, Le) else f"below {high.lt:,}"
    return " and ".join(one for one in (lowest, highest) if one)
