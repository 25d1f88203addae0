"""What a screen shows of a text: equal line ends, and nothing of the controls that steer a terminal.

In: decoded text. Out: text whose lines end in "\\n", without escape sequences, overstruck letters and, in logs, the
states of a progress bar that were overwritten.

Sequences are removed whole (ECMA-48: CSI, OSC and the other strings, character sets), because otherwise their letters
and digits would stay. U+0085 is a line end, unless it is the ellipsis of windows-1252: it is one if the text has
other signs of windows-1252 at U+0080 to U+009F, or if most of its U+0085 stand before a space, a stop or a line end.
"""

import html
import re
from itertools import pairwise

LINE_END = re.compile("(?<!\r)\r+\n|[\r\x0b\x0c\u2028\u2029]")
LINE_END_SIGNS = "\r\x0b\x0c\u2028\u2029"
CODE_LINE_END = re.compile("\r\n?")  # in source code a form feed is a sign of its own
SEQUENCE = re.compile(
    # strings with their end, which a new escape and a line end replace: titles, links, pictures
    "\x1b\\]P[0-9A-Fa-f]{7}|\x1b\\][^\x07\x18\x1a\x1b\x9c\n]*(?:\x07|\x1b\\\\|\x9c)?"
    "|\x1b[PX^_][^\x1b\x9c]*(?:\x1b\\\\|\x9c)|\x1b[PX^_][^\x1b\x9c\n]*"
    "|\x1b\\[[0-?]*[ -/]*[@-~]?"  # CSI: colours, movements of the cursor
    "|\x1bO[A-DFHMP-Sj-y]"  # keys
    "|\x1b[ -/]+[0-~]?|\x1b[0-~]?"  # character sets and all others
    # the same with one code point instead of ESC and a letter, where it is surely that
    "|\x9b[0-?]+[ -/]*[@-~]|\x9d[0-9]{1,4};[^\x07\x1b\x9c\x9d\n]*(?:\x07|\x1b\\\\|\x9c)|[\x90\x98\x9e\x9f][ -~]*\x9c"
)
STARTS_SEQUENCE = re.compile("[\x1b\x90\x98\x9b\x9d-\x9f]")
ERASED = re.compile("\r\x1b\\[[02]?K|\x1b\\[2K\r?")  # the line so far
CONTROL_REFERENCE = re.compile(r"&#(?:0{0,9}(?:27|12[89]|1[345][0-9])|[xX]0{0,9}(?:1[bB]|[89][0-9a-fA-F]));")

# Those of U+0080 to U+009F have no pictures of their own.
PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {0x7F: 0x2421}
PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)

WINDOWS_SIGN = re.compile("[\x80\x82-\x84\x86-\x8c\x8e\x91-\x9c\x9e\x9f]")
NEL_SIGN = re.compile(
    "(?<=[\u00c2-\u00f4])\x85|\x85(?=[\u0080-\u0084\u0086-\u00bf])"
    "|\x85(?= ?[\r\n.,;:!?)\\]\"'\u2019\u201d\u00bb]| \\S)"
)
NEL = "\x85"

PROGRESS = re.compile(
    r"\d ?%|\d ?/ ?\d|[#=.\u2500-\u257f-]{3}|[\u2580-\u2593]|\A[ |/\\-]{1,4}\Z|\A\W?[\u2800-\u28ff]"
)
CHANGING = re.compile(r"\d\S*|\b[kKMGT]i?B\S*|[\W_]+")  # what differs between two states of one bar


def with_line_ends(text: str) -> str:
    """The text with "\\n" as its only line end, otherwise unchanged: for source code."""
    return CODE_LINE_END.sub("\n", text) if "\r" in text else text


def with_visible_controls(text: str) -> str:
    """The text with every control as a picture, for instance ESC as U+241B, but with its line ends and tabs.

    For text that is shown while it is written: nothing is removed, so that a sequence may come in parts.
    """
    return text.translate(PICTURES)


def without_controls(text: str) -> str:
    """The text without escape sequences, its other line ends unchanged: for tables, whose cells may contain them."""
    # most texts have none of these; looking for one character is much faster than a pattern
    if "\x1b" in text or (not text.isascii() and STARTS_SEQUENCE.search(text)):
        text = SEQUENCE.sub("", text)
    return text.replace(NEL, "\u2026" if _is_ellipsis(text) else "\n") if NEL in text else text


def as_shown(text: str) -> str:
    """The text as a reader sees it on a screen; a carriage return ends a line."""
    if any(sign in text for sign in LINE_END_SIGNS):
        text = LINE_END.sub("\n", text)
    text = without_controls(text)
    return "\n".join(map(_without_overstrikes, text.split("\n"))) if "\b" in text else text


def markup_as_shown(page: str) -> str:
    """The same for HTML, which may write a control as a reference.

    Those of U+0080 to U+009F mean windows-1252 (HTML Standard, section 13.2.5.80), also in XHTML, whose parser takes
    them literally; ESC would be dropped by a parser, and the rest of its sequence kept.
    """
    return as_shown(CONTROL_REFERENCE.sub(lambda match: html.unescape(match[0]) or "\x1b", page))


def log_as_shown(text: str) -> str:
    """The same for plain text, which may be the log of a terminal: what was overwritten is left out.

    A carriage return inside a line goes back to its beginning only where what follows is the next state of a bar or
    comes after an erased line; otherwise it is the line end of another system, and nothing is left out.
    """
    if "\n" not in text or ("\r" not in text and "\x1b" not in text):
        return as_shown(text)
    return as_shown("\n".join(map(_last_state, text.split("\n"))))


def _last_state(line: str) -> str:
    if "\r" not in line[:-1] and "\x1b" not in line:
        return line
    if "\x1b[" in line:
        line = line[max((match.end() for match in ERASED.finditer(line)), default=0) :]
    states = line.rstrip("\r").split("\r")
    is_overwritten = [_is_next_state(SEQUENCE.sub("", a), SEQUENCE.sub("", b)) for a, b in pairwise(states)]
    return "\r".join(state for state, is_gone in zip(states, [*is_overwritten, False], strict=True) if not is_gone)


def _is_next_state(state: str, following: str) -> bool:
    is_progress = PROGRESS.search(state) and PROGRESS.search(following)
    return bool(is_progress) and CHANGING.sub("", state) == CHANGING.sub("", following)


def _is_ellipsis(text: str) -> bool:
    """Whether U+0085 is the byte that windows-1252 uses for an ellipsis."""
    if WINDOWS_SIGN.search(text):
        return True
    return 2 * len(NEL_SIGN.findall(text)) > text.rstrip(NEL).count(NEL)


def _without_overstrikes(line: str) -> str:
    """The letters that remain where a backspace lets one letter be written over another: bold and underlined ones."""
    shown: list[str] = []
    place = 0
    for sign in line if "\b" in line else ():
        if sign == "\b":
            place = max(0, place - 1)
        elif place == len(shown):
            shown.append(sign)
            place += 1
        else:
            if sign != "_" or shown[place].isspace():  # an underscore underlines what stands there
                shown[place] = sign
            place += 1
    return "".join(shown) if "\b" in line else line
