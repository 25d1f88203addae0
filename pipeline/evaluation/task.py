"""Evaluates a fine-tuned model and its baselines on held-out examples: the stage `evaluate_task`.

In: the model, the same network trained from random weights if it was trained, a decoder to be prompted if there is
one, the examples, and the pretraining corpus if it is searched for examples. Out: a Report folder: results.json (one
entry per metric, with 95 % interval, baselines, and the difference from each of them), report.md, mistakes.md and
figures/*.png. The kind of task defines the metrics (`Judge`). Answers are made in pieces of the examples and stored
as columns; nothing with an entry per token is kept.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

import numpy as np
import pyarrow as pa

from pipeline.corpus.examples.leaks import occurring
from pipeline.corpus.examples.stage import read_examples
from pipeline.evaluation.answers import TableRows, column, packed, pieces_of, taken
from pipeline.evaluation.comparisons import MODEL, comparison_table, results_table
from pipeline.evaluation.mistakes import Mistake, Slices, mistakes_markdown, slices_of, slices_table, worst_mistakes
from pipeline.evaluation.results import Evaluation, Result, baselines_figure, note_lines, written
from pipeline.serving.generate import predictor_in
from pipeline.serving.predictor import Predictor
from pipeline.store.records import Checkpoint, Handle, Report, Shards
from pipeline.store.settings import Natural, OptionalCount, check_values
from pipeline.store.shards import read_table, shard_paths
from pipeline.store.store import DEVICE, NOT_IDENTITY, Outcome, Stage, Work, read_record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SEEN = "examples_seen_in_pretraining"  # measure: evaluated examples whose words occur in the pretraining text
RANDOM_INIT, PROMPTING = "random_init", "prompting"
TUNED = "finetune"  # stage of models that were tuned for a task, which may be bases of others
Answer = Mapping[str, Any]
Answering = Callable[[Sequence[Mapping[str, Any]]], Sequence[Answer]]
log = logging.getLogger(__name__)


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
    prompted_examples: Annotated[
        OptionalCount,
        "Number of examples, chosen at random, that the base answers as it is, without any training, if it is a"
        " decoder: the baseline `prompting`. The model is compared with it on the same examples. It takes far longer"
        " for an answer than the model; none switches it off.",
    ] = 200

    def __post_init__(self) -> None:
        check_values(self)


@dataclass(frozen=True, slots=True)
class Judged:
    """The answers of each model to the held-out examples, in their order."""

    description: Mapping[str, Any]  # config.json of the model
    examples: Sequence[Mapping[str, Any]]  # rows of examples.parquet: text, columns of the kind, ...
    answers: Mapping[str, Sequence[Answer]]  # "model" first, "random_init" if it was trained, then the baselines
    n_cut: int = 0  # examples with a text that is longer than the model reads
    rows: Mapping[str, np.ndarray] = field(default_factory=dict)  # places of the examples of partial baselines
    besides: Mapping[str, Any] = field(default_factory=dict)  # what a kind measured that belongs to no example

    @property
    def model(self) -> Sequence[Answer]:
        return self.answers[MODEL]

    @property
    def baselines(self) -> list[str]:
        return [name for name in self.answers if name != MODEL]

    def paired_with(self, baseline: str) -> tuple[Sequence[Mapping[str, Any]], Sequence[Answer], Sequence[Answer]]:
        """The examples that a baseline answered, the answers of the model to them, and those of the baseline."""
        if baseline not in self.rows:
            return self.examples, self.model, self.answers[baseline]
        places = self.rows[baseline]
        return taken(self.examples, places), taken(self.model, places), self.answers[baseline]


class Judge(Protocol):
    """How a kind of task evaluates a model.

    Every report has the table of metrics, the comparison with the baselines and where the model is wrong; a kind adds
    only what is its own.
    """

    name: str
    identity: str
    evaluation_version: int  # of the stage `evaluate_task` for this kind
    libraries: tuple[str, ...]  # distributions whose version affects an evaluation
    predictor: type[Predictor]
    decides: tuple[str, bool]  # metric that is drawn beside the baselines, and whether higher is better
    must_beat: tuple[str, str]  # metric and baseline of the check on the evaluation
    can_be_prompted: bool = False  # whether `prompted` gives the answers of a decoder

    def judge(
        self, cfg: Any, models: Sequence[Checkpoint], base: Checkpoint | None, examples: Shards, work: Work
    ) -> "Judged":
        """The answers of the model, of the same one trained from random weights where `models` has it, and of the
        baselines. `base` is what the model began with, or another decoder that answers without training."""
        return judge(self, cfg, models, base, examples, work)

    def answers(self, model: Predictor, rows: Sequence[Mapping[str, Any]]) -> Sequence[Answer]:
        """What a model answers to rows of examples, with what is measured of an answer."""
        return model.examine([{name: row[name] for name in model.inputs} for row in rows])

    def baselines(self, train: pa.Table, held_out: pa.Table) -> Mapping[str, Sequence[Answer]]:
        """Answers of the baselines that need no network, by name, to the rows of `held_out`."""
        del train, held_out
        return {}

    def prompted(self, base: Path, model: Mapping[str, Any]) -> Answering | None:
        """How the base answers rows without any training, for the baseline `prompting`; None if it cannot, because it
        is no decoder, for instance. `model` is config.json of the fine-tuned model, with the names of the labels."""
        return None

    def results(self, judged: Judged, seed: int) -> list[Result]:
        """Metrics of the model with 95 % intervals, and its difference from all others that answered: see
        `compared_results`.

        Raises ValueError when the model cannot answer some of the examples.
        """
        ...

    def details(self, judged: Judged) -> Mapping[str, float]:
        """Further numbers worth a plot over time, such as a metric per label."""
        del judged
        return {}

    def mistakes(self, judged: Judged) -> Iterable[Mistake]:
        """Everything that is wrong in an answer of the model."""
        return ()

    def mistakes_listed(self, judged: Judged, worst: Sequence[Mistake], n_wrong: int) -> str:
        """Markdown of mistakes.md, with texts of the examples: the `worst` of the mistakes, which are in `n_wrong`
        examples."""
        return mistakes_markdown(worst, n_wrong, judged.examples)

    def slices(self, judged: Judged) -> Slices:
        """Parts of the examples in which mistakes are counted, as name -> value for each example, besides those that
        every text has (mistakes.py)."""
        return {}

    def report(self, judged: Judged, cfg: TaskEvaluationConfig) -> str:
        """Markdown below the tables of every kind, for instance a table of the labels; "" if there is nothing."""
        ...

    def figures(self, judged: Judged) -> "Mapping[str, Figure]":
        """Figures by file name without suffix."""
        del judged
        return {}


def evaluate_task(kind: Judge, cfg: TaskEvaluationConfig, inputs: tuple[Handle, ...], work: Work) -> Outcome:
    """The stage function. Inputs: the model's Checkpoint, that of its random baseline if any, that of a base to be
    prompted if any, the examples, and the pretraining corpus if it is to be searched for test examples."""
    models = [handle for handle in inputs if isinstance(handle, Checkpoint)]
    examples, *corpora = [handle for handle in inputs if isinstance(handle, Shards)]
    others = [model for model in models[1:] if not is_random_init(model)]
    trained = [model for model in models if model not in others]
    judged = kind.judge(cfg, trained, others[0] if others else None, examples, work)
    measures = dict(kind.details(judged)) | {
        "n_cut": judged.n_cut,
        "cut_fraction": judged.n_cut / len(judged.examples),
    }
    if corpora:
        texts = column(judged.examples, "text")
        measures[SEEN] = len(occurring(texts, training_texts(corpora[0])))
    return written(evaluation_of(kind, cfg, judged), work.directory, **measures)


def is_random_init(model: Checkpoint) -> bool:
    """Whether a model was fine-tuned from random weights, and is no base."""
    record = read_record(model.directory)
    return model.stage == TUNED and (record is None or record["config"].get("initialisation") == "random")


def evaluation_of(kind: Judge, cfg: TaskEvaluationConfig, judged: Judged) -> Evaluation:
    main = (kind.decides[0], kind.must_beat[0])
    results = [{**one, "main": one["metric"] in main} for one in kind.results(judged, cfg.seed)]
    worst, wrong_N = worst_mistakes(kind.mistakes(judged), len(judged.examples))
    n_wrong, deciding = int(wrong_N.sum()), [one for one in results if one["metric"] == kind.decides[0]]
    parts = [
        f"# Evaluation on {len(judged.examples):,} {cfg.split} examples\n",
        results_table(results),
        note_lines(results),
        comparison_table(results),
        kind.report(judged, cfg),
        slices_table({**kind.slices(judged), **slices_of(judged.examples)}, wrong_N) if n_wrong else "",
        cut_texts(judged),
    ]
    figures = {one["metric"]: baselines_figure(one, one["metric"].replace("_", " ")) for one in deciding}
    return Evaluation(
        n_rows=len(judged.examples),
        results=results,
        report="\n".join(part for part in parts if part),
        mistakes=kind.mistakes_listed(judged, worst, n_wrong),
        figures={**figures, **kind.figures(judged)},
    )


def judge(
    kind: Judge,
    cfg: TaskEvaluationConfig,
    models: Sequence[Checkpoint],
    base: Checkpoint | None,
    examples: Shards,
    work: Work,
) -> Judged:
    """The default of `Judge.judge`."""
    train, held_out = (read_examples(examples.directory, split) for split in ("train", cfg.split))
    answers: dict[str, Sequence[Answer]] = {}
    for name, model in zip((MODEL, RANDOM_INIT), models, strict=False):
        predictor = predictor_in(kind.predictor, model.directory)
        answers[name] = answers_to(held_out, partial(kind.answers, predictor), name, work)
    answers |= kind.baselines(train, held_out)
    model, rows = predictor_in(kind.predictor, models[0].directory), {}
    answering = kind.prompted(base.directory, model.description) if base and cfg.prompted_examples else None
    if answering is not None and cfg.prompted_examples:
        rows[PROMPTING] = chosen_rows(held_out.num_rows, cfg.prompted_examples, cfg.seed)
        answers[PROMPTING] = answers_to(held_out.take(pa.array(rows[PROMPTING])), answering, PROMPTING, work)
    elif base and cfg.prompted_examples and kind.can_be_prompted:
        log.info("no baseline `prompting`: %s continues no text; the key prompted names a decoder", base.directory)
    pieces = (piece.to_pylist() for piece in pieces_of(held_out.select(list(model.inputs))))
    return Judged(model.description, TableRows(held_out), answers, sum(map(model.n_cut, pieces)), rows)


def answers_to(rows: pa.Table, answering: Answering, name: str, work: Work) -> Sequence[Answer]:
    """The answers to all rows, made and stored a piece at a time."""

    def pieces() -> Iterator[Sequence[Answer]]:
        n_answered = 0
        for piece in pieces_of(rows):
            yield answering(piece.to_pylist())
            n_answered += piece.num_rows
            work.progress(n_answered, rows.num_rows, f"answers of {name}")

    return packed(pieces())


def chosen_rows(n_rows: int, most: int, seed: int) -> np.ndarray:
    """Places of the examples that a prompted model answers, in their order: all, or a random choice."""
    return np.sort(np.random.default_rng(seed).choice(n_rows, min(n_rows, most), replace=False))


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
