"""Writes raised and lowered text into the tree of a page so that it says the same on one line.

In: the tree of a page. Out: the same tree, in which `10<sup>6</sup>` is `10^6`, `x<sub>i</sub>` is `x_i`, and the
mark of a footnote is `[1]`. What reads the same without a sign stays as it is: `H2O`, `1st`, `XIXe`, `TM`, fractions
such as 1/2; prices get their point. HTML does not say what a raised digit means, so the word before it decides: a
number, a single letter, a unit or a bracket has a power, any other word has a footnote.
"""

import re
from itertools import islice
from typing import Any

from pipeline.corpus.clean.math_text import grouped, symbols

MAX_CHARACTERS = 40  # longer text is raised for its looks
MAX_SCRIPTS = 20_000  # of a page
SEEN_BEFORE = 24  # characters
INLINE = frozenset({"a", "b", "i", "em", "strong", "var", "span", "font", "small", "big", "u", "code", "sup", "sub"})
VARIABLES = ("i", "em", "var")
DESCRIBED = ("class", "role", "epub:type", "{http://www.idpf.org/2007/ops}type")
NOTE = re.compile(r"note|reference|citation|\bcite", re.IGNORECASE)
MARKER = re.compile(r"\d{1,4}(?:\s?[,;\u2013-]\s?\d{1,4})*|[a-z]{1,2}|[ivx]{1,5}", re.IGNORECASE)
NUMBER = re.compile(r"[+\-\u2212\u2013]?\d+(?:[.,/]\d+)?")
SIGNED = re.compile(r"[+\-\u2212\u2013]\s?\d.*|\d*[+\-\u2212\u2013]")
SIGNS = r"[\w.()+\-\u2212*/=\u00d7\u00b7\u2032'^ ]*"
EXPRESSION = re.compile(rf"{SIGNS}[\d+\-\u2212*/=]{SIGNS}")
PRICE = re.compile(r"[$\u20ac\u00a3\u00a5\u20b9]\s?\d[\d,.]*")
YEAR = re.compile(r"(?:^|\D)(?:1[5-9]|20)\d\d$")
WORD = re.compile(r"[^\W\d_]+$")
INDEXED = re.compile(r"[^\W\d_]_\(?\w+\)?$")
UNITS = frozenset(
    {"mm", "cm", "dm", "km", "nm", "pm", "ft", "yd", "mi", "in", "mol", "rad", "sr", "min", "sec", "ms"}
) | {"us", "ns", "kg", "mg", "Hz", "kHz", "MHz", "Pa", "kPa", "MPa", "eV", "cd", "lx", "hr", "kW"}
FUNCTIONS = frozenset(
    [
        "sin",
        "cos",
        "tan",
        "cot",
        "sec",
        "csc",
        "sinh",
        "cosh",
        "tanh",
        "log",
        "ln",
        "exp",
        "lim",
        "det",
        "arg",
        "max",
        "min",
        "sup",
        "inf",
        "Pr",
    ]
)
ELEMENT = re.compile(r"(?:^|[^a-z])[A-Z][a-z]?$|[A-Za-z\d]\)$")
BEFORE_FACTORS = "/\u00b7=+*\u00d7\u2248<>\u2264\u2265"
EXPONENTS = frozenset("nkxyzijNKXYZT")
CURRENCIES = tuple("$\u20ac\u00a3\u00a5\u20b9")


def write_superscripts(root: Any) -> None:
    import lxml.etree

    if next(root.iter("sup", "sub"), None) is None:
        return
    walk = lxml.etree.iterwalk(root, events=("end",), tag=("sup", "sub"))
    for element in [element for _, element in islice(walk, MAX_SCRIPTS)]:
        text = "".join(islice(element.itertext(), MAX_CHARACTERS))
        before = _before(element)
        if not text.strip() or len(text) > MAX_CHARACTERS or not before or before[-1].isspace():
            continue
        if element.tag == "sub":
            written = lowered(before, text.strip(), is_variable=_is_variable(element))
        elif _is_fraction(element, text.strip()):
            written = f" {text.strip()}" if before[-1].isdigit() else None
        elif _is_note(element):
            written = _marked(text.strip())
        else:
            after = (element.tail or "").lstrip()[:1]
            written = raised(before, text.strip(), after, is_variable=_is_variable(element))
        if written is not None:
            element.clear(keep_tail=True)
            element.tag, element.text = "span", written


def raised(before: str, text: str, after: str = "", *, is_variable: bool = False) -> str | None:
    """How `text`, raised after `before`, is written; None if as it is."""
    if re.fullmatch(r"\d\d", text) and (PRICE.search(before) or after in CURRENCIES):
        ends_in_digit = before[-1].isdigit() and re.search(r"\d[.,]\d\d$", before) is None
        return f".{text}" if ends_in_digit else None
    if not (before[-1].isalnum() or before[-1] in ")]}"):
        return (
            _marked(text)
            if MARKER.fullmatch(text) and text[0].isdigit() and before[-1] in ".,;:!?\"'\u201d\u2019%"
            else None
        )
    if text.isalpha():
        word = WORD.search(before)
        is_single = before[-1].isdigit() or (word is not None and len(word[0]) == 1)
        is_power = is_single and (is_variable or (len(text) == 1 and text in EXPONENTS))
        return f"^{grouped(text)}" if is_power else None
    if SIGNED.fullmatch(text):
        return "^" + grouped(symbols(text.replace("\u2013", "-"))) if len(text) > 1 else None
    if NUMBER.fullmatch(text):
        return f"^{grouped(text)}" if is_variable or _has_power(before) else _marked(text)
    if MARKER.fullmatch(text):
        return _marked(text)
    is_expression = EXPRESSION.fullmatch(text) and any(sign.isalnum() for sign in text)
    return f"^{grouped(symbols(text))}" if is_expression else None


def lowered(before: str, text: str, *, is_variable: bool = False) -> str | None:
    if not (before[-1].isalnum() or before[-1] in ")]}|"):
        return None
    word = WORD.search(before)
    is_short = word is None or len(word[0]) <= 2 or word[0] in FUNCTIONS
    if text.isdigit():
        is_chemical = not is_variable and ELEMENT.search(before)
        return None if is_chemical else f"_{text}" if is_short or is_variable else None
    if not (is_short or is_variable) or not re.fullmatch(r"[\w+\-\u2212,.\u221e ]+", text) or " " in text.strip(","):
        return None
    return f"_{grouped(symbols(text))}"


def on_one_line(before: str, text: str, after: str = "", *, is_raised: bool) -> str:
    """Raised or lowered text of another format, as it reads on one line after `before`: `10^6`, `x_i`."""
    before, bare = before[-SEEN_BEFORE:], text.strip()
    if not before or before[-1].isspace() or not bare:
        return text
    return (raised(before, bare, after) if is_raised else lowered(before, bare)) or text


def _marked(text: str) -> str | None:
    """The mark of a footnote; None if it does not look like a number or a letter of the text."""
    return f"[{text}]" if MARKER.fullmatch(text) else None


def _has_power(before: str) -> bool:
    if before[-1].isdigit():
        return not YEAR.search(before)
    if before[-1] in ")]}":
        inside = re.split(r"[(\[{]", before)[-1]
        return not re.search(r"[^\W\d_]{4}", inside)
    word = WORD.search(before)
    if word is None or len(word[0]) == 1 or word[0] in UNITS or word[0] in FUNCTIONS or INDEXED.search(before):
        return True
    quantity = before[: word.start()].rstrip()
    return len(word[0]) <= 3 and bool(quantity) and (quantity[-1].isdigit() or quantity[-1] in BEFORE_FACTORS)


def _before(element: Any) -> str:
    """The text directly before an element, on the same line."""
    text, node = "", element
    while len(text) < SEEN_BEFORE and " " not in text:
        before, above = node.getprevious(), node.getparent()
        if before is not None:
            text = (before.tail or "")[-SEEN_BEFORE:] + text
            if before.tag not in INLINE:
                break
            if len(text) < SEEN_BEFORE:
                text = "".join(islice(before.itertext(), SEEN_BEFORE))[-SEEN_BEFORE:] + text
            node = before
        elif above is not None:
            text = (above.text or "")[-SEEN_BEFORE:] + text
            if above.tag not in INLINE or above.tag in ("sup", "sub"):
                break
            node = above
        else:
            break
    return text


def _is_variable(element: Any) -> bool:
    """Whether the letters around are italic, as those of formulas are."""
    before = element.getprevious()
    is_after = before is not None and before.tag in VARIABLES and not before.tail
    return is_after or next(element.iter(*VARIABLES), None) is not None or element.getparent().tag in VARIABLES


def _is_note(element: Any) -> bool:
    """Whether it is a link, is inside one that contains nothing else, or is called a note."""
    text = "".join(element.itertext())
    above = [part for part in islice(element.iterancestors(), 2) if "".join(islice(part.itertext(), 20)) == text]
    for part in [element, *islice(element.iterdescendants(), 8), *above]:
        described = " ".join(filter(None, map(part.get, DESCRIBED)))
        if part.tag == "a" or (part.tag in ("sup", "span") and NOTE.search(described)):
            return True
    return False


def _is_fraction(element: Any, text: str) -> bool:
    below = element.getnext()
    is_slash = (element.tail or "").strip() in ("/", "\u2044")
    return text.isdigit() and is_slash and below is not None and below.tag == "sub"
