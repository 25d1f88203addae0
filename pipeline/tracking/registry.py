"""Registers models in MLflow: one version per fine-tuned model, and the alias `champion` for the best one.

In: a registration event from an evaluation's journal. Out: a version of `gristmill-<task>`, created once per
fingerprint from the LoggedModel of the training (logged_models.py), to which code and signature are added
(packaging.py).

The new version becomes the champion if there is none, or if the deciding metric of its kind of task is at least as
good as that of the current champion on the same test examples. A champion that was evaluated on other examples is
evaluated again on these; one that cannot answer them is replaced.
"""

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.corpus.examples.stage import read_examples
from pipeline.evaluation.task import MODEL, Judged
from pipeline.serving.generate import predictor_in
from pipeline.store.layout import Layout
from pipeline.store.records import Checkpoint, Shards
from pipeline.store.store import RECORD, read_record
from pipeline.tasks.kind import kind_named, kind_of
from pipeline.tracking.journal import Journal
from pipeline.tracking.logged_models import model_id_of, note_version
from pipeline.tracking.packaging import artifacts_of, imports_repository, log_model
from pipeline.tracking.server import chosen_server, has_database, new_client

PREFIX, CHAMPION = "gristmill-", "champion"
LONGEST_CARD = 5000  # characters, MLflow's limit
FINGERPRINT, EXAMPLES, SCORE = "gristmill.fingerprint", "gristmill.examples", "gristmill."
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A fine-tuned model that was evaluated on the test split of `examples`, to be registered for `task`."""

    task: str
    kind: str  # name of the kind of task
    model: Checkpoint
    examples: Shards

    def event(self, results: Sequence[Mapping[str, Any]], report: str = "") -> dict[str, Any]:
        """The event for the journal; `report` becomes the description of the version, its model card."""
        return {
            "task": self.task,
            "kind": self.kind,
            "fingerprint": self.model.fingerprint,
            "directory": str(self.model.directory),
            "examples": self.examples.digest,
            "examples_directory": str(self.examples.directory),
            "report": report,
            "metrics": {result["metric"]: result["value"] for result in results},
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Outdated:
    """A champion whose code imports modules of this repository, so that it breaks when they move."""

    name: str
    version: Any  # MLflow's object

    @property
    def fingerprint(self) -> str:
        return self.version.tags.get(FINGERPRINT, "")


def register(client: Any, layout: Layout, run_id: str, event: Mapping[str, Any]) -> None:
    """Create the version and move the alias, unless that has been done before.

    The version belongs to the run that trained the model, or to `run_id` if the server does not have that run.
    """
    name = f"{PREFIX}{event['task']}"
    trained_by = Journal(layout, event["fingerprint"]).state().get("run_id") or run_id
    new = _version_of(client, name, event["fingerprint"]) or _new_version(client, layout, name, trained_by, event)
    champion = _champion(client, name)
    metric, higher = kind_named(event["kind"]).decides
    if champion is not None and champion.version != new.version:
        score = _score(layout, champion, event)
        if score is not None and (event["metrics"][metric] < score if higher else event["metrics"][metric] > score):
            return
    client.set_registered_model_alias(name, CHAMPION, new.version)


def registered_names(layout: Layout) -> dict[str, list[str]]:
    """Fingerprint of a model -> its names in the registry, for instance "gristmill-sarcasm 3 (champion)"."""
    if not has_database(layout):
        return {}
    client = new_client(layout)
    names: dict[str, list[str]] = {}
    for model in client.search_registered_models():
        for one in client.search_model_versions(f"name='{model.name}'"):
            aliases = sorted(alias for alias, number in model.aliases.items() if str(number) == str(one.version))
            name = f"{model.name} {one.version}" + (f" ({', '.join(aliases)})" if aliases else "")
            names.setdefault(one.tags.get(FINGERPRINT, ""), []).append(name)
    return names


def outdated_champions(layout: Layout) -> Iterator[Outdated]:
    """Champions that depend on the modules of this repository."""
    client = new_client(layout)
    for model in client.search_registered_models():
        if model.name.startswith(PREFIX) and (champion := _champion(client, model.name)) is not None:
            with chosen_server(layout) as mlflow, tempfile.TemporaryDirectory() as folder:
                there, flavor = artifacts_of(mlflow, model.name, champion.version, folder)
                code = there / (flavor.get("model_code_path") or "")
                if code.is_file() and imports_repository(code.read_text("utf-8")):
                    yield Outdated(name=model.name, version=champion)


def register_again(layout: Layout, outdated: Outdated) -> str:
    """Register a new champion from the folder in the store. Raises ValueError when the folder was removed."""
    client, old = new_client(layout), outdated.version
    found = [path.parent for path in layout.store.glob(f"*/{outdated.fingerprint or '-'}/{RECORD}")]
    if not found:
        raise ValueError("its folder in the store was removed; train the task again")
    record = read_record(found[0]) or {}
    (made_from,) = (one["fingerprint"] for one in record["inputs"] if one["stage"] == "examples")
    event = {
        "task": outdated.name.removeprefix(PREFIX),
        "kind": kind_of(record).name,
        "fingerprint": outdated.fingerprint,
        "directory": str(found[0]),
        "examples": old.tags.get(EXAMPLES, ""),
        "examples_directory": str(layout.store / "examples" / made_from),
        "report": old.description or "",
        "metrics": {key.removeprefix(SCORE): float(value) for key, value in old.tags.items() if _is_score(key)},
    }
    new = _new_version(client, layout, outdated.name, old.run_id, event)
    client.set_registered_model_alias(outdated.name, CHAMPION, new.version)
    return str(new.version)


def _is_score(key: str) -> bool:
    return key.startswith(SCORE) and key not in (FINGERPRINT, EXAMPLES)


def _version_of(client: Any, name: str, fingerprint: str) -> Any | None:
    """The newest version of a fingerprint; there are two if the doctor registered one again."""
    versions = client.search_model_versions(f"name='{name}'")
    same = [one for one in versions if one.tags.get(FINGERPRINT) == fingerprint]
    return max(same, key=lambda one: int(one.version), default=None)


def _champion(client: Any, name: str) -> Any | None:
    number = client.get_registered_model(name).aliases.get(CHAMPION)
    return None if number is None else client.get_model_version(name, number)


def _score(layout: Layout, champion: Any, event: Mapping[str, Any]) -> float | None:
    """The deciding metric of the current champion on the examples of `event`; None if it cannot answer them."""
    kind = kind_named(event["kind"])
    metric, _ = kind.decides
    if champion.tags.get(EXAMPLES) == event["examples"] and (score := champion.tags.get(f"{SCORE}{metric}")):
        return float(score)
    rows = read_examples(Path(event["examples_directory"]), "test")
    try:
        with chosen_server(layout) as mlflow, tempfile.TemporaryDirectory() as folder:
            there, flavor = artifacts_of(mlflow, champion.name, champion.version, folder)
            model = predictor_in(kind.predictor, there / flavor["artifacts"]["model"]["path"])
            answers = {MODEL: model.answer(rows.select(list(kind.predictor.inputs)).to_pylist())}
        results = kind.results(Judged(model.description, rows.to_pylist(), answers), seed=0)
    except ValueError as error:
        log.warning("%s %s is replaced: %s", champion.name, champion.version, error)
        return None
    return next(result["value"] for result in results if result["metric"] == metric)


@contextmanager
def _active(mlflow: Any, client: Any, run_id: str | None) -> Iterator[None]:
    """Within the block new LoggedModels belong to a run, whose state is restored at the end."""
    if run_id is None:
        yield
        return
    before = client.get_run(run_id).info
    try:
        with mlflow.start_run(run_id=run_id):
            yield
    finally:  # start_run has reopened it
        client.set_terminated(run_id, before.status, before.end_time or None)


def _new_version(client: Any, layout: Layout, name: str, run_id: str, event: Mapping[str, Any]) -> Any:
    kind, model_id = kind_named(event["kind"]), model_id_of(layout, event["fingerprint"])
    directories = Path(event["directory"]), Path(event["examples_directory"])
    with chosen_server(layout) as mlflow, _active(mlflow, client, None if model_id else run_id):
        info = log_model(mlflow, name, kind, *directories, model_id)
    if not client.search_registered_models(f"name='{name}'"):
        client.create_registered_model(name)
    scores = {f"{SCORE}{metric}": str(value) for metric, value in event["metrics"].items()}
    tags = {FINGERPRINT: event["fingerprint"], EXAMPLES: event["examples"], **scores}
    with chosen_server(layout):  # resolves the model's address
        version = client.create_model_version(
            name, info.model_uri, run_id, tags, description=event["report"][:LONGEST_CARD], model_id=info.model_id
        )
    note_version(client, info.model_id, version)
    return version
