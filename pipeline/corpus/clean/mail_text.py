"""The text of one mail message (RFC 5322, MIME).

In: the bytes of a message. Out: `Extracted`: the subject as title, and the text that a reader sees: of alternatives
the plain one, or the HTML one (xhtml_text.py) if the plain one is missing or is a stub that only refers to it; a
forwarded message below a heading with its subject. Other headers are not kept. Attachments are not read; a last line
in brackets has their number and names. Charsets are read as those of any text (text_repair.decode). Lines of
`format=flowed` are joined (RFC 3676).
"""

import base64
import email.utils
import re
from collections.abc import Iterator, Sequence
from email.errors import MessageError
from email.header import decode_header
from email.message import Message
from email.policy import Compat32
from itertools import pairwise
from typing import Any

from pipeline.corpus.clean.extraction import Extracted
from pipeline.corpus.clean.xhtml_text import xhtml_text
from pipeline.corpus.shown_text import as_shown, markup_as_shown
from pipeline.corpus.text_repair import decode
from pipeline.corpus.word_hashes import WORD

EXTRACTOR = "mail"
MAX_HEADER_CHARACTERS = 10_000  # the rest of a longer header is not read
MAX_PARTS = 1000
MAX_DEPTH = 20  # of nested parts
NAMED_ATTACHMENTS = 20
MIN_SHARED = 0.5  # of the pairs of words of an HTML part; a plain part with fewer does not say what the HTML says
MIN_WORDS, MIN_SIZE = 5, 0.25  # of an HTML part, the second as a share of the plain part; else it is hardly a text
ADDRESS = re.compile(r"\b(?:https?://|www\.)\S+", re.IGNORECASE)
NO_BASE64 = re.compile(rb"[^A-Za-z0-9+/]")
DEFAULT_CHARSETS = ("us-ascii", "ascii")  # bytes beyond ASCII have no charset then
READ = ("text/plain", "text/html")
HEADER = re.compile(rb"[!-9;-~]{1,100}:")  # RFC 5322 section 2.2: printable ASCII without a colon


def mail_text(content: bytes) -> Extracted:
    """The text of a message. Never raises for a broken one: `reason` is then unreadable or no_text."""
    if not HEADER.match(_first_line(content)):
        return Extracted("", extractor=EXTRACTOR, reason="unreadable")
    try:
        message = email.message_from_bytes(content, policy=_BoundedHeaders())
        attachments: list[str] = []
        pieces = [piece.strip("\n") for piece in _pieces(message, attachments, 0) if piece.strip()]
        title = _header(message, "Subject")
    except (
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        MessageError,
    ):  # the exceptions that email raises for broken mail
        return Extracted("", extractor=EXTRACTOR, reason="unreadable")
    if not pieces:
        return Extracted("", title=title, extractor=EXTRACTOR, reason="no_text")
    if attachments:
        pieces.append(_named(attachments))
    return Extracted("\n\n".join(pieces), title=title, extractor=EXTRACTOR)


class _BoundedHeaders(Compat32):
    """Parsing the parameters of a header takes time with the square of its length."""

    def header_fetch_parse(self, name: str, value: str) -> Any:
        return super().header_fetch_parse(name, value[:MAX_HEADER_CHARACTERS])


def _first_line(content: bytes) -> bytes:
    """The first line, without the line by which an mbox separates messages."""
    lines = content.lstrip(b"\r\n")[:10_000].splitlines()
    return next((line for line in lines if not line.startswith((b"From ", b">From "))), b"")


def _pieces(part: Any, attachments: list[str], depth: int) -> Iterator[str]:
    if depth > MAX_DEPTH or len(attachments) > MAX_PARTS:
        attachments.append("")
        return
    kind = part.get_content_type()
    inner = part.get_payload() if part.is_multipart() else None  # of a leaf it would be decoded by its own label
    if kind == "message/rfc822" and isinstance(inner, list) and inner:
        if subject := _header(inner[0], "Subject"):
            yield f"## {subject}"
        yield from _pieces(inner[0], attachments, depth + 1)
    elif isinstance(inner, list):
        if kind == "multipart/alternative":
            yield from _alternative(inner, attachments, depth + 1)
            return
        for sub in inner:
            yield from _pieces(sub, attachments, depth + 1)
    elif part.get_content_disposition() == "attachment" or _file_name(part):
        attachments.append(_file_name(part))
    elif kind in READ or kind.startswith("multipart/"):  # a multipart without its boundary is read as text
        yield _text(part, kind)
    else:
        attachments.append("")


def _alternative(parts: Sequence[Any], attachments: list[str], depth: int) -> list[str]:
    """The pieces of the plain one of equivalent parts, or of the last other one if the plain one is a stub.

    Both, if they say different things and the plain one is no shorter: which one is the stub cannot be told then.
    """
    plain: list[str] = []
    rich: list[str] = []
    attached: list[str] = []
    for part in parts:
        found: list[str] = []
        pieces = [piece for piece in _pieces(part, found, depth) if WORD.search(piece)]
        if part.get_content_type() == "text/plain":
            plain = plain or pieces
        elif pieces or not rich:
            rich, attached = pieces, found
    n_plain, n_shared, n_rich = _compared("\n".join(plain), "\n".join(rich))
    is_small = n_rich <= n_plain and n_rich < max(MIN_WORDS, MIN_SIZE * n_plain)
    if plain and (is_small or n_shared >= MIN_SHARED * n_rich):
        return plain
    attachments += attached
    return rich if n_plain < n_rich else plain + rich


def _compared(plain: str, rich: str) -> tuple[int, int, int]:
    """The pairs of neighbouring words: those of the plain text, those that both have, those of the other text."""
    pairs = [
        set(pairwise(["", *(word.casefold() for word in WORD.findall(ADDRESS.sub(" ", text)))]))
        for text in (plain, rich)
    ]
    return len(pairs[0]), len(pairs[0] & pairs[1]), len(pairs[1])


def _text(part: Any, kind: str) -> str:
    text = _decoded(_payload(part), _parameter(part, "charset", "content-type"), kind)
    if kind == "text/html":
        return xhtml_text(markup_as_shown(text))[1]
    text = as_shown(text)
    flowed = str(part.get_param("format", "")).lower() == "flowed"
    return _unfolded(text, delete_space=str(part.get_param("delsp", "")).lower() == "yes") if flowed else text


def _payload(part: Any) -> bytes:
    """The body without its transfer encoding; of truncated base64, the complete part."""
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes):
        return b""
    if str(part.get("Content-Transfer-Encoding", "")).strip().lower() != "base64":
        return payload
    del part["Content-Transfer-Encoding"]
    undecoded = part.get_payload(decode=True)
    part["Content-Transfer-Encoding"] = "base64"
    if payload != undecoded:
        return payload
    signs = NO_BASE64.sub(b"", payload)  # email could not decode it
    return base64.b64decode(signs[: len(signs) // 4 * 4])


def _decoded(payload: bytes, charset: str | None, kind: str) -> str:
    label = None if (charset or "").strip().lower() in DEFAULT_CHARSETS else charset
    return decode(payload, kind, label, in_mail=True)[0] or ""


def _unfolded(text: str, *, delete_space: bool) -> str:
    """RFC 3676 section 4: a line that ends in a space continues in the next line of the same quote depth."""
    lines: list[str] = []
    goes_on, depth_before = False, 0
    for line in text.split("\n"):
        depth = len(line) - len(line.lstrip(">"))
        inside = line[depth:].removeprefix(" ")
        if goes_on and depth == depth_before:
            lines.append(inside)
        else:
            lines.append(("\n" if lines else "") + ">" * depth + (" " if depth else "") + inside)
        goes_on, depth_before = inside.endswith(" ") and inside != "-- ", depth
        if goes_on and delete_space:
            lines[-1] = lines[-1].removesuffix(" ")
    return "".join(lines)


def _header(message: Message, name: str) -> str | None:
    """The header as plain text, with its encoded words decoded if they are valid."""
    # get() would replace bytes that are not ASCII with question marks
    raw = next((str(value) for key, value in message.raw_items() if key.lower() == name.lower()), "")
    return _plain(raw, _parameter(message, "charset", "content-type")) or None


def _file_name(part: Any) -> str:
    return _parameter(part, "filename", "content-disposition") or _parameter(part, "name", "content-type") or ""


def _parameter(part: Any, name: str, header: str) -> str | None:
    """A parameter of a header; the charset of one in the form of RFC 2231 is read as any other."""
    value = part.get_param(name, None, header)
    if isinstance(value, tuple):
        charset, _, text = value
        return _word(text.encode("latin-1", "replace"), charset)
    return None if value is None else _plain(email.utils.unquote(str(value)))


def _plain(header: str, charset_of_rest: str | None = None) -> str:
    """A header with its encoded words decoded if they are valid, and raw bytes in the charset of the text."""
    try:
        words = decode_header(header[:MAX_HEADER_CHARACTERS])
    except (ValueError, LookupError, MessageError):
        words = [(header, None)]
    return " ".join(as_shown("".join(_word(word, charset or charset_of_rest) for word, charset in words)).split())


def _word(word: bytes | str, charset: str | None) -> str:
    if isinstance(word, str):
        word = word.encode("utf-8", "surrogateescape")
    return _decoded(word, charset, "text/plain") or word.decode("cp1252", "replace")


def _named(attachments: list[str]) -> str:
    names = [name for name in attachments if name][:NAMED_ATTACHMENTS]
    count = f"{len(attachments)} attachment{'s' if len(attachments) > 1 else ''}"
    return f"[{count}: {', '.join(names)}]" if names else f"[{count}]"
