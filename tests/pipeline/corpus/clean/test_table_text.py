"""Delimited text: any delimiter, ragged rows, and quotes that nobody closed."""

import time

import pytest

from pipeline.corpus.clean.table_text import table_text
from pipeline.corpus.csv_records import records, sniffed_delimiter


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_table_rows_are_markdown_whatever_the_delimiter(delimiter):
    text = "\n".join(delimiter.join(row) for row in (["grain", "kg"], ["rye", "1"], ["oats", "2"]))
    extracted = table_text(text)
    assert extracted.text == "| grain | kg |\n| rye | 1 |\n| oats | 2 |"
    assert (extracted.extractor, extracted.reason) == ("table", None)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('a,b\n1,"x, ""y""\nz"\n', [["a", "b"], ["1", 'x, "y"\nz']]),
        ("a,b\r\n1,2\r3,4\n\n\n5,6", [["a", "b"], ["1", "2"], ["3", "4"], ["5", "6"]]),
        ("a,b\n1\n2,3,4\n", [["a", "b"], ["1"], ["2", "3", "4"]]),
        ("a,b\n1,\0x\0\n", [["a", "b"], ["1", "x"]]),
        ('a,b\n1,"open\n2,3\n4,5\n', [["a", "b"], ["1", '"open'], ["2", "3"], ["4", "5"]]),
        ('a,b\n1,"open\n2,3\n4,"x"\n', [["a", "b"], ["1", '"open'], ["2", "3"], ["4", "x"]]),
        ('a,b\n1,5" pipe\n2,6" pipe\n', [["a", "b"], ["1", '5" pipe'], ["2", '6" pipe']]),
        ('"', [['"']]),
        ('a,b\n"x"y,1\n', [["a", "b"], ['"x"y', "1"]]),
        ("", []),
    ],
    ids=[
        "quoted",
        "line-ends",
        "ragged",
        "nul",
        "open-to-the-end",
        "open-to-a-later-one",
        "inches",
        "quote",
        "half",
        "empty",
    ],
)
def test_table_records_of_any_text(text, rows):
    assert list(records(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), ",")) == rows


def test_table_long_texts_with_line_ends_in_quotes_stay_whole():
    long = "line\n" * 20_000
    assert list(records(f'a,b\n1,"{long}"\n2,x'.split("\n"), ","))[1:] == [["1", long], ["2", "x"]]


@pytest.mark.parametrize("text", ["one\ntwo, and more\nthree\n", "plain text", ""])
def test_table_text_without_a_delimiter_stays_as_it_is(text):
    assert sniffed_delimiter(text) is None
    assert table_text(text).text == text and table_text(text).reason == (None if text else "no_text")


def test_table_of_empty_cells_has_no_text():
    assert table_text(",,\n,,\n").reason == "no_text"


@pytest.mark.parametrize(
    "text",
    [
        "a,b\n" + '"x,y\n' * 100_000,
        'a,b\n1,"' + "x\n" * 300_000,
        "a,b\n" + '1,"x\n2\n' * 100_000,
        "a,b\n" + ('"""\n' + "x\n" * 3) * 50_000,
        "a,b\n" + '1,""",\n' * 100_000,
        "a,b\n" + '"' * 1_000_000,
        "a,b\n" + "," * 1_000_000,
        "a,b\n" + '1,2"\r"' * 100_000,
    ],
    ids=range(8),
)
def test_table_hostile_quotes_cost_time_in_proportion_to_their_length(text):
    def seconds(part: str) -> float:
        started = time.thread_time()
        table_text(part, ",")
        return time.thread_time() - started

    seconds(text[:1000])
    assert seconds(text) < 20 * max(0.02, seconds(text[: len(text) // 4]))
