"""The terms by which BM25 compares a question with a passage.

In: a text. Out: its terms in their order, with repetitions: its words in small letters (NFKC, casefold), each cut to
its stem (bench/retrieval.py compares ways to do that). An underscore divides a word. A run of letters in a script
without spaces between words, and in Korean, gives each letter and each pair of neighbours.
"""

import itertools
import unicodedata
from collections.abc import Iterator
from typing import Literal, get_args

import regex

from model.data.words import UNSPACED

Stemming = Literal["none", "plural", "prefix"]
STEMMINGS: tuple[Stemming, ...] = get_args(Stemming)
RUN = regex.compile(rf"(?P<unspaced>[{UNSPACED}\p{{M}}]+)|[[\p{{L}}\p{{N}}\p{{M}}]--[{UNSPACED}]]+", regex.VERSION1)
PREFIX = 6  # letters
LONGEST = 64  # letters of a term


def terms_of(text: str, stemming: Stemming) -> list[str]:
    return list(_terms(unicodedata.normalize("NFKC", text).casefold(), stemming))


def _terms(text: str, stemming: Stemming) -> Iterator[str]:
    for run in RUN.finditer(text):
        word = run[0]
        if run["unspaced"]:
            yield from word
            yield from map("".join, itertools.pairwise(word))
        elif stemming == "plural":
            yield _singular(word)[:LONGEST]
        else:
            yield word[: PREFIX if stemming == "prefix" else LONGEST]


def _singular(word: str) -> str:
    """Harman, How effective is suffixing? (1991): the S stemmer, for English."""
    if len(word) < 4 or not word.endswith("s"):
        return word
    if word.endswith("ies") and not word.endswith(("eies", "aies")):
        return word[:-3] + "y"
    if word.endswith("es") and not word.endswith(("aes", "ees", "oes")):
        return word[:-1]
    return word if word.endswith(("us", "ss")) else word[:-1]
