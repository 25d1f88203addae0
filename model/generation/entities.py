"""Finds entities in texts with a classifier of tokens.

In: the network, the windows of texts. Out: per text its entities, as words or as characters. Steps: the log
probabilities of the tags at the token of each word; the windows of a text put together; the most likely tags that
form entities. Texts are read some at a time, so that memory does not grow with their number.

Legend: B windows in a pass, T position, N words in a pass, W words of a text, C tags.
"""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
from torch import Tensor, nn

from model.data.examples import EncodedExamples
from model.data.spans import WordSpan, best_tags, span_probability, spans_of_tags
from model.data.tagged_texts import TextWindows, Window, supervised_windows
from model.evaluate import answers_of_texts

TEXTS_AT_ONCE = 512


def entities_of(
    network: nn.Module, texts: Iterator[TextWindows], labels: Sequence[str]
) -> Iterator[list[dict[str, Any]]]:
    """The entities of each text, sorted: start, end (characters), label, probability."""
    while some := list(islice(texts, TEXTS_AT_ONCE)):
        scores = tag_scores(network, [text.windows for text in some])
        for text, scores_WC in zip(some, scores, strict=True):
            yield [
                {
                    "start": int(text.words_W2[span.first, 0]),
                    "end": int(text.words_W2[span.last, 1]),
                    "label": labels[span.label],
                    "probability": span_probability(scores_WC, span),
                }
                for span in _spans(scores_WC)
            ]


def _spans(scores_WC: np.ndarray) -> Iterator[WordSpan]:
    return spans_of_tags(best_tags(scores_WC)) if len(scores_WC) else iter(())


def tag_scores(network: nn.Module, texts: Sequence[Sequence[Window]]) -> list[np.ndarray]:
    """Log probabilities of the tags of the words of each text, float32 (W, C)."""
    windows = [window for text in texts for window in text]

    def of_words(logits_BTC: Tensor, places_B: np.ndarray) -> list[np.ndarray]:
        words = [windows[place].places for place in places_B]
        n_words = [len(of_window) for of_window in words]
        rows_N, places_N = np.repeat(np.arange(len(words)), n_words), np.concatenate(words)
        scores_NC = logits_BTC[rows_N, places_N].log_softmax(dim=-1).float().cpu().numpy()
        return np.split(scores_NC, np.cumsum(n_words)[:-1])

    found = iter(answers_of_texts(network, [window.tokens for window in windows], of_words))
    parts = [list(islice(found, len(text))) for text in texts]
    return [np.concatenate(part) if part else np.zeros((0, 1), np.float32) for part in parts]


def tagging_values(network: nn.Module, held_out: EncodedExamples) -> dict[str, float]:
    """validation_loss (nats per word), and validation_f1 of the entities of whole texts.

    An entity is the words that its tags express, as in training, and its label.
    """
    nats, n_words, n_right, n_found, n_true = 0.0, 0, 0, 0, 0
    texts = supervised_windows(held_out)
    while some := list(islice(texts, TEXTS_AT_ONCE)):
        for scores_WC, (_, tags_W) in zip(tag_scores(network, [text for text, _ in some]), some, strict=True):
            nats -= float(scores_WC[np.arange(len(tags_W)), tags_W].sum(dtype=np.float64))
            n_words += len(tags_W)
            found, true = set(_spans(scores_WC)), set(spans_of_tags(tags_W))
            n_right, n_found, n_true = n_right + len(found & true), n_found + len(found), n_true + len(true)
    return {
        "validation_loss": nats / max(n_words, 1),
        "validation_f1": 2 * n_right / max(n_found + n_true, 1),
    }
