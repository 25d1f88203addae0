"""SQuAD's JSON as flat records, and files that are not of this form."""

import json

import pytest

from pipeline.corpus.examples.squad import is_squad, squad_records

ANSWER = {"text": "Paris", "answer_start": 0}
PARAGRAPH = {
    "context": "Paris is old.",
    "qas": [
        {"id": "1", "question": "What is old?", "answers": [ANSWER], "is_impossible": False},
        {"id": "2", "question": "Who?", "answers": [], "plausible_answers": [ANSWER], "is_impossible": True},
    ],
}


def content(data):
    return json.dumps({"version": "v2.0", "data": data}).encode()


def test_squad_questions_are_records_with_context_title_and_answers():
    records = list(squad_records("a.json", content([{"title": "Towns", "paragraphs": [PARAGRAPH]}])))
    assert [record["question"] for record in records] == ["What is old?", "Who?"]
    assert {record["title"] for record in records} == {"Towns"}
    assert {record["context"] for record in records} == {"Paris is old."}
    assert [record["answers"] for record in records] == [[ANSWER], []]


def test_squad_impossible_question_has_no_answers_even_if_some_are_listed():
    odd = PARAGRAPH | {"qas": [{"question": "Who?", "answers": [ANSWER], "is_impossible": True}]}
    (record,) = squad_records("a.json", content([{"paragraphs": [odd]}]))
    assert record["answers"] == []


def test_squad_what_is_no_question_comes_out_as_text_and_hides_no_other():
    broken = {"context": "x", "qas": ["Who?", PARAGRAPH["qas"][0]]}
    found = list(squad_records("a.json", content(["article", {"paragraphs": [3, broken]}])))
    assert [type(one) for one in found] == [str, str, str, dict]


def test_squad_form_is_told_from_flat_json_by_its_paragraphs():
    assert is_squad("a.JSON", content([{"paragraphs": [PARAGRAPH]}]))
    assert not is_squad("a.jsonl", content([{"paragraphs": [PARAGRAPH]}]))
    assert not is_squad("a.json", b'[{"question": "Who?", "context": "x", "answers": []}]')


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b'{"question": "Who?"}\n{"question": "What?"}', "not JSON in UTF-8"),
        (b"\xff\xfe", "not JSON in UTF-8"),
        (b'{"rows": []}', "an object with rows, expected SQuAD's form"),
        (b"3", "got a value, expected SQuAD's form"),
    ],
)
def test_squad_other_content_is_refused_with_what_to_do(raw, message):
    with pytest.raises(ValueError, match=message):
        squad_records("questions.json", raw)
