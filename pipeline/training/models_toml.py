"""Reads models.toml, which declares each model of the graph.

In: data/models.toml. Out: a `Model` by table name, one dataclass per kind:

- pretrain: trained from scratch on the corpus. Its asset has the name of the table, and there is one of its
  evaluation.
- open: weights made elsewhere, which are imported: the asset base/<name>.
- continue: another model of the file, its base, trained further on documents of the corpus. The documents are encoded
  with the tokenizer of the base, once for all models that need it: the asset token_shards/<base>.

The keys of a table are those of its kind and the settings of its stage that differ from their defaults. Without the
file, the graph has one model, foundation_model, with default settings. A mistake raises a ValueError that names file,
table, key and what is allowed.
"""

import keyword
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

from pipeline.store.chain import BASE, EVALUATION, MODEL, MODEL_SUFFIX, OF_BASE, OF_TOKENS, TOKENS, fixed_assets
from pipeline.store.settings import checked_values, did_you_mean, read, read_toml, refuse_unknown
from pipeline.training.continuing import ContinueConfig
from pipeline.training.open_config import OpenConfig
from pipeline.training.open_models import read_open
from pipeline.training.pretrain import PretrainConfig

DEFAULT = "foundation_model"
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
MOST_LETTERS = 100  # of a name, which becomes part of file names
RESERVED = {
    *keyword.kwlist,  # Dagster does not accept these as names, nor those of the second line
    *("arg_dict", "bool", "conf", "config", "context", "dict", "float", "input", "input_arg_dict", "int", "meta"),
    *("output", "output_arg_dict", "str", "type"),
    *("project", "checks"),  # tables of config.toml, which has one of each asset, too
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Model(ABC):
    """A table of models.toml."""

    kind: ClassVar[str]

    name: str

    @property
    def asset(self) -> str:
        """The asset of the model itself."""
        return self.name

    @property
    def evaluation(self) -> str | None:
        """The asset that evaluates it: foundation_evaluation for foundation_model. None if there is none."""
        return EVALUATION.replace(MODEL, self.name.removesuffix(MODEL_SUFFIX))

    @property
    def assets(self) -> list[str]:
        """All assets that the table makes, except token shards, which several models may share."""
        return [self.asset, *([self.evaluation] if self.evaluation else [])]

    @classmethod
    @abstractmethod
    def of(cls, name: str, values: Mapping[str, Any], where: str, folder: Path) -> Self:
        """The model of a table (without its key `kind`) that is written at `where` of a file in `folder`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainedModel(Model):
    """A model that is trained from scratch; `settings` are those that the table contains."""

    kind: ClassVar[str] = "pretrain"

    settings: Mapping[str, Any]

    @classmethod
    def of(cls, name: str, values: Mapping[str, Any], where: str, folder: Path) -> Self:
        del folder
        read(PretrainConfig, values, where)
        return cls(name=name, settings=checked_values(PretrainConfig, values, where))


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenModel(Model):
    """A model made elsewhere."""

    kind: ClassVar[str] = "open"

    source: OpenConfig

    @property
    def asset(self) -> str:
        return OF_BASE.replace(BASE, self.name)

    @property
    def evaluation(self) -> None:
        return None

    @classmethod
    def of(cls, name: str, values: Mapping[str, Any], where: str, folder: Path) -> Self:
        return cls(name=name, source=read_open(name, values, where, folder))


@dataclass(frozen=True, kw_only=True, slots=True)
class ContinuedModel(Model):
    """A model that is trained further; `settings` are those that the table contains."""

    kind: ClassVar[str] = "continue"

    base: str  # a table of the file
    settings: Mapping[str, Any]
    base_asset: str = ""  # as the following, known when the whole file was read
    vocabulary: str = ""  # the model at the beginning of the chain of bases, whose tokenizer all of them have
    tokens: str = TOKENS  # asset of the corpus in this vocabulary

    @classmethod
    def of(cls, name: str, values: Mapping[str, Any], where: str, folder: Path) -> Self:
        del folder
        settings = {key: value for key, value in values.items() if key != "base"}
        if not isinstance(base := values.get("base"), str):
            got = f"is {base!r}" if "base" in values else "is missing"
            raise ValueError(f"{where}: key `base` {got}, expected the name of another table")
        read(ContinueConfig, settings, where)
        return cls(name=name, base=base, settings=checked_values(ContinueConfig, settings, where))

    def within(self, models: Mapping[str, Model], path: Path) -> "ContinuedModel":
        """The model with its base among `models`. Raises ValueError when that is missing or the bases form a ring."""
        seen, first = [self.name], self.base
        while isinstance(one := models.get(first), ContinuedModel) and first not in seen:
            seen.append(first)
            first = one.base
        where = f"{path}: [{seen[-1]}]"
        if first in seen:
            ring = " -> ".join([*seen, first])
            raise ValueError(f"{where}: the bases form a ring ({ring}); begin with a model of kind pretrain or open")
        if one is None:
            others = [name for name in models if name != seen[-1]]
            hint = did_you_mean(first, others)
            raise ValueError(f"{where}: base is {first!r}, expected one of {', '.join(others) or 'none'}{hint}")
        tokens = OF_TOKENS.replace(BASE, first) if isinstance(one, OpenModel) else TOKENS
        asset = models[self.base].asset
        return replace(self, base_asset=asset, vocabulary=first, tokens=tokens)


KINDS: dict[str, type[Model]] = {kind.kind: kind for kind in (PretrainedModel, OpenModel, ContinuedModel)}


def read_models(path: Path) -> dict[str, Model]:
    """The models of a TOML file by name, in its order; foundation_model alone if the file does not exist."""
    tables = read_toml(path) if path.exists() else {DEFAULT: {"kind": PretrainedModel.kind}}
    models: dict[str, Model] = {}
    for name, table in tables.items():
        models[name] = _model(name, table, path)
        _refuse_taken(models[name], models, f"{path}: [{name}]")
    return {
        name: model.within(models, path) if isinstance(model, ContinuedModel) else model
        for name, model in models.items()
    }


def vocabularies(models: Iterable[Model]) -> dict[str, Model]:
    """Asset token_shards/<base> -> the open model whose tokenizer it is made with, each once."""
    by_name = {model.name: model for model in models}
    continued = [one for one in by_name.values() if isinstance(one, ContinuedModel) and one.tokens != TOKENS]
    return {one.tokens: by_name[one.vocabulary] for one in continued}


def refuse_unknown_sources(models: Iterable[Model], sources: Collection[str], path: Path) -> None:
    """Raises ValueError when a model learns from a source that sources.toml does not declare."""
    for model in models:
        if isinstance(model, ContinuedModel):
            for key in ("domain", "general"):
                refuse_unknown(f"{path}: [{model.name}], key {key}", "source", model.settings.get(key, ()), sources)


def _model(name: str, table: Any, path: Path) -> Model:
    where = f"{path}: [{name}]"
    if not isinstance(table, dict):
        raise ValueError(f"{path}: {name} = {table!r} is outside a table; put it below a line [name_of_model]")
    if not NAME.fullmatch(name) or len(name) > MOST_LETTERS:
        raise ValueError(
            f"{where}: the name of a model begins with a letter and has only a to z, 0 to 9 and single _ between"
            f" them, at most {MOST_LETTERS} in all"
        )
    values = dict(table)
    if "kind" not in values:
        raise ValueError(f"{where}: key `kind` is missing, expected one of {', '.join(KINDS)}")
    kind = values.pop("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{where}: kind is {kind!r}, expected one of {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    return KINDS[kind].of(name, values, where, path.parent)


def _refuse_taken(model: Model, models: Mapping[str, Model], where: str) -> None:
    """Raises ValueError when an asset of `model` is one that every graph has, or one of an earlier model."""
    if model.asset in RESERVED:
        raise ValueError(f"{where}: the name is reserved; choose another name, for instance [{model.name}_model]")
    owners = dict.fromkeys(fixed_assets(), "which every graph has")
    for other in models.values():
        if other is not model:
            owners |= dict.fromkeys(other.assets, f"of [{other.name}]")
    if taken := [asset for asset in model.assets if asset in owners]:
        raise ValueError(
            f"{where}: the name is taken: it makes the asset {taken[0]}, {owners[taken[0]]}; choose another name"
        )
