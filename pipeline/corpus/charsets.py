"""Character encodings: what a label means, where a file declares one, and how its bytes are decoded.

In: a label, or the first bytes of a file. Out: the name of a Python codec, to be used with the error handler ERRORS.

Labels mean what browsers take them for (WHATWG Encoding Standard, section 4.2; the table is resiliparse's), which is
often more than the standard of that name: gb2312 is read as gb18030, shift_jis as the Windows code page 932. No other
label reaches Python's codecs, some of which are no character sets (idna, zip). HTML is searched for a declaration as
browsers do (HTML Standard, section 13.2.3.2): in <meta> elements only, not in comments, scripts or other tags.
"""

import codecs
import re
from collections.abc import Iterator

HTML, XHTML, XML = "text/html", "application/xhtml+xml", "application/xml"
COOKIE_TYPES = ("text/x-source", "text/x-rst")  # files whose first lines may tell an editor their encoding
HEAD_BYTES = 100_000  # searched for a declaration
ERRORS = "gristmill-as-browsers"

# resiliparse names the codec of the narrow standard; browsers read its common extension
BROADER = {
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "euc_kr": "cp949",
    "big5": "big5hkscs",
    "iso8859-11": "cp874",
    "iso2022_jp": "iso2022_jp_ext",
}
# unknown to browsers or to resiliparse, but unambiguous, and found in mail, XML and source code
OTHER_LABELS = {
    "x-mac-cyrillic": "mac_cyrillic",
    "x-mac-ukrainian": "mac_cyrillic",
    "x-user-defined": "cp1252",  # as a <meta> with it is read
    "latin-1": "cp1252",
    "iso-latin-1": "cp1252",
    "ansi-x3.4-1986": "cp1252",
    "win-1251": "cp1251",
    "windows1251": "cp1251",
    "windows1252": "cp1252",
    "cp932": "cp932",
    "ms932": "cp932",
    "eucjp-win": "euc_jp",
    "eucjp-ms": "euc_jp",
    "cp51932": "euc_jp",
    "cp50220": "iso2022_jp_ext",
    "cp50221": "iso2022_jp_ext",
    "cp50222": "iso2022_jp_ext",
    "iso-2022-jp-1": "iso2022_jp_ext",
    "iso-2022-jp-ms": "iso2022_jp_ext",
    "cp936": "gb18030",
    "ms936": "gb18030",
    "windows-936": "gb18030",
    "euc-cn": "gb18030",
    "gb-18030": "gb18030",
    "cp949": "cp949",
    "ms949": "cp949",
    "uhc": "cp949",
    "ks-c-5601": "cp949",
    "ksc5601-1987": "cp949",
    "johab": "johab",
    "cp950": "big5hkscs",
    "ms950": "big5hkscs",
    "windows-950": "big5hkscs",
    "cp874": "cp874",
    "utf-32": "utf-32",
    "utf-32le": "utf-32-le",
    "utf-32be": "utf-32-be",
    "utf8mb3": "utf-8",
    "utf8mb4": "utf-8",
    "cp65001": "utf-8",
}
OEM = re.compile(r"(?:cp|ibm|cs?pc|x-ibm|oem)-?(437|720|737|775|850|852|855|857|858|86[0-9]|1125)")
# browsers refuse them, because a script may hide in them; in a mail they are what its sender wrote
MAIL_LABELS = {
    "utf-7": "utf-7",
    "unicode-1-1-utf-7": "utf-7",
    "x-unicode-1-1-utf-7": "utf-7",
    "iso-2022-kr": "iso2022_kr",
    "csiso2022kr": "iso2022_kr",
    "hz-gb-2312": "hz",
    "hz": "hz",
}
SEVEN_BIT = frozenset({"iso2022_jp_ext", "iso2022_kr", "hz", "utf-7"})  # every sign is written in ASCII
MULTI_BYTE = frozenset({"gb18030", "cp932", "cp949", "big5hkscs", "euc_jp", "johab"})
LABEL = re.compile(r"[!-~]{1,40}")

SPACE = rb"[\t\n\f\r ]*"
TAG_NAME = re.compile(rb"<(/?)([A-Za-z][^\t\n\f\r />]*)")
ATTRIBUTE = re.compile(
    rb"[\t\n\f\r /]*([^\t\n\f\r />][^\t\n\f\r />=]*)(?:"
    + SPACE
    + rb"="
    + SPACE
    + rb"(?:\"([^\"]*)\"|'([^']*)'|([^\t\n\f\r >]*)))?"
)
TAG_END = re.compile(rb"[\t\n\f\r /]*>")
CONTENT_CHARSET = re.compile(
    rb"charset" + SPACE + rb"=" + SPACE + rb"(?:\"([^\"]*)\"|'([^']*)'|([^\t\n\f\r ;]*))", re.IGNORECASE
)
# elements whose content is text: a tag in it is none
TEXT_END = {
    name: re.compile(rb"</" + name + rb"[\t\n\f\r />]", re.IGNORECASE)
    for name in (b"script", b"style", b"title", b"textarea", b"xmp", b"iframe", b"noembed", b"noframes")
}
XML_DECLARATION = re.compile(rb"""\s*<\?xml\s[^>]*?\bencoding\s*=\s*["']([^"'>]{1,40})["']""")
COOKIE = re.compile(rb"\A(?:[^\n]*\n)??[^\n]{0,200}?coding[:=][ \t]*([-\w.]{1,40})|\A@charset \"([^\"\n]{1,40})\"")
LINE_END_NAME = re.compile(r"-(?:unix|dos|mac)$")  # Emacs adds how the lines end


def codec_of(label: str, *, in_mail: bool = False) -> str | None:
    """The codec that browsers use for `label`; None for an unknown one, which is then no declaration."""
    from resiliparse.parse.encoding import map_encoding_to_html5

    name = label.strip("\t\n\f\r \"'").lower()
    if LABEL.fullmatch(name) is None:
        return None
    known = map_encoding_to_html5(name, fallback_utf8=False)
    if known is not None:
        return BROADER.get(known, known)
    name = name.replace("_", "-")
    if in_mail and name in MAIL_LABELS:
        return MAIL_LABELS[name]
    oem = OEM.fullmatch(name)
    return f"cp{oem[1]}" if oem else OTHER_LABELS.get(name)


def declared_codec(content: bytes, media_type: str) -> str | None:
    """The encoding that a file itself declares, if files of its type do; None for none that is known."""
    head = content[:HEAD_BYTES]
    if media_type in (XHTML, XML):
        codec = _declared_in_xml(head) or (_declared_in_html(head) if media_type == XHTML else None)
    elif media_type == HTML:
        codec = _declared_in_html(head) or _declared_in_xml(head)
    elif media_type in COOKIE_TYPES and (cookie := COOKIE.match(head)):
        codec = codec_of(LINE_END_NAME.sub("", (cookie[1] or cookie[2]).decode("ascii", "replace")))
    else:
        codec = None
    # a declaration that can be read as ASCII does not stand in such bytes
    return "utf-8" if codec and codec.startswith(("utf-16", "utf-32")) else codec


def xml_codec(head: bytes) -> str | None:
    """The codec by which XML is to be decoded before it is parsed; None if a parser reads its encoding as we do."""
    codec = declared_codec(head, XML)
    return None if codec == "utf-8" else codec


def _declared_in_xml(head: bytes) -> str | None:
    declaration = XML_DECLARATION.match(head)
    return codec_of(declaration[1].decode("ascii", "replace")) if declaration else None


def _declared_in_html(head: bytes) -> str | None:
    for name, attributes in _start_tags(head):
        if name == b"meta" and (codec := _codec_of_meta(attributes)) is not None:
            return codec
    return None


def _codec_of_meta(attributes: dict[bytes, bytes]) -> str | None:
    label = attributes.get(b"charset")
    if label is None and attributes.get(b"http-equiv", b"").strip().lower() == b"content-type":
        inside = CONTENT_CHARSET.search(attributes.get(b"content", b""))
        label = (inside[1] or inside[2] or inside[3]) if inside else None
    return codec_of(label.decode("ascii", "replace")) if label else None


def _start_tags(head: bytes) -> Iterator[tuple[bytes, dict[bytes, bytes]]]:
    """The name and the attributes of every start tag, in lower case; nothing from comments and from text elements."""
    place = 0
    while (place := head.find(b"<", place)) >= 0:
        if head.startswith(b"<!--", place):
            place = _after(head, b"-->", place + 2)
        elif tag := TAG_NAME.match(head, place):
            attributes, place = _attributes(head, tag.end())
            name = tag[2].lower()
            if not tag[1]:
                yield name, attributes
                if text_end := TEXT_END.get(name):
                    end = text_end.search(head, place)
                    place = end.start() if end else len(head)
        elif head.startswith((b"<!", b"</", b"<?"), place):
            place = _after(head, b">", place)
        else:
            place += 1


def _after(head: bytes, end: bytes, place: int) -> int:
    found = head.find(end, place)
    return len(head) if found < 0 else found + len(end)


def _attributes(head: bytes, place: int) -> tuple[dict[bytes, bytes], int]:
    """The attributes of the tag whose name ends at `place`, the first of each name, and where the tag ends."""
    attributes: dict[bytes, bytes] = {}
    while not (end := TAG_END.match(head, place)) and (attribute := ATTRIBUTE.match(head, place)):
        attributes.setdefault(attribute[1].lower(), attribute[2] or attribute[3] or attribute[4] or b"")
        place = attribute.end()
    return attributes, end.end() if end else len(head)


def _as_browsers(error: UnicodeError) -> tuple[str, int]:
    """The signs that browsers know in an encoding and Python's codec does not; U+FFFD for what is no sign."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    codec, content, start = error.encoding, error.object, error.start
    pair = content[start : start + 2]
    if codec == "gb18030" and pair[:1] == b"\x80":
        return "\u20ac", start + 1
    known = b""
    if codec == "euc_jp" and len(pair) == 2 and min(pair) >= 0xA1:
        known = _shift_jis(pair[0] - 0x80, pair[1] - 0x80)
    elif codec == "iso2022_jp_ext" and pair[:1] and 0xA1 <= pair[0] <= 0xDF:  # half-width katakana in eight bits
        known, pair = pair[:1], pair[:1]
    elif codec == "iso2022_jp_ext" and len(pair) == 2 and max(pair) < 0x7F and min(pair) > 0x20:
        known = _shift_jis(*pair)
    elif codec == "big5hkscs":
        text = pair.decode("cp950", "ignore")
        return (text, start + 2) if len(text) == 1 and not text.isascii() else ("\ufffd", error.end)
    text = known.decode("cp932", "ignore")
    return (text, start + len(pair)) if text else ("\ufffd", error.end)


def _shift_jis(row: int, cell: int) -> bytes:
    """A sign of JIS X 0208 by its two seven-bit bytes, in Shift_JIS, whose code page has the rows of NEC and IBM."""
    lead = (row + 1) // 2 + (0x70 if row <= 0x5E else 0xB0)
    trail = cell + 0x7E if row % 2 == 0 else cell + (0x1F if cell < 0x60 else 0x20)
    return bytes((lead, trail))


codecs.register_error(ERRORS, _as_browsers)
