"""Answers of baselines that need no network: the sentence that matches the question best, and the first sentence.

In: texts to count words in, questions, and the text that each is about. Out: an answer per question with its
characters. A match is the cosine of TF-IDF vectors of words, whose weights come from the sentences of the training
texts and of these texts themselves, because a word that is in no training text is often the one that matters.
scikit-learn is imported where it is used.
"""

import re
from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import Any

import numpy as np

# After . ! ? or their East Asian forms, closing quotation marks and brackets included; or at a line break.
_BORDER = re.compile(r"(?<=[.!?])[\"')\]\u2019\u201d]*(?=\s)|[\u3002\uff01\uff1f]+[\u300d\uff09]*|\n+")
Answer = dict[str, Any]


def sentences_of(text: str) -> list[tuple[int, int]]:
    """First character of each sentence and the one after its last, without the space around it."""
    borders = [0, *(found.end() for found in _BORDER.finditer(text)), len(text)]
    spans = []
    for start, end in pairwise(borders):
        piece = text[start:end]
        if stripped := piece.strip():
            first = start + piece.index(stripped)
            spans.append((first, first + len(stripped)))
    return spans


def first_sentences(texts: Sequence[str]) -> list[Answer]:
    return [_answer(text, *next(iter(sentences_of(text)), (0, 0))) for text in texts]


def best_sentences(training: Sequence[str], questions: Sequence[str], texts: Sequence[str]) -> list[Answer]:
    """The first of the best sentences for each question."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(token_pattern=r"\b\w+\b", sublinear_tf=True)
    known = dict.fromkeys((*training, *texts))
    vectorizer.fit([text[start:end] for text in known for start, end in sentences_of(text)])
    answers: list[Answer] = []
    for text, places in groupby(range(len(texts)), key=lambda place: texts[place]):  # questions on one text together
        spans = sentences_of(text) or [(0, 0)]
        asked_QV = vectorizer.transform([questions[place] for place in places])
        matches_QS = (asked_QV @ vectorizer.transform([text[start:end] for start, end in spans]).T).toarray()
        answers += [_answer(text, *spans[best]) for best in np.argmax(matches_QS, axis=1)]
    return answers


def _answer(text: str, start: int, end: int) -> Answer:
    return {"answer": text[start:end], "start": start, "end": end}
