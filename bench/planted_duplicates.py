"""A corpus whose duplicates are known: what was planted in it, how alike each pair is, and the score of who went.

In: a seed, and texts (or none: then sentences over a Zipf vocabulary). Out: `Planted`: documents by name, and for
each document those whose staying keeps its content. Shares nothing with `dedup`: own words, sets of tuples, no hash.

Copies: word substitutions, insertions, deletions and all three at a Jaccard index of 0.5 to 0.95, whole sentences
replaced, paragraphs in another order, other line breaks and capitals, the first part only, the same article in the
frame of another site or in a frame that nothing else has, a page that holds two articles, a text copied eight times.
Negatives: pages that share a frame, 60 to 95 % of the page, and differ in content (product pages, reference pages,
pages whose names and numbers alone differ; groups of 2 to 4 and of 40), texts under one licence header, and all that
was not planted.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

WORD = re.compile(r"\w+")
GRAM = 5
BINS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SHORTEST, LONGEST = 60, 1500  # words of a text
SITES = 12
COPIES_OF_ONE = 8
SMALL_GROUPS, LARGE_GROUP = (2, 3, 4), 40
EDITS = ("substituted", "inserted", "deleted", "mixed")

Grams = frozenset[tuple[str, ...]]


@dataclass(slots=True)
class Planted:
    """`content_in[a]` holds the names of documents any of which, if kept, keeps what `a` says."""

    texts: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    content_in: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    pairs: list[tuple[str, str, str]] = field(default_factory=list)  # kind, original, copy

    def add(self, name: str, kind: str, text: str) -> str:
        self.texts[name] = text
        self.kinds[name] = kind
        return name

    def copy(self, kind: str, original: str, copy: str, *, both_ways: bool = True) -> None:
        """`copy` may go for `original`; and the other way, unless that would lose something."""
        self.pairs.append((kind, original, copy))
        self.content_in[copy].add(original)
        if both_ways:
            self.content_in[original].add(copy)


def words_of(text: str) -> list[str]:
    return WORD.findall(text.lower())


def grams_of(text: str) -> Grams:
    own = words_of(text)
    return frozenset(tuple(own[i : i + GRAM]) for i in range(max(1, len(own) - GRAM + 1)))


def jaccard(one: Grams, other: Grams) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)


def containment(small: Grams, large: Grams) -> float:
    return len(small & large) / len(small)


class ZipfWriter:
    """Sentences and paragraphs over 20,000 made-up words, of which the k-th is drawn with a weight of 1 / k."""

    def __init__(self, rng: random.Random, n_words: int = 20_000) -> None:
        self.rng = rng
        syllables = [a + b for a in "bdfgklmnprstvw" for b in ("a", "e", "i", "o", "u", "an", "er", "is", "ol")]
        words: dict[str, None] = {}
        while len(words) < n_words:
            words["".join(rng.choices(syllables, k=rng.choice((1, 2, 2, 3, 3, 4))))] = None
        self.words = list(words)
        self.weights = list(accumulate(1 / k for k in range(1, n_words + 1)))

    def sentence(self) -> str:
        own = self.rng.choices(self.words, cum_weights=self.weights, k=self.rng.randrange(6, 22))
        return " ".join(own).capitalize() + self.rng.choice("..?!")

    def paragraphs(self, n_words: int) -> str:
        out: list[str] = []
        while sum(len(one.split()) for one in out) < n_words:
            out.append(" ".join(self.sentence() for _ in range(self.rng.randrange(2, 6))))
        return "\n\n".join(out)

    def label(self, n_words: int) -> str:
        """Words as they stand in navigation: no sentence."""
        return " ".join(self.rng.choices(self.words, k=n_words)).title()


def pieces(texts: Iterable[str], rng: random.Random) -> list[str]:
    """Consecutive paragraphs of `texts`, SHORTEST to LONGEST words, that share next to nothing with one another."""
    drawn: list[str] = []
    for text in texts:
        paragraphs = [part for part in text.split("\n\n") if part.strip()]
        own: list[str] = []
        wanted = _length(rng)
        for part in paragraphs:
            own.append(part)
            if sum(len(words_of(one)) for one in own) >= wanted:
                drawn.append("\n\n".join(own))
                own, wanted = [], _length(rng)
    rng.shuffle(drawn)
    seen: set[tuple[str, ...]] = set()
    apart = []
    for text in drawn:
        grams = grams_of(text)
        if len(words_of(text)) <= 2 * LONGEST and len(grams & seen) <= 0.02 * len(grams):
            apart.append(text)
            seen |= grams
    return apart


def _length(rng: random.Random) -> int:
    return int(SHORTEST * (LONGEST / SHORTEST) ** rng.random())


def planted_set(seed: int, n_copies: int, texts: Sequence[str] = ()) -> Planted:
    """About `n_copies` copies of every kind together, half as many templates, and as many texts without a copy."""
    rng = random.Random(seed)
    writer = ZipfWriter(rng)
    stock = pieces(texts, rng)
    planted = Planted()

    def base(kind: str) -> str:
        text = stock.pop() if stock else writer.paragraphs(_length(rng))
        return planted.add(f"{kind}-{len(planted.texts)}", "original", text)

    makers: list[Callable[[], None]] = [
        *(lambda how=how: _edited_copy(planted, rng, writer, base(how), how) for how in 3 * EDITS),
        lambda: _sentences_replaced(planted, rng, writer, base("sentences")),
        lambda: _reordered(planted, rng, base("reordered")),
        lambda: _rewrapped(planted, rng, base("rewrapped")),
        lambda: _truncated(planted, rng, base("truncated")),
        lambda: _own_frame(planted, rng, writer, base("framed")),
        lambda: _concatenated(planted, base("first"), base("second")),
    ]
    for i in range(max(1, n_copies - n_copies // 5)):
        makers[i % len(makers)]()
    _sites(planted, rng, writer, [base("article") for _ in range(n_copies // 5)])
    for _ in range(max(1, n_copies // 100)):
        _many_copies(planted, rng, writer, base("many"))
    _templates(planted, rng, writer, n_copies // 2)
    for _ in range(n_copies // 2):
        base("alone")
    return planted


def _edited_copy(planted: Planted, rng: random.Random, writer: ZipfWriter, name: str, how: str) -> None:
    own = planted.texts[name].split(" ")
    copy = edited(rng, own, how, rng.uniform(0.5, 0.97), writer)
    planted.copy(how, name, planted.add(f"{name}-copy", how, " ".join(copy)))


def edited(rng: random.Random, own: Sequence[str], how: str, target: float, writer: ZipfWriter) -> list[str]:
    """Scattered edits. A substitution takes 5 shingles away and adds 5; an insertion 4 and 5; a deletion 5 and 4."""
    n_edits = max(1, round(len(own) * (1 - target) / (GRAM * (1 + target))))
    out = list(own)
    for place in sorted(rng.sample(range(len(own)), min(n_edits, len(own))), reverse=True):
        act = rng.choice(EDITS[:3]) if how == "mixed" else how
        if act == "inserted":
            out.insert(place, rng.choice(writer.words))
        elif act == "deleted":
            del out[place]
        else:
            out[place] = rng.choice(writer.words)
    return out


def _sentences_replaced(planted: Planted, rng: random.Random, writer: ZipfWriter, name: str) -> None:
    parts = re.split(r"(?<=[.?!]) ", planted.texts[name])
    for place in rng.sample(range(len(parts)), max(1, int(len(parts) * rng.uniform(0.02, 0.15)))):
        parts[place] = writer.sentence()
    planted.copy("sentences replaced", name, planted.add(f"{name}-copy", "sentences replaced", " ".join(parts)))


def _reordered(planted: Planted, rng: random.Random, name: str) -> None:
    parts = planted.texts[name].split("\n\n")
    rng.shuffle(parts)
    planted.copy("reordered", name, planted.add(f"{name}-copy", "reordered", "\n\n".join(parts)))


def _rewrapped(planted: Planted, rng: random.Random, name: str) -> None:
    own = planted.texts[name].split()
    width = rng.randrange(5, 20)
    lines = "\n".join(" ".join(own[i : i + width]) for i in range(0, len(own), width))
    copy = rng.choice((lines, lines.upper(), lines.replace(", ", " , "), lines.replace(".", " ...")))
    planted.copy("rewrapped", name, planted.add(f"{name}-copy", "rewrapped", copy))


def _truncated(planted: Planted, rng: random.Random, name: str) -> None:
    own = planted.texts[name].split(" ")
    kept = own[: max(GRAM, int(len(own) * rng.uniform(0.4, 0.95)))]
    planted.copy(
        "truncated", name, planted.add(f"{name}-copy", "truncated", " ".join(kept)), both_ways=False
    )  # the whole text says more


def _own_frame(planted: Planted, rng: random.Random, writer: ZipfWriter, name: str) -> None:
    """Both pages get a navigation and a footer that no other page has."""
    article = planted.texts[name]
    n_words = max(4, int(len(words_of(article)) * rng.uniform(0.02, 0.15)))
    for page in (name, f"{name}-copy"):
        planted.add(page, "own frame", f"{writer.label(n_words)}\n\n{article}\n\n{writer.label(n_words)}")
    planted.copy("own frame", name, f"{name}-copy")


def _concatenated(planted: Planted, first: str, second: str) -> None:
    text = f"{planted.texts[first]}\n\n{planted.texts[second]}"
    both = planted.add(f"{first}-and-{second}", "concatenated", text)
    for part in (first, second):
        planted.copy("concatenated", both, part, both_ways=False)


def _sites(planted: Planted, rng: random.Random, writer: ZipfWriter, articles: Sequence[str]) -> None:
    """Every article on two sites, each in the site's frame of 20 to 80 words; a third of them on one site only."""
    frames = [(writer.label(rng.randrange(12, 50)), writer.label(rng.randrange(8, 30))) for _ in range(SITES)]
    for i, name in enumerate(articles):
        article = planted.texts[name]
        one, other = rng.sample(frames, 2)
        planted.add(name, "boilerplate swap", f"{one[0]}\n\n{article}\n\n{one[1]}")
        if i % 3:
            copy = planted.add(f"{name}-copy", "boilerplate swap", f"{other[0]}\n\n{article}\n\n{other[1]}")
            planted.copy("boilerplate swap", name, copy)


def _many_copies(planted: Planted, rng: random.Random, writer: ZipfWriter, name: str) -> None:
    own = planted.texts[name].split(" ")
    copies = [name]
    for i in range(COPIES_OF_ONE):
        copy = edited(rng, own, "mixed", rng.uniform(0.86, 0.97), writer)
        copies.append(planted.add(f"{name}-copy{i}", "many copies", " ".join(copy)))
        planted.copy("many copies", name, copies[-1])
    for one in copies:
        planted.content_in[one] |= set(copies) - {one}


def _templates(planted: Planted, rng: random.Random, writer: ZipfWriter, n_pages: int) -> None:
    """Groups of pages with one frame, most of the page, and content of their own; all of them are to stay."""
    group = 0
    makers = (_product_page, _reference_page, _licensed_text, _filled_form)
    while n_pages > 0:
        size = LARGE_GROUP if group % 9 == 8 else SMALL_GROUPS[group % 3]
        make = makers[group % len(makers) if size != LARGE_GROUP else (group // 9) % len(makers)]
        if make is _filled_form:  # of two alone nobody can say that they are not copies with edits
            size = max(3, size)
        kind = f"{make.__name__[1:].replace('_', ' ')}, {'large' if size == LARGE_GROUP else 'small'} group"
        page = make(rng, writer)
        for i in range(size):
            planted.add(f"template-{group}-{i}", kind, page())
        n_pages -= size
        group += 1


def _product_page(rng: random.Random, writer: ZipfWriter) -> Callable[[], str]:
    """Head and foot of the shop, a table whose values differ, and a description: 60 to 95 % of the page is frame."""
    head, foot = writer.label(rng.randrange(20, 60)), writer.paragraphs(rng.randrange(60, 200))
    fields = [writer.label(2) for _ in range(rng.randrange(3, 8))]
    n_frame = len(words_of(head)) + len(words_of(foot)) + 2 * len(fields)

    def page() -> str:
        share = rng.uniform(0.6, 0.95)
        n_own = max(12, int(n_frame * (1 - share) / share))
        table = "\n".join(f"{name}: {rng.choice(writer.words)}" for name in fields)
        return f"{head}\n\n{table}\n\n{_exactly(writer, n_own)}\n\n{foot}"

    return page


def _reference_page(rng: random.Random, writer: ZipfWriter) -> Callable[[], str]:
    """Fixed sentences with the name of what is described in some of them, and a few sentences about it."""
    fixed = [writer.sentence() for _ in range(rng.randrange(12, 30))]
    with_name = set(rng.sample(range(len(fixed)), 3))
    share = rng.uniform(0.65, 0.95)
    n_own = max(12, int(sum(len(words_of(one)) for one in fixed) * (1 - share) / share))

    def page() -> str:
        name = "".join(rng.choices(writer.words, k=2)).capitalize()
        lines = [f"{name} {one}" if i in with_name else one for i, one in enumerate(fixed)]
        lines.insert(rng.randrange(1, len(lines)), _exactly(writer, n_own))
        return "\n".join(lines)

    return page


def _licensed_text(rng: random.Random, writer: ZipfWriter) -> Callable[[], str]:
    """The same long header, then something else."""
    header = writer.paragraphs(rng.randrange(150, 300))
    n_own = int(len(words_of(header)) * rng.uniform(0.1, 0.5))
    return lambda: f"{header}\n\n{_exactly(writer, n_own)}"


def _filled_form(rng: random.Random, writer: ZipfWriter) -> Callable[[], str]:
    """The same sentences with other names and numbers in them, scattered as the edits of a copy are."""
    fixed = writer.paragraphs(rng.randrange(150, 400)).split(" ")
    places = rng.sample(range(len(fixed)), max(4, len(fixed) // rng.randrange(30, 60)))

    def page() -> str:
        own = list(fixed)
        for place in places:
            own[place] = f"{rng.choice(writer.words).capitalize()}{rng.randrange(10_000)}"
        return " ".join(own)

    return page


def _exactly(writer: ZipfWriter, n_words: int) -> str:
    return " ".join(writer.paragraphs(n_words).split()[:n_words])


@dataclass(slots=True)
class Score:
    """Counts of one or several planted sets; `found` and `wrong` are (hits, all)."""

    by_bin: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    by_kind: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    wrong_by_kind: dict[str, list[int]] = field(default_factory=lambda: defaultdict(lambda: [0, 0]))
    wrong: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    n_removed: int = 0

    @property
    def precision(self) -> float:
        return 1 - len(self.wrong) / self.n_removed if self.n_removed else 1.0

    def recall(self, low: float, high: float = 1.01) -> float:
        """Of the bins from `low` to below `high`."""
        names = [bin_of(edge) for edge in BINS if low <= edge < high]
        found, total = (sum(self.by_bin[name][i] for name in names) for i in (0, 1))
        return found / total if total else 1.0


def bin_of(value: float) -> str:
    low = max((edge for edge in BINS if edge <= value + 1e-9), default=0.0)
    return "1.0" if low == 1.0 else f"{low:.1f}-{BINS[BINS.index(low) + 1]:.1f}" if low else "below 0.5"


def score(planted: Planted, removed: Mapping[str, str | None], into: Score | None = None) -> Score:
    """`removed`: document -> the one it went for, or None where a tool does not say.

    A pair is found when one of it went. A removal is wrong when nothing that is kept holds its content, or when the
    document it went for does not.
    """
    into = into or Score()
    for kind, original, copy in planted.pairs:
        where = bin_of(jaccard(grams_of(planted.texts[original]), grams_of(planted.texts[copy])))
        found = original in removed or copy in removed
        for counts in (into.by_bin[where], into.by_kind[kind]):
            counts[0] += found
            counts[1] += 1
        if not found:
            into.missed.append(f"{where} {kind}: {original}, {copy}")
    for name, kept in removed.items():
        holders = {kept} if kept is not None else planted.content_in[name] - removed.keys()
        if not holders & planted.content_in[name]:
            into.wrong.append(f"{planted.kinds[name]}: {name} for {kept}")
            into.wrong_by_kind[planted.kinds[name]][0] += 1
    for kind, n in Counter(planted.kinds.values()).items():
        into.wrong_by_kind[kind][1] += n
    into.n_removed += len(removed)
    return into
