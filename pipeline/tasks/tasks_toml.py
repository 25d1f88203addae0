"""Reads tasks.toml, which declares each task that a model is fine-tuned for.

In: data/tasks.toml. Out: `Task` by name: the source of the labelled rows, how to read text and label from a row, and
the settings of its examples and its fine-tuning that differ from the defaults. A mistake raises a ValueError that
names file, table, key and what is allowed.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.training.presets import is_encoder_family
from pipeline.corpus.collect.package import PackageSource
from pipeline.corpus.collect.url import UrlSource
from pipeline.corpus.examples.data_files import Data, LabelledFile, WrittenRows
from pipeline.corpus.examples.protocol import DIGESTS, ROW_KEYS, ExamplesConfig
from pipeline.corpus.passages.stage import PassagesConfig
from pipeline.evaluation.task import TaskEvaluationConfig
from pipeline.store.chain import MODEL_SUFFIX, TASK, assets_of_table, fixed_assets
from pipeline.store.settings import checked_values, did_you_mean, read, read_toml, refuse_unknown
from pipeline.tasks.collection import (
    CORPUS,
    DOCUMENTS,
    EMBEDDER,
    OF_PAGES,
    OF_TEXTS,
    Collection,
    read_collection,
)
from pipeline.tasks.kind import Kind, kind_named
from pipeline.tasks.kinds import KINDS
from pipeline.training.finetune import FinetuneConfig
from pipeline.training.models_toml import ContinuedModel, Model, OpenModel, PretrainedModel, read_models

MODELS_FILE = "models.toml"
HELD_OUT = {"validation": "validation_data", "test": "test_data"}  # given splits
PROMPTED, SHOWCASE = "prompted", "showcase"
KEYS = ("kind", "base", PROMPTED, "data", *HELD_OUT.values())  # keys of every kind
SETTINGS = ("examples", "finetune", "evaluation")  # tables of every kind
PASSAGES = "passages"  # table of a kind that reads documents
PACKAGE_KEYS = ("package", "version", "file", "sha256", "members")
URL_KEYS = ("url", "members")
LISTS = {"url": "urls", "members": "members"}  # of the source; a labelled file is one
DEFAULT_FAMILY = "qwen3"  # of a pretrained model whose table names none
_NAME = re.compile(r"[a-z][a-z0-9_]*")
MOST_LETTERS = 100  # of a name, which becomes part of file names


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A table of tasks.toml. Its assets are <name>_examples, <name>_model and <name>_evaluation, and those of its
    collection."""

    name: str
    kind: Kind
    base: str  # asset of the checkpoint to start from
    data: Data | None  # None: all examples are made from the documents
    held_out: Mapping[str, Data]  # data of given splits
    examples: ExamplesConfig
    finetune: FinetuneConfig
    evaluation: TaskEvaluationConfig
    prompted: str  # asset of the model that answers without training, as a baseline: the base, or another one
    collection: Collection | None = None  # the documents that it answers from
    passages: PassagesConfig = field(default_factory=PassagesConfig)
    reads_corpus: bool = True  # one of its models was trained on the corpus, or it answers from the corpus
    showcase: bool = False  # built only by the job `showcase`, or when it is named

    @property
    def all_data(self) -> dict[str, Data]:
        """Key of the table -> labelled data."""
        own = {} if self.data is None else {"data": self.data}
        return own | {HELD_OUT[split]: one for split, one in self.held_out.items()}

    @property
    def hides_examples(self) -> bool:
        """Whether the corpus must not contain its examples, because a model that is judged by them is trained on it.

        A task that answers from documents is given the texts that its questions are about.
        """
        return self.reads_corpus and self.collection is None

    @property
    def models(self) -> list[str]:
        """Assets of the models that it needs."""
        own = [] if self.collection is None else [self.collection.embedder]
        return list(dict.fromkeys((self.base, self.prompted, *own)))

    @property
    def assets(self) -> list[str]:
        """The assets that its table makes."""
        own = [] if self.collection is None else self.collection.assets
        return [*own, *(f"{self.name}_{part}" for part in ("examples", "model", "evaluation"))]

    @property
    def needs(self) -> list[str]:
        """The assets of others that it reads."""
        return list(dict.fromkeys((*self.models, *(self.collection.needs if self.collection else ()))))


def read_tasks(path: Path) -> dict[str, Task]:
    """The tasks of a TOML file by name, in its order; none if the file does not exist.

    Their bases are the models of the models.toml beside it, and those of earlier tasks whose kind makes bases.
    """
    if not path.exists():
        return {}
    models, tasks = read_models(path.with_name(MODELS_FILE)), dict[str, Task]()
    for name, table in read_toml(path).items():
        tasks[name] = _task(name, table, path, models, tasks)
    return tasks


@dataclass(frozen=True, slots=True)
class _Base:
    """What a task may be based on."""

    name: str
    asset: str
    reads_corpus: bool
    showcase: bool = False  # it is left out of an ordinary run


def _bases(models: Mapping[str, Model], tasks: Mapping[str, Task]) -> dict[str, _Base]:
    of_tasks = {
        name: _Base(name, f"{name}{MODEL_SUFFIX}", task.reads_corpus, task.showcase)
        for name, task in tasks.items()
        if task.kind.makes_bases
    }
    return {name: _Base(name, one.asset, not isinstance(one, OpenModel)) for name, one in models.items()} | of_tasks


def _task(name: str, table: Any, path: Path, models: Mapping[str, Model], tasks: Mapping[str, Task]) -> Task:
    where = f"{path}: [{name}]"
    if not _NAME.fullmatch(name):
        raise ValueError(f"{where}: a task's name has lower-case letters, digits and _, and starts with a letter")
    if not isinstance(table, dict):
        raise ValueError(f"{path}: {name} is {table!r}, but a task is a table: write [{name}]")
    _refuse_taken(name, where, models)
    bases = _bases(models, tasks)
    named: dict[str, Mapping[str, Any]] = {"kind": KINDS, "base": bases}
    named |= {key: bases for key in (PROMPTED, EMBEDDER) if key in table}
    for key, allowed in named.items():
        if not isinstance(table.get(key), str) or table[key] not in allowed:
            got = f"is {table[key]!r}" if key in table else "is missing"
            raise ValueError(
                f"{where}: {key} {got}, expected one of {', '.join(allowed)}{did_you_mean(table.get(key), allowed)}"
            )
    kind = kind_named(table["kind"])
    _refuse_unprompted(table, kind, models, where)
    of_documents = (DOCUMENTS, EMBEDDER, PASSAGES) if kind.reads_documents else ()
    refuse_unknown(where, "key", table, (*KEYS, *of_documents, *kind.keys, *ROW_KEYS, *SETTINGS, SHOWCASE))
    of_task = kind.examples_of({key: table[key] for key in kind.keys if key in table}, where)
    of_task |= {key: table[key] for key in ROW_KEYS if key in table}
    settings = table.get("examples", {})
    if isinstance(settings, dict) and (taken := sorted({*kind.keys, *ROW_KEYS, *DIGESTS} & settings.keys())):
        raise ValueError(f"{where}: {taken[0]} belongs in [{name}], not in [{name}.examples]")
    of_task |= checked_values(kind.examples, settings, f"{path}: [{name}.examples]")
    base, prompted = bases[table["base"]], bases[table.get(PROMPTED, table["base"])]
    collection = _collection(name, table, bases, path) if kind.reads_documents else None
    needed = [base, prompted, *([bases[table[EMBEDDER]]] if collection else [])]
    return Task(
        name=name,
        kind=kind,
        base=base.asset,
        prompted=prompted.asset,
        collection=collection,
        passages=read(PassagesConfig, table.get(PASSAGES, {}), f"{path}: [{name}.{PASSAGES}]"),
        reads_corpus=any(one.reads_corpus for one in needed) or bool(collection and collection.is_corpus),
        showcase=_showcase(table.get(SHOWCASE, False), needed, collection, where),
        data=None
        if kind.reads_documents and "data" not in table
        else _data(table.get("data"), path, f"{where}, key data"),
        held_out={
            split: _data(table[key], path, f"{where}, key {key}") for split, key in HELD_OUT.items() if key in table
        },
        examples=read(kind.examples, of_task, where),
        finetune=read(kind.finetune, table.get("finetune", {}), f"{path}: [{name}.finetune]"),
        evaluation=read(kind.evaluation, table.get("evaluation", {}), f"{path}: [{name}.evaluation]"),
    )


def _collection(name: str, table: Mapping[str, Any], bases: Mapping[str, _Base], path: Path) -> Collection:
    where = f"{path}: [{name}]"
    if EMBEDDER not in table:
        raise ValueError(
            f"{where}: {EMBEDDER} is missing, expected an encoder of models.toml, for instance minilm; there are:"
            f" {', '.join(bases)}"
        )
    return read_collection(name, table, bases[table[EMBEDDER]].asset, path.parent, where)


def _showcase(value: Any, bases: Sequence[_Base], collection: Collection | None, where: str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"{where}: showcase is {value!r}, expected true or false")
    if value and collection and collection.is_corpus:
        raise ValueError(
            f"{where}: showcase = true leaves the task out of an ordinary run and builds it without the corpus, but"
            f' {DOCUMENTS} = "{CORPUS}"; name sources of sources.toml, or a source of this task alone'
        )
    if value and (of_corpus := [one.name for one in bases if one.reads_corpus]):
        raise ValueError(
            f"{where}: showcase = true leaves the task out of an ordinary run, but its model {of_corpus[0]!r} is"
            " trained on the corpus, which must not contain its examples; take an open model of models.toml"
        )
    if not value and (shown := [one.name for one in bases if one.showcase]):
        raise ValueError(
            f"{where}: the task {shown[0]!r}, whose model this one needs, has showcase = true, so that an ordinary"
            " run leaves it out; add showcase = true here, or remove it there"
        )
    return value


def _refuse_unprompted(table: Mapping[str, Any], kind: Kind, models: Mapping[str, Model], where: str) -> None:
    """Raises ValueError where a model is to continue texts and cannot. What an open model is, its files say, which
    are read when it is built."""
    if PROMPTED in table and not kind.can_be_prompted:
        raise ValueError(
            f"{where}: {PROMPTED} is {table[PROMPTED]!r}, but a task of kind {kind.name!r} has no baseline of this"
            " name; remove the key"
        )
    for key in [key for key in (*(["base"] if kind.needs_decoder else []), PROMPTED) if table.get(key) in models]:
        if is_encoder_family(family := _family(models, table[key])):
            raise ValueError(
                f"{where}: {key} is {table[key]!r}, an encoder (family {family}), which continues no text; name a"
                " decoder, for instance the open model smollm2"
            )
    embedder = table.get(EMBEDDER)
    if embedder in models and (family := _family(models, embedder)) and not is_encoder_family(family):
        raise ValueError(
            f"{where}: {EMBEDDER} is {embedder!r}, a decoder (family {family}), which makes no vectors of texts; name"
            " an encoder, for instance the open model minilm"
        )


def _family(models: Mapping[str, Model], name: str) -> str | None:
    """The family of a model that is trained here, from scratch or further; None for an open one."""
    model = models[name]
    first = models[model.vocabulary] if isinstance(model, ContinuedModel) else model
    return first.settings.get("family", DEFAULT_FAMILY) if isinstance(first, PretrainedModel) else None


def _refuse_taken(name: str, where: str, models: Mapping[str, Model]) -> None:
    """Assets, and models registered in MLflow, are named after their task."""
    owners = dict.fromkeys(fixed_assets(), "an asset that every graph has")
    for model in models.values():
        owners |= dict.fromkeys(model.assets, f"an asset of the model [{model.name}]")
    own = [asset.replace(TASK, name) for asset in (OF_PAGES, OF_TEXTS)]
    if taken := sorted({name, *assets_of_table(TASK, name), *own} & owners.keys()):
        stems = {asset.removesuffix(MODEL_SUFFIX) for asset in owners}
        raise ValueError(
            f"{where}: the name {name!r} is taken: {taken[0]} is {owners[taken[0]]}. Choose another name,"
            f" for instance [{name}_task]; taken are {', '.join(sorted(owners.keys() | stems))}"
        )
    if len(name) > MOST_LETTERS:
        raise ValueError(f"{where}: the name has {len(name)} letters, expected at most {MOST_LETTERS}")


def _data(data: Any, path: Path, where: str) -> Data:
    if isinstance(data, list) and data and all(isinstance(row, dict) for row in data):
        rows = [json.dumps(row, ensure_ascii=False, default=str) for row in data]  # of dates and times
        return WrittenRows(f"{where.removeprefix(f'{path.parent}/')}.jsonl", "\n".join(rows).encode())
    if not isinstance(data, dict):
        shown = repr(data) if len(repr(data)) < MOST_LETTERS else f"{repr(data)[:MOST_LETTERS]} ..."
        raise ValueError(
            f'{where}: got {shown}, expected {{ path = "file.csv" }}, {{ url = "https://...#sha256=..." }},'
            f" a table with {', '.join(PACKAGE_KEYS)}, or a list of rows, each a table"
        )
    if "path" in data:
        refuse_unknown(where, "key", data, ("path",))
        if not isinstance(data["path"], str) or not data["path"]:
            raise ValueError(f"{where}: path is {data['path']!r}, expected a text that is not empty")
        return LabelledFile(path=path.parent / Path(data["path"]).expanduser())
    kind, keys = (UrlSource, URL_KEYS) if "url" in data else (PackageSource, PACKAGE_KEYS)
    refuse_unknown(where, "key", data, keys)
    values = {LISTS.get(key, key): [value] if key in LISTS else value for key, value in data.items()}
    return read(kind, values, where, name="labelled", licence="not kept")
