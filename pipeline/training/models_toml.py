"""Reads models.toml, which declares each model of the graph.

In: data/models.toml. Out: a `Model` by table name, one dataclass per kind:

- pretrain: trained from scratch on the corpus. Its asset has the name of the table, and there is one of its
  evaluation.
- open: weights made elsewhere, which are imported: the asset base/<name>.

The keys of a table are those of its kind and the settings of its stage that differ from their defaults. Without the
file, the graph has one model, foundation_model, with default settings. A mistake raises a ValueError that names file,
table, key and what is allowed.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

from model.network.shape import Objective, objective_of
from pipeline.store.chain import BASE, EVALUATION, MODEL, MODEL_SUFFIX, OF_BASE, fixed_assets
from pipeline.store.settings import checked_values, did_you_mean, read, read_toml
from pipeline.training.open_config import OpenConfig
from pipeline.training.open_models import read_open
from pipeline.training.pretrain import PretrainConfig

DEFAULT = "foundation_model"
NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
MOST_LETTERS = 100  # of a name, which becomes part of file names


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

    @property
    def objective(self) -> Objective:
        """What the model learned to predict."""
        return "next_token"


@dataclass(frozen=True, kw_only=True, slots=True)
class PretrainedModel(Model):
    """A model that is trained from scratch; `settings` are those that the table contains."""

    kind: ClassVar[str] = "pretrain"

    settings: Mapping[str, Any]

    @property
    def objective(self) -> Objective:
        family = self.settings.get("family")
        return "next_token" if family is None else objective_of(family)

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


KINDS: dict[str, type[Model]] = {kind.kind: kind for kind in (PretrainedModel, OpenModel)}


def read_models(path: Path) -> dict[str, Model]:
    """The models of a TOML file by name, in its order; foundation_model alone if the file does not exist."""
    tables = read_toml(path) if path.exists() else {DEFAULT: {"kind": PretrainedModel.kind}}
    models: dict[str, Model] = {}
    for name, table in tables.items():
        models[name] = _model(name, table, path)
        _refuse_taken(models[name], models, f"{path}: [{name}]")
    return models


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
    if kind not in KINDS:
        raise ValueError(f"{where}: kind is {kind!r}, expected one of {', '.join(KINDS)}{did_you_mean(kind, KINDS)}")
    return KINDS[kind].of(name, values, where, path.parent)


def _refuse_taken(model: Model, models: Mapping[str, Model], where: str) -> None:
    """Raises ValueError when an asset of `model` is one that every graph has, or one of an earlier model."""
    owners = dict.fromkeys(fixed_assets(), "which every graph has")
    for other in models.values():
        if other is not model:
            owners |= dict.fromkeys(other.assets, f"of [{other.name}]")
    if taken := [asset for asset in model.assets if asset in owners]:
        raise ValueError(
            f"{where}: the name is taken: it makes the asset {taken[0]}, {owners[taken[0]]}; choose another name"
        )
