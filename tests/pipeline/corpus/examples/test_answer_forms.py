"""Answers in the forms of data sets, and answers that are not where their data say they are."""

import json

import pytest

from pipeline.corpus.examples.answer_forms import answers_in, texts_of

TEXT = "The mill in Genoa grinds. The mill is old."
GENOA = (12, "Genoa")
BOTH = (GENOA, (0, "The mill"))


@pytest.mark.parametrize(
    ("value", "start", "expected"),
    [
        ([{"text": "Genoa", "answer_start": 12}, {"text": "The mill", "answer_start": 0}], None, BOTH),
        ([{"text": "Genoa", "start": 12}] * 3, None, (GENOA,)),
        ({"text": ["Genoa", "The mill"], "answer_start": [12, 0]}, None, BOTH),
        ({"text": "Genoa", "answer_start": 12}, None, (GENOA,)),
        ({"text": ["Genoa"]}, None, (GENOA,)),
        (["Genoa", "old"], None, (GENOA, (38, "old"))),
        (["Genoa", "The mill"], [12, 26], (GENOA, (26, "The mill"))),
        ("Genoa", None, (GENOA,)),
        ("Genoa", "", (GENOA,)),  # an empty cell of the column of starts
        ("The mill", "26", ((26, "The mill"),)),
        ("The mill", 26.0, ((26, "The mill"),)),  # of a column of numbers with missing ones
        (json.dumps({"text": ["Genoa"], "answer_start": [12]}), None, (GENOA,)),
        ([], None, ()),
        ({"text": [], "answer_start": []}, None, ()),
        ("", None, ()),
        ("[]", None, ()),
    ],
)
def test_answers_every_form_gives_places_and_texts(value, start, expected):
    assert answers_in(TEXT, value, start) == expected
    assert all(TEXT[first : first + len(text)] == text for first, text in expected)


@pytest.mark.parametrize(
    ("value", "start", "reason", "detail"),
    [
        (None, None, "no_answers", ""),
        (float("nan"), None, "no_answers", ""),
        (3, None, "not_answers", "3"),
        ({"answer": "Genoa"}, None, "not_answers", "answer"),
        ({"text": ["Genoa"], "answer_start": [1, 2]}, None, "not_answers", "answer_start"),
        ([{"answer_start": 12}], None, "not_answers", "null"),
        ([{"text": " ", "answer_start": 11}], None, "empty_answer", ""),
        ("Rome", None, "answer_not_in_text", "Rome"),
        ("The mill", None, "answer_found_twice", "The mill"),
        ("Genoa", "twelve", "not_answers", "twelve"),
        ("Genoa", 12.5, "not_answers", "12.5"),
        ("Genoa", True, "not_answers", "true"),
        ("Genoa", -1, "answer_outside_text", "start -1 of 42"),
        ("Genoa", 40, "answer_outside_text", "start 40 of 42"),
        ("Genoa", 10**400, "not_answers", "start 1"),
        ("Genoa", 13, "answer_not_at_start", '"Genoa", found "enoa "'),
        (
            [{"text": "Genoa", "answer_start": 12}, {"text": "mill", "answer_start": 5}],
            None,
            "answer_not_at_start",
            "",
        ),
    ],
)
def test_answers_that_cannot_be_used_have_a_reason_with_details(value, start, reason, detail):
    found = answers_in(TEXT, value, start)
    assert found[0] == reason and detail in found[1]


def test_answers_overlapping_occurrences_are_two():
    assert answers_in("aaa", "aa")[0] == "answer_found_twice"


def test_answers_text_that_only_looks_like_json_is_a_text():
    assert answers_in("see [1] and [2, 3]", "[1]") == ((4, "[1]"),)
    assert answers_in("a {b", "{b") == ((2, "{b"),)


def test_texts_of_a_column():
    assert texts_of([{"start": 12, "text": "Genoa"}]) == ["Genoa"]
