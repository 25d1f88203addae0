"""Which passage each sentence of an answer rests on, and the marks [n] that say so.

In: an answer, the question, and the passages that were read for it. Out: the sentences that a passage supports, each
with its mark and the place of what supports it; the others are left out.

The rule, which is about words and not about truth: a passage supports a sentence if it contains every number of it,
every name (a word with a capital letter that does not begin the sentence) that is not in the question, and at least
`SHARE` of its words that are not in the question, each counting by its idf; of a sentence that has no such words, of
all its words. Of several passages that one is cited that contains most of the words; of its sentences the same.
A negation or a wrong connection of right words is not noticed.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from model.retrieval.sentences import sentence_spans
from model.retrieval.terms import Stemming, terms_of

SHARE = 0.6
NEUTRAL_WORDS = (
    "yes no according passage passages document documents text texts context information provided given mentioned"
    " stated states based answer question"
)  # of answers in general, which need no support
MARK = re.compile(
    r"[ \t]*\[\d{1,3}(?:[ \t]*,[ \t]*\d{1,3})*\]|\b(?:passage|document|source|text)s?[ \t]+\d{1,3}\b", re.I
)
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
NAME = re.compile(r"[^\W\d_][\w'\u2019-]*")


@dataclass(frozen=True, slots=True)
class Source:
    """A passage as the answer could read it."""

    above: str  # its title and headings
    text: str


@dataclass(frozen=True, slots=True)
class Support:
    source: int  # number of the passage, from 0
    start: int  # in the text of the passage: its sentence that says it
    end: int
    share: float  # of the words that need support


@dataclass(frozen=True, slots=True)
class Sentence:
    text: str  # without marks
    support: Support | None


class Citing:
    """What is known of the question and the passages, for all sentences of an answer."""

    def __init__(self, question: str, sources: Sequence[Source], idf: Callable[[str], float], stemming: Stemming):
        self.sources, self.idf = sources, idf
        self.stemming: Stemming = stemming
        self.asked = frozenset(terms_of(question, stemming))
        self.neutral = frozenset(terms_of(NEUTRAL_WORDS, stemming))
        self.terms = [frozenset(terms_of(f"{one.above}\n{one.text}", stemming)) for one in sources]
        self.numbers = [numbers_in(f"{one.above}\n{one.text}") for one in sources]

    def sentences(self, answer: str) -> list[Sentence]:
        """The sentences of the answer, each with what supports it."""
        plain = without_marks(answer)
        return [Sentence(text := plain[start:end], self.support(text)) for start, end in sentence_spans(plain)]

    def support(self, sentence: str) -> Support | None:
        """The passage that supports a sentence best."""
        needed, numbers, names = self._needed(sentence), numbers_in(sentence), self._names(sentence)
        if not needed and not numbers:
            return None
        total = sum(map(self.idf, needed))
        best: tuple[float, int] | None = None
        for place, there in enumerate(self.terms):
            share = sum(map(self.idf, needed & there)) / total if total else 1.0
            is_supported = share >= SHARE and numbers <= self.numbers[place] and names <= there
            if is_supported and (best is None or share > best[0]):
                best = share, place
        if best is None:
            return None
        return Support(best[1], *self._place(best[1], needed, numbers), best[0])

    def share(self, sentence: str, place: int) -> float:
        """Of the words that need support, those of the passage at `place`."""
        needed = self._needed(sentence)
        total = sum(map(self.idf, needed))
        return sum(map(self.idf, needed & self.terms[place])) / total if total else 0.0

    def _needed(self, sentence: str) -> frozenset[str]:
        """Words; numbers are compared as they are written."""
        terms = {term for term in terms_of(sentence, self.stemming) if not term.isdigit()} - self.neutral
        return frozenset(terms - self.asked or terms)

    def _names(self, sentence: str) -> frozenset[str]:
        words = NAME.findall(sentence)[1:]
        names = " ".join(word for word in words if any(map(str.isupper, word)))
        return frozenset(terms_of(names, self.stemming)) - self.asked - self.neutral

    def _place(self, source: int, needed: frozenset[str], numbers: frozenset[str]) -> tuple[int, int]:
        """The sentence of the passage that contains most of it."""
        text = self.sources[source].text

        def contained(span: tuple[int, int]) -> float:
            part = text[slice(*span)]
            return sum(map(self.idf, needed.intersection(terms_of(part, self.stemming)))) + len(
                numbers & numbers_in(part)
            )

        return max(sentence_spans(text), key=contained, default=(0, len(text)))


def numbers_in(text: str) -> frozenset[str]:
    """Without the commas between thousands."""
    return frozenset(re.sub(r",(?=\d{3}\b)", "", number) for number in NUMBER.findall(text))


def without_marks(answer: str) -> str:
    """Without what looks like a citation: a decoder's own marks are not trusted."""
    return MARK.sub("", answer).strip()


def marked(text: str, number: int) -> str:
    """The sentence with its [n], before the full stop that ends it."""
    body = text.rstrip(".!?\u3002")
    return f"{body} [{number}]{text[len(body) :]}"
