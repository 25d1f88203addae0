"""The form of a prompt: how examples are written for a decoder that classifies texts without training.

In: a template such as "Review: {text}\\nSentiment: {label}", the words of each label, an instruction and shots, which
are training examples in the same form. Out: the texts that the decoder reads, and the value of `prompt` in the
config.json of such a model, from which the same prompt is made again. Importing this module imports no torch.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from model.data.examples import repaired

TEXT, LABEL = "{text}", "{label}"
TEMPLATE = f"Text: {TEXT}\nLabel: {LABEL}"
SEPARATOR = "\n\n"  # behind the instruction and each shot
SCORINGS = ("raw", "per_byte", "per_token", "content_free", "corrected")
WITH_PRIOR = ("content_free", "corrected")


@dataclass(frozen=True, kw_only=True, slots=True)
class Opening:
    """What precedes all prompts."""

    instruction: str = ""
    shots: tuple[str, ...] = ()  # each with the separator that follows it
    lead: str = ""  # what every prompt begins with, if that is always the same

    def text(self, n_shots: int) -> str:
        """The instruction and the last `n_shots` shots."""
        return "".join((self.instruction, *self.shots[len(self.shots) - n_shots :]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Shot:
    id: str  # of the example
    text: str
    label: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """All that decides the answers besides the model; in config.json the value of `prompt`."""

    words: Mapping[str, str]  # label -> its words, in the order of the classes
    template: str = TEMPLATE
    instruction: str = ""
    shots: tuple[Shot, ...] = ()
    scoring: str = "raw"
    chat: bool = False  # whether it is a conversation in the chat template of the model; otherwise plain text
    prior: tuple[float, ...] | None = None  # log-probability of each label, for WITH_PRIOR

    def __post_init__(self) -> None:
        check_template(self.template)
        if self.scoring not in SCORINGS:
            raise ValueError(f"scoring={self.scoring!r} must be one of {', '.join(SCORINGS)}")
        if (self.scoring in WITH_PRIOR) != (self.prior is not None):
            raise ValueError(f"scoring={self.scoring!r}, but prior={self.prior}; {' and '.join(WITH_PRIOR)} need one")

    @property
    def labels(self) -> list[str]:
        return list(self.words)

    @property
    def lead(self) -> str:
        """What every question begins with."""
        return self.template.partition(TEXT)[0]

    def opening(self) -> Opening:
        """Of a prompt in plain text."""
        shots = tuple(question + words + SEPARATOR for question, words in self.turns())
        return Opening(
            instruction=self.instruction + SEPARATOR if self.instruction else "", shots=shots, lead=self.lead
        )

    def turns(self) -> list[tuple[str, str]]:
        """The question and the answer of every shot."""
        return [(self.question(one.text), self.words[one.label]) for one in self.shots]

    def question(self, text: str) -> str:
        """The template with a text, up to the label."""
        before, _, after = self.template.removesuffix(LABEL).partition(TEXT)
        form = before + repaired(text) + after
        return form.rstrip() if self.chat else form

    def described(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> Self:
        """The inverse of `described`, also from JSON."""
        prior = description["prior"]
        read = {
            "shots": tuple(Shot(**shot) for shot in description["shots"]),
            "prior": None if prior is None else tuple(prior),
            "chat": bool(description["chat"]),
        }
        return cls(**{**description, **read})


def check_template(template: str) -> None:
    if template.count(TEXT) != 1 or template.count(LABEL) != 1 or not template.endswith(LABEL):
        raise ValueError(
            f"template={template!r} must contain {TEXT} once and end with {LABEL}, which the model continues, for"
            f" instance {TEMPLATE!r}"
        )


def words_of(label: str) -> str:
    """The words that stand for a label unless others are given: its name with spaces instead of underscores."""
    return " ".join(label.replace("_", " ").split()) or label
