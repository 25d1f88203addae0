"""Config dataclass -> Dagster config, so that a setting is written once: type, default, description, rules.

In: the config dataclass of a stage and what data/config.toml says about the asset. Out: a Dagster config field whose
resolved value is the dataclass itself. Order of say: dataclass, then config.toml, then the launchpad.

Not a dg.Config: that takes `null` for every field with a default, and meets the rules of `__post_init__` in the
step only. Here the shape builds the dataclass while Dagster resolves the run config, which happens when a run is
created: an unknown key, a wrong type or a broken rule is refused before anything runs, with our own message.
"""

import dataclasses
import functools
import tomllib
import types
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import dagster as dg
from dagster._config.errors import PostProcessingError  # the one error that Dagster shows as a config error

REQUIRED = dataclasses.MISSING
Config = type[Any] | Mapping[str, type[Any]]  # of one stage, or stage -> of each


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """data/config.toml: a table an asset, in an asset of two stages a table a stage."""

    path: Path
    tables: Mapping[str, Any] = field(default_factory=dict)

    def refuse_unknown_tables(self, assets: list[str]) -> None:
        for table in self.tables:
            if table not in assets:
                raise ValueError(
                    f"{self.path}: table [{table}] names no asset; there are: {', '.join(sorted(assets))}"
                )


def read_config_file(path: Path) -> ConfigFile:
    """No file is an empty one. ValueError names the place of a syntax error."""
    if not path.exists():
        return ConfigFile(path)
    try:
        return ConfigFile(path, tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not TOML: {error}") from error


def asset_config(asset: str, config: Config, file: ConfigFile, given: Mapping[str, Any] | None = None) -> dg.Field:
    """The config field of an asset. `given` are defaults from elsewhere (tasks.toml); config.toml overrides them.

    Raises ValueError naming file, table, key and what is allowed when config.toml does not fit.
    """
    if not isinstance(config, Mapping):
        table = _table(file, asset, file.tables.get(asset, {}))
        return _checked_field(config, {**(given or {}), **table}, file, asset)
    fields = asset_fields(asset, config, file, given)
    return dg.Field(dg.Shape(fields), description=f"settings of {asset}, a table a stage")


def asset_fields(
    asset: str, config: Mapping[str, type[Any]], file: ConfigFile, given: Mapping[str, Any] | None = None
) -> dict[str, dg.Field]:
    """The fields of an asset of several stages, by stage; see `asset_config`."""
    table = _table(file, asset, file.tables.get(asset, {}))
    if unknown := sorted(set(table) - set(config)):
        raise ValueError(f"{file.path}: [{asset}] has tables {', '.join(config)} only, got `{unknown[0]}`")
    given = given or {}
    return {
        stage: _checked_field(cls, {**given.get(stage, {}), **_table(file, where, table.get(stage, {}))}, file, where)
        for stage, cls in config.items()
        for where in [f"{asset}.{stage}"]
    }


def _table(file: ConfigFile, where: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{file.path}: {where} is {value!r}, expected a table [{where}]")
    return value


def _checked_field(cls: type[Any], values: Mapping[str, Any], file: ConfigFile, where: str) -> dg.Field:
    """Field of the dataclass `cls` with `values` as defaults, which are tried out at once."""
    annotations = {item.name: _plain(hint) for item, hint in _fields(cls)}
    for key, value in values.items():
        if key not in annotations:
            raise ValueError(f"{file.path}: [{where}] has no key `{key}`; it has: {', '.join(annotations)}")
        if not _fits(value, annotations[key]):
            raise ValueError(f"{file.path}: [{where}] {key} is {value!r}, expected {_expected(annotations[key])}")
    field = _dataclass_field(cls, values)
    if not field.is_required:
        try:
            _build(cls, dict(field.default_value))
        except ValueError as error:
            raise ValueError(f"{file.path}: [{where}] {error}") from error
    return field


def _dataclass_field(cls: type[Any], values: Mapping[str, Any]) -> dg.Field:
    fields = {}
    for item, hint in _fields(cls):
        annotation, description = _plain(hint), " ".join(get_args(hint)[1:])
        default = values.get(item.name, _default(item))
        if dataclasses.is_dataclass(annotation):
            nested = default if isinstance(default, Mapping) else dataclasses.asdict(default)
            fields[item.name] = _dataclass_field(annotation, nested)  # type: ignore[arg-type]
        elif default is REQUIRED:
            fields[item.name] = dg.Field(
                _config_type(annotation, f"{cls.__name__}_{item.name}"), description=description
            )
        else:
            fields[item.name] = dg.Field(
                _config_type(annotation, f"{cls.__name__}_{item.name}"),
                default_value=list(default) if isinstance(default, tuple) else default,
                is_required=False,
                description=description,
            )
    # Dagster keeps one Shape for equal fields and description, so the name of the class has to be in it
    shape = dg.Shape(fields, description=f"{cls.__module__}.{cls.__qualname__}")
    shape.post_process = functools.partial(_resolved, cls)
    if any(item.is_required for item in fields.values()):
        return dg.Field(shape)
    return dg.Field(shape, default_value={name: item.default_value for name, item in fields.items()})


def _resolved(cls: type[Any], value: Any) -> Any:
    """What Dagster calls with the complete values of a shape, defaults included."""
    try:
        return _build(cls, value)
    except ValueError as error:
        raise PostProcessingError(str(error)) from None


def _build(cls: type[Any], values: Any) -> Any:
    if isinstance(values, cls):
        return values
    built = {}
    for item, hint in _fields(cls):
        annotation = _plain(hint)
        value = values[item.name]
        if dataclasses.is_dataclass(annotation):
            value = _build(annotation, value)  # type: ignore[arg-type]
        built[item.name] = tuple(value) if isinstance(value, list) else value
    return cls(**built)


def _fields(cls: type[Any]) -> list[tuple[dataclasses.Field, Any]]:
    hints = get_type_hints(cls, include_extras=True)
    return [(item, hints[item.name]) for item in dataclasses.fields(cls)]


def _default(item: dataclasses.Field) -> Any:
    return item.default_factory() if item.default_factory is not REQUIRED else item.default


def _plain(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _or_none(annotation: Any) -> Any | None:
    """X of `X | None`, None for any other annotation."""
    if get_origin(annotation) not in (Union, types.UnionType):
        return None
    return next(part for part in get_args(annotation) if part is not type(None))


def _config_type(annotation: Any, name: str) -> Any:
    if (inner := _or_none(annotation)) is not None:
        return dg.Noneable(_config_type(inner, name))
    if get_origin(annotation) is Literal:
        return dg.Enum(name, [dg.EnumValue(option) for option in get_args(annotation)])
    if get_origin(annotation) is tuple:
        return dg.Array(get_args(annotation)[0])
    if annotation in (int, float, str, bool):
        return annotation
    raise TypeError(f"{name}: a config field cannot be {annotation}; see _config_type for what it can be")


def _fits(value: Any, annotation: Any) -> bool:
    if (inner := _or_none(annotation)) is not None:
        return value is None or _fits(value, inner)
    if get_origin(annotation) is Literal:
        return value in get_args(annotation)
    if get_origin(annotation) is tuple:
        return isinstance(value, list | tuple) and all(_fits(item, get_args(annotation)[0]) for item in value)
    if dataclasses.is_dataclass(annotation):
        names = {item.name: _plain(hint) for item, hint in _fields(annotation)}  # type: ignore[arg-type]
        return isinstance(value, Mapping) and all(
            key in names and _fits(item, names[key]) for key, item in value.items()
        )
    if annotation is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is annotation


def _expected(annotation: Any) -> str:
    if (inner := _or_none(annotation)) is not None:
        return f"{_expected(inner)} (leave the key out for none)"
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(repr(option) for option in get_args(annotation))
    if get_origin(annotation) is tuple:
        return f"a list of {get_args(annotation)[0].__name__}"
    if dataclasses.is_dataclass(annotation):
        return f"a table with keys {', '.join(item.name for item in dataclasses.fields(annotation))}"
    return {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}[annotation]
