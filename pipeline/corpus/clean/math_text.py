"""Writes formulas as text, in one notation whatever the format of the document.

In: the parts of a formula, already written (what stands above and below the line of a fraction). Out: the formula in
one line, in the notation of AsciiMath: `(x+1)/2`, `x^2`, `10^(-4)`, `x_i`, `sqrt(3)`, `root(3)(x)`, `sum_(i=1)^n`,
`hat(x)`, `[[a, b], [c, d]]`. Brackets are written where the formula would otherwise say something else. A formula
whose LaTeX source is known keeps it between dollar signs (`latex`).

The formats themselves are read elsewhere: MathML by mathml_text.py, Office Math by docx_text.py.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

OPERATORS = {"\u2211": "sum", "\u220f": "prod", "\u222b": "int", "\u222c": "iint", "\u222e": "oint"}
ACCENTS = {
    **dict.fromkeys(["^", "\u02c6", "\u0302"], "hat"),
    **dict.fromkeys(["~", "\u02dc", "\u0303"], "tilde"),
    **dict.fromkeys(["\u00af", "\u203e", "\u2015", "\u0304", "\u0305", "-"], "bar"),
    **dict.fromkeys(["\u2192", "\u20d7", "\u21c0"], "vec"),
    **dict.fromkeys(["\u02d9", ".", "\u0307"], "dot"),
    **dict.fromkeys(["\u00a8", "\u0308"], "ddot"),
    **dict.fromkeys(["\u23de", "\ufe37"], "overbrace"),
    **dict.fromkeys(["\u23df", "\ufe38"], "underbrace"),
    **dict.fromkeys(["_", "\u0332", "\u0331"], "underline"),
}
PRIMES = {"'": 1, "\u2032": 1, "\u2033": 2, "\u2034": 3}
DEGREES = ("\u00b0", "\u2218", "\u02da")
INVISIBLE = re.compile("[\u2061-\u2064\u200b-\u200d\u2060\ufeff]")  # signs that say "times" or "applied to" unseen
MATH_LETTER = re.compile("[\U0001d400-\U0001d7ff\u2102\u210a-\u2113\u2115\u2119-\u211d\u2124\u2128\u212c-\u2134]")
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
MIXED = re.compile(r"\d+/\d+")
ATOM = re.compile(r"(?:\d+(?:[.,]\d+)*|[^\W\d_]+)['%\u00b0]*|[^\w\s+\-*/=<>^,;:]")
BRACKETS = {"(": ")", "[": "]", "{": "}"}
RELATIONS = "=<>\u2264\u2265\u2260\u2248\u2261\u223c\u2192\u21d2\u21d4"
STYLES = re.compile(r"\\(?:display|text|script|scriptscript)style(?![A-Za-z])\s*")
DELIMITERS = (("$$", "$$"), ("\\[", "\\]"), ("\\(", "\\)"), ("$", "$"))
CDATA = re.compile(r"%?\s*<!\[CDATA\[|%?\s*\]\]>|^\s*%\s*\n|(?<!\\)%\s*$")


def latex(source: str, *, display: bool = False) -> str:
    """LaTeX source between dollar signs, without the delimiters and style commands that it came with."""
    text = " ".join(STYLES.sub("", CDATA.sub("", source).replace("%\n", "")).split())
    for opening, closing in DELIMITERS:
        if text.startswith(opening) and text.endswith(closing) and len(text) >= len(opening) + len(closing):
            text = text[len(opening) : -len(closing)].strip()
            break
    if text.startswith("{") and _closes_at(text, 0) == len(text) - 1:  # MediaWiki: {\\displaystyle r}
        text = text[1:-1].strip()
    sign = "$$" if display else "$"
    return f"{sign}{text}{sign}" if text else ""


def symbols(text: str) -> str:
    """Letters, numbers and operators of a formula: italic and bold letters as plain ones, one minus sign."""
    text = INVISIBLE.sub("", text).replace("\u2212", "-")
    text = MATH_LETTER.sub(lambda match: unicodedata.normalize("NFKC", match[0]), text)
    return OPERATORS.get(text.strip(), " ".join(text.split()))


def fraction(above: str, below: str) -> str:
    return f"{_factor(above)}/{_factor(below)}"


def binomial(above: str, below: str) -> str:
    return f"binom({above}, {below})"


def power(base: str, exponent: str) -> str:
    exponent = exponent.strip()
    if exponent and all(sign in PRIMES for sign in exponent):
        return grouped(base) + "'" * sum(PRIMES[sign] for sign in exponent)
    if exponent in DEGREES:
        return f"{grouped(base)}\u00b0"
    if not exponent:
        return base
    return f"{base if _is_subscripted(base) else grouped(base)}^{grouped(exponent)}"


def subscript(base: str, index: str) -> str:
    index = index.strip()
    return f"{grouped(base)}_{grouped(index)}" if index else base


def scripts(base: str, index: str = "", exponent: str = "") -> str:
    """A base with both; also an operator with its limits: `sum_(i=1)^n`."""
    return power(subscript(base, index), exponent)


def prescripts(base: str, index: str = "", exponent: str = "") -> str:
    """Scripts before a base, as in isotopes: `{}_6^14 C`."""
    return f"{scripts('{}', index, exponent)} {base}" if index.strip() or exponent.strip() else base


def root(radicand: str, degree: str = "") -> str:
    degree = degree.strip()
    return f"sqrt({radicand})" if degree in ("", "2") else f"root({degree})({radicand})"


def accent(base: str, mark: str) -> str:
    """`hat(x)`, `vec(v)`; any other sign above a base: `overset(a)(x)`."""
    name = ACCENTS.get(mark.strip())
    return f"{name}({base})" if name else f"overset({mark})({base})" if mark.strip() else base


def below(base: str, mark: str) -> str:
    name = {"bar": "underline"}.get(ACCENTS.get(mark.strip(), ""), ACCENTS.get(mark.strip()))
    return f"{name}({base})" if name else f"underset({mark})({base})" if mark.strip() else base


def fenced(items: Sequence[str], opening: str = "(", closing: str = ")", separator: str = ",") -> str:
    return f"{opening}{f'{separator} '.join(items)}{closing}"


def matrix(rows: Sequence[Sequence[str]]) -> str:
    return "[" + ", ".join(f"[{', '.join(row)}]" for row in rows) + "]"


def equations(rows: Sequence[Sequence[str]]) -> str:
    """Rows of a table that only aligns equations below each other."""
    return "; ".join(filter(None, (sequence(row) for row in rows)))


def is_aligned(rows: Sequence[Sequence[str]]) -> bool:
    """Whether the cells of a table are the sides of equations, not the elements of a matrix."""
    later = [cell for row in rows for cell in row[1:]]
    return any(cell[:1] in RELATIONS for cell in later if cell) or (
        not later and any(any(sign in row[0] for sign in RELATIONS) for row in rows if row)
    )


def grouped(text: str) -> str:
    """`text` in brackets, unless it is one sign, one number, one word, a call or already in brackets."""
    text = text.strip()
    return text if not text or ATOM.fullmatch(text) or _is_enclosed(text) else f"({text})"


def sequence(pieces: Iterable[str]) -> str:
    """Parts that follow each other, with a space where they would run together: `omega r`, `x^2 y`, `2x`."""
    parts = [piece for piece in pieces if piece]
    text, before = "", ""
    for i, piece in enumerate(parts):
        after = parts[i + 1] if i + 1 < len(parts) else ""
        if _is_ratio(piece) and (_ends_operand(before) or _begins_operand(after)):
            mixed = NUMBER.fullmatch(before) and MIXED.fullmatch(piece) and not _begins_operand(after)
            piece = piece if mixed else f"({piece})"
        text += (" " if _is_spaced(before, piece) else "") + piece
        before = piece
        if piece in (",", ";"):
            text += " "
    return text.strip()


def _is_spaced(before: str, piece: str) -> bool:
    if not before or not piece[0].isalnum() or not (before[-1].isalnum() or before[-1] in "'%\u00b0)]}"):
        return False
    if NUMBER.fullmatch(before):
        return not piece[0].isalpha()
    return before[-1].isalnum() or len(before) > 1


def _ends_operand(piece: str) -> bool:
    return bool(piece) and (piece[-1].isalnum() or piece[-1] in ")]}'")


def _begins_operand(piece: str) -> bool:
    return bool(piece) and (piece[0].isalnum() or piece[0] in "([{")


def _is_ratio(piece: str) -> bool:
    """Whether a slash of the piece stands outside all brackets."""
    depth = 0
    for sign in piece if len(piece) > 1 and "/" in piece else "":
        depth += (sign in "([{") - (sign in ")]}")
        if sign == "/" and depth == 0:
            return True
    return False


def _factor(text: str) -> str:
    """A part of a fraction; it needs no brackets if it is one sign with scripts."""
    text = text.strip()
    parts = re.split(r"[\^_]", text)
    return text if all(part and grouped(part) == part for part in parts) else grouped(text)


def _is_subscripted(base: str) -> bool:
    letter, _, index = base.partition("_")
    return bool(index) and grouped(letter) == letter and grouped(index) == index


def _is_enclosed(text: str) -> bool:
    """Whether one pair of brackets, perhaps after the name of a function, holds all of it."""
    start = re.match(r"[^\W\d_]*", text)
    at = start.end() if start else 0
    if text.startswith("root(") and (end := _closes_at(text, at)) is not None and text[end + 1 : end + 2] == "(":
        at = end + 1
    return at < len(text) and text[at] in BRACKETS and _closes_at(text, at) == len(text) - 1


def _closes_at(text: str, start: int) -> int | None:
    """The position of the bracket that closes the one at `start`."""
    opening, depth = text[start], 0
    closing = BRACKETS[opening]
    for i in range(start, len(text)):
        depth += (text[i] == opening) - (text[i] == closing)
        if depth == 0:
            return i
    return None
