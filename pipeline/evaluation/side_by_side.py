"""Answers that models wrote to some of the examples: made, and shown side by side in mistakes.md.

In: a network, a chat template and questions; or texts of the data and of the models. Out: a text per example, None
where none was asked for; Markdown with the texts below each other.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipeline.evaluation.mistakes import printable
from pipeline.evaluation.results import quoted

MOST_SHOWN, MOST_CHARACTERS = 50, 1000  # examples, characters of a text


def written_answers(
    network: Any, template: Any, questions: Sequence[Any], places: np.ndarray, n_rows: int, max_new_tokens: int
) -> dict[str, list[Any]]:
    """The likeliest answer to each question, which is that of the row at its place among `n_rows`, and whether it
    ended by itself; None and False for all other rows."""
    from model.evaluate_conversations import greedy_answers

    texts: list[str | None] = [None] * n_rows
    is_complete = [False] * n_rows
    for place, one in zip(places, greedy_answers(network, template, questions, max_new_tokens), strict=True):
        texts[place], is_complete[place] = one.text, one.is_complete
    return {"answer": texts, "is_complete": is_complete}


def side_by_side(summary: str, shown: Sequence[tuple[str, Mapping[str, str]]]) -> str:
    """mistakes.md: the first examples of `shown`, each with a line about it and its texts by name."""
    lines = [
        "# Answers side by side",
        f"\n{summary} The texts are data of the task, so that this file is not sent to MLflow.",
    ]
    for number, (line, texts) in enumerate(shown[:MOST_SHOWN], 1):
        lines.append(f"\n{number}. {line}")
        lines += [f"\n**{name}**\n\n{quoted(_shortened(text))}" for name, text in texts.items()]
    return "\n".join(lines) + "\n"


def _shortened(text: str) -> str:
    text = printable(text)
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}..."
