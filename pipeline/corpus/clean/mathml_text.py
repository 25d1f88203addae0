"""Writes MathML as text: its LaTeX source if it carries one, otherwise the notation of math_text.py.

In: a <math> element, of HTML or of XML. Out: `source_of`: the LaTeX in its annotation or its alternative text;
`linear`: what its elements say, in one line. Content markup (<apply>) is written as calls. Phantoms and annotations
are not shown by a browser, and are left out.

Source: MathML 3, chapters 3 (presentation), 4 (content) and 5 (annotations).
"""

import re
from typing import Any

from pipeline.corpus.clean import math_text
from pipeline.corpus.clean.math_text import sequence, symbols

MAX_DEPTH = 60  # of elements; what lies deeper is written without its structure
MAX_COLUMNS = 100
LATEX_ENCODING = re.compile(r"\b(?:la)?tex\b", re.IGNORECASE)
LATEX_SIGN = re.compile(r"[\\^_{}]")  # tells LaTeX from a description in words
TOKENS = frozenset({"mi", "mn", "mo", "ms", "ci", "cn", "csymbol"})
UNSEEN = frozenset({"annotation", "annotation-xml", "mphantom", "mprescripts", "none", "maligngroup", "malignmark"})
LARGE = frozenset({*math_text.OPERATORS.values(), *"\u22c2\u22c3\u22c0\u22c1\u2a01\u2a02\u2a06\u2210"})


def source_of(math: Any) -> str:
    """The LaTeX source of a formula, empty if it is not known."""
    for element in math.iter():
        if _name(element) == "annotation" and LATEX_ENCODING.search(element.get("encoding") or ""):
            return _text(element).strip()
    source = math.get("data-latex") or math.get("alttext") or ""
    return source.strip() if LATEX_SIGN.search(source) else ""


def linear(math: Any) -> str:
    return " ".join(_row(math, 0).split())


def is_display(math: Any) -> bool:
    return math.get("display") in ("block", "true") or math.get("mode") == "display"


def _name(element: Any) -> str:
    tag = element.tag
    return tag.rpartition("}")[2].rpartition(":")[2].lower() if isinstance(tag, str) else ""


def _text(element: Any) -> str:
    return "".join(element.itertext())


def _children(element: Any) -> list[Any]:
    return [child for child in element if _name(child) and _name(child) not in ("annotation", "annotation-xml")]


def _row(element: Any, depth: int) -> str:
    return sequence(_written(child, depth) for child in _children(element))


def _written(element: Any, depth: int) -> str:
    name = _name(element)
    if name in UNSEEN or not name:
        return ""
    if depth > MAX_DEPTH:
        return symbols(_text(element))
    if name in TOKENS:
        return symbols(_text(element))
    if name == "mtext":
        text = " ".join(_text(element).split())
        return f" {text} " if text else ""
    if name == "mtable":
        return _table(element, depth + 1)
    if name == "apply":
        return _call(element, depth + 1)
    if name in ("msqrt", "mfenced") or (name == "menclose" and "radical" in (element.get("notation") or "")):
        return _enclosed(element, name, depth + 1)
    if name == "mmultiscripts":
        return _multiscripts(element, depth + 1)
    if name in _OF_PARTS:
        parts = [_written(child, depth + 1).strip() for child in _children(element)]
        return _OF_PARTS[name](element, [*parts, "", "", ""])
    children = _children(element)
    if name in ("semantics", "maction") and children:
        return _written(children[0], depth + 1)
    # an element of HTML inside, or one that only changes the style of its content
    return _row(element, depth + 1) if children else symbols(_text(element))


def _fraction(element: Any, parts: list[str]) -> str:
    is_binomial = re.fullmatch(r"0+(?:\.0+)?[a-z%]*", (element.get("linethickness") or "").strip())
    return math_text.binomial(*parts[:2]) if is_binomial else math_text.fraction(*parts[:2])


def _is_operator(base: str) -> bool:
    return base in LARGE or (len(base) > 1 and base.isalpha())


def _above(_element: Any, parts: list[str]) -> str:
    base, mark = parts[:2]
    return math_text.power(base, mark) if _is_operator(base) else math_text.accent(base, mark)


def _below(_element: Any, parts: list[str]) -> str:
    base, mark = parts[:2]
    return math_text.subscript(base, mark) if _is_operator(base) else math_text.below(base, mark)


def _below_and_above(element: Any, parts: list[str]) -> str:
    base, under, over = parts[:3]
    if _is_operator(base):
        return math_text.scripts(base, under, over)
    return math_text.accent(math_text.below(base, under), over)


_OF_PARTS = {
    "mfrac": _fraction,
    "mroot": lambda _, parts: math_text.root(*parts[:2]),
    "msup": lambda _, parts: math_text.power(parts[0] or "{}", parts[1]),
    "msub": lambda _, parts: math_text.subscript(parts[0] or "{}", parts[1]),
    "msubsup": lambda _, parts: math_text.scripts(parts[0] or "{}", *parts[1:3]),
    "mover": _above,
    "munder": _below,
    "munderover": _below_and_above,
}


def _enclosed(element: Any, name: str, depth: int) -> str:
    if name != "mfenced":
        return math_text.root(_row(element, depth))
    items = [_written(child, depth).strip() for child in _children(element)]
    opening, closing = element.get("open", "("), element.get("close", ")")
    separator = (element.get("separators", ",").strip() or " ")[:1]
    return math_text.fenced(items, symbols(opening), symbols(closing), separator)


def _table(table: Any, depth: int) -> str:
    rows = []
    for row in _children(table):
        cells = _children(row) if _name(row) in ("mtr", "mlabeledtr") else [row]
        first = 1 if _name(row) == "mlabeledtr" else 0
        rows.append([_row(cell, depth).strip() for cell in cells[first:MAX_COLUMNS]])
    return math_text.equations(rows) if math_text.is_aligned(rows) else math_text.matrix(rows)


def _multiscripts(element: Any, depth: int) -> str:
    """The base with the scripts after it, after those that stand before it."""
    parts: list[list[str]] = [[], []]
    children = [child for child in element if _name(child)]
    is_before = 0
    for child in children[1:]:
        if _name(child) == "mprescripts":
            is_before = 1
        else:
            parts[is_before].append(_written(child, depth).strip())
    base = _written(children[0], depth).strip() if children else ""
    after = math_text.scripts(base or "{}", "".join(parts[0][::2]), "".join(parts[0][1::2]))
    return math_text.prescripts(after, "".join(parts[1][::2]), "".join(parts[1][1::2]))


def _call(element: Any, depth: int) -> str:
    """Content markup: `divide(v, 2)`."""
    children = _children(element)
    if not children:
        return ""
    name = _written(children[0], depth).strip() or _name(children[0])
    return f"{name}({', '.join(_written(child, depth).strip() for child in children[1:])})"
