"""Classification by a decoder without training: the words of a label that most likely continue a prompt decide.

In: a decoder, its tokenizer, a Prompt and texts. Out: a score of every label for every text. Scores are
log-likelihoods: raw; or divided by the length of the words in bytes or tokens, so that long words are not at a
disadvantage; or corrected by the prior of the labels, because a model prefers some words whatever the text is. The
prior is the mean probability of a label after texts without content (content_free, arXiv:2102.09690), or after texts
of the task, whose labels are not used (corrected, arXiv:2309.17249).

Legend: N texts, C labels.
"""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Self

import numpy as np

from model.data.chat import ChatTemplate
from model.data.tokenizer import Tokenizer
from model.generation.choices import ChoiceScorer, Likelihoods
from model.generation.prompt import SCORINGS, TEMPLATE, WITH_PRIOR, Opening, Prompt, words_of
from model.generation.prompt_encoding import ChatPrompts
from model.network.decoder import Decoder

CONTENT_FREE = ("N/A", "[MASK]", "")  # the texts of arXiv:2102.09690 section 5


class PromptedLabels:
    """A decoder as a classifier."""

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        prompt: Prompt,
        max_tokens: int | None = None,
        template: ChatTemplate | None = None,
    ) -> None:
        """`max_tokens`: of a prompt with its shots and a label; None = the context of the model. `template`: that of
        the model, for a prompt that is a conversation."""
        self.prompt = prompt
        opening: ChatPrompts | Opening = prompt.opening()
        if prompt.chat:
            assert template is not None, "a prompt that is a conversation needs a chat template"
            opening = ChatPrompts(template, prompt.instruction, prompt.turns(), prompt.lead)
        self.scorer = ChoiceScorer(model, tokenizer, list(prompt.words.values()), opening, max_tokens=max_tokens)

    def likelihoods(self, texts: Sequence[str]) -> Likelihoods:
        return self.scorer.likelihoods([self.prompt.question(text) for text in texts])

    def n_beyond(self, texts: Sequence[str]) -> tuple[int, int]:
        """How many texts are read with fewer shots than there are, and how many without their beginning."""
        return self.scorer.n_beyond([self.prompt.question(text) for text in texts])

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """float64 (N, C), by the scoring of the prompt."""
        return scores(self.likelihoods(texts), self.prompt)

    def probabilities(self, texts: Sequence[str]) -> np.ndarray:
        """The softmax of the scores."""
        return softmax(self.scores(texts))

    def content_free(self) -> Self:
        """The same, with the prior of the labels after texts without content."""
        return self._scoring("content_free", _prior(self.likelihoods(CONTENT_FREE)))

    def corrected(self, texts: Sequence[str]) -> Self:
        """The same, with the prior of the labels after `texts` of the task, whose own labels are not needed. They
        should have all labels about equally often."""
        return self._scoring("corrected", _prior(self.likelihoods(texts)))

    def of_all_scorings(self, texts: Sequence[str]) -> list[Self]:
        """The same with each of SCORINGS, in their order; `texts` as in `corrected`."""
        plain = [self._scoring(scoring, None) for scoring in SCORINGS if scoring not in WITH_PRIOR]
        return [*plain, self.content_free(), self.corrected(texts)]

    def _scoring(self, scoring: str, prior: tuple[float, ...] | None) -> Self:
        other = copy.copy(self)
        other.prompt = dataclasses.replace(self.prompt, scoring=scoring, prior=prior)
        return other


def scores(found: Likelihoods, prompt: Prompt) -> np.ndarray:
    """float64 (N, C), by the scoring of the prompt."""
    if prompt.prior is not None:
        return found.nats_NC - np.array(prompt.prior)
    if prompt.scoring == "per_byte":
        return found.nats_NC / [max(1, len(words.encode())) for words in prompt.words.values()]
    if prompt.scoring == "per_token":
        return found.nats_NC / found.tokens_NC
    return found.nats_NC


def _prior(found: Likelihoods) -> tuple[float, ...]:
    """Logarithms of the mean probabilities of the labels."""
    return tuple(np.log(softmax(found.nats_NC).mean(axis=0)).tolist())


def softmax(scores_NC: np.ndarray) -> np.ndarray:
    shifted_NC = np.exp(scores_NC - scores_NC.max(axis=1, keepdims=True))
    return shifted_NC / shifted_NC.sum(axis=1, keepdims=True)


def zero_shot(
    model: Decoder, tokenizer: Tokenizer, labels: Sequence[str], texts: Sequence[str], template: str = TEMPLATE
) -> np.ndarray:
    """Probability of every label for every text, float64 (N, C): what a decoder knows of a task without an example of
    it, by the names of the labels, corrected by their prior after these texts."""
    prompt = Prompt(words={label: words_of(label) for label in labels}, template=template)
    prompted = PromptedLabels(model, tokenizer, prompt)
    found = prompted.likelihoods(texts)
    return softmax(found.nats_NC - _prior(found)) if len(texts) else found.nats_NC
