"""Questions of a task that answers from documents: whose documents they name, and which ones are made."""

import json
from collections import Counter

import pytest

from pipeline.corpus.examples.data_files import LabelledFile
from pipeline.corpus.passages.stage import PASSAGES, PassagesConfig
from pipeline.store.layout import Layout
from pipeline.store.shards import DROPPED_FOLDER, read_table
from pipeline.tasks.documents import KIND
from pipeline.tasks.documents_examples import QuestionsConfig, build_questions
from pipeline.tasks.documents_made import GAP, fitting_question
from pipeline.training.embed import EMBED, EmbedConfig

TEXTS = {
    f"file:///manual/{folder}/{name}.md": f"# {name}\n\nThe {name} of the {folder} was made by Mister {by} in {year}."
    for year, (folder, name, by) in enumerate(
        [("mill", "wheel", "Adams"), ("mill", "door", "Brown"), ("barn", "door", "Clark"), ("barn", "roof", "Davis")],
        start=1701,
    )
}
ROWS = [
    {"question": "Who built the wheel?", "answers": ["Adams"], "document": "file:///manual/mill/wheel.md"},
    {"question": "What is the roof made of?", "answers": ["oak"], "document": "roof.md"},
    {"question": "Who built the door of the barn?", "answers": "Clark", "document": "barn/door.md"},
    {"question": "When was the door of the mill built?", "answers": [1702], "document": "/mill/door.md"},
    {"question": "How wide is the wheel?", "document": "wheel.md"},
    {"question": "Who feeds the horses?", "answers": [], "document": None},
    {"question": "When is the fair?", "answers": [], "document": ""},
]
BAD = [
    {"question": "Who built a door?", "answers": ["Brown"], "document": "door.md"},
    {"question": "Who built the tower?", "answers": ["Evans"], "document": "tower.md"},
    {"question": "Who built the heel?", "answers": ["Evans"], "document": "eel.md"},
    {"question": "  ", "document": "roof.md"},
    {"question": "Is it?", "answers": [{"a": 1}], "document": "roof.md"},
]


@pytest.fixture
def passages(store, cleaned, embedder):
    cut = store.build(PASSAGES, PassagesConfig(passage_tokens=200), cleaned(store, TEXTS), embedder)
    return store.build(EMBED, EmbedConfig(), cut.handle, embedder).handle


@pytest.fixture
def build(store, passages, base, tmp_path):
    def built(rows=None, base=base, **settings):
        cfg = QuestionsConfig(validation_fraction=0.4, test_fraction=0.4, **settings)
        data = {}
        if rows is not None:
            path = tmp_path / "questions.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            data = {"data": LabelledFile(path)}
        return build_questions(store, KIND, data, cfg, Layout(tmp_path), passages=passages, base=base)

    return built


def rows_of(built) -> list[dict]:
    return read_table(built.handle.directory / "examples.parquet").to_pylist()


def test_document_is_named_by_its_address_or_by_the_end_of_it(build):
    built = build([*ROWS, *BAD])
    named = {row["question"]: row["url"] for row in rows_of(built)}
    assert named["Who built the wheel?"] == named["How wide is the wheel?"] == "file:///manual/mill/wheel.md"
    assert named["Who built the door of the barn?"] == "file:///manual/barn/door.md"
    assert named["When was the door of the mill built?"] == "file:///manual/mill/door.md"
    assert named["Who feeds the horses?"] is named["When is the fair?"] is None
    dropped = {"ambiguous_document": 1, "unknown_document": 2, "no_question": 1, "not_text_answers": 1}
    assert built.counts.dropped == dropped and built.counts.is_conserved()
    reasons = read_table(built.handle.directory / DROPPED_FOLDER / "rows.parquet")["reason"].to_pylist()
    assert Counter(reasons) == dropped


def test_answers_are_texts_and_rows_without_a_document_are_unanswerable(build):
    rows = {row["question"]: row for row in rows_of(build(ROWS))}
    assert rows["When was the door of the mill built?"]["answers"] == ["1702"]
    assert rows["Who built the door of the barn?"]["answers"] == ["Clark"]
    assert rows["How wide is the wheel?"]["answers"] == []
    splits = Counter(row["split"] for row in rows.values() if row["document"] is not None)
    assert splits["validation"] and splits["test"]


def test_questions_are_made_and_marked_where_there_is_no_file(build):
    rows = rows_of(build())
    assert {row["made"] for row in rows} == {"cloze"} and len(rows) == len(TEXTS)
    for row in rows:
        (answer,) = row["answers"]
        text = TEXTS[row["url"]]
        assert GAP in row["question"] and row["question"].replace(GAP, answer, 1) in " ".join(text.split())


SENTENCE = "The wheel of the mill was made by Mister Adams in 1701."


@pytest.mark.parametrize(
    ("written", "question"),
    [
        ("Who made the wheel of the mill?", "Who made the wheel of the mill?"),
        ("Question:  Who made the wheel of the mill? Adams.", "Who made the wheel of the mill?"),
        ("Did Mister Adams make the wheel of the mill?", None),  # it tells the answer
        ("What is the capital of France?", None),
        ("Adams made the wheel of the mill.", None),
        ("", None),
    ],
)
def test_question_that_a_model_wrote_counts_if_it_is_about_the_sentence_and_keeps_the_answer(written, question):
    assert fitting_question(written, SENTENCE, "Adams") == question


def test_model_that_writes_no_questions_makes_none(build, write_decoder, tmp_path):
    shape = {"n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_model": 16, "d_head": 8, "d_ff": 32}
    untrained = write_decoder(tmp_path / "untrained", **shape, max_seq_len=1024)
    built = build(ROWS, base=untrained, by_model=2)
    assert {row["made"] for row in rows_of(built)} == {""} and built.handle.rows == len(ROWS)


def test_made_questions_are_never_mixed_silently_with_those_of_a_file(build):
    assert {row["made"] for row in rows_of(build(ROWS))} == {""}
    both = build(ROWS, cloze=3)
    assert Counter(row["made"] for row in rows_of(both)) == {"": len(ROWS), "cloze": 3}
    overview = (both.handle.directory / "examples.md").read_text()
    assert "made as cloze" in overview


def test_questions_of_which_no_document_is_known_are_refused_with_the_reasons(build):
    with pytest.raises(ValueError, match=r"no usable question of the split validation .* 2 unknown_document"):
        build(BAD)


def test_questions_are_made_anew_only_when_the_passages_change(build):
    assert build().unchanged is False
    assert build().unchanged is True


def test_columns_may_have_other_names(build):
    named = [{"q": {"text": row["question"]}, "a": row.get("answers"), "doc": row["document"]} for row in ROWS]
    built = build(named, question="q.text", answers="a", document="doc", cloze=1)
    assert Counter(row["made"] for row in rows_of(built)) == {"": len(ROWS), "cloze": 1}
