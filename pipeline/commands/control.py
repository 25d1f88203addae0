"""The options of `gristmill generate` that control the text: its form, and its attributes.

In: the arguments of the command. Out: a constraint (--json, --choices), what the model is told, or the texts that a
classifier chose (--control). An attribute is reached in one of four ways:

    prefix   a model that learned attributes (a task of kind control) is told them as in its training
    prompt   another model with a chat template is told them in words
    rerank   the classifier of a task chooses the best of several texts
    steer    the classifier of a task chooses the best way to go on, every few tokens
"""

from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from model.data.control_text import CONTROL, asked_in_words, control_message, parsed_attributes
from pipeline.serving.chat import has_own_template
from pipeline.store.layout import Layout, folder_or_current, load_current
from pipeline.store.store import read_record

if TYPE_CHECKING:
    from model.generation.constraints import TextConstraint
    from model.generation.sample_config import SampleConfig

PREFIX, PROMPT, RERANK, STEER = WAYS = ("prefix", "prompt", "rerank", "steer")


@dataclass(frozen=True, slots=True)
class Wanted:
    attributes: Mapping[str, str]
    by: str | None = None  # one of WAYS; None = no attribute is asked for

    @property
    def is_guided(self) -> bool:
        return self.by in (RERANK, STEER)

    @property
    def told(self) -> str:
        """What the model is told, as a message of the user; empty = nothing."""
        return {PREFIX: control_message, PROMPT: asked_in_words}[self.by](self.attributes) if self.by else ""


def wanted_of(args: Namespace, layout: Layout, folder: Path) -> Wanted:
    """The attributes that are asked for, and how they are reached. Raises ValueError."""
    attributes = parsed_attributes(args.control)
    if not attributes:
        if args.control_by or args.judge:
            option = "--control-by" if args.control_by else "--judge"
            raise ValueError(f"{option} without --control; add for instance --control sentiment=positive")
        return Wanted({})
    learned = _learned(folder)
    by = args.control_by or _way(args, layout, attributes, learned, folder)
    if args.judge and (by not in (RERANK, STEER) or len(attributes) > 1):
        raise ValueError(f"--judge with --control-by {by} and {len(attributes)} attributes; it judges one attribute")
    if (args.json is not None or args.choices) and by in (RERANK, STEER):
        raise ValueError(f"--control-by {by} chooses among free texts; leave out --json and --choices, or use prompt")
    if by == PREFIX:
        _check_learned(attributes, learned, args.model)
    if by == PROMPT and not has_own_template(folder):
        raise ValueError(
            f"{args.model} has no chat template, so that it can't be told anything; use --control-by steer"
        )
    return Wanted(attributes, by)


def _way(
    args: Namespace, layout: Layout, attributes: Mapping[str, str], learned: Mapping[str, Any], folder: Path
) -> str:
    """The most reliable way that there is."""
    if args.judge:
        return STEER
    if learned:
        return PREFIX
    has_judges = all(_is_built(layout, f"{name}_model") for name in attributes)
    return PROMPT if has_own_template(folder) and not has_judges else STEER


def _is_built(layout: Layout, asset: str) -> bool:
    try:
        load_current(layout, asset)
    except ValueError:
        return False
    return True


def _learned(folder: Path) -> Mapping[str, Sequence[str]]:
    from model.training.files import CONFIG, read_json

    return read_json(folder / CONFIG).get(CONTROL, {}) if (folder / CONFIG).is_file() else {}


def _check_learned(attributes: Mapping[str, str], learned: Mapping[str, Sequence[str]], model: str) -> None:
    if not learned:
        raise ValueError(
            f"{model} learned no attributes: it is no task of kind control; use --control-by steer or prompt"
        )
    for name, value in attributes.items():
        if name not in learned:
            raise ValueError(f"{model} did not learn the attribute {name!r}; it learned {', '.join(learned)}")
        if value not in learned[name]:
            raise ValueError(f"{model} did not learn {name}={value}; it learned {', '.join(learned[name])}")


def constraint_of(args: Namespace, folder: Path) -> "TextConstraint | None":
    """What --json or --choices allow. Raises ValueError."""
    from pipeline.serving.control import choice_constraint, json_constraint

    if args.json is not None and args.choices:
        raise ValueError("--json and --choices together; give one of them")
    if args.choices:
        return choice_constraint(folder, args.text, args.choices)
    return None if args.json is None else json_constraint(folder, _schema(args.json))


def _schema(file: str) -> Any:
    from model.generation.constraints import read_schema

    if not file:
        return None
    if not Path(file).is_file():
        raise ValueError(f"--json {file}: there is no such file; give a JSON Schema, or --json alone behind the text")
    return read_schema(Path(file).read_text("utf-8"), file)


def guided(args: Namespace, layout: Layout, folder: Path, cfg: "SampleConfig", wanted: Wanted) -> list[str]:
    """Texts that the classifiers of the attributes chose. The one of an attribute is the task of its name."""
    from model.generation.guided import Guidance
    from pipeline.serving.control import guided_text, label_score

    scores = []
    for name, value in wanted.attributes.items():
        try:
            scores.append(label_score(_judge(layout, args.judge or name), value))
        except ValueError as error:
            raise ValueError(f"--control {name}={value}: {error}") from error
    guidance = Guidance(by=wanted.by, n_samples=args.candidates)  # type: ignore[arg-type]

    def score(texts: Sequence[str]) -> np.ndarray:
        return np.sum([one(texts) for one in scores], axis=0)

    return guided_text(folder, args.text, cfg, score, guidance, args.samples)


def _judge(layout: Layout, task: str) -> Any:
    from pipeline.serving.generate import predictor_in
    from pipeline.tasks.kind import kind_of

    folder = folder_or_current(layout, task if Path(task).is_dir() else f"{task}_model")
    return predictor_in(kind_of(read_record(folder) or {}).predictor, folder)
