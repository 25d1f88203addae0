"""Registers models in MLflow: one version per fine-tuned model, and the alias `champion` for the best one.

In: a registration event from an evaluation's journal. Out: a version of `gristmill-<task>`, created once per
fingerprint from the LoggedModel of the training (logged_models.py), to which code and signature are added
(packaging.py).

The new version becomes the champion if there is none, or if the deciding metric of its kind of task is at least as
good as that of the current champion on the same test examples. A champion that was evaluated on other examples is
evaluated again, on those of the new test examples that it was not trained on; the new model is then judged on the
same ones. A champion that cannot answer them, that has seen nearly all of them, or of which nobody knows what it has
seen, is replaced. The version's tag `gristmill.compared` says what was decided, and why.
"""

import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.corpus.examples.stage import read_examples
from pipeline.evaluation.task import MODEL, Judged
from pipeline.serving.generate import predictor_in
from pipeline.store.layout import Layout
from pipeline.store.records import Checkpoint, Shards
from pipeline.store.store import RECORD, read_record
from pipeline.tasks.kind import Kind, kind_named, kind_of
from pipeline.tracking.journal import Journal
from pipeline.tracking.logged_models import CHAMPION, model_id_of, new_version, registered_models, versions_of
from pipeline.tracking.names import original_name
from pipeline.tracking.packaging import SEEN_IDS, artifacts_of, imports_repository, log_model
from pipeline.tracking.refusals import AWAY, LOGIN, failure_of, reason_of
from pipeline.tracking.server import has_database, is_local, new_client, unreachable

PREFIX = "gristmill-"
FINGERPRINT, EXAMPLES, SCORE = "gristmill.fingerprint", "gristmill.examples", "gristmill."
COMPARED, KIND = "gristmill.compared", "gristmill.kind"
NO_ARTIFACT = "No such artifact"  # MLflow's words for files that were removed
FEWEST_UNSEEN = 10  # test examples on which two models can be compared
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
            "stage": self.model.stage,
            "examples": self.examples.digest,
            "examples_fingerprint": self.examples.fingerprint,
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """The champion's score and the new model's on the same examples; None if they cannot be compared."""

    scores: tuple[float, float] | None
    why: str


def register(client: Any, layout: Layout, run_id: str, event: Mapping[str, Any]) -> None:
    """Create the version and move the alias, unless that has been done before.

    The version belongs to the run that trained the model, or to `run_id` if the server does not have that run.
    """
    name = f"{PREFIX}{event['task']}"
    trained_by = Journal(layout, event["fingerprint"]).state().get("run_id") or run_id
    new = _version_of(client, name, event["fingerprint"]) or _new_version(client, layout, name, trained_by, event)
    champion = _champion(client, name)
    if champion is not None and champion.version != new.version:
        _, higher = kind_named(event["kind"]).decides
        found = _compared(client, layout, champion, new, event)
        client.set_model_version_tag(name, new.version, COMPARED, found.why)
        if found.scores is None:
            log.warning("%s %s is replaced: %s", name, champion.version, found.why)
        elif (found.scores[1] < found.scores[0]) if higher else (found.scores[1] > found.scores[0]):
            return
    client.set_registered_model_alias(name, CHAMPION, new.version)


def registered_names(layout: Layout) -> dict[str, list[str]]:
    """Fingerprint of a model -> its names in the registry, for instance "gristmill-sarcasm 3 (champion)"."""
    names: dict[str, list[str]] = {}
    for model, one in registered_versions(layout):
        aliases = sorted(alias for alias, number in model.aliases.items() if str(number) == str(one.version))
        name = f"{model.name} {one.version}" + (f" ({', '.join(aliases)})" if aliases else "")
        names.setdefault(one.tags.get(FINGERPRINT, ""), []).append(name)
    return names


def registered_versions(layout: Layout) -> list[tuple[Any, Any]]:
    """Every registered model with each of its versions. Raises OSError when the server cannot be asked."""
    if not has_database(layout):
        return []
    try:
        client = new_client(layout)
        return [(one, version) for one in registered_models(client) for version in versions_of(client, one.name)]
    except Exception as error:
        raise unreachable(layout, error) from error


def outdated_champions(layout: Layout) -> Iterator[Outdated]:
    """Champions that depend on the modules of this repository."""
    client = new_client(layout)
    for model in registered_models(client):
        if model.name.startswith(PREFIX) and (champion := _champion(client, model.name)) is not None:
            with tempfile.TemporaryDirectory() as folder:
                there, flavor = artifacts_of(client, layout, model.name, champion.version, folder)
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
        "stage": found[0].parent.name,
        "examples": old.tags.get(EXAMPLES, ""),
        "examples_fingerprint": made_from,
        "report": old.description or "",
        "metrics": {
            original_name(key.removeprefix(SCORE)): float(value) for key, value in old.tags.items() if _is_score(key)
        },
    }
    new = _new_version(client, layout, outdated.name, old.run_id, event)
    client.set_registered_model_alias(outdated.name, CHAMPION, new.version)
    return str(new.version)


def _is_score(key: str) -> bool:
    return key.startswith(SCORE) and key not in (FINGERPRINT, EXAMPLES, COMPARED, KIND)


def _version_of(client: Any, name: str, fingerprint: str) -> Any | None:
    """The newest version of a fingerprint; there are two if the doctor registered one again."""
    return next((one for one in versions_of(client, name) if one.tags.get(FINGERPRINT) == fingerprint), None)


def _champion(client: Any, name: str) -> Any | None:
    number = client.get_registered_model(name).aliases.get(CHAMPION)
    return None if number is None else client.get_model_version(name, number)


def _compared(client: Any, layout: Layout, champion: Any, new: Any, event: Mapping[str, Any]) -> Comparison:
    """The deciding metric of the champion and of the new model, on test examples that neither was trained on."""
    kind = kind_named(event["kind"])
    metric, _ = kind.decides
    name, own = f"version {champion.version}", float(event["metrics"][metric])
    if champion.tags.get(EXAMPLES) == event["examples"] and (score := champion.tags.get(f"{SCORE}{metric}")):
        return Comparison(scores=(float(score), own), why=f"{metric} of {name}: {score}, on the same examples")
    rows = read_examples(_examples_of(layout, event), "test").to_pylist()
    try:
        with tempfile.TemporaryDirectory() as folder:
            there, flavor = artifacts_of(client, layout, champion.name, champion.version, folder)
            model = predictor_in(kind.predictor, there / flavor["artifacts"]["model"]["path"])
            seen = _seen_by(layout, champion, there)
            if seen is None:
                return Comparison(scores=None, why=f"it is unknown which examples {name} was trained on")
            unseen = [row for row in rows if row["id"] not in seen]
            share = f"{len(unseen):,} of the {len(rows):,} test examples, which {name} was not trained on"
            if len(unseen) < min(FEWEST_UNSEEN, len(rows)):
                return Comparison(scores=None, why=f"only {share}, are too few for a comparison")
            theirs = _score(kind, model, unseen)
        if len(unseen) < len(rows):
            own = _score(kind, predictor_in(kind.predictor, _model_of(layout, event)), unseen)
    except Exception as error:
        if failure_of(error) in (AWAY, LOGIN) and not (is_local(layout) or NO_ARTIFACT in str(error)):
            raise
        return Comparison(scores=None, why=f"{name} cannot be judged on the examples: {reason_of(error)}")
    return Comparison(
        scores=(theirs, own), why=f"{metric} of {name}: {theirs:.4f}, of this one: {own:.4f}, on {share}"
    )


def _score(kind: Kind, model: Any, rows: Sequence[Mapping[str, Any]]) -> float:
    """The deciding metric of a model on some examples."""
    results = kind.results(Judged(model.description, rows, {MODEL: kind.answers(model, rows)}), seed=0)
    return next(float(result["value"]) for result in results if result["metric"] == kind.decides[0])


def _seen_by(layout: Layout, champion: Any, package: Path) -> Collection[str] | None:
    """Ids of the examples that a registered model was trained or selected on; None if nobody knows."""
    if (listed := package / SEEN_IDS).exists():
        return set(listed.read_text("utf-8").split())
    for path in layout.store.glob(f"*/{champion.tags.get(FINGERPRINT) or '-'}/{RECORD}"):
        for one in (read_record(path.parent) or {"inputs": []})["inputs"]:
            folder = layout.store / "examples" / one["fingerprint"]
            if one["stage"] == "examples" and (folder / RECORD).exists():
                return seen_ids(folder)
    return None


def seen_ids(examples: Path) -> set[str]:
    """Ids of the examples that are not in the test split."""
    return {row for split in ("train", "validation") for row in read_examples(examples, split)["id"].to_pylist()}


def _model_of(layout: Layout, event: Mapping[str, Any]) -> Path:
    return layout.store / event["stage"] / event["fingerprint"]


def _examples_of(layout: Layout, event: Mapping[str, Any]) -> Path:
    return layout.store / "examples" / event["examples_fingerprint"]


def _new_version(client: Any, layout: Layout, name: str, run_id: str, event: Mapping[str, Any]) -> Any:
    for folder in (_model_of(layout, event), _examples_of(layout, event)):
        if not (folder / RECORD).exists():
            raise ValueError(f"{folder} was removed before {name} could be registered; run the task again")
    model_id = model_id_of(layout, event["fingerprint"]) or ""
    seen = seen_ids(_examples_of(layout, event))
    logged = log_model(client, run_id, name, kind_named(event["kind"]), _model_of(layout, event), seen, model_id)
    scores = {f"{SCORE}{metric}": str(value) for metric, value in event["metrics"].items()}
    tags = {FINGERPRINT: event["fingerprint"], EXAMPLES: event["examples"], KIND: event["kind"], **scores}
    return new_version(client, layout, name, logged, tags, event["report"], run_id)
