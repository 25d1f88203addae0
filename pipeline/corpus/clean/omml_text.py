"""Formulas of word processor files (Office Math) as text in the notation of math_text.py.

In: an element `m:oMath` or one below it. Out: the formula in one line, such as `(x+1)/2` or `sqrt(3)`. An
unknown element gives the formulas inside it, one after the other. Hidden or deleted text and phantoms that are not
shown give nothing.
Source: ECMA-376 part 1, section 22.1.
"""

from collections.abc import Callable
from typing import Any

from pipeline.corpus.clean.math_text import (
    accent,
    below,
    binomial,
    equations,
    fenced,
    fraction,
    grouped,
    is_aligned,
    matrix,
    power,
    prescripts,
    root,
    scripts,
    sequence,
    subscript,
    symbols,
)
from pipeline.corpus.clean.word_elements import OFF
from pipeline.corpus.clean.zip_parts import attribute, local_name

DELETED = frozenset({"del", "moveFrom"})  # by an editor whose changes are still marked
INTEGRAL = "\u222b"  # the operator of m:nary if it names none
CIRCUMFLEX = "\u0302"  # the accent of m:acc if it names none
OVERBRACE, UNDERBRACE = "\u23de", "\u23df"


def formula(element: Any) -> str:
    """The formula that an element contains, or is."""
    name = local_name(element)
    if name in DELETED or (name == "r" and _is_on(element, "vanish")):
        return ""
    if name == "r":
        return symbols("".join(child.text or "" for child in element if local_name(child) == "t"))
    if name in WRITERS:
        return WRITERS[name](element)
    return "" if name.endswith("Pr") else sequence(formula(child) for child in element)


def _part(element: Any, name: str) -> str:
    return next((formula(child) for child in element if local_name(child) == name), "")


def _parts(element: Any, name: str) -> list[str]:
    return [formula(child) for child in element if local_name(child) == name]


def _property(element: Any, name: str) -> str | None:
    """The value of a property of an element: empty if it is there without a value, None if it is not there."""
    for properties in element:
        if local_name(properties).endswith("Pr"):
            for one in properties:
                if local_name(one) == name:
                    return attribute(one, "val") or ""
    return None


def _is_on(element: Any, name: str) -> bool:
    value = _property(element, name)
    return value is not None and value.lower() not in OFF


def _fraction(element: Any) -> str:
    write = binomial if _property(element, "type") == "noBar" else fraction
    return write(_part(element, "num"), _part(element, "den"))


def _operator(element: Any) -> str:
    sign = _property(element, "chr")
    head = scripts(symbols(INTEGRAL if sign is None else sign), _part(element, "sub"), _part(element, "sup"))
    return sequence([head, _part(element, "e")])


def _delimited(element: Any) -> str:
    opening, closing, separator = (_property(element, name) for name in ("begChr", "endChr", "sepChr"))
    items = _parts(element, "e")
    if len(items) == 1 and items[0].startswith("binom(") and (opening, closing) in {(None, None), ("(", ")")}:
        return items[0]  # the brackets belong to the notation of a binomial coefficient
    return fenced(
        items,
        "(" if opening is None else opening,
        ")" if closing is None else closing,
        "|" if separator is None else separator,
    )


def _matrix(element: Any) -> str:
    rows = [_parts(row, "e") for row in element if local_name(row) == "mr"]
    return equations(rows) if is_aligned(rows) else matrix(rows)


def _function(element: Any) -> str:
    name, argument = _part(element, "fName"), grouped(_part(element, "e"))
    return f"{name}{'' if argument.startswith(('(', '[', '{')) else ' '}{argument}".strip()


def _accent(element: Any) -> str:
    mark = _property(element, "chr")
    return accent(_part(element, "e"), CIRCUMFLEX if mark is None else mark)


def _bar(element: Any) -> str:
    write = accent if _property(element, "pos") == "top" else below
    return write(_part(element, "e"), "\u0305" if write is accent else "\u0332")


def _brace(element: Any) -> str:
    mark, is_top = _property(element, "chr"), _property(element, "pos") == "top"
    write = accent if is_top else below
    return write(_part(element, "e"), (OVERBRACE if is_top else UNDERBRACE) if mark is None else mark)


WRITERS: dict[str, Callable[[Any], str]] = {
    "acc": _accent,
    "bar": _bar,
    "d": _delimited,
    "eqArr": lambda e: equations([[row.replace("&", "")] for row in _parts(e, "e")]),
    "f": _fraction,
    "func": _function,
    "groupChr": _brace,
    "limLow": lambda e: subscript(_part(e, "e"), _part(e, "lim")),
    "limUpp": lambda e: power(_part(e, "e"), _part(e, "lim")),
    "m": _matrix,
    "nary": _operator,
    "phant": lambda e: "" if _property(e, "show") in OFF else _part(e, "e"),
    "rad": lambda e: root(_part(e, "e"), "" if _is_on(e, "degHide") else _part(e, "deg")),
    "sPre": lambda e: prescripts(_part(e, "e"), _part(e, "sub"), _part(e, "sup")),
    "sSub": lambda e: subscript(_part(e, "e"), _part(e, "sub")),
    "sSubSup": lambda e: scripts(_part(e, "e"), _part(e, "sub"), _part(e, "sup")),
    "sSup": lambda e: power(_part(e, "e"), _part(e, "sup")),
}
