"""Metrics of preferences as counts per pair, from which intervals and comparisons are made (intervals.py).

In: per pair the log-probabilities that a model gives to the chosen and to the rejected answer, in nats, with their
numbers of tokens, and those that the reference gives. Out: `Counted` metrics.

preference_accuracy   share of the pairs in which the model prefers the chosen answer. What a model prefers is what
                      it makes more likely than the reference does, as in arXiv:2305.18290 section 4; the reference
                      itself prefers what it gives the higher log-probability. A tie is wrong.
likelihood_accuracy   share in which the chosen answer has the higher log-probability
margin                by how many nats more the chosen answer gained on the reference than the rejected one
chosen_, rejected_    log-probability of an answer, and per token of all answers together
chosen_change         relative change of the nats of the chosen answers: 0.1 = their log-probability fell by a tenth,
                      and they became less likely
prompt_loss           nats per token of the user's messages, on which the training had no loss: what became of the
                      model's language in general
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.evaluation.answers import Rows, column
from pipeline.evaluation.intervals import Counted, quotient, rate_of

REFERENCE, LONGER, SHORTER = "base", "longer_answer", "shorter_answer"  # names of the baselines

LOWER_IS_BETTER = (
    "rejected_log_probability",
    "rejected_log_probability_per_token",
    "chosen_change",
    "prompt_loss",
)
METRICS = (
    "preference_accuracy",
    "likelihood_accuracy",
    "margin",
    *(f"{side}_log_probability{per}" for side in ("chosen", "rejected") for per in ("", "_per_token")),
    "chosen_change",
    "prompt_loss",
)
Answers = Sequence[Mapping[str, Any]]


def answers_of(nats_N2: np.ndarray, tokens_N2: np.ndarray, references_N2: np.ndarray | None) -> Rows:
    """A row per pair, with the log-probabilities of the reference where there is one."""
    columns = {"chosen": nats_N2[:, 0], "rejected": nats_N2[:, 1]}
    columns |= {"n_chosen": tokens_N2[:, 0], "n_rejected": tokens_N2[:, 1]}
    if references_N2 is not None:
        columns |= {"reference_chosen": references_N2[:, 0], "reference_rejected": references_N2[:, 1]}
    return Rows(columns, len(nats_N2))


def answers_by_length(tokens_N2: np.ndarray) -> dict[str, Rows]:
    """Two baselines that compare nothing but the lengths of the answers; equal lengths are a tie."""
    chosen_N, rejected_N = tokens_N2.T
    return {
        name: Rows({"prefers_chosen": prefers_N}, len(prefers_N))
        for name, prefers_N in ((LONGER, chosen_N > rejected_N), (SHORTER, chosen_N < rejected_N))
    }


def gains_of(answers: Answers) -> np.ndarray:
    """By how many nats the chosen answer gained more on the reference than the rejected one, float64 (N,); of the
    reference itself the difference of its own log-probabilities."""
    gains_N = np.asarray(column(answers, "chosen") - column(answers, "rejected"), np.float64)
    if "reference_chosen" not in answers[0]:
        return gains_N
    return gains_N - (column(answers, "reference_chosen") - column(answers, "reference_rejected"))


def counted_preferences(examples: Answers, answers: Answers) -> dict[str, Counted]:
    del examples
    if "chosen" not in answers[0]:
        return {"preference_accuracy": rate_of(column(answers, "prefers_chosen"))}
    gains_N, ones_N = gains_of(answers), np.ones(len(answers))
    sides = {side: np.asarray(column(answers, side), np.float64) for side in ("chosen", "rejected")}
    found = {
        "preference_accuracy": rate_of(gains_N > 0),
        "likelihood_accuracy": rate_of(sides["chosen"] > sides["rejected"]),
    }
    if "reference_chosen" in answers[0]:
        found["margin"] = Counted(np.stack([gains_N, ones_N], axis=1), quotient)
    for side, nats_N in sides.items():
        found[f"{side}_log_probability"] = Counted(np.stack([nats_N, ones_N], axis=1), quotient)
        per_token_N2 = np.stack([nats_N, column(answers, f"n_{side}")], axis=1)
        found[f"{side}_log_probability_per_token"] = Counted(per_token_N2, quotient)
    if "reference_chosen" in answers[0]:
        both_N2 = np.stack([sides["chosen"], column(answers, "reference_chosen")], axis=1)
        found["chosen_change"] = Counted(both_N2, lambda sums_RK: quotient(sums_RK) - 1, lowest=-1.0)
    if "prompt_nats" in answers[0]:
        prompts_N2 = np.stack([column(answers, "prompt_nats"), column(answers, "n_prompt")], axis=1)
        found["prompt_loss"] = Counted(prompts_N2, quotient)
    return found
