"""The numbers of lists and headings in word processor files, as a reader of the document sees them.

In: the part numbering.xml. Out: `Lists.mark`, the mark of the next item of a list: `- `, `3. `, `(b) ` or `2.1. `.
Lists that share a definition continue each other's numbers, unless one starts anew (startOverride).
Source: ECMA-376 part 1, section 17.9; number formats in section 17.18.59.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from pipeline.corpus.clean.list_numbers import list_number
from pipeline.corpus.clean.word_elements import switch_of, value_of, whole
from pipeline.corpus.clean.zip_parts import attribute, local_name

DEEPEST = 8  # levels are 0 to 8
LONGEST = 999_999  # a number above is written in digits, whatever its format
PLACE = re.compile(r"%([1-9])")
UNCOUNTED = frozenset({"bullet", "none", ""})
Numbering = tuple[str, int]  # a list (numId) and a level of it


@dataclass(frozen=True, slots=True)
class _Level:
    style: str  # number format: decimal, lowerLetter, bullet, ...
    text: str  # with %1 for the number of the first level
    start: int
    restart: int | None  # the level (1 = the first) at whose next item it starts anew; 0 = never; None = any above
    in_digits: bool  # whether the numbers of the levels above are written in digits


@dataclass(slots=True)
class Lists:
    """The levels of all lists, and how far each definition has counted."""

    levels: dict[Numbering, _Level] = field(default_factory=dict)
    definitions: dict[str, str] = field(default_factory=dict)  # list -> definition
    overrides: dict[Numbering, int] = field(default_factory=dict)  # where a list starts anew
    counters: dict[Numbering, int] = field(default_factory=dict)  # (definition, level) -> number of the last item

    def is_counted(self, numbering: Numbering) -> bool:
        level = self.levels.get(numbering)
        return level is not None and level.style not in UNCOUNTED

    def mark(self, numbering: Numbering) -> str:
        """The mark of the next item, with a space behind it."""
        key, depth = numbering
        if not self.is_counted(numbering):
            return "- "
        level = self.levels[numbering]
        definition = self.definitions[key]
        if numbering in self.overrides:  # counts once, at the first item of the list
            number = self.overrides.pop(numbering)
        else:
            number = self.counters.get((definition, depth), level.start - 1) + 1
        self.counters[(definition, depth)] = number
        for deeper in range(depth + 1, DEEPEST + 1):
            below = self.levels.get((key, deeper))
            if below is None or below.restart is None or (below.restart > 0 and depth + 1 <= below.restart):
                self.counters.pop((definition, deeper), None)
        text = PLACE.sub(lambda match: self._written(key, int(match[1]) - 1, depth, level), level.text).strip()
        return f"{text if text[-1:] in '.):' else text + '.'} " if text else ""

    def _written(self, key: str, depth: int, of: int, level: _Level) -> str:
        own = self.levels.get((key, depth))
        number = self.counters.get((self.definitions[key], depth), own.start if own else 1)
        style = own.style if own and not (level.in_digits and depth < of) else "decimal"
        return FORMATS.get(style, str)(number) if 0 < number <= LONGEST else str(number)


def read_lists(root: Any) -> Lists:
    """The lists of numbering.xml."""
    lists = Lists()
    abstract = {attribute(e, "abstractNumId") or "": e for e in root if local_name(e) == "abstractNum"}
    by_style = {value_of(e, "styleLink"): key for key, e in abstract.items() if value_of(e, "styleLink")}
    for number in (e for e in root if local_name(e) == "num"):
        key, definition = attribute(number, "numId") or "", value_of(number, "abstractNumId") or ""
        linked = value_of(abstract[definition], "numStyleLink") if definition in abstract else None
        definition = by_style.get(linked, definition) if linked else definition
        lists.definitions[key] = definition
        if definition in abstract:
            lists.levels |= {(key, depth): level for depth, level in _levels(abstract[definition])}
        for override in (e for e in number if local_name(e) == "lvlOverride"):
            lists.levels |= {(key, depth): level for depth, level in _levels(override)}
            if (start := whole(value_of(override, "startOverride"))) is not None:
                lists.overrides[(key, whole(attribute(override, "ilvl")) or 0)] = start
    return lists


def _levels(parent: Any) -> list[tuple[int, _Level]]:
    found = []
    for e in (child for child in parent if local_name(child) == "lvl"):
        depth = min(DEEPEST, whole(attribute(e, "ilvl")) or 0)
        start, text = whole(value_of(e, "start")), value_of(e, "lvlText")
        level = _Level(
            style=value_of(e, "numFmt") or "decimal",
            text=f"%{depth + 1}." if text is None else text,
            start=1 if start is None else start,
            restart=whole(value_of(e, "lvlRestart")),
            in_digits=bool(switch_of(e, "isLgl")),
        )
        found.append((depth, level))
    return found


def letters(number: int) -> str:
    """a to z, then aa to zz, then aaa: the letter is repeated (section 17.18.59)."""
    times, place = divmod(number - 1, 26)
    return chr(ord("a") + place) * min(times + 1, 40)


def ordinal(number: int) -> str:
    ending = "th" if 10 <= number % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


FORMATS: dict[str, Callable[[int], str]] = {
    "decimalZero": lambda number: f"{number:02d}",
    "lowerLetter": letters,
    "upperLetter": lambda number: letters(number).upper(),
    "lowerRoman": lambda number: list_number(number, "i"),
    "upperRoman": lambda number: list_number(number, "I"),
    "ordinal": ordinal,
}
