"""Creates the experiments of MLflow: one per group of assets, each with a description.

In: the name of a group. Out: the id of its experiment, which is created when it is first needed, and restored when
somebody has deleted it: MLflow keeps the name of a deleted experiment, so no other can have it. The empty experiment
"Default" that MLflow creates with every database is archived then.
"""

import logging
from contextlib import suppress
from typing import Any

from pipeline.store.layout import Layout
from pipeline.tracking.server import is_local

DESCRIPTION = (
    "mlflow.note.content"  # the tag that MLflow shows as the description of a run or experiment, as Markdown
)
DESCRIPTIONS = {
    "corpus": "Data cards of the corpus: content, origin, and what was removed. One run per card.",
    "base_models": "Models made elsewhere that were imported, with their origin, licence and sha256. One run per"
    " model.",
    "pretraining": "The models of models.toml that were trained here on token shards. One run per model; the models"
    " and their checkpoints are under **Models**, with the validation loss of each.",
    "fine_tuning": "Models that were fine-tuned for the tasks of tasks.toml. One run per model.",
    "evaluation": "Models evaluated on held-out data and compared with baselines. One run per evaluation; the pages"
    " of the models show the scores, too.",
}
log = logging.getLogger(__name__)
DEFAULT = "0"  # id of the experiment that MLflow creates


def experiment_id_of(client: Any, layout: Layout, name: str) -> str:
    if experiment := client.get_experiment_by_name(name):
        restore_experiment(client, experiment.experiment_id)
        if DESCRIPTION not in experiment.tags and name in DESCRIPTIONS:
            client.set_experiment_tag(experiment.experiment_id, DESCRIPTION, DESCRIPTIONS[name])
        return experiment.experiment_id
    _archive_default(client)
    folder = layout.mlflow / "artifacts" / name
    return client.create_experiment(
        name,
        artifact_location=folder.as_uri() if is_local(layout) else None,
        tags={DESCRIPTION: DESCRIPTIONS[name]} if name in DESCRIPTIONS else None,
    )


def restore_experiment(client: Any, experiment_id: str) -> None:
    """Restore the experiment, with its runs and models, if somebody has deleted it."""
    experiment = client.get_experiment(experiment_id)
    if experiment.lifecycle_stage != "active":
        client.restore_experiment(experiment_id)
        log.warning(
            "the experiment %r was deleted in MLflow; it was restored with its runs, because a new build belongs to"
            " it. Runs that nobody needs can be deleted one by one",
            experiment.name,
        )


def _archive_default(client: Any) -> None:
    from mlflow.entities import ViewType
    from mlflow.exceptions import MlflowException

    with suppress(MlflowException):  # a server that has none, or does not permit it
        default = client.get_experiment(DEFAULT)
        unused = not client.search_runs([DEFAULT], run_view_type=ViewType.ALL, max_results=1)
        if default.name == "Default" and default.lifecycle_stage == "active" and unused:
            client.delete_experiment(DEFAULT)
