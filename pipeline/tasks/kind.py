"""Defines the protocol `Kind`, which every kind of task implements in one file of this folder.

    labelled row -> Rows.row -> example -> Objective.encode, loss -> network -> Predictor.answer -> Judge.results

A kind combines the protocols of the folders that use it; they get it as an argument and import nothing from here:

- `Rows` (corpus/examples/stage.py): what a row of the labelled file contains, and which rows are invalid;
- `Objective` (training/finetune.py): tokens and batches, head, loss as a sum and a count, validation metrics;
- `Judge` (evaluation/task.py): baselines, metrics with intervals, report and figures;
- `Predictor` (serving/predictor.py): input and output columns with their types, and the answer to a row.

`Kind` itself adds the keys of its tables in tasks.toml, the metric that selects the champion, and the baseline that a
model must beat. To add a kind, write one file with a constant KIND and one line in kinds.py. The module of a kind is
loaded with the graph, so it imports heavy libraries such as torch where they are used.
"""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from pipeline.corpus.examples.data_files import Data
from pipeline.corpus.examples.protocol import ExamplesConfig, Rows
from pipeline.corpus.examples.stage import build_examples
from pipeline.evaluation.task import Judge, TaskEvaluationConfig
from pipeline.store.store import Built, Store
from pipeline.tasks.kinds import KINDS
from pipeline.training.finetune import FinetuneConfig, Objective


class Kind(Rows, Objective, Judge, Protocol):
    """A kind of task; the inherited protocols describe the arguments and results of its methods."""

    examples: type[ExamplesConfig]  # settings of <task>_examples, with the path of each part of a row
    finetune: type[FinetuneConfig]  # settings of <task>_model
    evaluation: type[TaskEvaluationConfig]  # settings of <task>_evaluation
    summary: str  # one sentence about the model, for its asset
    example: str  # a table of tasks.toml to paste
    keys: tuple[str, ...]  # of its tables in tasks.toml, besides those of every kind
    metrics: tuple[str, ...]  # in the results of its evaluation, for limits in [checks.<task>_evaluation]
    decides: tuple[str, bool]  # metric that selects the `champion`, and whether higher is better
    must_beat: tuple[str, str]  # metric and baseline of the check on the evaluation
    needs_decoder: bool = False  # whether its base must continue texts
    reads_documents: bool = False  # whether it answers from documents: its tables have an embedder and documents
    makes_bases: bool = False  # whether its models are language models, which other tasks may be based on

    def examples_of(self, table: Mapping[str, Any], where: str) -> dict[str, Any]:
        """Values of `examples` from those `keys` that the table has. Raises ValueError, which begins with `where`,
        for a wrong one."""
        del where
        return dict(table)

    def build_examples(
        self,
        store: Store,
        data: Data,
        cfg: ExamplesConfig,
        cache: Path,
        *,
        held_out: Mapping[str, Data] | None = None,
        denied: Path | None = None,
    ) -> Built:
        return build_examples(store, self, data, cfg, cache, held_out=held_out, denied=denied)


def kind_named(name: str) -> Kind:
    return importlib.import_module(KINDS[name].module).KIND


def kind_of(record: Mapping[str, Any]) -> Kind:
    """The kind of task that produced an output of `examples`, `finetune` or an evaluation."""
    variant = record.get("variant", "")
    found = [kind for kind in map(kind_named, KINDS) if kind.identity == variant]
    if not found:
        raise ValueError(
            f"`{record['stage']}` {record['fingerprint']} was built for the kind of task {variant!r}, which is"
            f" not known here; known are: {', '.join(KINDS)}"
        )
    return found[0]
