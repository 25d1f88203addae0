"""Bytes of unknown origin to clean Unicode text.

`decode`: byte order mark, UTF-8, the charset that an HTML page declares, then a guess by charset-normalizer; None
for what is no text. `repaired`: mojibake (ftfy), NFC, line ends, control and zero-width characters, blank lines.
`normalised`: the form whose hash is a document's id, so that texts that differ in case and spaces only are equal.
"""

import codecs
import re
import unicodedata

BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
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
DECLARED = re.compile(rb"""(?:charset|encoding)\s*=\s*["']?\s*([A-Za-z0-9_.:-]+)""", re.IGNORECASE)
HEAD_BYTES = 4096  # where a page declares its charset
MAX_NUL_SHARE = 0.001  # of the bytes of a text; a page of the web may hold one by mistake
LONGEST_PIECE = 1_000_000  # characters given to ftfy at once
GUESS_BYTES = 200_000  # enough for a guess; guessing is slow
# Browsers read these labels as windows-1252 (WHATWG Encoding Standard, section 4.2).
READ_AS_WINDOWS_1252 = frozenset(
    {"iso-8859-1", "latin-1", "latin1", "us-ascii", "ascii", "iso8859-1", "windows-1252"}
)

LINE_END = re.compile("\r\n|[\r\x0b\x0c\x85\u2028\u2029]")
CONTROL = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f]")
INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff\ufff9-\ufffb]"
)
# joiners carry meaning between letters of some scripts and inside emoji, never beside ASCII
JOINER = re.compile("(?<![^\x00-\x7f])[\u200c\u200d]|[\u200c\u200d](?![^\x00-\x7f])")
ODD_SPACE = re.compile("[\u00a0\u2000-\u200a\u202f\u205f\u3000]")
BLANK_LINES = re.compile(r"\n{3,}")


def decode(content: bytes, media_type: str) -> tuple[str | None, str]:
    """(text, "") or (None, reason): `binary` for what is no text, `undecodable` for text that stays garbled."""
    for mark, encoding in BOMS:
        if content.startswith(mark):
            return _judged(content[len(mark) :].decode(encoding, "replace"))
    if content.startswith(SIGNATURES):
        return None, "binary"
    if (encoding := _utf16_without_mark(content)) is not None:
        return _judged(content.decode(encoding, "replace"))
    if content.count(0) > MAX_NUL_SHARE * len(content):
        return None, "binary"
    try:
        return _judged(content.decode("utf-8"))
    except UnicodeDecodeError:
        pass
    text = content.decode("utf-8", "replace")
    n_bad = text.count("\ufffd")
    if sum(not c.isascii() for c in text) > 5 * n_bad:  # UTF-8 with a few broken places
        return _judged(text)
    if media_type == "text/html" and (declared := _declared(content)) is not None:
        return _judged(content.decode(declared, "replace"))
    if (guess := _guessed(content)) is None:
        return None, "binary" if _share_of_controls(text) > 0.02 else "undecodable"
    return _judged(content.decode(guess, "replace"))


def repair(text: str) -> str:
    """`text` with sound characters and at most one blank line in a row; empty when nothing visible is left."""
    return repaired(text)[0]


def repaired(text: str) -> tuple[str, int]:
    """What `repair` returns, and the number of lines whose encoding had to be mended (mojibake)."""
    text, n_mojibake = LINE_END.sub("\n", text), 0
    if not text.isascii():
        lines = text.split("\n")
        for i, line in enumerate(lines):
            if not line.isascii():
                lines[i], mended = _repaired_line(line)
                n_mojibake += mended
        text = JOINER.sub("", unicodedata.normalize("NFC", ODD_SPACE.sub(" ", "\n".join(lines))))
    text = "\n".join(line.rstrip(" \t") for line in INVISIBLE.sub("", text).split("\n"))
    return BLANK_LINES.sub("\n\n", text).strip("\n"), n_mojibake


def normalised(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def _repaired_line(line: str) -> tuple[str, bool]:
    """The line, and whether its encoding had to be mended."""
    import ftfy

    fixed, mended = [], False
    for start in range(0, len(line), LONGEST_PIECE):
        # quotes and ligatures stay as their author set them; entities were resolved by the HTML parser
        piece, steps = ftfy.fix_and_explain(
            line[start : start + LONGEST_PIECE],
            uncurl_quotes=False,
            fix_latin_ligatures=False,
            fix_character_width=False,
            unescape_html=False,
        )
        fixed.append(piece)
        mended = mended or any(step.action == "encode" for step in steps or ())
    return "".join(fixed).rstrip("\n"), mended


def _judged(text: str) -> tuple[str | None, str]:
    if _share_of_controls(text) > 0.02:
        return None, "binary"
    if text.count("\ufffd") > 0.01 * len(text):
        return None, "undecodable"
    return text, ""


def _share_of_controls(text: str) -> float:
    sample = text[:GUESS_BYTES]
    return len(CONTROL.findall(sample)) / max(1, len(sample))


def _utf16_without_mark(content: bytes) -> str | None:
    """Latin text in UTF-16 has a zero in every other byte."""
    head = content[:HEAD_BYTES]
    half = max(1, len(head) // 2)
    odd, even = head[1::2].count(0) / half, head[::2].count(0) / half
    if odd > 0.4 and even < 0.05:
        return "utf-16-le"
    return "utf-16-be" if even > 0.4 and odd < 0.05 else None


def _declared(content: bytes) -> str | None:
    if not (match := DECLARED.search(content[:HEAD_BYTES])):
        return None
    label = match[1].decode().lower()
    if label in READ_AS_WINDOWS_1252:
        return "windows-1252"
    try:
        name = codecs.lookup(label).name
    except LookupError:
        return None
    # codecs such as base64 or rot13 are no character sets; UTF-8 was tried already
    return name if codecs.lookup(name)._is_text_encoding and name != "utf-8" else None


def _guessed(content: bytes) -> str | None:
    from charset_normalizer import from_bytes

    matches = list(from_bytes(content[:GUESS_BYTES]))
    if not matches:
        return None
    alike = {matches[0].encoding, *matches[0].could_be_from_charset}
    return "windows-1252" if alike & {"cp1252", "latin_1"} else matches[0].encoding


def as_text(value: str) -> str:
    """`value` without lone surrogates, which no file could hold."""
    return value.encode(errors="replace").decode()
