"""`gristmill classify` on texts and files, and the list of tasks."""

import json

import pytest

from pipeline.cli import main
from pipeline.commands.tasks import answer_lines


@pytest.fixture
def classify(toy_graph, monkeypatch, capsys):
    """Runs `gristmill classify moods` on the toy graph; returns exit code, standard output and error."""
    monkeypatch.setenv("GRISTMILL_DATA", str(toy_graph.layout.data))

    def run(*args: str) -> tuple[int, str, str]:
        code = main(["classify", "moods", *args])
        return code, *capsys.readouterr()

    return run


def test_classify_answers_a_file_as_it_answers_each_text(classify, tmp_path):
    texts = ["so glad today", "what a sad day", "so glad again"]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"text": text, "other": 1}) + "\n" for text in texts))
    code, out, _ = classify("--file", str(path))
    rows = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and [row["text"] for row in rows] == texts
    for row in rows:
        alone = json.loads(classify("--json", row["text"])[1])
        assert alone["label"] == row["label"] and alone["probability"] == pytest.approx(row["probability"])


def test_classify_row_without_a_text_gets_no_answer_and_shifts_nobody(classify, tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "so glad"}\n{"text": null}\n{"text": "so glad"}\n')
    first, none, last = (json.loads(line) for line in classify("--file", str(path))[1].splitlines())
    assert none == {"text": None, "label": None, "probability": None}
    assert first == last and first["label"]


def test_classify_file_of_many_pieces_is_answered_in_order(classify, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text\n" + "".join(f"glad {i}\n" for i in range(600)))
    out = classify("--file", str(path))[1]
    assert [json.loads(line)["text"] for line in out.splitlines()] == [f"glad {i}" for i in range(600)]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((), "give either text, or --file"),
        (("a", "b"), "takes text, got 2 inputs"),
        (("--file", "nowhere.csv"), "nowhere.csv is not a file"),
    ],
)
def test_classify_wrong_use_is_explained(classify, args, message):
    code, _, err = classify(*args)
    assert code == 2 and message in err


def test_classify_file_without_the_column_names_those_that_there_are(classify, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("title,body\na,b\n")
    code, _, err = classify("--file", str(path))
    assert code == 2 and "no column text; the columns are title, body" in err


def test_answer_of_lists_has_a_line_for_each_element():
    spans = {
        "entities": [{"start": 0, "text": "Ada", "probability": 0.5}, {"start": 4, "text": "B", "probability": 1.0}]
    }
    assert answer_lines(spans) == ["0  Ada  0.500", "4  B  1.000"]
    assert answer_lines({"labels": ["a", "b"], "probabilities": [0.5, 0.25]}) == ["a  0.500", "b  0.250"]
    assert answer_lines({"entities": []}) == ["nothing found"]
    assert answer_lines({"label": "good", "probability": 0.75}) == ["good 0.750"]
    assert answer_lines({"label": "a\n\x1b[31mred", "probability": 0.75}) == ["a  [31mred 0.750"]  # no colours
    assert answer_lines({"answer": " \n "}) == ["-"]  # a model that answers with white space answers visibly


def test_tasks_lists_tasks_and_kinds(toy_graph, monkeypatch, capsys):
    monkeypatch.setenv("GRISTMILL_DATA", str(toy_graph.layout.data))
    assert main(["tasks"]) == 0
    out = capsys.readouterr().out
    assert "moods  classification  foundation_model  classify" in out and "classification  classify  " in out
