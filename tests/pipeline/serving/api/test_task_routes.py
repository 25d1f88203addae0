"""The models of tasks over HTTP: every kind, several rows at once, and what is no row."""

import pytest

TEXTS = ["a happy mill", "rain in Rome, all day", "b"]


def test_classify_gives_the_likeliest_label_and_the_probability_of_all(server):
    found = server.post("/v1/classify", {"model": "moods", "input": TEXTS}).json()
    assert [one["index"] for one in found["data"]] == [0, 1, 2] and found["usage"] == {"rows": 3, "cut": 0}
    for one in found["data"]:
        assert one["probability"] == max(one["label_probabilities"].values())
        assert one["label_probabilities"][one["label"]] == one["probability"]
        assert abs(sum(one["label_probabilities"].values()) - 1) < 1e-6
    alone = server.post("/v1/classify", {"model": "moods", "text": TEXTS[1]}).json()["data"]
    assert len(alone) == 1 and abs(alone[0]["probability"] - found["data"][1]["probability"]) < 1e-5


def test_classify_several_labels_has_the_probability_of_those_that_were_not_chosen(server):
    (one,) = server.post("/v1/classify", {"model": "topics", "input": {"text": TEXTS[0]}}).json()["data"]
    assert set(one["labels"]) <= set(one["label_probabilities"]) == {"glad", "sad", "calm"}
    assert one["probabilities"] == [one["label_probabilities"][label] for label in one["labels"]]


def test_classify_says_how_many_texts_were_cut(server):
    found = server.post("/v1/classify", {"model": "moods", "input": ["short", "long " * 100]}).json()
    assert found["usage"] == {"rows": 2, "cut": 1}


def test_extract_offsets_are_characters_of_the_text_that_was_sent(server):
    text = "\u00e9t\u00e9 in \U0001f600 Rome"
    (one,) = server.post("/v1/extract", {"model": "names", "input": text}).json()["data"]
    for entity in one["entities"]:
        assert text[entity["start"] : entity["end"]] == entity["text"] and entity["label"] in ("person", "place")
    assert one["entities"]


def test_answer_is_a_place_in_the_text(server):
    rows = [{"question": "who?", "text": "Anna grinds."}, {"question": "where?", "text": "In the mill."}]
    found = server.post("/v1/answer", {"model": "questions", "input": rows}).json()["data"]
    for row, one in zip(rows, found, strict=True):
        assert one["answer"] == row["text"][one["start"] : one["end"]]


@pytest.mark.parametrize(
    ("path", "body", "param", "told"),
    [
        ("classify", {"model": "moods"}, "input", "is missing"),
        ("classify", {"model": "moods", "input": []}, "input", "at least one row"),
        ("classify", {"model": "moods", "input": [5]}, "input[0]", "is no text or object with text"),
        ("classify", {"model": "moods", "input": ["a", {"text": 5}]}, "input[1].text", "expected a text"),
        ("classify", {"model": "moods", "input": ["a", {"tex": "b"}]}, "input[1].text", "is missing"),
        ("classify", {"model": "moods", "input": "a \ud800"}, "input.text", "no UTF-8 form"),
        ("classify", {"model": "moods", "input": ["a"] * 600}, "input", "at most 512"),
        ("classify", {"model": "moods", "input": "a", "stream": True}, "stream", "does not support"),
        ("answer", {"model": "questions", "input": "who?"}, "input", "object with question and text"),
        ("answer", {"model": "questions", "question": "who?"}, "input.text", "is missing"),
        ("extract", {"model": "moods", "input": "a"}, "model", "use /v1/classify"),
        ("answer", {"model": "writer", "input": "a"}, "model", "use /v1/chat/completions or /v1/completions"),
        ("classify", {"input": "a"}, "model", "expected one of moods, topics"),
        ("classify", {"model": ["moods"], "input": "a"}, "model", "expected the name of a model"),
    ],
)
def test_what_is_no_row_is_refused_with_its_place(server, path, body, param, told):
    answer = server.post(f"/v1/{path}", body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param and told in error["message"] and error["type"] == "invalid_request_error"


def test_model_may_be_left_out_where_only_one_answers(server):
    assert server.post("/v1/extract", {"input": "Anna"}).json()["model"] == "names"
