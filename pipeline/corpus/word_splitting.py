"""The words of a chunk (text between white space), split as spaCy's English tokenizer does.

In: a chunk. Out: its words, which joined are the chunk. Steps: outer punctuation is cut off sign by sign; addresses,
known abbreviations and smileys stay whole; English contractions are split ("ca" "n't"); the rest is cut at hyphens,
slashes and the like between letters. A regular expression is no substitute: the limits of the quality rules were
chosen on these words, and a simpler split changes 4.6 % of their decisions (docs/log.md).
"""

import functools
import re
import string

LONGEST_ADDRESS = 2_000  # characters
LONGEST_KNOWN = 12  # characters of a contraction, abbreviation or smiley

QUOTES = "'\"`\u2018\u2019\u201a\u201c\u201d\u201e\u00b4\u00ab\u00bb\u300c\u300d\u300e\u300f\uff08\uff09\u3014\u3015"
QUOTES += "\u3010\u3011\u300a\u300b\u3008\u3009\u27e6\u27e7,"
MARKS = ",:;!?()[]{}<>_#*&\u2026\u00bf\u061f\u00a1\u3002\uff1f\uff01\uff0c\u3001\uff1b\uff1a\uff5e\u00b7\u0964\u060c"
MARKS += "\u06d4\u061b\u066a"
BOTH_SIDES = frozenset(QUOTES + MARKS)  # cut off before and after a word
CURRENCY = frozenset("$\u00a3\u20ac\u00a5\u0e3f\u20b9\u20bd\u20a9\u20aa")
BEFORE = frozenset("\u00a7%=\u2014\u2013") | CURRENCY
BEHIND = frozenset("\u2014\u2013")
UNITS = frozenset(
    [
        "km",
        "km²",
        "km³",
        "m",
        "m²",
        "m³",
        "dm",
        "cm",
        "cm²",
        "cm³",
        "mm",
        "ha",
        "µm",
        "nm",
        "yd",
        "in",
        "ft",
        "kg",
        "g",
        "mg",
        "µg",
        "t",
        "lb",
        "oz",
        "m/s",
        "km/h",
        "kmh",
        "mph",
        "hPa",
        "Pa",
        "mbar",
        "mb",
        "MB",
        "kb",
        "KB",
        "gb",
        "GB",
        "tb",
        "TB",
        "T",
        "G",
        "M",
        "K",
        "%",
    ]
)
SYMBOL_RANGES = (  # of category So, without the arrows of mathematics
    "\u00a6\u00a9\u00ae\u00b0\u2100\u2101\u2103-\u2106\u2108\u2109\u2114\u2116\u2117\u211e-\u2123\u2195-\u2199"
    "\u21aa-\u21cd\u21d5-\u21f3\u2300-\u2307\u230c-\u231f\u2322-\u2328\u232b-\u23db\u2400-\u24e9\u2500-\u25b6"
    "\u25b8-\u25c0\u25c2-\u25f7\u2600-\u266e\u2670-\u2767\u2794-\u27bf\u2800-\u28ff\u2b00-\u2bff\ufffc\ufffd"
    "\u3200-\u33ff\U0001f000-\U0001f3fa\U0001f400-\U0001faff"
)
SYMBOL = re.compile(f"[{SYMBOL_RANGES}]")
DOTS = re.compile(r"\.{2,}")
ENDS_IN_UNIT = re.compile(r"[0-9]([a-z\u00b5][\w/\u00b2\u00b3]{0,4}|[A-Z][A-Za-z]?|%)\Z")
JOINED = re.compile(r"\):|''|:\)|:\(|\(:|\[:|=\[|\]=|=\(|=\)|;\)|:\*|:\]|[a-z\u00e4\u00f6\u00fc]\.")
SMILEY = re.compile(
    r"[<>]?[:;=8][-o']?[()\[\]{}|/*DPpXxOo013>]{1,3}|[(\[][-o]?[:;=8]|\)-?:|[\])]=|:'-?[()]+|<3+|<\.<|[oO0v][._][oO0v]"
)
ADDRESS = re.compile(
    r"(?:[\w+.-]{2,}://)?(?:[^\s@]+@)?(?:(?:[^\W_][\w-]*\.)+(?P<end>[^\W\d_]{2,63})|[1-9]\d{0,2}(?:\.\d{1,3}){3})"
    r"(?::\d{2,5})?(?:[/?#]\S*)?"
)


def split_chunk(chunk: str) -> list[str]:
    """The words of a chunk without white space, in their order."""
    if chunk.isalpha() and chunk not in _known():
        return [chunk]
    known, start, end = _known(), 0, len(chunk)
    head: list[str] = []
    tail: list[str] = []
    while start < end:
        if end - start <= LONGEST_KNOWN and (parts := _known_parts(chunk[start:end], known)):
            return head + parts + tail[::-1]
        cut = _before(chunk, start, end)
        if cut > start:
            head.append(chunk[start:cut])
            start = cut
            continue
        cut = _behind(chunk, start, end)
        if cut == end:
            break
        tail.append(chunk[cut:end])
        end = cut
    if start < end:
        head += _core(chunk[start:end])
    return _joined([*head, *tail[::-1]]) if JOINED.search(chunk) else [*head, *tail[::-1]]


def _joined(parts: list[str]) -> list[str]:
    """Joins signs that were cut apart but are known as one word."""
    joined: list[str] = []
    for part in parts:
        if joined and JOINED.fullmatch(joined[-1] + part):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def _known_parts(text: str, known: dict[str, list[str]]) -> list[str] | None:
    return known.get(text) or ([text] if SMILEY.fullmatch(text) else None)


def _before(chunk: str, start: int, end: int) -> int:
    """End of the sign that `chunk[start:end]` begins with, `start` if there is none."""
    first = chunk[start]
    if first in BOTH_SIDES or first in BEFORE or (not first.isascii() and SYMBOL.match(first)):
        return start + 1
    if first == "+" and not (start + 1 < end and chunk[start + 1].isdigit()):
        return start + 1
    match = DOTS.match(chunk, start, end) if first == "." else None
    return match.end() if match else start


def _behind(chunk: str, start: int, end: int) -> int:
    """Start of the sign, ending or unit that `chunk[start:end]` ends in, `end` if there is none."""
    last, before = chunk[end - 1], chunk[end - 2 : end - 1] if end - start > 1 else ""
    if last in BOTH_SIDES or last in BEHIND or (not last.isascii() and SYMBOL.match(last)):
        return end - 1
    if last in "sS" and before and before in "'\u2019":
        return end - 2
    if last == ".":
        if before == ".":
            while end > start and chunk[end - 1] == ".":
                end -= 1
            return end
        if before and (before.isdigit() or before in DOT_FOLLOWS or (before.isalpha() and not before.isupper())):
            return end - 1
        two = chunk[max(start, end - 3) : end - 1]
        return end - 1 if len(two) == 2 and two.isalpha() and two.isupper() else end
    if before.isdigit() and (last == "+" or last in CURRENCY):
        return end - 1
    match = (
        ENDS_IN_UNIT.search(chunk, max(start, end - 6), end) if last in "%\u00b2\u00b3" or last.isalpha() else None
    )
    return match.start(1) if match and match[1] in UNITS else end


def _core(text: str) -> list[str]:
    """`text`, whole if it is an address, otherwise cut between letters."""
    if text.isalnum():
        return [text]
    if len(text) <= LONGEST_ADDRESS and (match := ADDRESS.fullmatch(text)) and (match["end"] or "a").islower():
        return [text]
    parts, position = [], 0
    for match in _inner().finditer(text):
        if match.start() > position:
            parts.append(text[position : match.start()])
        parts.append(match[0])
        position = match.end()
    return [*parts, text[position:]] if position < len(text) else parts


DOT_FOLLOWS = frozenset("%\u00b2-+") | BOTH_SIDES


@functools.cache
def _inner() -> re.Pattern[str]:
    """What cuts the middle of a chunk: dots, hyphens and slashes between letters, signs between digits."""
    letters = [c for c in map(chr, range(0x3000)) if c.isalpha()]
    upper = _ranges([c for c in letters if not c.islower()])
    lower = _ranges([c for c in letters if not c.isupper()]) + "\u3040-\ud7ff\uf900-\ufaff"
    quotes = re.escape(QUOTES)
    letter = _ranges(letters) + "\u3040-\ud7ff\uf900-\ufaff"
    return re.compile(
        rf"\.\.+|\u2026|[{SYMBOL_RANGES}]|(?<=[0-9])[+\-*^](?=[0-9-])|(?<=[{lower}{quotes}])\.(?=[{upper}{quotes}])"
        rf"|(?<=[{letter}]),(?=[{letter}])|(?<=[{letter}0-9])(?:---|--|-|\u2014\u2014|\u2014|\u2013|~)(?=[{letter}])"
        rf"|(?<=[{letter}0-9])[:<>=/](?=[{letter}])"
    )


def _ranges(characters: list[str]) -> str:
    """The inside of a character class that holds exactly `characters`, which are sorted."""
    runs: list[list[str]] = []
    for c in characters:
        if runs and ord(c) == ord(runs[-1][1]) + 1:
            runs[-1][1] = c
        else:
            runs.append([c, c])
    return "".join(f"{first}-{last}" for first, last in runs)


@functools.cache
def _known() -> dict[str, list[str]]:
    """Chunks that are exceptions to the rules: English contractions, times of day, abbreviations."""
    known = {word: [word] for word in ABBREVIATIONS.split()}
    known |= {f"{letter}.": [f"{letter}."] for letter in (*string.ascii_lowercase, "\u00e4", "\u00f6", "\u00fc")}
    known |= {f"{hour}{half}": [str(hour), half] for hour in range(1, 13) for half in ("am", "pm", "a.m.", "p.m.")}
    for parts in _contractions():
        plain = [part.replace("'", "") for part in parts]
        for way in [parts] if "".join(plain) in MEAN_SOMETHING_ELSE else [parts, plain]:
            for cased in (way, [way[0].capitalize(), *way[1:]]):
                known["".join(cased)] = cased
                curled = [part.replace("'", "\u2019") for part in cased]
                known["".join(curled)] = curled
    return known


def _contractions() -> list[list[str]]:
    """Words in parts, in lower case, with an apostrophe where one is written."""
    found = [["i", "'m"], ["i", "'m", "a"]]
    for word in ["i", "you", "he", "she", "it", "we", "they"]:
        found += [[word, "'ll"], [word, "'ll", "'ve"], [word, "'d"], [word, "'d", "'ve"]]
        found += [[word, "'s"]] if word in ("he", "she", "it") else [[word, "'ve"]] if word != "they" else []
        found += [[word, "'re"]] if word in ("you", "we", "they") else []
    found += [["they", "'ve"]]
    for word in ["who", "what", "when", "where", "why", "how", "there", "that", "this", "these", "those"]:
        found += [[word, "'ll"], [word, "'ll", "'ve"], [word, "'d"], [word, "'d", "'ve"], [word, "'ve"]]
        found += [[word, "'re"], [word, "'s"]]
    for word in [
        "ca",
        "could",
        "do",
        "does",
        "did",
        "had",
        "may",
        "might",
        "must",
        "need",
        "ought",
        "sha",
        "should",
        "wo",
        "would",
        "ai",
        "are",
        "is",
        "was",
        "were",
    ]:
        found += [[word, "n't"], [word, "n't", "'ve"]]
    found += [[word, "n't"] for word in ("have", "has", "dare")]
    found += [[word, "'ve"] for word in ("could", "might", "must", "should", "would", "not")]
    return [*found, ["can", "not"], ["gon", "na"], ["got", "ta"], ["let", "'s"], ["c'm", "on"], ["y'", "all"]]


MEAN_SOMETHING_ELSE = frozenset(
    [
        "ill",
        "its",
        "hell",
        "shell",
        "shed",
        "were",
        "well",
        "whore",
        "thatre",
        "thisre",
        "theses",
        "thoses",
        "lets",
        "cmon",
    ]
)
ABBREVIATIONS = """
'd 'em 'll 'm 're 've 's 'S \u2019d \u2019em \u2019ll \u2019m \u2019re \u2019ve
\u2019s \u2018s \u2018S 'Cause 'cause 'nuff
a.m. p.m. e.g. E.g. E.G. i.e. I.e. I.E. vs. v.s. and/or w/o ma'am Ma'am o'clock O'clock C++ Ph.D. D.C. em ol ol'
Jan. Feb. Mar. Apr. Jun. Jul. Aug. Sep. Sept. Oct. Nov. Dec. Mr. Mrs. Ms. Dr. Prof. Rev. Gen. Gov. Rep. Sen. Adm.
Messrs. Jr. St. Mt. Co. co. Corp. Inc. Ltd. Bros. Ak. Ala. Ariz. Ark. Calif. Colo. Conn. Del. Fla. Ga. Ia. Id. Ill.
Ind. Kan. Kans. Ky. La. Mass. Md. Mich. Minn. Miss. Mo. Mont. N.C. N.D. N.H. N.J. N.M. N.Y. Neb. Nebr. Nev. Okla.
Ore. Pa. S.C. Tenn. Va. Wash. Wis. \\n \\t \\") -_- ^_^ @_@ >.< >.> ._. </3
"""
