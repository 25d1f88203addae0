"""Creates the LoggedModels of MLflow: the model of a training, and its checkpoints.

In: the run of a training, and events from its journal. Out: one LoggedModel per training, named as its run, which is
READY with the weights in it once the training has finished and FAILED when it ended otherwise; and one per checkpoint
on disk, `<name>-step-<step>`, with its validation values, path and hash. When a checkpoint is removed from disk, its
LoggedModel is deleted. Each is created once: the journal records its id, and a model whose id was lost is found by
its tags.

An evaluated foundation model becomes a version of the registered model `gristmill-<asset>`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.serving.language_models import TextEmbedder, TextWriter
from pipeline.serving.predictor import Predictor
from pipeline.store.layout import Layout
from pipeline.store.record_file import RECORD
from pipeline.tracking.experiments import DESCRIPTION
from pipeline.tracking.journal import FINISHED, RUNNING, Journal
from pipeline.tracking.names import LONGEST_DESCRIPTION, LONGEST_PARAM, LONGEST_TAG, accepted_values, cut_value
from pipeline.tracking.refusals import is_missing
from pipeline.tracking.server import is_local

FINGERPRINT, STEP = "gristmill.fingerprint", "gristmill.step"
PATH, SHA256 = "gristmill.path", "gristmill.sha256"
CHAMPION = "champion"  # the alias of the version that is served
FINAL = "final"  # value of STEP for the finished model
VERSIONS = "mlflow.modelVersions"  # the tag from which the page of a LoggedModel shows that it is registered
Event = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class OfNoTask:
    """What is packaged in place of a kind of task."""

    predictor: type[Predictor]


class RunModels:
    """The LoggedModels of one run, each by the step of its checkpoint or as FINAL."""

    def __init__(self, client: Any, layout: Layout, journal: Journal, run: Any):
        self.client = client
        self.layout = layout
        self.journal = journal
        self.run_id = run.info.run_id
        self.experiment_id = run.info.experiment_id
        self.name = run.info.run_name
        outputs = run.outputs.model_outputs if run.outputs else []
        self.outputs = {one.model_id for one in outputs}

    def begin(self, start: Mapping[str, Any]) -> None:
        """Create the model, or mark it as pending again if an earlier process failed. `start`: see Tracker."""
        tags = {key: value for key, value in start["tags"].items() if key.startswith("mlflow.")}
        model = self._made(FINAL, self.name, start["params"], tags | {DESCRIPTION: start["description"]})
        if self.journal.state()["status"] == RUNNING and str(model.status) != "PENDING":
            self._finalize(model.model_id, "PENDING")

    def end(self, status: str) -> None:
        if (model := self.get(FINAL)) is not None:
            self._finalize(model.model_id, "READY" if status == FINISHED else "FAILED")

    def checkpoint(self, event: Event) -> str:
        """Id of the LoggedModel for a checkpoint event. LoggedModels of checkpoints without a folder are deleted."""
        step = str(event["step"])
        tags = {PATH: event["path"], SHA256: event["sha256"]}
        model = self._made(step, f"{self.name}-step-{step}", {"step": step}, tags)
        self._finalize(model.model_id, "READY")
        for old, model_id in self._ids().items():
            if old not in (FINAL, step) and not self._is_on_disk(model_id):
                self._forget(old, model_id)
        return model.model_id

    def get(self, step: str) -> Any | None:
        if step in self._ids():
            try:
                return self.client.get_logged_model(self._ids()[step])
            except Exception as error:
                if not is_missing(error):  # otherwise it was deleted, or the database was replaced
                    raise
        fingerprint = self.journal.fingerprint
        found = self.client.search_logged_models(
            [self.experiment_id],
            f"tags.`{FINGERPRINT}` = '{fingerprint}' AND tags.`{STEP}` = '{step}'",
            max_results=1,
        )
        for model in found:
            self._note(step, model)
            return model
        return None

    def _made(self, step: str, name: str, params: Mapping[str, str], tags: Mapping[str, str]) -> Any:
        from mlflow.entities import LoggedModelOutput

        model = self.get(step)
        if model is None:
            tags = {FINGERPRINT: self.journal.fingerprint, STEP: step, **tags}
            kind = None if step == FINAL else "checkpoint"
            model = self.client.create_logged_model(
                self.experiment_id,
                name,
                self.run_id,
                accepted_values(tags, LONGEST_TAG),
                accepted_values(params, LONGEST_PARAM),
                kind,
            )
            self._note(step, model)
        if model.model_id not in self.outputs:
            at_step = 0 if step == FINAL else int(step)
            self.client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, at_step)])
            self.outputs.add(model.model_id)
        return model

    def _ids(self) -> dict[str, str]:
        return self.journal.state().get("models", {})

    def _note(self, step: str, model: Any) -> None:
        self.journal.update(models=self._ids() | {step: model.model_id})

    def _forget(self, step: str, model_id: str) -> None:
        self.client.delete_logged_model(model_id)
        self.journal.update(models={key: value for key, value in self._ids().items() if key != step})

    def _is_on_disk(self, model_id: str) -> bool:
        return (self.layout.data / self.client.get_logged_model(model_id).tags[PATH]).exists()

    def _finalize(self, model_id: str, status: str) -> None:
        from mlflow.entities import LoggedModelStatus

        self.client.finalize_logged_model(model_id, LoggedModelStatus(status))


def model_id_of(layout: Layout, fingerprint: str) -> str | None:
    """LoggedModel of a training; None if none was created or the server has not answered yet."""
    return Journal(layout, fingerprint).state().get("models", {}).get(FINAL)


def publish(client: Any, layout: Layout, model_id: str, event: Event) -> None:
    """Register the LoggedModel of a training as a version of a registered model, unless it is one.

    With its output in the store it can be served: it gets its code, and the alias champion, as the newest one that
    was evaluated. Models of models.toml are not compared.
    """
    name = event["name"]
    if any(one.tags.get(FINGERPRINT) == event["model"] for one in versions_of(client, name)):
        return
    tags = {FINGERPRINT: event["model"], **event["tags"]}
    logged = client.get_logged_model(model_id)
    is_packaged = package_language_model(client, layout, logged, event["model"])
    version = new_version(client, layout, name, logged, tags, event["description"])
    if is_packaged:
        client.set_registered_model_alias(name, CHAMPION, version.version)


def package_language_model(client: Any, layout: Layout, logged: Any, fingerprint: str) -> bool:
    """Add the code with which MLflow serves a model of models.toml. Returns whether its folder was there."""
    from model.network.registry import BASES, read_config
    from pipeline.tracking.packaging import log_model

    folder = next((path.parent for path in layout.store.glob(f"*/{fingerprint}/{RECORD}")), None)
    if folder is None:
        return False
    kind = read_config(folder, *BASES)[0]["kind"]
    packaged = OfNoTask(TextWriter if kind == "decoder" else TextEmbedder)
    log_model(client, logged.source_run_id, logged.name, packaged, folder, (), logged.model_id)
    return True


def registered_models(client: Any) -> list[Any]:
    return _all_pages(client.search_registered_models)


def versions_of(client: Any, name: str) -> list[Any]:
    """All versions of a registered model, newest first; none if there is no such model."""
    versions = _all_pages(client.search_model_versions, filter_string=f"name='{name}'")
    return sorted(versions, key=lambda one: -int(one.version))


def _all_pages(search: Callable[..., Any], **arguments: str) -> list[Any]:
    found, page = [], None
    while page is None or page.token:
        page = search(page_token=page.token if page else None, **arguments)
        found += page
    return found


def new_version(
    client: Any, layout: Layout, name: str, model: Any, tags: Mapping[str, str], description: str, run_id: str = ""
) -> Any:
    """Register a LoggedModel as the next version of `name`, which is created if it does not exist.

    A local database would resolve the address models:/<id> by the tracking address of the process, which is not
    changed here, because other threads use it too.
    """
    if not client.search_registered_models(f"name='{name}'"):
        client.create_registered_model(name)
    version = client.create_model_version(
        name,
        model.artifact_location if is_local(layout) else model.model_uri,
        run_id or model.source_run_id,
        accepted_values(tags, LONGEST_TAG),
        description=cut_value(description, LONGEST_DESCRIPTION),
        model_id=model.model_id,
    )
    note_version(client, model.model_id, version)
    return version


def note_version(client: Any, model_id: str, version: Any) -> None:
    """Show the version on the page of the LoggedModel, as mlflow.register_model does."""
    tags = client.get_logged_model(model_id).tags
    noted = [*json.loads(tags.get(VERSIONS, "[]")), {"name": version.name, "version": int(version.version)}]
    client.set_logged_model_tags(model_id, {VERSIONS: json.dumps(noted)})
