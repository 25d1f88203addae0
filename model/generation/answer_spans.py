"""The best span of each question: extractive answers from the logits of starts and ends.

In: a span classifier and encoded questions. Out: per question the most likely span over all of its windows, as
characters of its text, and how much likelier "no answer" is. Steps: windows of similar length pass together; of each
only its best span and its score for "no answer" are kept, so that memory does not grow with the texts; the window
with the best span wins, and "no answer" needs the consent of every window (arXiv:1810.04805, section 4.3).

Legend: B rows of a pass, T position, N rows, Q questions.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from model.data.examples import TYPES
from model.data.questions import EncodedQuestions
from model.evaluate import answers_of_texts
from model.training.step import on_device

ALWAYS_ANSWERS = None  # as a threshold: "no answer" is not an answer


@dataclass(frozen=True, slots=True)
class BestSpans:
    """The best span of each row. Scores are sums of two logits; log_totals are those of all spans and of none."""

    starts_N: np.ndarray  # int64, tokens of the row
    ends_N: np.ndarray  # the last token, included
    scores_N: np.ndarray  # float64; -inf if the row has nothing of the text
    nulls_N: np.ndarray  # the score of "no answer"
    log_totals_N: np.ndarray
    losses_N: np.ndarray  # -ln p of the right start and end; 0 without targets


@dataclass(frozen=True, slots=True)
class FoundAnswers:
    """The best answer of each question: characters, and by how much the score of "no answer" is larger."""

    starts_Q: np.ndarray
    ends_Q: np.ndarray  # the character after the last one; equal to the start where there is no text
    margins_Q: np.ndarray  # float64, in nats
    probabilities_Q: np.ndarray  # of the start times that of the end, in the window of the answer
    null_probabilities_Q: np.ndarray  # the smallest over the windows
    loss: float  # mean over the starts and ends, in nats; 0 without targets

    def has_answer(self, threshold: float | None) -> np.ndarray:
        """Whether a question gets its best span as its answer; a larger threshold answers more of them."""
        is_there_Q = self.ends_Q > self.starts_Q
        return is_there_Q if threshold is ALWAYS_ANSWERS else is_there_Q & (self.margins_Q <= threshold)


def best_spans(
    logits_BT2: Tensor, allowed_BT: Tensor, nulls_B: Tensor, most: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Start, end and score of the best span of at most `most` tokens of each row, the score of "no answer", and the
    log of the sum over all pairs of a start and an end. `nulls` is the place of "no answer", no part of a span."""
    rows_B = torch.arange(len(nulls_B), device=nulls_B.device)
    logits_BT2 = logits_BT2.masked_fill(~allowed_BT.unsqueeze(2), -torch.inf)
    null_B = logits_BT2[rows_B, nulls_B].sum(dim=1)
    total_B = logits_BT2.logsumexp(dim=1).sum(dim=1)
    logits_BT2 = logits_BT2.index_put((rows_B, nulls_B), logits_BT2.new_tensor(-torch.inf))
    start_BT, end_BT = logits_BT2.unbind(dim=2)
    best_BT, length_BT = torch.full_like(start_BT, -torch.inf), torch.zeros_like(start_BT, dtype=torch.long)
    for extra in range(min(most, start_BT.size(1))):  # a span's end is so many tokens behind its start
        score_BT = torch.full_like(best_BT, -torch.inf)
        score_BT[:, : start_BT.size(1) - extra] = start_BT[:, : start_BT.size(1) - extra] + end_BT[:, extra:]
        is_better_BT = score_BT > best_BT
        best_BT, length_BT = best_BT.where(~is_better_BT, score_BT), length_BT.masked_fill(is_better_BT, extra)
    score_B, start_B = best_BT.max(dim=1)
    return start_B, start_B + length_BT[rows_B, start_B], score_B, null_B, total_B


def spans_of_rows(model: nn.Module, encoded: EncodedQuestions, most: int) -> BestSpans:
    """The best span of every row, in the order of the rows."""

    def best(logits_BT2: Tensor, places_B: np.ndarray) -> np.ndarray:
        batch = on_device(encoded.batch(places_B, logits_BT2.size(1)), logits_BT2.device)
        nulls_B = torch.from_numpy(encoded.nulls[places_B]).to(logits_BT2.device)
        start_B, end_B, *scores = best_spans(logits_BT2, batch["allowed_BT"], nulls_B, most)
        scores.append(scores[-1] - _right(logits_BT2, batch))
        return torch.stack([start_B, end_B, *scores], 1).cpu().numpy()

    types = encoded.token_targets[TYPES]
    found = np.array(answers_of_texts(model, encoded.tokens, best, types=types)).reshape(-1, 6)
    return BestSpans(*found[:, :2].astype(np.int64).T, *found[:, 2:].T)


def _right(logits_BT2: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Score of the right start and end (B,); without targets all of them, so that there is no loss."""
    if "starts_B" not in batch:
        return logits_BT2.masked_fill(~batch["allowed_BT"].unsqueeze(2), -torch.inf).logsumexp(dim=1).sum(dim=1)
    rows_B = torch.arange(len(logits_BT2), device=logits_BT2.device)
    return logits_BT2[rows_B, batch["starts_B"], 0] + logits_BT2[rows_B, batch["ends_B"], 1]


def found_answers(model: nn.Module, encoded: EncodedQuestions, most: int) -> FoundAnswers:
    """The best answer of every question; `most` tokens are the longest answer."""
    rows = spans_of_rows(model, encoded, most)
    n_questions, of_row_N = len(encoded.texts), encoded.questions
    order_N = np.lexsort((-rows.scores_N, of_row_N))  # the best row of a question first; of equal ones the first row
    best_Q = order_N[np.searchsorted(of_row_N[order_N], np.arange(n_questions))]
    null_Q, null_probability_Q = np.full(n_questions, np.inf), np.full(n_questions, np.inf)
    np.minimum.at(null_Q, of_row_N, rows.nulls_N)
    np.minimum.at(null_probability_Q, of_row_N, np.exp(rows.nulls_N - rows.log_totals_N))
    score_Q = rows.scores_N[best_Q]
    spans_Q2 = np.zeros((n_questions, 2), np.int64)
    for question in np.flatnonzero(np.isfinite(score_Q)):
        row = best_Q[question]
        spans_Q2[question] = encoded.span(row, int(rows.starts_N[row]), int(rows.ends_N[row]))
    return FoundAnswers(
        starts_Q=spans_Q2[:, 0],
        ends_Q=spans_Q2[:, 1],
        margins_Q=null_Q - score_Q,
        probabilities_Q=np.exp(score_Q - rows.log_totals_N[best_Q]),
        null_probabilities_Q=null_probability_Q,
        loss=float(rows.losses_N.mean()) / 2,
    )


def best_threshold(margins_Q: np.ndarray, answered_Q: np.ndarray, unanswered_Q: np.ndarray) -> float:
    """The margin up to which questions are answered, so that the sum of their scores is largest: `answered` is the
    score of a question if it gets its best span, `unanswered` if it gets none. Lies midway between two margins."""
    order_Q = np.argsort(margins_Q, kind="stable")
    sorted_Q, gains_Q = margins_Q[order_Q], (answered_Q - unanswered_Q)[order_Q]
    sums = np.concatenate([[0.0], np.cumsum(gains_Q)])  # after so many questions of the smallest margins
    is_border = np.concatenate([[True], sorted_Q[1:] > sorted_Q[:-1], [True]])  # equal margins fall together
    n_answered = int(np.argmax(np.where(is_border, sums, -np.inf)))
    finite = sorted_Q[np.isfinite(sorted_Q)]
    if not len(finite):
        return 0.0
    below = sorted_Q[n_answered - 1] if n_answered else finite[0] - 1
    above = sorted_Q[n_answered] if n_answered < len(sorted_Q) else finite[-1] + 1
    return float((below + min(above, finite[-1] + 1)) / 2)
