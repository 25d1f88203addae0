"""repeated_lines: laws of the units of a text and of taking some of them out."""

import re
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus.dedup_lines.repeated_lines import going, key_of, kind_of, layout_of, site_of, units_of, without
from pipeline.corpus.dedup_lines.stage import DedupLinesConfig

LAYOUTS = ("lines", "paragraphs")
PARTS = (
    "a",
    "word",
    "- item",
    "    code()",
    "# heading",
    "| cell |",
    "```",
    "~~~",
    "\n",
    "\n\n",
    " ",
    "\t",
    "\u4f60",
)
texts = st.lists(st.sampled_from(PARTS), max_size=40).map("".join)
CONFIG = DedupLinesConfig()


@given(texts, st.sampled_from(LAYOUTS))
def test_units_lie_in_order_and_hold_every_sign_but_white_space(text, layout):
    units = units_of(text, layout)
    spans = [(unit.start, unit.end) for unit in units]
    assert spans == sorted(spans) and all(start < end for start, end in spans)
    assert all(one.end <= other.start for one, other in pairwise(units))
    assert re.sub(r"\s", "", "".join(text[start:end] for start, end in spans)) == re.sub(r"\s", "", text)


@given(texts, st.sampled_from(LAYOUTS), st.data())
def test_without_leaves_the_other_units_and_no_new_gap(text, layout, data):
    units = units_of(text, layout)
    removed = data.draw(st.sets(st.sampled_from(range(len(units))))) if units else set()
    left = without(text, [units[place] for place in sorted(removed)])
    stays = [text[unit.start : unit.end] for place, unit in enumerate(units) if place not in removed]
    assert re.sub(r"\s", "", left) == re.sub(r"\s", "", "".join(stays))
    assert left == left.strip("\n") and len(left) <= len(text)
    longest = max((len(gap) for gap in re.findall(r"\n+", text)), default=0)
    assert max((len(gap) for gap in re.findall(r"\n+", left)), default=0) <= max(longest, 2)


@given(texts)
def test_without_nothing_is_the_text(text):
    assert without(text, []) == text.strip("\n")


@given(texts, st.sampled_from(LAYOUTS))
def test_going_with_every_line_repeated_never_touches_what_has_to_stay(text, layout):
    units = units_of(text, layout)
    repeated = {unit.key: (9, 9) for unit in units if unit.key is not None}
    gone = going(text, units, repeated, layout, CONFIG)
    assert gone == sorted(set(gone))
    assert all(units[place].key is not None for place in gone)
    assert not going(text, units, {}, layout, CONFIG)


@given(texts)
def test_going_from_code_or_tables_is_nothing(text):
    assert units_of(text, "nothing") == []


@pytest.mark.parametrize(
    ("one", "other", "equal"),
    [
        ("About us", "  ABOUT\tus ", True),
        ("\ufb01nd", "find", True),
        ("Stra\u00dfe", "STRASSE", True),
        ("About us", "About them", False),
        ("Page 1", "Page 2", False),
    ],
)
def test_key_is_that_of_the_words(one, other, equal):
    assert (key_of(one) == key_of(other)) == equal


def test_kind_of_the_same_line_depends_on_what_is_around_it():
    text = "- a\n- b\n\nc\n\nd\ne"
    assert [kind_of(text, unit) for unit in units_of(text, "lines")] == ["line"] * 2 + ["paragraph"] + ["line"] * 2


def test_units_of_a_listing_with_empty_lines_have_no_key_until_its_fence_ends():
    for layout in LAYOUTS:
        prose = (
            "This is a paragraph of more than a hundred characters, so that it could be taken out of any text, too."
        )
        units = units_of(f"````\n{prose}\n\n```\n{prose}\n````\n\n{prose}", layout)
        assert [unit.key is None for unit in units][-1] is False
        assert all(unit.key is None for unit in units[:-1])


@pytest.mark.parametrize(
    "line",
    ["=" * 300_000 + "x", "`" * 300_000, " " * 300_000 + "x", "- " * 150_000 + "x", "#" * 300_000, "\t" * 300_000],
)
def test_units_of_hostile_lines_cost_time_in_proportion(line):
    started = time.thread_time()
    for layout in LAYOUTS:
        units = units_of(line, layout)
        going(line, units, {unit.key: (9, 9) for unit in units if unit.key is not None}, layout, CONFIG)
    assert time.thread_time() - started < 10


@pytest.mark.parametrize(
    ("url", "site"),
    [
        ("https://Docs.Example.org:8080/a?b", "docs.example.org"),
        ("http://user:word@127.0.0.1/", "127.0.0.1"),
        ("pypi://sqlalchemy/2.1.9/doc/x.html", "manuals"),
        ("file:///home/me/x.html", "manuals"),
        ("https://[broken/", "manuals"),
        ("https:///x", "manuals"),
    ],
)
def test_site_is_the_host_of_a_web_address_else_the_source(url, site):
    assert site_of(url, "manuals") == site


LICENCE = """\
This text is licensed under terms which you find in the file that came with it, and which
allow you to use it, to change it and to give it to others, with or without what you changed."""
STANZA = """\
Tyger Tyger, burning bright,
In the forests of the night;
What immortal hand or eye,
Could frame thy fearful symmetry?"""
LISTING = "\n".join(f"    {name} = settings.get({name!r}) or defaults.get({name!r}) or None" for name in "abc")
GRID = "\n".join(["+------------------+" * 4, "| a | b | c | d | e | f | g | h | i | j | k | l | m |"] * 3)


@pytest.mark.parametrize("media_type", ["text/x-rst", "text/plain", "text/markdown", "message/rfc822"])
@pytest.mark.parametrize(
    ("common", "goes"),
    [
        (LICENCE, True),
        (STANZA, False),
        ("You may use this text as you like.", False),
        (LISTING, False),
        (GRID, False),
    ],
)
@pytest.mark.parametrize("text", ["{}\n\nOne.\n\nTwo.", "One.\n\n{}\n\nTwo.", "One.\n\nTwo.\n\n{}"])
def test_going_from_hard_wrapped_texts_are_paragraphs_of_prose_only(media_type, common, goes, text):
    layout, before = layout_of(media_type, None), text.format(common)
    units = units_of(before, layout)
    repeated = {unit.key: (9, 9) for unit in units if unit.key is not None}
    gone = [units[place] for place in going(before, units, repeated, layout, CONFIG)]
    assert without(before, gone) == ("One.\n\nTwo." if goes else before)


@pytest.mark.parametrize(
    ("media_type", "code_language"), [("text/x-source", "python"), ("text/csv", None), ("text/html", "html")]
)
def test_layout_of_code_and_tables_is_left_alone(media_type, code_language):
    assert layout_of(media_type, code_language) == "nothing"
