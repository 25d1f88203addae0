"""Charset labels: read as browsers read them, from where a browser looks, at every door."""

import io

import pytest

from pipeline.corpus.charsets import ERRORS, codec_of, declared_codec
from pipeline.corpus.clean.epub_text import epub_text
from pipeline.corpus.clean.mail_text import mail_text
from pipeline.corpus.clean.stage import PageItem, clean_page
from pipeline.corpus.clean.zip_parts import xml_tree
from pipeline.corpus.collect.files import FilesSource
from pipeline.corpus.collect.pages import Found
from pipeline.corpus.collect.tables import table_pages
from pipeline.corpus.collect.wiki_dump import Article, read_articles
from pipeline.corpus.text_repair import decode, encoding_of

# section 4.2 of the Encoding Standard: what browsers take each label for, as a codec of Python
LABELS = {
    "utf-8": "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 x-unicode20utf8 utf8mb4",
    "cp866": "866 cp866 csibm866 ibm866",
    "iso8859-2": "csisolatin2 iso-8859-2 iso-ir-101 iso8859-2 iso88592 iso_8859-2 iso_8859-2:1987 l2 latin2",
    "iso8859-4": "csisolatin4 iso-8859-4 iso-ir-110 iso8859-4 latin4 l4",
    "iso8859-5": "csisolatincyrillic cyrillic iso-8859-5 iso-ir-144 iso_8859-5:1988",
    "iso8859-6": "arabic asmo-708 csiso88596e csiso88596i csisolatinarabic ecma-114 iso-8859-6 iso-8859-6-e",
    "iso8859-7": "csisolatingreek ecma-118 elot_928 greek greek8 iso-8859-7 iso-ir-126 sun_eu_greek",
    "iso8859-8": "csisolatinhebrew hebrew iso-8859-8 iso-8859-8-e visual iso-8859-8-i logical csiso88598i",
    "iso8859-10": "csisolatin6 iso-8859-10 iso-ir-157 l6 latin6",
    "iso8859-13": "iso-8859-13 iso8859-13 iso885913",
    "iso8859-14": "iso-8859-14 iso885914",
    "iso8859-15": "csisolatin9 iso-8859-15 iso8859-15 iso885915 iso_8859-15 l9",
    "iso8859-16": "iso-8859-16",
    "koi8-r": "cskoi8r koi koi8 koi8-r koi8_r",
    "koi8-u": "koi8-ru koi8-u",
    "mac-roman": "csmacintosh mac macintosh x-mac-roman",
    "mac_cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "cp874": "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874",
    "cp1250": "cp1250 windows-1250 x-cp1250",
    "cp1251": "cp1251 windows-1251 x-cp1251",
    "cp1252": "ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 iso8859-1 iso88591 "
    "iso_8859-1 iso_8859-1:1987 l1 latin1 us-ascii windows-1252 x-cp1252 latin-1 x-user-defined",
    "cp1253": "cp1253 windows-1253 x-cp1253",
    "cp1254": "cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso_8859-9:1989 l5 latin5 windows-1254 x-cp1254",
    "cp1255": "cp1255 windows-1255 x-cp1255",
    "cp1256": "cp1256 windows-1256 x-cp1256",
    "cp1257": "cp1257 windows-1257 x-cp1257",
    "cp1258": "cp1258 windows-1258 x-cp1258",
    "gb18030": "chinese csgb2312 csiso58gb231280 gb2312 gb_2312 gb_2312-80 gbk iso-ir-58 x-gbk gb18030 cp936",
    "big5hkscs": "big5 big5-hkscs cn-big5 csbig5 x-x-big5 cp950",
    "euc_jp": "cseucpkdfmtjapanese euc-jp x-euc-jp",
    "iso2022_jp_ext": "csiso2022jp iso-2022-jp cp50221",
    "cp932": "csshiftjis ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis cp932",
    "cp949": "cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 ksc_5601 "
    "windows-949 cp949",
    "cp437": "cp437 ibm437 cspc437",
}
NO_CHARSETS = "idna punycode zip uu hex base64 rot13 bz2 quopri raw-unicode-escape unicode_escape undefined mbcs oem"
REFUSED = "utf-7 iso-2022-kr hz-gb-2312 iso-2022-cn replacement x-unknown unknown-8bit 8bit default utf8mb5"
RUSSIAN = "Старая мельница стоит близ реки, и колесо её вертится днём и ночью."


def page(content: bytes, media_type: str = "text/html", **changes) -> PageItem:
    values = {"page_id": "p", "source": "s", "url": "u", "title": None, "licence": None, "too_large": False}
    return PageItem(**{**values, **changes}, media_type=media_type, content=content)


@pytest.mark.parametrize("codec", LABELS)
def test_charset_label_means_what_browsers_take_it_for(codec):
    """A label was looked up in Python's codecs, the narrow standards: mikel/mail#504, chardet/chardet#33."""
    for label in LABELS[codec].split():
        assert codec_of(label) == codec_of(f' "{label.upper()}"\n') == codec, label


@pytest.mark.parametrize("label", [*NO_CHARSETS.split(), *REFUSED.split(), "", " ", "\0", "a" * 1000, "utf 8"])
def test_charset_label_that_browsers_do_not_know_is_none(label):
    assert codec_of(label) is None


@pytest.mark.parametrize(
    ("label", "content", "text"),
    [
        ("gb2312", b"\xcc\xd5\x86\xb4 \x80 \xa2\xe3 \x90\x30\x81\x30", "\u9676\u5586 \u20ac \u20ac \U00010000"),
        ("shift_jis", b"\x87\x40 \xfb\xfc \xed\x95 \xb1", "\u2460 \u9ad9 \ufa11 \uff71"),
        ("euc-jp", b"\xad\xa1 \xfc\xe2 \x8e\xb1 \x8f\xb0\xa1", "\u2460 \u9ad9 \uff71 \u4e02"),
        ("iso-2022-jp", b"\x1b$B-!|b\x1b(B a \x1b(I1\x1b(J b", "\u2460\u9ad9 a \uff71 b"),
        ("iso-2022-jp", b"\xb1\xb2 \x1b$@0!\x1b(B", "\uff71\uff72 \u4e9c"),
        ("ks_c_5601-1987", b"\x8c\x63\xb9\xe6", "\ub620\ubc29"),
        ("big5", b"\xa3\xe1 \xf9\xd6 \x88\x62", "\u20ac \u7881 \xca\u0304"),
        ("tis-620", b"\x85 \x93\xa1\x94", "\u2026 \u201c\u0e01\u201d"),
        ("iso-8859-9", b"\x93\xfe\x94", "\u201c\u015f\u201d"),
    ],
)
def test_charset_codec_knows_the_signs_that_browsers_know(label, content, text):
    """takeruko/extract_vba_source#6, nodemailer/mailparser#31: signs of the code page became U+FFFD."""
    assert content.decode(codec_of(label), ERRORS) == text


DECOYS = (
    "<!-- <meta charset=koi8-r> -->",
    "<!-- charset=koi8-r > -- > <meta charset=koi8-r> -->",
    '<meta name="description" content="say charset=koi8-r in the head">',
    '<meta content="text/html; charset=koi8-r">',
    '<meta http-equiv="refresh" content="text/html; charset=koi8-r">',
    "<script>document.write('<meta charset=koi8-r>')</script>",
    "<STYLE>/* <meta charset=koi8-r> */</STYLE>",
    "<title>How to write <meta charset=koi8-r></title>",
    '<script src="a.js" charset="koi8-r"></script><link charset=koi8-r href=a>',
    '<a title="<meta charset=koi8-r>">a</a><form accept-charset="koi8-r"></form>',
    "<a title='>' data-x=\"<meta charset=koi8-r>\">a</a>",
    '<metadata charset="koi8-r"></meta charset=koi8-r>',
    '<meta charset="no-such-thing"><meta charset=idna>',
    "<?php charset=koi8-r encoding='koi8-r' ?><!doctype html [charset=koi8-r]>",
    f"<script>{'x' * 20_000}</script>",
)
DECLARATIONS = (
    "<meta charset=windows-1251>",
    "<META\nCHARSET = 'Windows-1251' />",
    '<meta/charset="cp1251">',
    '<meta http-equiv=Content-Type content="text/html; charset=windows-1251">',
    "<meta content='text/html;CHARSET = \"windows-1251\"' http-equiv='content-type'>",
    '<meta charset=windows-1251 charset=koi8-r content="text/html; charset=koi8-r" http-equiv=content-type>',
)


@pytest.mark.parametrize("decoy", DECOYS)
def test_charset_is_declared_by_a_meta_element_only(decoy):
    """The first charset= anywhere won: scrapy/w3lib#305 (a comment), h4ckf0r0day/obscura#565 (a description)."""
    for declaration in DECLARATIONS:
        content = f"<html><head>{decoy}{declaration}</head><p>{RUSSIAN}</p>".encode("cp1251")
        assert declared_codec(content, "text/html") == "cp1251", declaration
        assert RUSSIAN in (decode(content, "text/html")[0] or "")
    assert declared_codec(f"{decoy}<p>a".encode(), "text/html") is None


@pytest.mark.parametrize(
    ("content", "media_type", "codec"),
    [
        (b'<?xml version="1.0" encoding="windows-1251"?><html>', "text/html", "cp1251"),
        (b'<?xml encoding="windows-1251"?><meta charset=koi8-r>', "text/html", "koi8-r"),
        (b'<?xml encoding="windows-1251"?><meta charset=koi8-r>', "application/xhtml+xml", "cp1251"),
        (b'<p><?xml encoding="windows-1251"?>', "text/html", None),
        (b"<meta charset=utf-16le>", "text/html", "utf-8"),
        (b"<!-- <meta charset=koi8-r>", "text/html", None),
        (b"<script><meta charset=koi8-r>", "text/html", None),
        (b"<a title='<meta charset=koi8-r>", "text/html", None),
        (b"<meta charset=", "text/html", None),
        (b"<meta charset=koi8-r>", "text/plain", None),
        (b"#!/usr/bin/python\n# -*- coding: latin-1 -*-\n", "text/x-source", "cp1252"),
        (b"/* vim: set fileencoding=koi8-r : */\n", "text/x-source", "koi8-r"),
        (b";; -*- mode: lisp; coding: euc-jp-unix -*-\n", "text/x-source", "euc_jp"),
        (b'@charset "shift_jis";\n', "text/x-source", "cp932"),
        (b"a\nb\n# coding: koi8-r\n", "text/x-source", None),
        (b"# coding: rot13\n", "text/x-source", None),
    ],
)
def test_charset_declaration_of_each_kind_of_file(content, media_type, codec):
    assert declared_codec(content, media_type) == codec


def test_charset_order_is_mark_header_meta_and_what_the_bytes_contradict_is_none():
    koi = f"<meta charset=windows-1251><p>{RUSSIAN}".encode("koi8-r")
    assert encoding_of(koi, "text/html", "koi8-r") == "koi8-r"
    assert clean_page(page(koi, charset="koi8-r")).text == RUSSIAN
    assert encoding_of("\ufeff\u00fc".encode(), "text/html", "koi8-r") == "utf-8-sig"
    wrong = f"<meta charset=shift_jis><p>{RUSSIAN} {RUSSIAN}".encode("cp1251")
    assert clean_page(page(wrong)).text == f"{RUSSIAN} {RUSSIAN}"
    utf8 = f"<meta charset=windows-1251><p>{RUSSIAN}".encode()
    assert clean_page(page(utf8)).text == RUSSIAN
    japanese = "\u6c34\u8eca\u5c0f\u5c4b\u306e\u671d\u2460"
    for encoding in ("utf-16-le", "utf-16-be"):
        content = f"<p>{japanese * 20}</p>".encode(encoding)
        assert clean_page(page(content)).text == japanese * 20
    assert encoding_of(b"\x1b$)C\x0e90\x0f \x1b(Bx\x1b[0m") == "utf-8"
    for declaration in ("<meta charset=iso-2022-jp>", "<meta charset=shift_jis>", ""):
        content = declaration.encode() + b"<p>\x1b$B?e<V>.20$ND+-!\x1b(B</p>"
        assert clean_page(page(content)).text == japanese


@pytest.mark.parametrize("label", ["idna", "punycode", "zip", "utf-7", "unicode_escape", "undefined"])
def test_charset_that_is_no_character_set_never_reaches_the_codecs(label):
    """Pages with charset=idna and charset=punycode were dropped as error."""
    content = f"<meta charset={label}><p>M\u00fchle und Korn und viel Mehl".encode("latin-1")
    assert clean_page(page(content, charset=label)).text == "M\u00fchle und Korn und viel Mehl"
    mail = (
        f"Subject: =?{label}?q?M=FChle?=\nContent-Type: multipart/mixed; boundary=x\n\n--x\n"
        f"Content-Type: text/plain; charset*={label}''{label}\n\nM\u00fchle und Korn und Mehl\n--x\n"
        f"Content-Type: text/plain; charset={label}\n\nM\u00fchle und Mehl\n--x\n"
        f"Content-Type: image/png; name*={label}''M%FChle.png\n\nx\n--x--\n"
    ).encode("latin-1")
    extracted = mail_text(mail)
    expected = "M\u00fchle und Korn und Mehl\n\nM\u00fchle und Mehl\n\n[1 attachment: M\u00fchle.png]"
    assert (extracted.text, extracted.title) == (expected, "M\u00fchle")


KOREAN = "\uc548\ub155\ud558\uc138\uc694. \ub620\ubc29 \uc544\uc800\uc528\uac00 \uc74c\uc2dd\uc744 \ub9e1\uace0"
GERMAN = "Die M\u00fchle geh\u00f6rt dem M\u00fcller"
CHINESE = "\u9676\u5586\u548c\u59bb\u5b50\u5728\u6cb3\u8fb9\u5f00\u4e86\u4e00\u5bb6\u5c0f\u78e8\u574a"
JAPANESE = "\u9ad9\u6a4b\u3055\u3093\u306f\u2460\u6642\u306b\uff76\uff85"


@pytest.mark.parametrize(
    ("label", "content", "text"),
    [
        ("ks_c_5601-1987", f"{'a ' * 200}{KOREAN}".encode("cp949"), f"{'a ' * 200}{KOREAN}"),
        ("gb2312", CHINESE.encode("gb18030"), CHINESE),
        ("gb2312", "\u78e8\u574a".encode("gb18030"), "\u78e8\u574a"),
        ("Shift_JIS", JAPANESE.encode("cp932"), JAPANESE),
        ("iso-2022-jp", b"\x1b$B|b66$5$s$O-!;~$K\x1b(I6E\x1b(B", JAPANESE),
        ("big5", "\u78e8\u574a\u7684\u8f2a\u5b50\u7881".encode("big5hkscs"), "\u78e8\u574a\u7684\u8f2a\u5b50\u7881"),
        ("utf-7", b"M+APw-hle +- Korn", "M\u00fchle + Korn"),
        ("hz-gb-2312", b"~{C7~} a", "\u6885 a"),
        ("unknown-8bit", RUSSIAN.encode("cp1251"), RUSSIAN),
        ("x-unknown", RUSSIAN.encode(), RUSSIAN),
        ("utf8mb4", "M\u00fchle".encode(), "M\u00fchle"),
        ("utf-8", GERMAN.encode("latin-1"), GERMAN),
        ("us-ascii", RUSSIAN.encode("koi8-r"), RUSSIAN),
        ("iso-8859-1", b"\x93so\x94 \x80", "\u201cso\u201d \u20ac"),
        ("iso-8859-1", "Gr\u00fc\u00dfe".encode(), "Gr\u00fc\u00dfe"),
        ("windows-1256", b"\xc2\x81", "\u0622\u067e"),
        ("gb2312", RUSSIAN.encode(), RUSSIAN),
        ("unicode", GERMAN.encode("latin-1"), GERMAN),
        ("gb2312", CHINESE.encode("gb18030") + b"\xff!", CHINESE + "\ufffd!"),
    ],
)  # fmt: skip
def test_charset_of_a_mail_part_and_of_a_subject_is_read_alike(label, content, text):
    """ks_c_5601-1987 is what Outlook calls cp949: mikel/mail#436, barbushin/php-imap#208."""
    part = f"Subject: x\nContent-Type: text/plain; charset={label}\n\n".encode() + content
    assert mail_text(part).text == text
    quoted = "".join(f"={byte:02X}" for byte in content[:300])
    subject = f"Subject: =?{label}?q?{quoted}?=\n\na".encode()
    title = mail_text(subject).title or ""
    assert title == text or (len(content) > 300 and text.startswith(title[:20]))


def test_charset_of_a_raw_header_is_that_of_its_message():
    mail = "Subject: \u78e8\u574a\nContent-Type: text/plain; charset=gb2312\n\n\u78e8".encode("gb18030")
    assert mail_text(mail).title == "\u78e8\u574a"
    assert mail_text(mail.replace(b"gb2312", b"x")).text


def test_charset_of_xml_is_read_as_browsers_read_it():
    names = "\u9676\u5586\u3001\u674e\u5803"
    dump = f"<mediawiki><page><title>{names}</title><revision><text>{names}</text></revision></page></mediawiki>"
    for encoding in ("utf-8", "utf-16", "gb18030"):
        label = "gb2312" if encoding == "gb18030" else encoding
        content = f'<?xml version="1.0" encoding="{label}"?>{dump}'.encode(encoding)
        (article,) = read_articles(io.BytesIO(content), 10_000)
        assert isinstance(article, Article) and (article.title, article.text) == (names, names)
        tree = xml_tree(content)
        assert tree is not None and tree.findtext("page/title") == names


def test_charset_of_a_chapter_is_declared_as_xml_declares_it(writers):
    chapter = f'<?xml version="1.0" encoding="koi8-r"?><html><body><p>{RUSSIAN}</p></body></html>'
    book = writers.epub({"c.xhtml": ""}, extra={"OPS/c.xhtml": chapter.encode("koi8-r")})
    assert epub_text(book).text == RUSSIAN


@pytest.mark.parametrize("encoding", ["gb18030", "cp932", "cp949", "big5hkscs"])
def test_charset_of_a_table_is_guessed_as_that_of_a_text(encoding):
    text = {"gb18030": CHINESE, "cp932": "\u2460\u6c34\u8eca\u5c0f\u5c4b\u306e\u671d", "cp949": KOREAN}.get(
        encoding, "\u78e8\u574a\u7684\u8f2a\u5b50\u8f49\u52d5\u8457"
    )
    source = FilesSource(name="s", licence="mine", path="/")
    pages = table_pages(io.BytesIO(f"n,text\n1,{text}\n".encode(encoding)), "u", "text/csv", source, 10_000)
    assert [page.content.decode() for page in pages if isinstance(page, Found)] == [text]
