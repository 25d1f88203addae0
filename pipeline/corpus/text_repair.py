"""Turns bytes of unknown origin into clean Unicode text.

`decode`: byte order mark, UTF-8, the charset that came with the bytes or that they declare (charsets.py), then a
guess by resiliparse; None if the bytes are not text. `repaired`: line ends and escape sequences (shown_text.py),
mojibake (ftfy), NFC, control and zero-width characters, blank lines; code inside a text stays as it is.
`normalised`: the form whose hash is the id of a document, so that texts that differ only in case and spacing are
equal.
"""

import codecs
import re
import unicodedata
from collections.abc import Iterable

from pipeline.corpus.charsets import ERRORS, MULTI_BYTE, SEVEN_BIT, codec_of, declared_codec
from pipeline.corpus.shown_text import as_shown

BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, because it begins with the mark of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
SIGNATURES = (
    b"\x89PNG",
    b"\xff\xd8\xff",
    b"GIF8",
    b"%PDF-",
    b"PK\x03\x04",
    b"\x1f\x8b",
    b"BZh",
    b"\x7fELF",
    b"\xd0\xcf\x11\xe0",
)
FEW_SIGNS = 6  # so many letters of another encoding are hardly UTF-8 by chance
ISO_2022 = re.compile(rb"\x1b\$[@B]|\x1b\$?\([DIJ]")  # the escapes to Japanese sets
HEAD_BYTES = 4096  # in which UTF-16 without a mark is recognised
MAX_GARBLED_SHARE = 0.01  # of the characters of a text that could not be decoded; a label with more is wrong
MAX_CONTROL_SHARE = 0.02  # of the characters of a text, besides those that steer a terminal
MAX_GARBLED_SHARE_OF_OTHERS = 0.1  # of the characters beyond ASCII, in a short text
MAX_NUL_SHARE = 0.001  # of the bytes of a text; a web page may contain one by mistake
LONGEST_PIECE = 1_000_000  # characters passed to ftfy at a time
RARE = frozenset({"iso8859-3", "iso8859-10", "iso8859-14", "iso8859-16"})  # guessed for a short text of other letters
RUN = re.compile(rb"[\x80-\xff]+")
GUESS_BYTES = 200_000  # enough for a guess; guessing is slow

C1 = re.compile("[\x80-\x9f]")
CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f]")
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\ufff9-\ufffb]"
)
# joiners carry meaning between letters of some scripts and inside emoji, never beside ASCII
JOINER = re.compile("(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])")
ODD_SPACE = re.compile("[\u00a0\u2000-\u200a\u202f\u205f\u3000]")
BLANK_LINES = re.compile(r"\n{3,}")
FENCE = re.compile(r"^ *(`{3,})(.*)$", re.MULTILINE)


def decode(
    content: bytes, media_type: str, label: str | None = None, *, in_mail: bool = False
) -> tuple[str | None, str]:
    """(text, "") or (None, reason): `binary` if it is not text, `undecodable` if it is garbled in every encoding.

    `label` is the charset that came with the bytes: in the header of an answer or of a part of a mail.
    """
    if content.startswith(SIGNATURES):
        return None, "binary"
    encoding = encoding_of(content, media_type, label, in_mail=in_mail)
    if content.count(0) > MAX_NUL_SHARE * len(content) and not encoding.startswith(("utf-16", "utf-32")):
        return None, "binary"
    text = content.decode(encoding, ERRORS)
    sample = text[:GUESS_BYTES]
    if _share_of_controls(sample) > MAX_CONTROL_SHARE and _share_of_controls(as_shown(sample)) > MAX_CONTROL_SHARE:
        return None, "binary"
    if _is_garbled(text):
        return None, "undecodable"
    return text, ""


def encoding_of(
    content: bytes,
    media_type: str = "text/plain",
    label: str | None = None,
    *,
    in_mail: bool = False,
    is_cut: bool = False,
) -> str:
    """The encoding of a text: mark, zeros of UTF-16, UTF-8, the one that is declared for it or in it, else a guess.

    A declaration that the bytes contradict is none. With `is_cut` the last bytes may be part of a character.
    """
    for mark, encoding in BOMS:
        if content.startswith(mark):
            return encoding
    if (encoding := _utf16_without_mark(content)) is not None:
        return encoding
    labelled = codec_of(label, in_mail=in_mail) if label else None
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(content, final=not is_cut)
    except UnicodeDecodeError:
        text = None
    if text is not None:
        return _also_utf8(content, text, labelled)
    text = content.decode("utf-8", "replace")
    if sum(not c.isascii() for c in text) > 5 * text.count("\ufffd"):  # UTF-8 with a few invalid bytes
        return "utf-8"
    for codec in (labelled, declared_codec(content, media_type)):
        if codec in (None, "utf-8") or (codec.startswith(("utf-16", "utf-32")) and 0 not in content):
            continue
        if not _is_garbled(content.decode(codec, ERRORS)):
            return codec
    return _guessed(content[:GUESS_BYTES])


def _also_utf8(content: bytes, text: str, labelled: str | None) -> str:
    """The encoding of bytes that are UTF-8, perhaps by chance: ASCII with escapes, or a few signs of two bytes."""
    if text.isascii():
        codec = labelled if labelled in SEVEN_BIT else "iso2022_jp_ext" if ISO_2022.search(content) else None
        is_other = codec is not None and not _is_garbled(content.decode(codec, ERRORS))
    else:
        codec = labelled
        is_doubtful = codec in MULTI_BYTE or (codec is not None and C1.search(text) is not None)
        is_few = is_doubtful and sum(not c.isascii() for c in text) < FEW_SIGNS
        is_other = is_few and "\ufffd" not in content.decode(codec or "", ERRORS)
    return codec if codec is not None and is_other else "utf-8"


def _is_garbled(text: str) -> bool:
    """One or two broken characters in a short text of others are none."""
    n_bad = text.count("\ufffd")
    if n_bad <= MAX_GARBLED_SHARE * len(text):
        return False
    return n_bad > 2 or n_bad > MAX_GARBLED_SHARE_OF_OTHERS * sum(not c.isascii() for c in text)


def repair(text: str) -> str:
    """`text` with repaired characters and single blank lines outside listings; empty if nothing visible remains."""
    return repaired(text)[0]


def repaired(text: str, verbatim: Iterable[tuple[int, int]] = ()) -> tuple[str, int]:
    """The result of `repair`, and the number of lines whose encoding was repaired (mojibake).

    The spans of `verbatim`, in their order, are code: they stay as they are.
    """
    pieces: list[str] = []
    place, n_mojibake = 0, 0
    spans = [*verbatim, (len(text), len(text))]
    for start, end in spans:
        prose, n_lines = _repaired_prose(text[place:start])
        # where code is not told by its spans, fences tell it
        prose = BLANK_LINES.sub("\n\n", prose) if len(spans) > 1 else _with_single_blank_lines(prose)
        prose = prose if pieces else prose.lstrip("\n")
        pieces += (prose if end < len(text) or start < end else prose.rstrip(" \t\n"), text[start:end])
        place, n_mojibake = end, n_mojibake + n_lines
    return "".join(pieces), n_mojibake


def _repaired_prose(text: str) -> tuple[str, int]:
    text, n_mojibake = as_shown(text), 0
    if not text.isascii():
        lines = text.split("\n")
        for i, line in enumerate(lines):
            if not line.isascii():
                lines[i], mended = _repaired_line(line)
                n_mojibake += mended
        text = JOINER.sub("", unicodedata.normalize("NFC", ODD_SPACE.sub(" ", "\n".join(lines))))
    *lines, last = INVISIBLE.sub("", text).split("\n")  # the last may go on as code
    return "\n".join([*(line.rstrip(" \t") for line in lines), last]), n_mojibake


def _with_single_blank_lines(text: str) -> str:
    """The text with at most one blank line in a row outside listings between fences."""
    pieces, place, fence = [], 0, ""
    for mark in FENCE.finditer(text) if "```" in text else ():
        if not fence:
            pieces.append(BLANK_LINES.sub("\n\n", text[place : mark.start()]))
            place, fence = mark.start(), mark[1]
        elif mark[1].startswith(fence) and not mark[2]:
            pieces.append(text[place : mark.end()])
            place, fence = mark.end(), ""
    return "".join([*pieces, BLANK_LINES.sub("\n\n", text[place:])])


def normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _repaired_line(line: str) -> tuple[str, bool]:
    """The line, and whether its encoding was repaired."""
    import ftfy

    fixed, mended = [], False
    for start in range(0, len(line), LONGEST_PIECE):
        # quotes and ligatures are kept as the author wrote them; the HTML parser already resolved entities
        piece, steps = ftfy.fix_and_explain(
            line[start : start + LONGEST_PIECE],
            uncurl_quotes=False,
            fix_latin_ligatures=False,
            fix_character_width=False,
            unescape_html=False,
            # done for the whole text, whether a line is ASCII or not (shown_text.py)
            remove_terminal_escapes=False,
            fix_line_breaks=False,
        )
        fixed.append(piece)
        mended = mended or any(step.action == "encode" for step in steps or ())
    return "".join(fixed).rstrip("\n"), mended


def _share_of_controls(text: str) -> float:
    return len(CONTROL.findall(text)) / max(1, len(text))


def _utf16_without_mark(content: bytes) -> str | None:
    """Latin text in UTF-16 has a zero in every other byte, and so has the first tag of a page."""
    if content.startswith((b"<\0", b"\0<")):
        return "utf-16-le" if content[1] == 0 else "utf-16-be"
    head = content[:HEAD_BYTES]
    half = max(1, len(head) // 2)
    odd, even = head[1::2].count(0) / half, head[::2].count(0) / half
    if odd > 0.4 and even < 0.05:
        return "utf-16-le"
    return "utf-16-be" if even > 0.4 and odd < 0.05 else None


def _guessed(content: bytes) -> str:
    """The encoding that resiliparse (uchardet) detects; it knows no Korean, and guesses rare ones for short texts."""
    from resiliparse.parse.encoding import detect_encoding

    detected = detect_encoding(content) or "utf-8"
    if detected == "utf-8" and _is_korean(content):
        return "cp949"
    return "cp1252" if detected == "utf-8" or detected in RARE else codec_of(detected) or detected


def _is_korean(content: bytes) -> bool:
    """Whether the bytes beyond ASCII stand in pairs, which those of accents and quotation marks do not."""
    runs = RUN.findall(content)
    n_pairs = sum(len(run) % 2 == 0 for run in runs)
    return 2 * n_pairs > len(runs) and not _is_garbled(content.decode("cp949", ERRORS))


def as_text(value: str) -> str:
    """`value` without lone surrogates, which cannot be encoded in a file."""
    return value.encode(errors="replace").decode()
