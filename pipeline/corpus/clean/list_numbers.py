"""Numbers of list items, in the style and with the starts that a document gives them.

In: the attributes of a list and of its items (HTML: start, reversed, type, value), or a number and its style. Out:
markers such as "3. ", "c. " or "iv. ", so that a sentence about step 4 points to step 4. Items of lists without
numbers have "- ".
"""

import re
from dataclasses import dataclass
from typing import Any

BULLET = "- "
STYLES = frozenset("1aAiI")
INTEGER = re.compile(r"\s*([+-]?\d{1,9})(?!\d)")  # HTML ignores what follows the number
STYLE_RULE = re.compile(
    r"list-style(?:-type)?\s{0,9}:[^;]{0,40}?\b(decimal|none|(?:lower|upper)-(?:alpha|latin|roman))\b"
)
STYLE_NAMES = {"decimal": "1", "none": "", "lower-alpha": "a", "lower-latin": "a", "upper-alpha": "A"} | {
    "upper-latin": "A",
    "lower-roman": "i",
    "upper-roman": "I",
}
ROMAN = {1000: "M", 900: "CM", 500: "D", 400: "CD", 100: "C", 90: "XC", 50: "L", 40: "XL", 10: "X", 9: "IX"}
ROMAN |= {5: "V", 4: "IV", 1: "I"}


def list_number(number: int, style: str) -> str:
    """`number` as browsers write it; letters begin at 1 and roman numbers end at 3999, beyond them it is decimal."""
    if style in ("a", "A") and number > 0:
        return _letters(number, style)
    if style in ("i", "I") and 0 < number < 4000:
        return _roman(number) if style == "I" else _roman(number).lower()
    return str(number)


@dataclass(slots=True)
class Numbering:
    """The counter of an open list; `style` is empty if its items have no numbers."""

    style: str = ""
    number: int = 1
    step: int = 1

    @classmethod
    def of(cls, element: Any) -> "Numbering":
        """Of an <ol>, <ul> or another list."""
        if element.tag != "ol":
            return cls()
        style = element.get("type", "1").strip()
        if rule := STYLE_RULE.search(element.get("style", "")[:400]):
            style = STYLE_NAMES[rule[1]]
        style = style if style in STYLES or not style else "1"
        is_reversed = element.get("reversed") is not None
        start = _integer(element.get("start"))
        if start is None:
            start = sum(child.tag == "li" for child in element) if is_reversed else 1
        return cls(style, start, -1 if is_reversed else 1)

    def marker(self, item: Any) -> str:
        """The marker of the next item, an <li>."""
        if not self.style:
            return BULLET
        value, style = _integer(item.get("value")), item.get("type", "").strip()
        number = self.number if value is None else value
        self.number = number + self.step
        return f"{list_number(number, style if style in STYLES else self.style)}. "


def _integer(text: str | None) -> int | None:
    match = INTEGER.match(text) if text else None
    return int(match[1]) if match else None


def _letters(number: int, first: str) -> str:
    letters = ""
    while number:
        number, place = divmod(number - 1, 26)
        letters = chr(ord(first) + place) + letters
    return letters


def _roman(number: int) -> str:
    written = ""
    for value, sign in ROMAN.items():
        written += sign * (number // value)
        number %= value
    return written
