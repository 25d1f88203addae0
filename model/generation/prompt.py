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
from model.generation.chat_form import ChatForm, unmarked

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
    chat: ChatForm | None = None  # None = plain text, without a chat template
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

    def opening(self) -> Opening:
        start, answer, following = "", "", SEPARATOR
        if self.chat is not None:
            start, answer, following = map(self.chat.marked, ("start", "answer", "following"))
        shots = tuple(self._form(one.text) + answer + self.words[one.label] + following for one in self.shots)
        instruction = self.instruction + SEPARATOR if self.instruction else ""
        return Opening(instruction=start + instruction, shots=shots, lead=self.template.partition(TEXT)[0])

    def question(self, text: str) -> str:
        """The template with a text, up to the label."""
        return self._form(text) + ("" if self.chat is None else self.chat.marked("last"))

    def _form(self, text: str) -> str:
        before, _, after = self.template.removesuffix(LABEL).partition(TEXT)
        form = before + repaired(text) + after
        return form if self.chat is None else unmarked(form).rstrip()

    def described(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, description: Mapping[str, Any]) -> Self:
        """The inverse of `described`, also from JSON."""
        prior, chat = description["prior"], description["chat"]
        read = {
            "shots": tuple(Shot(**shot) for shot in description["shots"]),
            "prior": None if prior is None else tuple(prior),
            "chat": None if chat is None else ChatForm(**chat),
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
