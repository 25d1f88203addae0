"""Messages: the text that a reader sees, whatever the headers and encodings say."""

import pytest

from pipeline.corpus.clean.mail_text import mail_text

QUOTED = "Content-Transfer-Encoding: quoted-printable"


def test_mail_plain_text_is_preferred_and_attachments_are_named_only(writers):
    message = writers.mail("Die M\u00fchle", "Gr\u00fc\u00dfe.\n\n> quoted\n")
    message.add_alternative("<h1>Other</h1>", subtype="html")
    message.add_attachment(b"%PDF-1.4 secret", maintype="application", subtype="pdf", filename="Pl\u00e4n.pdf")
    message.add_attachment("in it", filename="notes.txt")
    extracted = mail_text(message.as_bytes())
    assert extracted.text == "Gr\u00fc\u00dfe.\n\n> quoted\n\n[2 attachments: Pl\u00e4n.pdf, notes.txt]"
    assert (extracted.title, extracted.extractor, extracted.reason) == ("Die M\u00fchle", "mail", None)
    assert "miller@example.org" not in extracted.text


def test_mail_html_is_read_with_its_structure_where_there_is_no_plain_text(writers):
    message = writers.mail(text=" ")
    message.add_alternative("<h1>Of</h1><ul><li>rye</li></ul><style>p {}</style>", subtype="html")
    assert mail_text(message.as_bytes()).text == "# Of\n\n- rye"


def test_mail_forwarded_message_stands_below_its_subject(writers):
    message = writers.mail(text="See below.")
    message.add_attachment(writers.mail("Of rye", "Old rye."))
    assert mail_text(message.as_bytes()).text == "See below.\n\n## Of rye\n\nOld rye."


def test_mail_flowed_lines_are_joined_by_depth_of_quotes():
    head = b"Subject: x\nContent-Type: text/plain; format=flowed\n\n"
    text = mail_text(head + b"A mill \nturns.\n> It \n> grinds \nall.\n-- \nThe miller\n").text
    assert text == "A mill turns.\n> It grinds \nall.\n-- \nThe miller"


@pytest.mark.parametrize(
    ("headers", "body", "expected"),
    [
        (f"{QUOTED}\nContent-Type: text/plain; charset=latin-1", b"M=FChle=\n n", "M\u00fchle n"),
        ("Content-Transfer-Encoding: base64", b"QSBtaWxsLg==", "A mill."),
        ("Content-Transfer-Encoding: base64", b"QSBtaWxsL", "A mill"),
        ("Content-Transfer-Encoding: nonsense", b"A mill.", "A mill."),
        ("Content-Type: text/plain; charset=no-such-thing", b"M\xc3\xbchle", "M\u00fchle"),
        ("Content-Type: text/plain; charset=base64", b"A mill.", "A mill."),
        ("Content-Type: text/plain; charset=utf-16", b"A mill.", "A mill."),
        ("Content-Type: text/plain; charset=us-ascii", b"M\xc3\xbchle", "M\u00fchle"),
        ("Content-Type: ;;;", b"A mill.", "A mill."),
        ("Content-Type: multipart/mixed", b"A mill.", "A mill."),
        ("Content-Type: multipart/mixed; boundary=x", b"--x\n\nA mill.\n--x", "A mill."),
    ],
)
def test_mail_encodings_right_wrong_and_unknown_give_the_text(headers, body, expected):
    assert mail_text(b"Subject: x\n" + headers.encode() + b"\n\n" + body).text.strip() == expected


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        (b"=?utf-8?q?M=C3=BChle?= =?utf-8?b?IG4=?=", "M\u00fchle n"),
        (b"=?no-such?q?Mill?=", "Mill"),
        (b"=?utf-8?b?!!!?=", None),
        (b"M\xfchle und Korn und Mehl", "M\u00fchle und Korn und Mehl"),
        (b"a\n folded\n\tone", "a folded one"),
        (b"", None),
    ],
)
def test_mail_subject_right_or_wrong_is_the_title(subject, expected):
    title = mail_text(b"Subject: " + subject + b"\n\nA mill.").title
    assert title == expected or (expected is None and title is not None and "!!!" in title)


@pytest.mark.parametrize(
    "content", [b"", b"\n\n", b"plain text\nno header", b"\0" * 100, b"From x\n", b"%PDF-1.4\n1 0 obj"]
)
def test_mail_that_is_none_is_unreadable(content):
    assert mail_text(content).reason == "unreadable"


def test_mail_without_a_text_part_has_no_text(writers):
    message = writers.mail(text="\n")
    message.add_attachment(b"x", maintype="image", subtype="png")
    assert mail_text(message.as_bytes()).reason == "no_text"


def test_mail_truncated_anywhere_gives_text_or_a_reason(writers):
    message = writers.mail()
    message.add_attachment(b"x" * 300, maintype="image", subtype="png", filename="a.png")
    whole = message.as_bytes()
    for cut in range(0, len(whole), 17):
        extracted = mail_text(whole[:cut])
        assert (extracted.reason is None) == bool(extracted.text)


def test_mail_of_parts_inside_parts_ends_at_a_depth():
    parts = "".join(f"Content-Type: multipart/mixed; boundary=b{i}\n\n--b{i}\n" for i in range(3000))
    nested = "Content-Type: message/rfc822\n\n" * 3000
    for content in (parts, nested):
        assert mail_text(b"Subject: x\n" + content.encode() + b"\n\ndeep").reason in ("no_text", "unreadable")


NEWS = """Dear friends, the new stone has arrived. It weighs nine hundred kilos, and it took six of us a whole
Saturday to roll it from the cart to its bed. Open day is the second Sunday in May, and the oven is lit at ten."""
NEWS_HTML = f"<h2>News</h2><p>{NEWS}</p><p>Unsubscribe <a href='https://a.example/u'>here</a>, at any time.</p>"
JAPANESE_NEWS = (
    "\u65b0\u3057\u3044\u77f3\u81fc\u304c\u5c4a\u304d\u307e\u3057\u305f\u3002"
    "\u4e94\u6708\u306e\u7b2c\u4e8c\u65e5\u66dc\u65e5\u306b\u958b\u304d\u307e\u3059\u3002"
)
STUBS = {
    "in words": "This message is in HTML. Please switch on HTML in your mail program to read it.",
    "in other words": "Your client does not support rich mail :(",
    "in another language": "Diese Nachricht liegt nur als HTML vor, bitte im Browser lesen.",
    "an address": "https://news.example/view?new-stone-has-arrived-it-weighs-nine-hundred-kilos\n",
    "with its footer": "To read the news, open the link.\n\nUnsubscribe here, at any time.",
    "signs": "-- \n\u00a0\n* * *",
    "empty": "\n",
}


def alternatives(writers, plain: str, html: str, **kinds: str) -> bytes:
    message = writers.mail("News", plain)
    message.set_content(plain, cte="base64")
    for kind, text in kinds.items():
        message.add_alternative(text, subtype=kind)
    message.add_alternative(html, subtype="html", cte="base64")
    return message.as_bytes()


@pytest.mark.parametrize("stub", STUBS)
def test_mail_stub_in_plain_text_loses_to_the_html_that_it_refers_to(writers, stub):
    """The plain part won whatever it said: GongRzhe/Gmail-MCP-Server#87, lswith/imap-mcp#21."""
    extracted = mail_text(alternatives(writers, STUBS[stub], NEWS_HTML))
    assert extracted.text.startswith("## News\n") and "nine hundred kilos" in extracted.text
    extracted = mail_text(alternatives(writers, STUBS[stub], f"<p>{JAPANESE_NEWS}</p>"))
    assert extracted.text == JAPANESE_NEWS


@pytest.mark.parametrize(
    ("plain", "html"),
    [
        (NEWS, NEWS_HTML),
        (NEWS.replace(" ", "\n"), NEWS_HTML.replace("nine hundred", "<b>900</b>")),
        (NEWS, "<h1>News</h1><p>Pictures. View in your browser.</p>"),
        (f"{JAPANESE_NEWS}\nhttps://a.example", f"<h1>News</h1><p>{JAPANESE_NEWS}</p>"),
        ("Yes.", "<p>Yes.</p>"),
        ("Yes, at ten.", "<img src=cid:1>"),
    ],
)
def test_mail_plain_text_that_says_what_the_html_says_is_preferred(writers, plain, html):
    assert mail_text(alternatives(writers, plain, html)).text == plain


def test_mail_parts_that_say_different_things_are_both_read_if_the_plain_one_is_no_shorter(writers):
    stub = STUBS["in words"]
    assert mail_text(alternatives(writers, stub, "<p>The mill opens at ten.</p>")).text == (
        f"{stub}\n\nThe mill opens at ten."
    )


def test_mail_alternative_may_hold_its_html_inside_other_parts_or_before_a_calendar(writers):
    message = writers.mail("News", STUBS["in words"])
    message.add_alternative(NEWS_HTML, subtype="html")
    message.get_payload()[1].add_related(b"x", "image", "png", cid="<1>", filename="stone.png")
    assert mail_text(message.as_bytes()).text.endswith("[1 attachment: stone.png]")
    message.add_alternative("BEGIN:VCALENDAR", subtype="calendar")
    assert "nine hundred kilos" in mail_text(message.as_bytes()).text
