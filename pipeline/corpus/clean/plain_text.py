"""Plain text without the frame that Project Gutenberg puts around its books.

In: text. Out: text, unchanged but for the frame, which has had many forms: a mark of asterisks that may go on over
several lines, the "small print" of the books before 2003, lines about who made the file; at the end a mark, a phrase,
or the licence alone. A text without a mark at its beginning is cut only at a mark in its second half.
"""

import re

_STARS = r"\*(?:[ \t]{0,9}\*){1,9}\s{0,9}"
_GUTENBERG = r"\s{1,9}(?:THE\s{1,9}|THIS\s{1,9})?PROJECT\s{1,9}GUTENBERG(?:'S|\u2019S)?\s{1,9}E-?(?:BOOK|TEXT)"
# to the next asterisks, over lines but not over a paragraph; without them to the end of the line
START = re.compile(
    rf"^[ \t]*{_STARS}START\s{{1,9}}OF{_GUTENBERG}"
    r"(?:(?:[^*\n]|\*(?!\s*\*)|\n(?![ \t]*\n)){0,1000}\*[* \t\n]*\*|.*)",
    re.IGNORECASE | re.MULTILINE,
)
SMALL_PRINT = re.compile(
    r"^[ \t]*\*\s?END\s?\*?\s?THE\s{1,9}SMALL\s{1,9}PRINT!(?:(?:[^\n]|\n(?![ \t]*\n)){0,300}?\*\s?END\s?\*|.*)",
    re.IGNORECASE | re.MULTILINE,
)
SMALL_PRINT_CHARACTERS = 40_000  # in which it follows a mark, or begins a book without one
END = re.compile(rf"^[ \t]*{_STARS}END\s{{1,9}}OF{_GUTENBERG}", re.IGNORECASE | re.MULTILINE)
LAST_WORDS = re.compile(
    r"^[ \t]*(?:End\s{1,9}of\s{1,9}(?:the\s{1,9}|this\s{1,9})?Project\s{1,9}Gutenberg"
    r"|(?:Ende|Fin|Fine|Fim|Einde|Slut|Loppu)\s[^.*]{0,40}?\bProject\s{1,9}Gutenberg"
    r"|Updated\s{1,9}editions\s{1,9}will\s{1,9}replace\s{1,9}the\s{1,9}previous\s{1,9}one"
    r"|\*{3}[ \t]*START:\s{1,9}FULL\s{1,9}LICENSE)",
    re.IGNORECASE | re.MULTILINE,
)
LAST_WORDS_CHARACTERS = 1000  # in which they stand before the mark
MAKERS_PARAGRAPHS = 4
MAKERS = re.compile(
    r"\s*\[?(?:(?:Produced|Prepared|Transcribed|Scanned|Proofread|Digiti[sz]ed)(?:\s+(?:and|&)\s+\w+)?\s+by\b"
    r"|E-?(?:text|book)\s+(?:was\s+)?(?:prepared|produced|scanned|transcribed)\b"
    r"|This\s+(?:e-?text|e-?book|file)\s+was\s+(?:prepared|produced|made)\b|HTML\s+version\s+by\b|Credits?:"
    r"|Note:\s+(?:Project\s+Gutenberg|Images\s+of\s+the\s+original)\b)"
    r"(?:.+\n?){0,12}(?:\n|\Z)",
    re.IGNORECASE,
)


def plain_text(text: str) -> str:
    """`text` without the header and footer that Project Gutenberg adds to its books."""
    start = START.search(text)
    begin = start.end() if start else 0
    if small_print := SMALL_PRINT.search(text, begin, begin + SMALL_PRINT_CHARACTERS):
        begin = small_print.end()
    if not begin:
        end = END.search(text, len(text) // 2) or LAST_WORDS.search(text, len(text) // 2)
        return text[: end.start()] if end else text
    for _ in range(MAKERS_PARAGRAPHS):
        if makers := MAKERS.match(text, begin):
            begin = makers.end()
    end = END.search(text, begin)
    last = LAST_WORDS.search(text, max(begin, end.start() - LAST_WORDS_CHARACTERS) if end else begin)
    return text[begin : min((match.start() for match in (end, last) if match), default=len(text))]
