"""Kinds of task: what a model can be fine-tuned for. A kind is one file of this room that implements `Kind`.

    labelled row -> Rows.row -> example -> Objective.encode, loss -> network -> Predictor.answer -> Judge.results

A kind is made of the protocols of the rooms that use it, which import nothing of this one and get it handed in:

- `Rows` (corpus/examples/stage.py): what a row of the labelled file holds, and what makes it a bad one;
- `Objective` (training/finetune.py): tokens and batches, head, loss as a sum and a count, values of validation;
- `Judge` (evaluation/task.py): baselines, metrics with intervals, report and figures;
- `Predictor` (serving/predictor.py): input and output columns with their types, and the answer to a row.

What is added here says how a task of the kind is written down, which metric decides which model is the champion, and
which baseline it has to beat. To add a kind: one file with a constant KIND, one line in kinds.py. A kind's module is
loaded with the graph, so it imports torch and the like where they are used.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pipeline.corpus.collect.source import Source
from pipeline.corpus.examples.stage import ExamplesConfig, LabelledFile, Rows, build_examples
from pipeline.evaluation.task import Judge, TaskEvaluationConfig
from pipeline.store.store import Built, Store
from pipeline.tasks.kinds import KINDS
from pipeline.training.finetune import FinetuneConfig, Objective


class Kind(Rows, Objective, Judge, Protocol):
    """A kind of task; the inherited protocols say what its methods get and return."""

    examples: type[ExamplesConfig]  # settings of <task>_examples, with the path of each part of a row
    finetune: type[FinetuneConfig]  # settings of <task>_model
    evaluation: type[TaskEvaluationConfig]  # settings of <task>_evaluation
    summary: str  # of the model, one sentence for its asset
    keys: tuple[str, ...]  # of the table in tasks.toml, beside those of every kind
    decides: tuple[str, bool]  # metric that moves the alias `champion`, and whether higher is better
    must_beat: tuple[str, str]  # metric and baseline of the check on the evaluation

    def examples_of(self, table: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Values of `examples` from those `keys` that the table has. ValueError, which begins with `where`, for a bad
        one."""
        del where
        return dict(table)

    def build_examples(
        self,
        store: Store,
        data: Source | LabelledFile,
        cfg: ExamplesConfig,
        cache: Path,
        *,
        denied: Path | None = None,
    ) -> Built:
        return build_examples(store, self, data, cfg, cache, denied=denied)


def kind_named(name: str) -> Kind:
    return importlib.import_module(KINDS[name].module).KIND


def kind_of(record: Mapping[str, Any]) -> Kind:
    """The kind that an output of `examples`, `finetune` or an evaluation was made by."""
    variant = record.get("variant", "")
    found = [kind for kind in map(kind_named, KINDS) if kind.identity == variant]
    if not found:
        raise ValueError(
            f"`{record['stage']}` {record['fingerprint']} was made by the kind of task {variant!r}, which is"
            f" not known here; known are: {', '.join(KINDS)}"
        )
    return found[0]
