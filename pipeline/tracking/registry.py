"""Registered models: a version a fine-tuned model, and the alias `champion` on the best of them.

In: a registration event out of an evaluation's journal. Out: a version of `gristmill-<task>`, made once a
fingerprint, as a pyfunc "model from code" (pipeline/serving/pyfunc.py) with safetensors beside it.

The rule: the new version becomes champion when there is none, or when its macro-F1 is at least that of the present
champion on the same test examples. A champion that was judged on other examples is judged again on these.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipeline.corpus.examples.stage import labels_of, read_examples
from pipeline.evaluation.metrics import confusion_matrix, macro_f1_of
from pipeline.store.layout import Layout
from pipeline.store.records import Checkpoint, Shards
from pipeline.store.shards import link_or_copy
from pipeline.tracking.journal import Journal
from pipeline.tracking.server import chosen_server, new_client, tracking_uri

CHAMPION = "champion"
METRIC = "macro_f1"
LONGEST_CARD = 5000  # characters, a limit of MLflow's
FINGERPRINT, EXAMPLES = "gristmill.fingerprint", "gristmill.examples"
SERVED = ("model.safetensors", "config.json", "tokenizer")  # of a Checkpoint folder; not the optimiser's state
LIBRARIES = ("mlflow", "pandas", "safetensors", "tiktoken", "torch")
CODE = Path(__file__).parents[1] / "serving" / "pyfunc.py"


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A fine-tuned model that is judged on the test split of `examples`, to be registered for `task`."""

    task: str
    model: Checkpoint
    examples: Shards

    def event(self, results: Sequence[Mapping[str, Any]], report: str = "") -> dict[str, Any]:
        """What the journal says about it; `report` becomes the description of the version, its model card."""
        return {
            "task": self.task,
            "fingerprint": self.model.fingerprint,
            "directory": str(self.model.directory),
            "examples": self.examples.digest,
            "examples_directory": str(self.examples.directory),
            "report": report,
            "metrics": {result["metric"]: result["value"] for result in results},
        }


def register(client: Any, layout: Layout, run_id: str, event: Mapping[str, Any]) -> None:
    """Make the version and move the alias, where that has not been done before.

    The version belongs to the run that trained the model, or, while the server does not know that one, to `run_id`.
    """
    name = f"gristmill-{event['task']}"
    run_id = Journal(layout, event["fingerprint"]).state().get("run_id") or run_id
    new = _version_of(client, name, event["fingerprint"]) or _new_version(client, layout, name, run_id, event)
    champion = _champion(client, name)
    if champion is None or event["metrics"][METRIC] >= _score(layout, champion, event):
        client.set_registered_model_alias(name, CHAMPION, new.version)


def registered_names(layout: Layout) -> dict[str, list[str]]:
    """Fingerprint of a model -> its names in the registry, for instance "gristmill-sarcasm 3 (champion)"."""
    if tracking_uri(layout).startswith("sqlite:") and not (layout.mlflow / "mlflow.db").exists():
        return {}
    client = new_client(layout)
    names: dict[str, list[str]] = {}
    for model in client.search_registered_models():
        for one in client.search_model_versions(f"name='{model.name}'"):
            aliases = sorted(alias for alias, number in model.aliases.items() if str(number) == str(one.version))
            name = f"{model.name} {one.version}" + (f" ({', '.join(aliases)})" if aliases else "")
            names.setdefault(one.tags.get(FINGERPRINT, ""), []).append(name)
    return names


def _version_of(client: Any, name: str, fingerprint: str) -> Any | None:
    versions = client.search_model_versions(f"name='{name}'")
    return next((one for one in versions if one.tags.get(FINGERPRINT) == fingerprint), None)


def _champion(client: Any, name: str) -> Any | None:
    number = client.get_registered_model(name).aliases.get(CHAMPION)
    return None if number is None else client.get_model_version(name, number)


def _score(layout: Layout, champion: Any, event: Mapping[str, Any]) -> float:
    """Macro-F1 of the present champion on the examples of `event`."""
    if champion.tags.get(EXAMPLES) == event["examples"]:
        return float(champion.tags[f"gristmill.{METRIC}"])
    directory = Path(event["examples_directory"])
    rows = read_examples(directory, "test").to_pandas()
    with chosen_server(layout) as mlflow:
        answers = mlflow.pyfunc.load_model(f"models:/{champion.name}/{champion.version}").predict(rows[["text"]])
    labels = sorted({*labels_of(directory), *answers["label"]})
    return float(macro_f1_of(confusion_matrix(list(rows["label"]), list(answers["label"]), labels)))


def _new_version(client: Any, layout: Layout, name: str, run_id: str, event: Mapping[str, Any]) -> Any:
    before = client.get_run(run_id).info
    try:
        with chosen_server(layout) as mlflow, mlflow.start_run(run_id=run_id):
            info = _log_model(mlflow, name, event)
    finally:  # start_run has opened it again
        client.set_terminated(run_id, before.status, before.end_time or None)
    if not client.search_registered_models(f"name='{name}'"):
        client.create_registered_model(name)
    scores = {f"gristmill.{metric}": str(value) for metric, value in event["metrics"].items()}
    tags = {FINGERPRINT: event["fingerprint"], EXAMPLES: event["examples"], **scores}
    with chosen_server(layout):  # resolves the model's address
        return client.create_model_version(
            name, info.model_uri, run_id, tags, description=event["report"][:LONGEST_CARD], model_id=info.model_id
        )


def _log_model(mlflow: Any, name: str, event: Mapping[str, Any]) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    signature = ModelSignature(
        inputs=Schema([ColSpec("string", "text")]),
        outputs=Schema([ColSpec("string", "label"), ColSpec("double", "probability")]),
    )
    rows = read_examples(Path(event["examples_directory"]), "test").slice(0, 2)
    with tempfile.TemporaryDirectory() as folder:
        _link_served(Path(event["directory"]), Path(folder))
        return mlflow.pyfunc.log_model(
            name=name,
            python_model=str(CODE),
            artifacts={"model": folder},
            signature=signature,
            input_example=rows.select(["text"]).to_pandas(),
            pip_requirements=[f"{library}=={version(library)}" for library in LIBRARIES],  # else it is loaded to see
        )


def _link_served(model: Path, folder: Path) -> None:
    for name in SERVED:
        for path in sorted((model / name).iterdir()) if (model / name).is_dir() else [model / name]:
            link_or_copy(path, folder / path.relative_to(model))
