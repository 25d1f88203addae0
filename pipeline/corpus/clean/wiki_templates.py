"""What a MediaWiki template shows, as far as its name or its place tells.

In: the name of a template and its values, already written as text. Out: the text that it shows, or None if it is not
known. A dump has the texts of templates, but what they show is computed by a language of its own (parser functions,
Lua), so the common ones are written here. wiki_templates.json lists, by patterns of their names, those that show
nothing (notes, references, maintenance, icons), those that show their first value, and those that compute. What is
not known and stands inside a sentence shows its values, because a number or a word would be missing otherwise;
wiki_markup.py counts it.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

Values = Sequence[str]
RANGES = frozenset(
    {"to", "-", "\u2013", "and", "by", "x", "\u00d7", "or", "+/-", "\u00b1", "to about", "and(-)", "to(-)", "(-)"}
)
NUMBER = re.compile(r"[-+\u2212]?\d[\d,.]*(?:[ +]?\d+/\d+)?|\d+/\d+")
DATE = re.compile(r"(?:birth|death|start|end|film|release|launch|opening)[ -]date.*|bda|dda|dob")
SIGNS = {
    **dict.fromkeys(["snd", "spnd", "sndash", "spaced ndash", "spaced en dash"], " \u2013 "),
    **dict.fromkeys(["ndash", "en dash", "\u2013"], "\u2013"),
    **dict.fromkeys(["mdash", "em dash", "\u2014", "spaced mdash"], "\u2014"),
    **dict.fromkeys(["nbsp", "space", "spaces", "thinsp", "zwsp", "wbr", "shy"], " "),
    **dict.fromkeys(["\u00b7", "dot", "middot", "bull", "bullet", "\u2022"], " \u00b7 "),
    "!": "|",
    "=": "=",
    "'": "'",
    "pi": "\u03c0",
    "times": "\u00d7",
    "ellipsis": "\u2026",
    "...": "\u2026",
    "pound": "\u00a3",
    "euro": "\u20ac",
    "minus": "-",
    "plusminus": "\u00b1",
    "pm": "\u00b1",
    "deg": "\u00b0",
    "\\": " / ",
    "'s": "'s",
    "circa": "c.",
}
# name -> number of the value that it shows; -1 = the last
SHOWN_VALUE = {
    **dict.fromkeys(["lang", "langx", "lang-rtl", "script", "color box"], 2),
    **dict.fromkeys(["transl", "transliteration", "translit", "color", "colour", "font color", "fontcolor"], -1),
}
PREFIXES = {
    "circa": "c.",
    "c.": "c.",
    "isbn": "ISBN",
    "issn": "ISSN",
    "oclc": "OCLC",
    "doi": "doi:",
    "vol.": "vol.",
    "ca.": "c.",
    "ca": "c.",
    "floruit": "fl.",
    "fl.": "fl.",
    "reign": "r.",
    "r.": "r.",
    "born": "b.",
}
FUNCTIONS = frozenset({"formatnum", "lc", "uc", "lcfirst", "ucfirst", "nowrap", "padleft", "subst", "safesubst"})
BRANCHES = frozenset({"#if", "#ifeq", "#ifexpr", "#iferror", "#ifexist"})
SHIPS = frozenset({"hms", "uss", "ss", "rms", "hmas", "hmcs", "sms", "mv", "ms"})
LISTS = frozenset({"plainlist", "ubl", "unbulleted list", "hlist", "flatlist", "cslist", "comma separated entries"})


@cache
def listed(kind: str) -> re.Pattern[str]:
    """Matches the names of a list in wiki_templates.json: hidden, first_value or computed."""
    lists = json.loads(Path(__file__).with_name("wiki_templates.json").read_text(encoding="utf-8"))
    return re.compile("|".join(lists[kind]))


def name_of(name: str) -> str:
    """The name as it is compared: without the prefix of its namespace, spaces and capitals."""
    return " ".join(name.replace("_", " ").split()).casefold().removeprefix("template:")


def shown_text(written_name: str, values: Values, named: Mapping[str, str]) -> str | None:
    """What a template shows, perhaps nothing; None if it is not known."""
    name = name_of(written_name)
    if (sign := SIGNS.get(name)) is not None and not any(values):
        return sign
    function, colon, argument = written_name.strip().partition(":")
    if colon and function.lower() in FUNCTIONS:
        return argument.strip()
    if name.startswith("#"):  # a parser function: the branch that holds if its condition does
        return next((value for value in values if value), "") if function.lower() in BRANCHES else ""
    if writer := WRITERS.get(name):
        return writer(values, named)
    if name.startswith("lang-") or listed("first_value").fullmatch(name):
        return next(iter(values), "") or named.get("text") or named.get("quote") or ""
    if name in SHOWN_VALUE:
        place = SHOWN_VALUE[name]
        return values[place if place < 0 else min(place, len(values)) - 1] if values else ""
    if name in PREFIXES:
        return f"{PREFIXES[name]} " + " \u2013 ".join(filter(None, values))
    if name in SHIPS:
        return f"{name.upper()} {next(iter(values), '')}".strip()
    if name in LISTS:
        return ", ".join(filter(None, values))
    if DATE.fullmatch(name):
        return _date(values, named)
    if name in ("as of", "asof"):
        return f"{'as' if named.get('lc') else 'As'} of {_date(values, named)}"
    return "" if listed("hidden").fullmatch(name) else None


def unknown_text(name: str, values: Values) -> str:
    """What is shown for a template that is not known: its values, unless it computes something else from them."""
    return "" if listed("computed").fullmatch(name_of(name)) else " ".join(value for value in values if value)


def _converted(values: Values, named: Mapping[str, str]) -> str:
    """The measure that is converted, without the result: `412 m`, `20 to 35 C`, `5 ft 10 in`."""
    shown: list[str] = []
    for i, value in enumerate(values):
        if NUMBER.fullmatch(value) or value in RANGES:
            shown.append(value)
            continue
        shown.append(value)
        if i + 1 < len(values) and NUMBER.fullmatch(values[i + 1]) and i + 2 < len(values):
            continue  # 5 ft 10 in
        break
    return " ".join(shown)


def _measured(values: Values, named: Mapping[str, str]) -> str:
    number = values[0] if values else ""
    if len(values) > 1 and values[1]:
        number += f"\u00b1{values[1]}"
    if exponent := named.get("e"):
        number += f"\u00d710^{exponent}"
    unit = next((named[key] for key in ("u", "ul", "up") if named.get(key)), "")
    return " ".join(filter(None, (named.get("p", "") + number, unit)))


def _coordinates(values: Values, named: Mapping[str, str]) -> str:
    """A place that a sentence names; most articles show theirs in a corner of the page only."""
    if "title" in named.get("display", ""):
        return ""
    shown, numbers = list[str](), list[str]()
    for value in values:
        if value.upper() in tuple("NSEW"):
            degrees = "".join(number + sign for number, sign in zip(numbers, "\u00b0\u2032\u2033", strict=False))
            shown.append(degrees + value.upper())
            numbers = []
        elif NUMBER.fullmatch(value):
            numbers.append(value)
    return ", ".join([*shown, *numbers])


def _fraction(values: Values, named: Mapping[str, str]) -> str:
    parts = [value for value in values if value][:3]
    if len(parts) == 1:
        return f"1/{parts[0]}"
    return f"{parts[0]} {parts[1]}/{parts[2]}" if len(parts) == 3 else "/".join(parts)


def _date(values: Values, named: Mapping[str, str]) -> str:
    parts = [value for value in values if value][:3]
    if all(part.isdigit() for part in parts):
        return "-".join(part.zfill(2) for part in parts)
    return " ".join(parts)


def _with_original(values: Values, named: Mapping[str, str]) -> str:
    first, *others = [value for value in values if value][:3] or [""]
    return f"{first} ({', '.join(others)})" if others and first else first or ", ".join(others)


def _sound(values: Values, named: Mapping[str, str]) -> str:
    return f"/{''.join(value for value in values if value not in ('lang', 'pron'))}/"


WRITERS: dict[str, Callable[[Values, Mapping[str, str]], str]] = {
    **dict.fromkeys(["convert", "cvt", "convertinline"], _converted),
    "coord": _coordinates,
    **dict.fromkeys(["val", "physics value"], _measured),
    **dict.fromkeys(["frac", "sfrac", "tfrac", "fract", "fraction", "mfrac", "bruch"], _fraction),
    **dict.fromkeys(["nihongo", "nihongo2", "nihongo3", "korean", "cjkv"], _with_original),
    **dict.fromkeys(["ipac-en", "ipac-de", "ipac-fr"], _sound),
    **dict.fromkeys(["sqrt", "radic"], lambda values, named: f"sqrt({next(iter(values), '')})"),
    **dict.fromkeys(["ship", "sclass"], lambda values, named: " ".join(filter(None, values[:2]))),
    **dict.fromkeys(["sup", "smallsup"], lambda values, named: f"^{next(iter(values), '')}"),
    **dict.fromkeys(["sub", "smallsub"], lambda values, named: f"_{next(iter(values), '')}"),
    **dict.fromkeys(["chem", "chem2", "ce"], lambda values, named: "".join(values)),
}
