"""What a person sees while stages work: items, rate and time left, on a terminal and in a log."""

import io

import pytest

from pipeline.store.progress import Display, clock_text, current_show, displayed, duration_text


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_display_log_has_a_line_every_ten_seconds_and_one_at_the_end():
    clock, stream = Clock(), io.StringIO()
    display = Display(stream, n_steps=14, clock=clock)
    display.begin("documents")
    for done in range(26):
        display.show("clean", done * 10, 1000, "pages")
        clock.now += 1
    display.end("990 rows")
    assert stream.getvalue().splitlines() == [
        "[ 1/14] documents: clean 100 of 1,000 pages, 10/s, 1:30 left",
        "[ 1/14] documents: clean 200 of 1,000 pages, 10/s, 1:20 left",
        "[ 1/14] documents                       26.0 s  990 rows",
    ]


def test_display_second_stage_of_a_step_starts_its_own_rate():
    clock, stream = Clock(), io.StringIO()
    display = Display(stream, clock=clock)
    display.begin("corpus")
    display.show("dedup", 0, 5000, "documents")
    clock.now = 9
    display.show("split", 0, 40, "documents")
    clock.now = 19
    display.show("split", 20, 40, "documents")
    assert stream.getvalue().splitlines() == ["corpus: split 20 of 40 documents, 2/s, 0:10 left"]


def test_display_unknown_total_gives_a_rate_and_no_time_left():
    clock, stream = Clock(), io.StringIO()
    display = Display(stream, clock=clock)
    display.begin("pages/wiki")
    display.show("collect", 0, None, "pages")
    clock.now = 10
    display.show("collect", 1200, None, "pages")
    assert stream.getvalue().splitlines() == ["pages/wiki: collect 1,200 pages, 120/s"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_display_terminal_shows_the_stage_at_once_and_leaves_one_line():
    clock, stream = Clock(), Terminal()
    display = Display(stream, clock=clock)
    display.begin("tokenizer")
    display.show("tokenizer", 0, 4096, "merges")
    clock.now = 1
    display.show("tokenizer", 1024, 4096, "merges")
    display.end("4,096 rows")
    assert "tokenizer 1,024 of 4,096 merges, 1,024/s, 0:03 left" in stream.getvalue()
    assert stream.getvalue().endswith("tokenizer                        1.0 s  4,096 rows\n")


def test_current_show_reaches_the_open_display_only():
    stream = io.StringIO()
    show = current_show()
    show("clean", 1, 2, "pages")  # nobody looks
    with displayed(stream=stream) as display:
        display.begin("documents")
        display.drawn -= 60
        show("clean", 1, 2, "pages")
    show("clean", 2, 2, "pages")
    assert stream.getvalue().splitlines() == ["documents: clean 1 of 2 pages"]


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3661, "1:01:01")])
def test_clock_text_examples(seconds, text):
    assert clock_text(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3661, "1:01:01"), (12 * 86400, "12 days"), (1e12, "31,688 years"), (2.5 * 86400, "60:00:00")],
)
def test_duration_text_examples(seconds, text):
    assert duration_text(seconds) == text
