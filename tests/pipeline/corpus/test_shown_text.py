"""What a screen shows of a text: whole escape sequences, line ends, C1 controls, progress bars."""

import time

import pytest

from pipeline.corpus.clean.stage import PageItem, clean_page
from pipeline.corpus.shown_text import as_shown, log_as_shown, markup_as_shown
from pipeline.corpus.text_repair import repair, repaired


def cleaned(content: str | bytes, media_type: str = "text/plain", url: str = "u") -> str:
    content = content.encode() if isinstance(content, str) else content
    return clean_page(PageItem("p", "s", url, media_type, None, None, content, too_large=False)).text


SEQUENCES = {
    "colours": ("\x1b[1;32m[ok]\x1b[0m the gate", "[ok] the gate"),
    "true colours": ("\x1b[38;2;255;100;0mred\x1b[39;49m", "red"),
    "colons in colours": ("\x1b[4:3m\x1b[58:5:1mwave\x1b[0m", "wave"),
    "private modes": ("\x1b[?25l\x1b[?1049hgate\x1b[?25h\x1b[>c", "gate"),
    "erase and move": ("\x1b[2J\x1b[Hgate\x1b[K\x1b[10;5H\x1b[1 q", "gate"),
    "title and bell": ("\x1b]0;mill\x07$ echo", "$ echo"),
    "title and its end": ("\x1b]2;mill; one\x1b\\$ echo", "$ echo"),
    "title without an end": ("\x1b]0;mill\n$ echo", "\n$ echo"),
    "link": ("\x1b]8;;https://a.example\x1b\\gate\x1b]8;;\x1b\\ x", "gate x"),
    "palette": ("\x1b]P1ff0000red", "red"),
    "character sets": ("\x1b(B\x1b)0\x1b[mgate\x1b%G\x1b#8", "gate"),
    "device string": ("\x1bP1$r0m\x1b\\gate\x1b_G a=T\n b\x1b\\.", "gate."),
    "short ones": ("\x1b7\x1b=\x1bcgate\x1b>\x1b8\x1bM", "gate"),
    "keys": ("\x1bOAgate\x1b[3~", "gate"),
    "with one code point": ("\x9b31mred\x9b0m \x9d0;t\x9cgate\x90q#1\x9c", "red gate"),
    "cut off": ("gate\x1b[31", "gate"),
    "alone": ("gate \x1b", "gate"),
}


@pytest.mark.parametrize("case", SEQUENCES)
@pytest.mark.parametrize("sign", ["", " \u2713 \u00fc"])
def test_terminal_sequences_go_whole_in_lines_of_any_letters(case, sign):
    """Only ESC went, and '[33m' stayed in lines of ASCII: sbt/sbt#1143, chalk/strip-ansi#43."""
    text, shown = SEQUENCES[case]
    assert cleaned(f"{sign}{text}{sign if case != 'cut off' else ''}\nend") == (
        f"{sign}{shown}{sign if case != 'cut off' else ''}".rstrip().lstrip("\n") + "\nend"
    )


def test_terminal_sequences_go_from_pages_mails_and_markup_alike():
    listing = "<pre>\x1b[32mok\x1b[0m &#27;[31mbad&#x1B;[0m</pre>"
    page = f"<p>The gate is open, and so the wheel of the mill turns.</p>{listing}"
    assert cleaned(page, "text/html").endswith("```\nok bad\n```")
    for kind, body in (("html", f"<html><body>{page}</body></html>"), ("plain", "\x1b[32mok\x1b[0m bad")):
        mail = f"Subject: x\nContent-Type: text/{kind}\n\n{body}"
        assert "\nok bad" in f"\n{cleaned(mail, 'message/rfc822')}"
    assert cleaned("a\n\x1b[32m# ok\x1b[0m", "text/markdown") == "a\n# ok"
    assert cleaned("a,b\n\x1b[32mok\x1b[0m,1\n", "text/csv") == "| a | b |\n| ok | 1 |"
    assert markup_as_shown("&amp;#27;[0m") == "&amp;#27;[0m"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("We waited\x85 and waited\x85 until the miller\x92s gate held.",
         "We waited\u2026 and waited\u2026 until the miller\u2019s gate held."),
        ("We waited\x85 and waited.\nThe gate held\x85\nand \x85.",
         "We waited\u2026 and waited.\nThe gate held\u2026\nand \u2026."),
        ("He said \x93no\x94\x85but went.", "He said \u201cno\u201d\u2026but went."),
        ("The gate\x85The wheel\x85\x85The stone\x85", "The gate\nThe wheel\n\nThe stone"),
        ("def f():\x85    return 1\x85", "def f():\n    return 1"),
        ("one\x85two\nthree", "one\ntwo\nthree"),
        ("\u00c3\x85ngstr\u00c3\u00b6m", "\u00c5ngstr\u00f6m"),
        ("caf\u00e2\x80\x99s", "caf\u2019s"),
    ],
)  # fmt: skip
def test_c1_controls_are_signs_of_windows_1252_where_the_text_says_so(text, expected):
    """U+0085 broke the line within a sentence: scrapy/parsel#76, OWASP/java-html-sanitizer#414."""
    assert cleaned(text) == expected
    assert cleaned(text.encode(), "text/markdown") == expected
    assert repair(expected) == expected


def test_c1_controls_in_cells_and_in_subjects_are_signs_too():
    assert (
        cleaned("a,b\nWe waited\x85 and,miller\x92s\n", "text/csv")
        == "| a | b |\n| We waited\u2026 and | miller\u2019s |"
    )
    mail = "Subject: We waited\x85 and\n\na"
    item = PageItem("p", "s", "u", "message/rfc822", None, None, mail.encode(), too_large=False)
    assert clean_page(item).title == "We waited\u2026 and"


def test_c1_controls_in_references_of_pages_of_books_are_signs_too(writers):
    chapter = writers.xhtml("<p>We waited&#133; and the miller&#146;s gate held&#133;</p>")
    assert (
        cleaned(writers.epub({"a.xhtml": chapter}), "application/epub+zip")
        == "We waited\u2026 and the miller\u2019s gate held\u2026"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\nb\rc\nd\r\r\ne", "a\nb\nc\nd\ne"),
        ("a\x0bb\x0cc\u2028d\u2029e", "a\nb\nc\nd\ne"),
        ("N\bNA\bAM\bME\bE _\bg_\ba and g\b_a\b_", "NAME ga and ga"),
        ("10 %\b\b\b\b20 %\b\b\b\b\b\bdone", "done"),
        ("\b\bgate", "gate"),
    ],
)
def test_line_ends_and_overstrikes_read_as_on_a_screen(text, expected):
    assert as_shown(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Get 10 kB  5%\rGet 1.2 MB  50%\rGet 3 MB 100%\r\ndone\n", "Get 3 MB 100%\ndone"),
        ("[##  ] 1/3\r[### ] 2/3\r[####] 3/3\nok", "[####] 3/3\nok"),
        ("\x1b[32m|\u2588\u258c  |\x1b[0m\r\x1b[32m|\u2588\u2588\u2588 |\x1b[0m\nok", "|\u2588\u2588\u2588 |\nok"),
        ("|\r/\r-\r\\\rready\nok", "\\\nready\nok"),
        ("Compiling a\r\x1b[KCompiling b\x1b[2K\rReady\nok", "Ready\nok"),
        ("Chapter 1\rChapter 2\rChapter 3\nend", "Chapter 1\nChapter 2\nChapter 3\nend"),
        ("5%\r10%\r15%\r", "5%\n10%\n15%"),
        ("a 5% b\rc 10% d\nend", "a 5% b\nc 10% d\nend"),
    ],
)
def test_progress_bar_leaves_its_last_state_and_other_lines_stay(text, expected):
    assert cleaned(text) == expected


FORMATS = {
    "text/plain": "The gate.\n\nThe wheel\nturns.",
    "text/markdown": "---\ntitle: x\n---\n# Gate\n\n    code\n\n- a <!-- b -->\n",
    "text/x-rst": "Gate\n====\n\nLike this::\n\n   :ref:`a`\n\n.. image:: x\n   :alt: y\n\nEnd.\n",
    "text/x-wiki": "Gate\n* one\n* two\n== Wheel ==\nIt turns.\n",
    "text/html": "<h1>Gate</h1>\n<p>The wheel of the mill\nturns.</p><pre>a\n  b</pre>",
    "text/x-source": "def f():\n\n\n    return 1\n",
    "text/csv": 'n,text\n1,"a\nb"\n2,c\n',
    "message/rfc822": "Subject: x\nContent-Type: multipart/mixed; boundary=b\n\n--b\n\nGate\nopen\n--b--\n",
}


@pytest.mark.parametrize("media_type", FORMATS)
def test_line_ends_are_equal_before_a_format_is_read(media_type):
    """Front matter with CRLF was not seen: eyeseast/python-frontmatter#20."""
    text = FORMATS[media_type]
    lines = text.split("\n")
    mixed = "".join(line + ("\r\n", "\n")[i % 2] for i, line in enumerate(lines[:-1])) + lines[-1]
    assert cleaned(text, media_type)
    for other in (
        text.replace("\n", "\r\n"),
        mixed,
        *([text.replace("\n", "\r")] * (media_type != "message/rfc822")),
    ):
        assert cleaned(other, media_type) == cleaned(text, media_type)


def test_line_end_inside_a_cell_breaks_no_table():
    assert cleaned('a,b\n"x\ry",1\n"z\r\nw",2\n', "text/csv") == "| a | b |\n| x y | 1 |\n| z w | 2 |"


@pytest.mark.parametrize(
    ("media_type", "text"),
    [("text/markdown", "Gate\n\n```\n{}\n```"), ("text/x-rst", "Gate:\n\n>>> {}"), ("text/markdown", "`{}`")],
)
def test_code_in_markup_keeps_every_character(media_type, text):
    code = "'\x0c \x1b[0m\u2028 \x85\u00a0\u200b\u212b \u00c3\u00a9 \b'"
    assert code in cleaned(text.format(code), media_type)


CODE = """\ufeffdef gate():
\ttext = '''one


two   \x0c
\x1b[0m'''
    return "caf\u00c3\u00a9" + "\u00a0\u200b\u212b\u2028\x85" + 'e\u0301'\x20


"""


@pytest.mark.parametrize("name", ["a.py", "a.diff", "a.yaml", "Makefile", "a.toml"])
def test_source_code_stays_byte_for_byte(name):
    """Blank lines, spaces and literals were repaired as if they were prose: jpeddicord/askalono#14."""
    expected = CODE.removeprefix("\ufeff")
    assert cleaned(CODE, "text/x-source", name) == expected
    assert cleaned(CODE.replace("\n", "\r\n"), "text/x-source", name) == expected
    assert cleaned(expected.encode("utf-16"), "text/x-source", name) == expected
    assert cleaned("# coding: latin-1\nx = '\u00fc'\n".encode("latin-1"), "text/x-source", name).endswith(
        "'\u00fc'\n"
    )


def test_source_code_of_a_notebook_stays_and_its_prose_is_repaired(writers):
    code = "x = 'caf\u00c3\u00a9\u00a0'\n\n\ny = '''\n```\n'''"
    cells = [
        {"cell_type": "code", "source": "# no title\n1"},
        {"cell_type": "markdown", "source": "# Caf\u00c3\u00a9\n\n\n\n\x1b[0mtext"},
        {"cell_type": "code", "source": f"{code}\n".replace("\n", "\r\n")},
    ]
    shown = f"```python\n# no title\n1\n```\n\n# Caf\u00e9\n\ntext\n\n````python\n{code}\n````"
    item = PageItem("p", "s", "u", "application/x-ipynb+json", None, None, writers.notebook(cells), too_large=False)
    answer = clean_page(item)
    assert (answer.text, answer.title, answer.n_mojibake) == (shown, "Caf\u00e9", 1)


def test_blank_lines_in_listings_of_pages_stay():
    listing = "def f():\n    pass\n\n\n\ndef g():\n    pass"
    page = f"<p>The gate is open, and so the wheel turns.</p>\n<pre>{listing}</pre><p>It turns day and night.</p>"
    assert f"```\n{listing}\n```" in cleaned(page, "text/html")
    assert repair("a\n\n\nb\n ````x\n\n\n```\n\n\n ````\n\n\nc\n```\n\n\n\nd") == (
        "a\n\nb\n ````x\n\n\n```\n\n\n ````\n\nc\n```\n\nd"
    )


def test_repair_leaves_spans_of_code_and_repairs_around_them():
    text = "\n\ncaf\u00c3\u00a9 `caf\u00c3\u00a9 ` a \n\n\n\n  b\u00a0\n\n\nc\u00a0 \n"
    code = [(8, 15), (23, 27)]
    assert text[8:15] == "`caf\u00c3\u00a9 " and repaired(text, code)[0].startswith(
        "caf\u00e9 `caf\u00c3\u00a9 ` a\n\n"
    )
    assert repaired("a \n\n\n", [(0, 5)]) == ("a \n\n\n", 0)
    assert repaired("", []) == ("", 0) and repaired(" \n", []) == ("", 0)


@pytest.mark.parametrize(
    "piece",
    [
        "\x1b]a",
        "\x1bP",
        "\x9d1;",
        "\x90a",
        "\x1b[",
        "\b",
        "\r1%",
        "\x85 ",
        "&#0",
        "\x1b[2K",
        "\r",
        "\r\r\rx",
        "\x1bPa\n",
    ],
)
def test_shown_text_costs_time_in_proportion_to_its_length(piece):
    def seconds(n_characters: int) -> float:
        text = "\n" + piece * (n_characters // len(piece))
        started = time.thread_time()
        log_as_shown(text)
        markup_as_shown(text)
        return time.thread_time() - started

    assert seconds(50_000) < 25 * max(0.02, seconds(5_000))
