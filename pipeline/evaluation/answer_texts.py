"""How alike a written answer is to the one that was expected: exact match, F1 of the words, and ROUGE-L.

In: two texts. Out: numbers from 0 to 1. Exact match compares the texts without outer and repeated white space. Words
are runs of letters, digits and underscores in lower case. F1 counts the words that both have; ROUGE-L (Lin 2004,
section 3.1, with beta 1) counts those of their longest common subsequence, so that their order counts.
"""

import re
from collections import Counter
from collections.abc import Sequence

_WORDS = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    return _WORDS.findall(text.lower())


def is_same(answered: str, expected: str) -> bool:
    return answered.split() == expected.split()


def word_f1(answered: str, expected: str) -> float:
    one, other = words_of(answered), words_of(expected)
    return _f1((Counter(one) & Counter(other)).total(), one, other)


def rouge_l(answered: str, expected: str) -> float:
    one, other = words_of(answered), words_of(expected)
    return _f1(_n_common(one, other), one, other)


def _f1(n_same: int, one: Sequence[str], other: Sequence[str]) -> float:
    """Of two texts without words 1, of a text without words and another one 0."""
    if not one or not other:
        return float(len(one) == len(other))
    return 2 * n_same / (len(one) + len(other))


def _n_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        diagonal = 0
        for place, candidate in enumerate(other, start=1):
            above = row[place]
            row[place] = diagonal + 1 if word == candidate else max(above, row[place - 1])
            diagonal = above
    return row[-1]
