"""The baseline of tagging: a list of the entities of the training texts, looked up in other texts.

In: training texts with their entities. Out: entities in other texts: from left to right the longest run of words that
is in the list, with the label that it had most often. Runs that are no entity more often than they are one are left
out of the list, such as "May", so that the list is not worse than it needs to be.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence

from model.data.spans import Span
from model.data.words import word_spans

Words = tuple[str, ...]


class Gazetteer:
    def __init__(self, texts: Sequence[str], entities: Sequence[Sequence[Span]]) -> None:
        labels: defaultdict[Words, Counter[str]] = defaultdict(Counter)
        for text, spans in zip(texts, entities, strict=True):
            for span in spans:
                labels[_words(text[span.start : span.end])][span.label] += 1
        labels.pop((), None)
        # the alphabetically first of equally frequent labels
        self.labels = {words: min(of, key=lambda label: (-of[label], label)) for words, of in labels.items()}
        self.lengths = self._lengths()
        wrong: Counter[Words] = Counter()
        for text, spans in zip(texts, entities, strict=True):
            true = {span[:2] for span in spans}
            wrong.update(_words(text[one.start : one.end]) for one in self.find(text) if one[:2] not in true)
        for words in [words for words, n in wrong.items() if n > labels[words].total()]:
            del self.labels[words]
        self.lengths = self._lengths()

    def _lengths(self) -> dict[str, list[int]]:
        """The numbers of words of the entities that begin with a word, the largest first."""
        lengths: defaultdict[str, set[int]] = defaultdict(set)
        for words in self.labels:
            lengths[words[0]].add(len(words))
        return {word: sorted(of, reverse=True) for word, of in lengths.items()}

    def find(self, text: str) -> list[Span]:
        borders = word_spans(text).tolist()
        words = [text[start:end] for start, end in borders]
        found, first = [], 0
        while first < len(words):
            runs = (tuple(words[first : first + n]) for n in self.lengths.get(words[first], ()))
            run = next((run for run in runs if run in self.labels), ())
            if run:
                last = first + len(run) - 1
                found.append(Span(borders[first][0], borders[last][1], self.labels[run]))
            first += max(len(run), 1)
        return found


def _words(text: str) -> Words:
    return tuple(text[start:end] for start, end in word_spans(text).tolist())
