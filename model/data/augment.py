"""Augmentation: texts with typing errors, another case, or words left out, drawn anew in every epoch.

In: a text, spans of it, a generator of random numbers. Out: the changed text, and the spans where their characters
are now. Steps: words are left out; letters of words are swapped, left out, doubled, or replaced by a neighbour on the
keyboard; the case of the whole text changes. What lies between two spans stays between them, and a span keeps at
least one of its words, as does the text.
"""

import hashlib
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

WORD = re.compile(r"\S+")
ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")  # of a keyboard
NEIGHBOURS = {c: row[max(0, i - 1) : i] + row[i + 1 : i + 2] for row in ROWS for i, c in enumerate(row)}
Span = tuple[int, int]  # first character and the one after the last
Letter = tuple[str, int]  # a character of the new text, and where in the old one it comes from


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Probabilities from 0 to 1."""

    typos: float = 0.0  # of an error, per word
    case: float = 0.0  # of another case, per text
    word_dropout: float = 0.0  # of being left out, per word (arXiv:1901.11196 section 2)

    def __post_init__(self) -> None:
        for name in ("typos", "case", "word_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"augment_{name}={getattr(self, name)} must be from 0 to 1")

    @property
    def changes_texts(self) -> bool:
        return bool(self.typos or self.case or self.word_dropout)


def augmented_text(
    text: str, spans: Sequence[Span], rng: np.random.Generator, settings: Augmentation
) -> tuple[str, list[Span]]:
    """`text` as `settings` change it, and `spans` in it."""
    words = [match.span() for match in WORD.finditer(text)]
    if not words:
        return text, list(spans)
    kept = _kept_words(words, spans, rng, settings.word_dropout)
    letters = _joined(text, words, kept, spans, rng, settings.typos)
    if settings.case and rng.random() < settings.case:
        change = CASES[rng.integers(len(CASES))]
        letters = [(change(text, c, origin), origin) for c, origin in letters]
    return "".join(c for c, _ in letters), [_moved(letters, start, end) for start, end in spans]


def _kept_words(words: Sequence[Span], spans: Sequence[Span], rng: np.random.Generator, dropout: float) -> list[bool]:
    """Whether each word stays: at least one of every span, and of the text."""
    kept = (rng.random(len(words)) >= dropout).tolist()
    for start, end in [*spans, (0, words[-1][1])]:
        within = [i for i, (first, last) in enumerate(words) if first < end and last > start]
        if within and not any(kept[i] for i in within):
            kept[within[rng.integers(len(within))]] = True
    return kept


def _joined(
    text: str,
    words: Sequence[Span],
    kept: Sequence[bool],
    spans: Sequence[Span],
    rng: np.random.Generator,
    typos: float,
) -> list[Letter]:
    """The kept words, each after what was before it, some with a typing error."""
    has_typo = rng.random(len(words)) < typos
    letters: list[Letter] = []
    for number, (start, end) in enumerate(words):
        if kept[number]:
            before = start if not letters else words[number - 1][1]
            before = 0 if number == 0 else before
            letters += [(text[place], place) for place in range(before, start)]
            word = [(text[place], place) for place in range(start, end)]
            letters += _with_typo(word, spans, rng) if has_typo[number] else word
    return letters + [(text[place], place) for place in range(words[-1][1], len(text))]


def _with_typo(word: list[Letter], spans: Sequence[Span], rng: np.random.Generator) -> list[Letter]:
    """One error. Letters are swapped or left out only beside one of the same spans, so that no span vanishes."""
    own = [tuple(start <= origin < end for start, end in spans) for _, origin in word]
    one = [i for i, (c, _) in enumerate(word) if c.isalpha()]
    two = [i for i, after in itertools.pairwise(one) if after == i + 1 and own[i] == own[after]]
    near = [i for i in one if word[i][0].lower() in NEIGHBOURS]
    places_of = {"swap": two, "omit": two, "double": one, "near": near}
    kinds = [kind for kind, places in places_of.items() if places]
    if not kinds:
        return word
    kind = kinds[rng.integers(len(kinds))]
    i = places_of[kind][rng.integers(len(places_of[kind]))]
    (c, origin), after = word[i], word[i + 1 :]
    if kind == "swap":
        (other, a), after = after[0], after[1:]
        changed = [(other, a), (c, origin)]
    elif kind == "near":
        around = NEIGHBOURS[c.lower()]
        other = around[rng.integers(len(around))]
        changed = [(other.upper() if c.isupper() else other, origin)]
    else:
        changed = [word[i]] * {"omit": 0, "double": 2}[kind]
    return [*word[:i], *changed, *after]


def _moved(letters: Sequence[Letter], start: int, end: int) -> Span:
    """Where the characters of a span are now, from its first word to its last."""
    place, places = 0, []
    for c, origin in letters:
        if start <= origin < end and not c.isspace():
            places += [place, place + len(c)]
        place += len(c)
    if not places:
        raise ValueError(f"the span from {start} to {end} holds no word")
    return min(places), max(places)


def _initial(text: str, c: str, origin: int) -> str:
    return c.upper() if origin == 0 or text[origin - 1].isspace() else c.lower()


CASES: tuple[Callable[[str, str, int], str], ...] = (
    lambda text, c, origin: c.lower(),
    lambda text, c, origin: c.upper(),
    _initial,
)


def augmented_texts(ids: Sequence[str], texts: Sequence[str], settings: Augmentation, seed: int) -> list[str]:
    """Texts without spans; each is drawn from (seed, id of the example)."""
    return [
        augmented_text(text, (), generator(seed, example), settings)[0]
        for example, text in zip(ids, texts, strict=True)
    ]


def generator(seed: int, example: str) -> np.random.Generator:
    """The random numbers of one example; `seed` is that of an epoch."""
    return np.random.Generator(np.random.PCG64(_number(f"{seed} {example}")))


def epoch_seed(seed: int, epoch: int) -> int:
    """A seed for what is drawn in one epoch of a training."""
    return _number(f"epoch {seed} {epoch}")


def _number(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8], "little")
