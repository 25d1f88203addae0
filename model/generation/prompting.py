"""Classification by a decoder without training: the words of a label that most likely continue a prompt decide.

In: a decoder, its tokenizer, a Prompt and texts. Out: a score of every label for every text. Scores are
log-likelihoods, normalised in one of four ways: raw; per byte or per token of the words, so that long words are not
at a disadvantage; or corrected by the prior, the likelihood of the words when the text says nothing, because a model
prefers some words whatever the text is (arXiv:2102.09690 and arXiv:2104.08315).

Legend: N texts, C labels.
"""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Self

import numpy as np

from model.data.tokenizer import Tokenizer
from model.generation.choices import ChoiceScorer, Likelihoods
from model.generation.prompt import TEMPLATE, Prompt, words_of
from model.network.decoder import Decoder

CONTENT_FREE = ("N/A", "[MASK]", "")  # the texts of arXiv:2102.09690 section 5


class PromptedLabels:
    """A decoder as a classifier."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer, prompt: Prompt, max_tokens: int | None = None) -> None:
        """`max_tokens`: of a prompt with its shots and a label; None = the context of the model."""
        self.prompt = prompt
        self.scorer = ChoiceScorer(
            model, tokenizer, list(prompt.words.values()), prompt.opening(), max_tokens=max_tokens
        )

    def likelihoods(self, texts: Sequence[str]) -> Likelihoods:
        return self.scorer.likelihoods([self.prompt.question(text) for text in texts])

    def n_beyond(self, texts: Sequence[str]) -> tuple[int, int]:
        """How many texts are read with fewer shots than there are, and how many without their beginning."""
        return self.scorer.n_beyond([self.prompt.question(text) for text in texts])

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """float64 (N, C), by the scoring of the prompt."""
        return scores(self.likelihoods(texts), self.prompt, self.prompt.scoring)

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """The softmax of the scores."""
        return softmax(self.scores(texts))

    def corrected(self) -> Self:
        """The same, scoring with the prior: the mean of the labels' probabilities after texts without content."""
        prior_C = np.log(softmax(self.likelihoods(CONTENT_FREE).nats_NC).mean(axis=0))
        other = copy.copy(self)
        other.prompt = dataclasses.replace(self.prompt, scoring="corrected", prior=tuple(prior_C.tolist()))
        return other


def scores(found: Likelihoods, prompt: Prompt, scoring: str) -> np.ndarray:
    """float64 (N, C)."""
    if scoring == "per_byte":
        return found.nats_NC / [max(1, len(words.encode())) for words in prompt.words.values()]
    if scoring == "per_token":
        return found.nats_NC / found.tokens_NC
    if scoring == "corrected":
        assert prompt.prior is not None
        return found.nats_NC - np.array(prompt.prior)
    return found.nats_NC


def softmax(scores_NC: np.ndarray) -> np.ndarray:
    shifted_NC = np.exp(scores_NC - scores_NC.max(axis=1, keepdims=True))
    return shifted_NC / shifted_NC.sum(axis=1, keepdims=True)


def zero_shot(
    model: Decoder, tokenizer: Tokenizer, labels: Sequence[str], template: str = TEMPLATE
) -> PromptedLabels:
    """What a decoder knows of a task without an example of it: by the names of the labels, corrected by the prior."""
    prompt = Prompt(words={label: words_of(label) for label in labels}, template=template)
    return PromptedLabels(model, tokenizer, prompt).corrected()
