"""The settings of an asset as Dagster's launchpad shows them, made from the config dataclasses of its stages.

In: the config dataclass of a stage and what data/config.toml sets for the asset. Out: a Dagster config field whose
resolved value is the dataclass itself. Precedence, lowest first: dataclass, models.toml or tasks.toml, config.toml,
launchpad.

This is not a dg.Config, which checks its rules in the step only. Here the shape builds the dataclass while Dagster
resolves the run config, which happens when a run is launched: a value outside its range or a broken rule is refused
before anything runs, with the message of pipeline/store/settings.py. An unknown key or a wrong type is refused by
Dagster itself while it is typed.

The launchpad opens with all settings of an asset and their values, but Dagster 1.13 leaves out those whose default is
null. A setting without a value is therefore shown as {}, or as `none` if the values are names; null is accepted
too. Dagster's private parts that this needs are in this file only: `post_process` of a shape, and the exception that
is shown without a stack trace.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

import dagster as dg
from dagster._core.errors import DagsterUserCodeProcessError
from dagster_shared.error import SerializableErrorInfo

from pipeline.store.settings import Setting, checked_values, read, read_toml, refuse_unknown, settings_of

NONE = "none"  # for a setting that is one of several names, or none
Config = type[Any] | Mapping[str, type[Any]]  # config class of one stage, or stage -> config class


class RefusedSettings(ValueError, DagsterUserCodeProcessError):
    """A wrong value in the launchpad. Dagster shows only its message."""

    def __init__(self, message: str) -> None:
        told = SerializableErrorInfo(message, [], "ValueError")
        DagsterUserCodeProcessError.__init__(self, message, user_code_process_error_infos=[told])


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """data/config.toml: a table per asset, and in an asset of several stages a table per stage."""

    path: Path
    tables: Mapping[str, Any] = field(default_factory=dict)

    def table(self, *names: str) -> Mapping[str, Any]:
        """The table [a.b] for the names a and b; empty if there is none."""
        value: Any = self.tables
        for i, name in enumerate(names, 1):
            value = value.get(name, {})
            if not isinstance(value, Mapping):
                where = ".".join(names[:i])
                raise ValueError(f"{self.path}: {where} is {value!r}, expected a table [{where}]")
        return value

    def refuse_unknown_tables(self, assets: Sequence[str]) -> None:
        refuse_unknown(str(self.path), "table", self.tables, sorted(assets))


def read_config_file(path: Path) -> ConfigFile:
    """A missing file counts as empty. Raises ValueError with the place of a syntax error."""
    return ConfigFile(path, read_toml(path) if path.exists() else {})


def asset_config(asset: str, config: Config, file: ConfigFile, given: Mapping[str, Any] | None = None) -> dg.Field:
    """The config field of an asset. `given` are defaults from models.toml or tasks.toml; config.toml overrides them.

    Raises ValueError with file, table, key and what is allowed when config.toml is invalid.
    """
    if not isinstance(config, Mapping):
        return _field(config, given or {}, file, asset)
    refuse_unknown(f"{file.path}: [{asset}]", "table", file.table(asset), config)
    fields = {stage: _field(cls, (given or {}).get(stage, {}), file, asset, stage) for stage, cls in config.items()}
    return dg.Field(dg.Shape(fields), description=f"Settings of {asset}, one table per stage.")


def _field(cls: type[Any], given: Mapping[str, Any], file: ConfigFile, *names: str) -> dg.Field:
    """Config field of the dataclass `cls`; its defaults are checked when the graph loads."""
    where, settings = f"{file.path}: [{'.'.join(names)}]", settings_of(cls)
    defaults = {name: one.default for name, one in settings.items() if one.default is not dataclasses.MISSING}
    defaults |= {**given, **checked_values(cls, file.table(*names), where)}
    if defaults.keys() == settings.keys():
        read(cls, defaults, where)
    place = ".".join(names)
    shape = dg.Shape(
        {name: _setting_field(cls, one, defaults) for name, one in settings.items()},
        description=f"Settings of {place}.",  # Dagster keeps one Shape for equal fields and descriptions
    )
    shape.post_process = _Builder(cls, place, defaults)
    if defaults.keys() == settings.keys():
        return dg.Field(shape, default_value={name: _shown(one, defaults[name]) for name, one in settings.items()})
    return dg.Field(shape)


def _setting_field(cls: type[Any], one: Setting, defaults: Mapping[str, Any]) -> dg.Field:
    limits = [f"Allowed: {one.limits}."] if one.limits else []
    unset = [f"{_shown(one, None) or '{}'} means that it is not set."] if one.optional else []
    description, kind = " ".join([one.description, *limits, *unset]), _config_type(one, f"{cls.__name__}_{one.name}")
    if one.name not in defaults:
        return dg.Field(kind, description=description)
    value = _shown(one, defaults[one.name])
    return dg.Field(kind, default_value=value, is_required=False, description=description)


@dataclass(frozen=True, slots=True)
class _Builder:
    """What Dagster calls with the complete values of a shape, defaults included."""

    cls: type[Any]
    place: str  # asset, or asset.stage
    defaults: Mapping[str, Any]

    def __call__(self, values: Any) -> Any:
        if isinstance(values, self.cls):
            return values
        unset = {name: _shown(one, None) for name, one in settings_of(self.cls).items() if one.optional}
        given = {name: None if name in unset and value == unset[name] else value for name, value in values.items()}
        try:
            return read(self.cls, given, self.place)
        except ValueError as error:
            raise RefusedSettings(str(error)) from None


def settings_in(field: dg.Field) -> Iterator[tuple[str, Setting, Any]]:
    """For every setting in the config field of an asset its place (asset, or asset.stage) and its value according to
    the files, dataclasses.MISSING if it has none."""
    shape: Any = field.config_type
    builder = shape.__dict__.get("post_process")
    if builder is None:
        for part in shape.fields.values():
            yield from settings_in(part)
    else:
        for name, one in settings_of(builder.cls).items():
            yield builder.place, one, builder.defaults.get(name, dataclasses.MISSING)


def _shown(one: Setting, value: Any) -> Any:
    """A value as the launchpad shows it."""
    if value is None:
        return NONE if one.options else {}
    return list(value) if isinstance(value, tuple) else value


def _config_type(one: Setting, name: str) -> Any:
    if get_origin(one.base) is tuple:
        (item, *_) = get_args(one.base)
        return dg.Array(_named(name, one.options) if one.options else item)
    if one.options:
        return dg.Noneable(_named(name, (*one.options, NONE))) if one.optional else _named(name, one.options)
    if one.base not in (int, float, str, bool):
        raise TypeError(f"{name}: a config field cannot be {one.base}; see _config_type for what it can be")
    return dg.Noneable(dg.ScalarUnion(one.base, dg.Shape({}))) if one.optional else one.base


def _named(name: str, options: Sequence[str]) -> dg.Enum:
    return dg.Enum(name, [dg.EnumValue(option) for option in options])
