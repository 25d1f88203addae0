"""The sentences of a text, as places in it.

In: a text. Out: first character and the one after the last of each sentence, without the white space around it; of a
text only white space is left out. A sentence ends at a full stop, question or exclamation mark, with the quotes and
brackets that close there, if white space and no small letter follow; at the marks of scripts without spaces, whatever
follows; at an empty line; and before the next item of a list. A full stop after an abbreviation, an initial or the
number of a list item ends nothing.
"""

import re

ABBREVIATIONS = frozenset(
    re.findall(
        r"[a-z.]+",
        "mr mrs ms dr prof st jr sr vs etc al fig figs eq eqs no nos vol pp p ch sec approx ca cf e.g i.e eg ie resp"
        " inc ltd co corp dept gen gov sen rep rev lt col capt sgt jan feb mar apr jun jul aug sep sept oct nov dec",
    )
)
CLOSING = r"\"'\u201d\u2019\u00bb)\]"
OPENING = r"\"'\u201c\u2018\u00ab(\["
UNSPACED_ENDS = "\u3002\uff01\uff1f\uff0e\uff61"  # the full stops, question and exclamation marks of CJK texts
END = re.compile(
    rf"[.!?\u2026]+[{CLOSING}]*(?=\s)|[{UNSPACED_ENDS}]+[{CLOSING}\u300d\u300f\uff09]*|\n[ \t]*\n"
    r"|\n(?=[ \t]*(?:[-*+\u2022]|\d{1,9}[.)])[ \t])"
)
LAST_WORD = re.compile(r"[^\W\d_](?:[^\W\d_]|\.(?=[^\W\d_]))*\.$|(?:^|\n)[ \t]*\d{1,9}\.$")
NEXT = re.compile(rf"\s*[{OPENING}]*(\S)")
NO_DOUBT = "\n" + UNSPACED_ENDS  # with these a sentence ends, whatever is around
WORD_CHARACTERS = 20  # before a full stop, in which an abbreviation is looked for


def sentence_spans(text: str, start: int = 0, end: int | None = None) -> list[tuple[int, int]]:
    """Places in `text` of the sentences between `start` and `end`."""
    end = len(text) if end is None else end
    spans, first = list[tuple[int, int]](), start
    for mark in END.finditer(text, start, end):
        if mark.start() >= first and (mark[0][0] in NO_DOUBT or _ends_sentence(text, first, mark)):
            spans.append((first, mark.end()))
            first = mark.end()
    spans.append((first, end))
    return [found for one in spans if (found := stripped(text, *one))]


def stripped(text: str, start: int, end: int) -> tuple[int, int] | None:
    """The span without the white space at its ends; None if it has nothing else."""
    content = text[start:end]
    if not (inner := content.lstrip()):
        return None
    start = end - len(inner)
    return start, start + len(inner.rstrip())


def _ends_sentence(text: str, first: int, mark: re.Match[str]) -> bool:
    after = NEXT.match(text, mark.end())
    if after and after[1].islower():
        return False
    if mark[0] != ".":
        return True
    word = LAST_WORD.search(text[max(first, mark.end() - WORD_CHARACTERS) : mark.end()])
    if not word:
        return True
    found = word[0][:-1].strip()
    return not (found.isdigit() or found.lower() in ABBREVIATIONS or (len(found) == 1 and found.isupper()))
