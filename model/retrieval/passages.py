"""Texts cut into passages: what is searched, and what an answer rests on.

In: a text, how many tokens a piece of it has, and the most tokens of a passage. Out: passages in their order, with
their places in the text and the headings that they stand under. Passages do not overlap, and white space alone lies
between them. Steps: find the blocks (blocks.py); divide those that are too long into items, lines, sentences, and
at last at white space or anywhere; gather the pieces under a heading, in passages of about equal length; join
sections that are short with their neighbours. A heading stays with what follows it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from model.retrieval.blocks import Block, Span, blocks_of, parts_of
from model.retrieval.sentences import sentence_spans, stripped

CHARACTERS_PER_TOKEN = 16  # at most, so that a word of a million letters, which may be one unknown token, is divided
SHORT_SECTION = 4  # a section is short if it has less than the most tokens of a passage divided by this
Path = tuple[str, ...]
Divide = Callable[[int, int], list[Span]]
Cut = tuple[int, int, Path]


@dataclass(frozen=True, slots=True)
class Passage:
    document: str
    start: int
    end: int  # its text is document_text[start:end]
    headings: Path  # under which it stands, the highest first


@dataclass(frozen=True, slots=True)
class _Piece:
    start: int
    end: int
    n_tokens: int
    path: Path
    is_heading: bool
    leads: bool  # announces what follows, as a heading or "... as follows:" does


@dataclass(slots=True)
class _Section:
    pieces: list[_Piece] = field(default_factory=list)

    @property
    def n_tokens(self) -> int:
        return sum(piece.n_tokens for piece in self.pieces)


def cut(text: str, n_tokens: Callable[[str], int], most_tokens: int) -> list[Cut]:
    """Start, end and headings of each passage of at most `most_tokens`. `n_tokens`: of a text, without tokens around
    it. Raises ValueError for most_tokens below 1 and for a character that has more tokens than that."""
    if most_tokens < 1:
        raise ValueError(f"most_tokens={most_tokens} must be at least 1")
    size = _Size(text, n_tokens, most_tokens)
    passages = list[Cut]()
    for section in _joined(_sections(_pieces(size)), most_tokens):
        for group in _groups(section.pieces, most_tokens):
            passages += _within(size, group)
    return passages


class _Size:
    def __init__(self, text: str, n_tokens: Callable[[str], int], most: int):
        self.text, self._n_tokens, self.most = text, n_tokens, most

    def of(self, start: int, end: int) -> int:
        """Tokens of the span; a span of very many characters counts as having more than its tokens."""
        return max(self._n_tokens(self.text[start:end]), (end - start) // CHARACTERS_PER_TOKEN)


def _pieces(size: _Size) -> list[_Piece]:
    """Pieces that fit, with the headings above them."""
    pieces, above = list[_Piece](), list[Block]()
    for block in blocks_of(size.text):
        if block.kind == "heading":
            above = [*(one for one in above if one.level < block.level), block]
        path = tuple(" ".join(one.title.split()) for one in above)
        is_heading = block.kind == "heading"
        for start, end, n_tokens in _fitting(size, block):
            leads = is_heading or size.text[end - 1] == ":"
            pieces.append(_Piece(start, end, n_tokens, path, is_heading, leads))
    return pieces


def _fitting(size: _Size, block: Block) -> list[tuple[int, int, int]]:
    """The block, or the largest parts of it that fit, each with its number of tokens."""
    text = size.text

    def divided(start: int, end: int, kinds: Sequence[Divide]) -> list[tuple[int, int, int]]:
        n_tokens = size.of(start, end)
        if n_tokens <= size.most:
            return [(start, end, n_tokens)]
        for number, parts_at in enumerate(kinds):
            parts = [found for one in parts_at(start, end) if (found := stripped(text, *one))]
            if len(parts) > 1:
                return [found for part in parts for found in divided(*part, kinds[number:])]
        parts = _even_parts(text, start, end, -(-n_tokens // size.most))
        return [found for part in parts for found in divided(*part, ())]

    def at_structure(start: int, end: int) -> list[Span]:
        return next((parts for parts in parts_of(text, block.kind, start, end) if len(parts) > 1), [(start, end)])

    return divided(block.start, block.end, (at_structure, lambda start, end: sentence_spans(text, start, end)))


def _even_parts(text: str, start: int, end: int, n_parts: int) -> list[Span]:
    """Parts of about equal length, cut at white space where there is some."""
    if end - start == 1:
        raise ValueError(f"the character {text[start]!r} alone has more tokens than a passage may have")
    step = max(1, (end - start) // max(2, n_parts))
    parts = list[Span]()
    while end - start > step:
        place, least = start + step, start + max(1, step // 2)
        while place > least and not text[place].isspace():
            place -= 1
        place = place if text[place].isspace() else start + step
        parts.append((start, place))
        start = place
    parts.append((start, end))
    return [found for part in parts if (found := stripped(text, *part))]


def _sections(pieces: Sequence[_Piece]) -> list[_Section]:
    """What stands under one heading; headings in a row are one section with what follows them."""
    sections = list[_Section]()
    for place, piece in enumerate(pieces):
        if not place or (piece.is_heading and not pieces[place - 1].is_heading):
            sections.append(_Section())
        sections[-1].pieces.append(piece)
    return sections


def _joined(sections: Sequence[_Section], most: int) -> list[_Section]:
    """Short sections join the one before them, or the one after, if both fit into a passage."""
    joined = list[_Section]()
    for section in sections:
        before = joined[-1].n_tokens if joined else most
        n_tokens = section.n_tokens
        if before + n_tokens <= most and min(before, n_tokens) * SHORT_SECTION < most:
            joined[-1].pieces += section.pieces
        else:
            joined.append(_Section(list(section.pieces)))
    return joined


def _groups(pieces: Sequence[_Piece], most: int) -> list[list[_Piece]]:
    """The pieces of each passage, of about equal length."""
    total = sum(piece.n_tokens for piece in pieces)
    aim = total / max(1, -(-total // most))
    groups, n_tokens = list[list[_Piece]](), 0
    for place, piece in enumerate(pieces):
        follows = place > 0 and pieces[place - 1].leads
        is_full = n_tokens + piece.n_tokens > most
        is_enough = n_tokens + piece.n_tokens / 2 > aim and not follows
        if not place or is_full or is_enough:
            groups.append([])
            n_tokens = 0
            if is_full and follows and len(groups[-2]) > 1 and pieces[place - 1].n_tokens + piece.n_tokens <= most:
                groups[-1].append(groups[-2].pop())  # a heading goes with what follows it
                n_tokens = groups[-1][0].n_tokens
        groups[-1].append(piece)
        n_tokens += piece.n_tokens
    return groups


def _within(size: _Size, group: Sequence[_Piece]) -> list[Cut]:
    """The group as a passage; as several if its tokens together are more than the sum of those of its pieces."""
    start, end = group[0].start, group[-1].end
    if len(group) > 1 and size.of(start, end) > size.most:
        middle = len(group) // 2
        return [*_within(size, group[:middle]), *_within(size, group[middle:])]
    paths = [piece.path for piece in group if not piece.is_heading] or [group[-1].path]
    return [(start, end, _common(paths))]


def _common(paths: Sequence[Path]) -> Path:
    """What all of them begin with."""
    first, last = min(paths), max(paths)
    n_common = next((n for n, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), None)
    return first if n_common is None else first[:n_common]
