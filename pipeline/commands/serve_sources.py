"""Where the models of `gristmill serve` come from: the graph, a folder, or the registry of MLflow.

In: what a user names. Out: a source for each (pipeline/serving/api/served.py), by the name under which it is served:

    smollm2, foundation_model, tickets       an open model, an asset, or a task: its current output
    my-model/                                a folder, by its last part
    gristmill-tickets, gristmill-tickets@champion, gristmill-tickets@3    an alias or a version of a registered model
    helper=smollm2                           any of these by a name of one's own

A registered model is read from the store if its output is still there, else it is downloaded.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.serving.api.loaded import Found
from pipeline.serving.api.served import Source
from pipeline.serving.generate import written_at
from pipeline.store.chain import MODELS
from pipeline.store.layout import Layout, folder_or_current
from pipeline.store.store import RECORD, read_record
from pipeline.tasks.kind import kind_named, kind_of

CHAMPION = "champion"
BY_HEAD = {  # kind of task of a model without a record, by the kind of its network
    "sequence_classifier": "classification",
    "token_classifier": "tagging",
    "span_classifier": "question_answering",
}


def sources_of(layout: Layout, models: Sequence[str]) -> dict[str, Source]:
    """Raises ValueError for a name that stands for nothing, and for two models of one name."""
    sources: dict[str, Source] = {}
    for model in models:
        name, equals, text = model.partition("=")
        if not equals or "/" in name:
            name, text = "", model
        own, source = source_of(layout, text)
        name = name or own
        if name in sources:
            raise ValueError(f"two models would be served as {name!r}; give one of them another name: NAME={text}")
        sources[name] = source
    return sources


def source_of(layout: Layout, text: str) -> tuple[str, Source]:
    """A source, and the name under which it is served."""
    text = text.removeprefix("models:/")
    registered, at, alias = text.partition("@")
    if Path(text).is_dir() or not at:
        try:
            folder_or_current(layout, text)
        except ValueError as error:
            if (source := Registered(layout, text, CHAMPION)).exists():
                return text, source
            raise ValueError(f"{error}; nor is it a registered model of MLflow") from error
        return (Path(text).resolve().name if Path(text).is_dir() else text), Local(layout, text)
    if not registered or not alias:
        raise ValueError(f"{text!r} is no model; expected for instance gristmill-tickets@{CHAMPION}")
    return registered, Registered(layout, registered, alias)


@dataclass(slots=True)
class Local:
    """The current output of an asset, or a folder."""

    layout: Layout
    text: str

    def key(self) -> str:
        folder = folder_or_current(self.layout, self.text)
        if (written := written_at(folder)) is None:
            raise ValueError(f"{folder} is not the folder of a model: it has no model.safetensors")
        return f"{folder} {written}"

    def found(self) -> Found:
        folder = folder_or_current(self.layout, self.text)
        record = read_record(folder) or {}
        version = f"{record['stage']} {record['fingerprint']}" if record else folder.name
        return found_in(folder, self.key(), version)


@dataclass(slots=True)
class Registered:
    """An alias or a version of a registered model."""

    layout: Layout
    name: str
    alias: str

    def key(self) -> str:
        return f"{self.name} {self._version().version}"

    def exists(self) -> bool:
        from pipeline.tracking.served_versions import is_registered

        return is_registered(self.layout, self.name)

    def found(self) -> Found:
        from pipeline.tracking.registry import KIND
        from pipeline.tracking.served_versions import downloaded

        version = self._version()
        shown = f"{self.name} {version.version}"
        if (own := _in_store(self.layout, version.tags)) is not None:
            return found_in(own, shown, shown)
        folder = tempfile.TemporaryDirectory(prefix="gristmill-served-")
        try:
            there = downloaded(self.layout, version, folder.name)
            return found_in(there, shown, shown, version.tags.get(KIND, ""), folder.cleanup)
        except BaseException:
            folder.cleanup()
            raise

    def _version(self) -> Any:
        from pipeline.tracking.served_versions import version_of

        return version_of(self.layout, self.name, self.alias)


def _in_store(layout: Layout, tags: Any) -> Path | None:
    """The output that was registered, if it was not removed."""
    from pipeline.tracking.registry import FINGERPRINT

    found = layout.store.glob(f"*/{tags.get(FINGERPRINT) or '-'}/{RECORD}")
    return next((path.parent for path in found), None)


def found_in(folder: Path, key: str, version: str, task: str = "", cleanup: Any = lambda: None) -> Found:
    """What a folder contains. `task`: the kind of task, if it is known without its record."""
    kind = _task_kind(folder, task)
    if kind is None:
        return Found(key=key, folder=folder, version=version, cleanup=cleanup)
    from pipeline.tasks.kinds import KINDS

    return Found(
        key=key,
        folder=folder,
        version=version,
        kind=kind.name,
        command=KINDS[kind.name].command,
        predictor=kind.predictor,
        writes_text=kind.makes_bases,
        cleanup=cleanup,
    )


def _task_kind(folder: Path, task: str) -> Any:
    """None for a model that was made for no task."""
    from model.network.registry import read_config

    record = read_record(folder) or {}
    if task:
        return kind_named(task)
    if record:
        return None if record["stage"] in MODELS else kind_of(record)
    description, _ = read_config(folder)
    if description["kind"] == "decoder" and "prompt" in description:
        return kind_named("prompting")
    if description["kind"] == "decoder" and "documents" in description:
        return kind_named("documents")
    if description.get("problem") == "multi_label":
        return kind_named("multi_label_classification")
    return kind_named(BY_HEAD[description["kind"]]) if description["kind"] in BY_HEAD else None
