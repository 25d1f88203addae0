"""Evaluates a fine-tuned model and its baselines on held-out examples: the stage `evaluate_task`.

In: the model, the same network trained from random weights if it was trained, the examples, and the pretraining
corpus if it is searched for examples. Out: a Report folder: results.json (one entry per metric, with 95 % interval
and baselines), report.md and figures/*.png. The kind of task defines the metrics (`Judge`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import pyarrow as pa

from pipeline.corpus.examples.leaks import occurring
from pipeline.corpus.examples.stage import read_examples
from pipeline.evaluation.results import Evaluation, Result, written
from pipeline.serving.generate import predictor_in
from pipeline.serving.predictor import Predictor
from pipeline.store.records import Checkpoint, Handle, Report, Shards
from pipeline.store.settings import Natural, check_values
from pipeline.store.shards import read_table, shard_paths
from pipeline.store.store import DEVICE, NOT_IDENTITY, Outcome, Stage, Work

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEEN = "examples_seen_in_pretraining"  # measure: evaluated examples whose words occur in the pretraining text
MODEL, RANDOM_INIT = "model", "random_init"
Answer = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskEvaluationConfig:
    """How a fine-tuned model is evaluated."""

    split: Annotated[
        Literal["test", "validation"],
        "Split whose examples the model is evaluated on; the defaults were chosen on validation.",
    ] = "test"
    seed: Annotated[Natural, "Seed for the bootstrap resamples of the intervals."] = 0
    random_init: Annotated[
        bool,
        "Whether the same network is trained a second time from random weights, to show what pretraining is worth;"
        " this doubles the time of the fine-tuning.",
    ] = field(default=True, metadata=NOT_IDENTITY)  # the inputs differ: the second model is one of them

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, slots=True)
class Judged:
    """The answers of each model to the held-out examples, in their order."""

    description: Mapping[str, Any]  # config.json of the model
    examples: Sequence[Mapping[str, Any]]  # rows of examples.parquet: text, columns of the kind, ...
    answers: Mapping[str, Sequence[Answer]]  # "model" first, "random_init" if it was trained, then the baselines
    n_cut: int = 0  # examples with a text that is longer than the model reads


class Judge(Protocol):
    """How a kind of task evaluates a model."""

    name: str
    identity: str
    evaluation_version: int  # of the stage `evaluate_task` for this kind
    libraries: tuple[str, ...]  # distributions whose version affects an evaluation
    predictor: type[Predictor]

    def baselines(self, train: pa.Table, held_out: pa.Table) -> Mapping[str, Sequence[Answer]]:
        """Answers of the baselines that need no network, by name, to the rows of `held_out`."""
        ...

    def results(self, judged: Judged, seed: int) -> list[Result]:
        """Metrics of the model with 95 % intervals, each with the values of all others that answered.

        Raises ValueError when the model cannot answer some of the examples.
        """
        ...

    def details(self, judged: Judged) -> Mapping[str, float]:
        """Further numbers worth a plot over time, such as a metric per label."""
        ...

    def report(self, judged: Judged, cfg: TaskEvaluationConfig) -> str:
        """Markdown: tables, and the comparison of the model with its random baseline if there is one."""
        ...

    def figures(self, judged: Judged) -> "Mapping[str, Figure]":
        """Figures by file name without suffix."""
        ...


def evaluate_task(kind: Judge, cfg: TaskEvaluationConfig, inputs: tuple[Handle, ...], work: Work) -> Outcome:
    """The stage function. Inputs: the model's Checkpoint, that of its random baseline if any, the examples, and the
    pretraining corpus if it is to be searched for test examples."""
    models = [handle for handle in inputs if isinstance(handle, Checkpoint)]
    examples, *corpora = [handle for handle in inputs if isinstance(handle, Shards)]
    judged = judge(kind, cfg, models, examples, work)
    found = Evaluation(
        n_rows=len(judged.examples),
        results=kind.results(judged, cfg.seed),
        report=kind.report(judged, cfg) + cut_texts(judged),
        figures=kind.figures(judged),
    )
    measures = dict(kind.details(judged)) | {
        "n_cut": judged.n_cut,
        "cut_fraction": judged.n_cut / len(judged.examples),
    }
    if corpora:
        measures[SEEN] = len(occurring([row["text"] for row in judged.examples], training_texts(corpora[0])))
    return written(found, work.directory, **measures)


def judge(
    kind: Judge, cfg: TaskEvaluationConfig, models: Sequence[Checkpoint], examples: Shards, work: Work
) -> Judged:
    train, held_out = (read_examples(examples.directory, split) for split in ("train", cfg.split))
    inputs = held_out.select(list(kind.predictor.inputs)).to_pylist()
    answers: dict[str, Sequence[Answer]] = {}
    for number, (name, model) in enumerate(zip((MODEL, RANDOM_INIT), models, strict=False)):
        answers[name] = predictor_in(kind.predictor, model.directory).examine(inputs)
        work.progress(number + 1, len(models) + 2, "models")
    answers |= kind.baselines(train, held_out)
    work.progress(len(models) + 2, len(models) + 2, "models")
    model = predictor_in(kind.predictor, models[0].directory)
    return Judged(model.description, held_out.to_pylist(), answers, model.n_cut(inputs))


def cut_texts(judged: Judged) -> str:
    """A sentence of the report about the examples that the model reads in part."""
    if not judged.n_cut:
        return ""
    part = "end" if judged.description.get("truncation_side", "right") == "right" else "beginning"
    return (
        f"\nOf {judged.n_cut:,} of the {len(judged.examples):,} examples the model does not read the {part}, because"
        f" they are longer than {judged.description['max_tokens']:,} tokens (settings max_tokens and truncation_side"
        " of the fine-tuning).\n"
    )


def training_texts(corpus: Shards) -> Iterator[str]:
    """Texts of the train split, one shard in memory at a time."""
    for path in shard_paths(corpus.directory):
        table = read_table(path, columns=["text", "split"])
        rows = zip(table["text"].to_pylist(), table["split"].to_pylist(), strict=True)
        yield from (text for text, split in rows if split == "train")


def evaluation_stage(kind: Judge) -> Stage:
    return Stage(
        name="evaluate_task",
        version=kind.evaluation_version,
        function=partial(evaluate_task, kind),
        handle=Report,
        libraries=tuple(
            sorted({"numpy", "regex", "scipy", "tiktoken", "tokenizers", "torch", DEVICE, *kind.libraries})
        ),
        variant=kind.identity,
    )
