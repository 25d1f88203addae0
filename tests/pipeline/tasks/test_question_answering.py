"""Question answering from files to answers: what is read, what is dropped, what is learned, and what is reported."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pytest

from model.network.encoder import new_masked_lm
from model.network.registry import describe, save_model
from model.network.shape import EncoderConfig, switches_of
from pipeline.corpus.examples.data_files import LabelledFile
from pipeline.corpus.examples.labelled_rows import labelled_rows
from pipeline.corpus.examples.stage import example_schema, read_examples
from pipeline.evaluation.task import Judged, TaskEvaluationConfig, evaluation_stage
from pipeline.store.records import Checkpoint
from pipeline.store.shards import link_or_copy
from pipeline.store.store import Store
from pipeline.tasks.question_answering import KIND, QuestionAnswerer, QuestionExamplesConfig
from pipeline.tasks.tasks_toml import read_tasks
from pipeline.tracking.packaging import link_served, write_package
from pipeline.training.finetune import FinetuneConfig, finetune_stage

SHAPE = {"n_layers": 2, "n_heads": 2, "n_kv_heads": 2, "d_model": 32, "d_head": 16, "d_ff": 64, "max_seq_len": 32}
ASKED = {"word?": str.isupper, "number?": str.isdigit}


def article(rng: random.Random) -> dict:
    """A text of small letters with a run of capitals and sometimes one of digits, and a question for each."""
    words = ["".join(rng.choices("abcdefg\u00e9", k=rng.randint(2, 5))) for _ in range(rng.randint(5, 8))]
    runs = [f"Q{rng.choice('RSTU')}V", f"1{rng.choice('2345678')}9"][: rng.randint(1, 2)]
    for run in runs:
        words.insert(rng.randint(0, len(words)), run)
    text = " ".join(words)
    found = {question: [run for run in runs if test(run)] for question, test in ASKED.items()}
    return {
        "context": text,
        "qas": [
            {"question": question, "answers": [{"text": run, "answer_start": text.index(run)} for run in right]}
            for question, right in found.items()
        ],
    }


def write_squad(path: Path, n_articles: int) -> Path:
    rng = random.Random(0)
    data = [{"title": f"part {i}", "paragraphs": [article(rng), article(rng)]} for i in range(n_articles)]
    path.write_text(json.dumps({"version": "v2.0", "data": data}))
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store(root=tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def built(store, tmp_path_factory):
    folder = tmp_path_factory.mktemp("squad")
    data = LabelledFile(write_squad(folder / "squad.json", 60))
    return KIND.build_examples(store, data, QuestionExamplesConfig(), folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory, byte_tokenizer) -> Checkpoint:
    folder = tmp_path_factory.mktemp("base")
    for path in byte_tokenizer.directory.iterdir():
        link_or_copy(path, folder / "tokenizer" / path.name)
    cfg = EncoderConfig(vocab_size=257, tie_embeddings=True, **SHAPE, **switches_of("modernbert"))
    save_model(folder, new_masked_lm(cfg, seed=1), describe(cfg))
    return Checkpoint(stage="pretrain", directory=folder, fingerprint="b", digest="base", rows=1)


@pytest.fixture(scope="module")
def model(store, base, built) -> Checkpoint:
    cfg = FinetuneConfig(epochs=20, rows=16, muon_lr=0.01, adamw_lr=0.005)
    return store.build(finetune_stage(KIND), cfg, base, built.handle).handle


@pytest.fixture(scope="module")
def report(store, model, built) -> Path:
    return store.build(evaluation_stage(KIND), TaskEvaluationConfig(), model, built.handle).handle.directory


def read(name: str, content: str | bytes, **settings):
    raw = content if isinstance(content, bytes) else content.encode()
    return list(labelled_rows(name, raw, KIND, QuestionExamplesConfig(**settings)))


def test_examples_of_one_text_are_told_apart_by_question_and_an_article_stays_in_one_split(built):
    table = pa.concat_tables([read_examples(built.handle.directory, one) for one in ("train", "validation", "test")])
    assert table.num_rows == 60 * 2 * 2 == len(set(table["id"].to_pylist()))
    assert table.schema.equals(example_schema(KIND))
    splits: dict[str, set[str]] = {}
    for row in table.to_pylist():
        splits.setdefault(row["group_id"], set()).add(row["split"])
        for answer in row["answers"]:
            assert row["text"][answer["start"] : answer["start"] + len(answer["text"])] == answer["text"]
    assert len(splits) == 60 and all(len(of_group) == 1 for of_group in splits.values())


def test_examples_flat_files_give_the_rows_of_squad():
    text = 'A mill, "old", in Genoa.'
    expected = ((18, "Genoa"),)
    flat = {"question": "Where?", "context": text, "answers": {"text": ["Genoa"], "answer_start": [18]}}
    cells = 'question,context,answers\nWhere?,"A mill, ""old"", in Genoa.",Genoa\n'
    for name, content in (("a.jsonl", json.dumps(flat)), ("a.json", json.dumps([flat])), ("a.csv", cells)):
        (row,) = read(name, content)
        assert (row.text, row.reason, row.values) == (text, None, {"question": "Where?", "answers": expected})


def test_examples_other_columns_are_named_by_the_settings():
    line = json.dumps({"q": "Where?", "passage": "in Genoa", "a": "Genoa", "at": 3, "of": "book"})
    names = {"question": "q", "text": "passage", "answers": "a", "answer_start": "at", "title": "of"}
    (row,) = read("a.jsonl", line, **names)
    assert row.values["answers"] == ((3, "Genoa"),) and row.group == "book"
    (row,) = read("a.jsonl", line, **names, group="q")
    assert row.group == "Where?"


def test_examples_keep_the_text_as_it_is():
    """Offsets are characters of the text: nothing is stripped or composed. Only what is no UTF-8 is replaced, by as
    many characters."""
    text = "  Cafe\u0301 \ud800 in\u00a0Genoa\n"
    (row,) = read("a.jsonl", json.dumps({"question": "Where?", "context": text, "answers": ["Genoa"]}))
    assert row.text == text.replace("\ud800", "?")
    assert row.values["answers"] == ((text.index("Genoa"), "Genoa"),)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"context": " "}, "no_text"),
        ({"context": 3}, "not_text"),
        ({"question": ""}, "no_question"),
        ({"question": ["Where?"]}, "not_text_question"),
        ({"answers": None}, "no_answers"),
        ({"answers": [{"text": "Genoa", "answer_start": 99}]}, "answer_outside_text"),
        ({"answers": [{"text": "Genoa", "answer_start": 2}]}, "answer_not_at_start"),
        ({"answers": ["Rome"]}, "answer_not_in_text"),
    ],
)
def test_examples_row_that_cannot_be_used_is_a_counted_drop(changed, reason):
    good = {"question": "Where?", "context": "in Genoa", "answers": ["Genoa"]}
    rows = read("a.jsonl", "\n".join(map(json.dumps, (good, good | changed))))
    assert [row.reason for row in rows] == [None, reason]


def test_examples_sample_is_a_fraction_of_the_texts_with_all_of_their_questions():
    lines = [
        json.dumps({"question": f"{asked} is in {i}?", "context": f"text {i}", "answers": []})
        for i in range(300)
        for asked in ("Who", "What")
    ]
    rows = read("a.jsonl", "\n".join(lines), sample=0.3)
    kept = [row.text for row in rows if row.reason is None]
    assert 60 < len(set(kept)) < 120 and len(kept) == 2 * len(set(kept))
    assert {row.reason for row in rows} == {None, "not_sampled"}
    assert set(kept) < {row.text for row in read("a.jsonl", "\n".join(lines), sample=0.6) if row.reason is None}


def test_examples_file_without_a_part_is_refused_and_what_it_has_is_named():
    with pytest.raises(ValueError, match="text is 'context', but no row has that; the rows have: answers, passage"):
        read("a.jsonl", json.dumps({"question": "Where?", "passage": "in Genoa", "answers": ["Genoa"]}))


def test_examples_of_only_unanswerable_questions_are_refused(store, tmp_path):
    path = tmp_path / "none.jsonl"
    lines = [{"question": f"Where is {i}?", "context": f"text {i}", "answers": []} for i in range(9)]
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ValueError, match="none of 9 usable questions has an answer"):
        KIND.build_examples(store, LabelledFile(path), QuestionExamplesConfig(), tmp_path)


def test_model_learns_answers_in_windows_and_when_there_is_none(model, report):
    config = json.loads((model.directory / "config.json").read_text())
    assert config["kind"] == "span_classifier" and config["most_answer_tokens"] == 3
    assert isinstance(config["no_answer_threshold"], float)
    results = {one["metric"]: one for one in json.loads((report / "results.json").read_text())}
    assert results["f1"]["value"] > 0.9 and results["exact_match"]["value"] > 0.9
    assert results["f1"]["value"] > results["f1"]["baselines"]["best_sentence"]
    assert results["f1"]["comparisons"]["best_sentence"]["p_value"] < 0.05


def test_report_has_the_parts_with_and_without_an_answer_and_texts_only_in_mistakes(report, built):
    written = (report / "report.md").read_text()
    assert "| has answer |" in written and "| no answer |" in written
    texts = read_examples(built.handle.directory, "test", ["text"])["text"].to_pylist()
    assert not any(text in written for text in texts)
    assert (report / "mistakes.md").is_file()


def test_answers_are_characters_of_the_text_and_none_is_told_apart(model):
    answerer = QuestionAnswerer(model.directory)
    text = "\u00e9 " + "ab\u00e9 de " * 9 + "QTV fgh 179 ab"
    rows = [
        ("word?", text),
        ("number?", text),
        ("number?", "ab QRV cde"),
        ("", text),
        ("word?", ""),
        ("word?", " \n"),
    ]
    answers = answerer.answer([{"question": question, "text": text} for question, text in rows])
    assert [one["answer"] for one in answers] == ["QTV", "179", "", "", "", ""]
    for one, (_, text) in zip(answers, rows, strict=True):
        assert text[one["start"] : one["end"]] == one["answer"] and 0 <= one["probability"] <= 1
        assert (one["start"] == one["end"] == -1) == (not one["answer"])


def test_answers_do_not_depend_on_what_is_asked_beside(model):
    answerer = QuestionAnswerer(model.directory)
    rows = [{"question": q, "text": f"ab {n} cde QSV fg " * n} for n in (1, 5, 9) for q in ASKED]
    together, alone = answerer.answer(rows), [answerer.answer([row])[0] for row in rows]
    for one, other in zip(together, alone, strict=True):
        assert one["probability"] == pytest.approx(other["probability"], abs=1e-5)
        assert {**one, "probability": 0} == {**other, "probability": 0}
    assert answerer.answer([]) == []


def test_question_longer_than_half_a_window_is_counted_and_texts_never_are(model):
    answerer = QuestionAnswerer(model.directory)
    rows = [{"question": "word?", "text": "ab " * 400}, {"question": "word? " * 9, "text": "ab"}]
    assert answerer.n_cut(rows) == 1


def test_mistakes_name_the_question_and_the_passage_with_the_right_answer():
    text = "x " * 500 + "in Genoa" + " y" * 500
    rows = [
        {"text": text, "question": "Where?", "answers": [{"start": 1003, "text": "Genoa"}]},
        {"text": text, "question": "Who?", "answers": []},
        {"text": text, "question": "Where?", "answers": [{"start": 1003, "text": "Genoa"}]},
    ]
    answers = [
        {"answer": "", "start": -1, "end": -1, "probability": 0.9},
        {"answer": "Genoa", "start": 1003, "end": 1008, "probability": 0.5},
        {"answer": "the Genoa", "start": 1000, "end": 1008, "probability": 0.5},
    ]
    judged = Judged({}, rows, {"model": answers})
    first, second = KIND.mistakes(judged)
    assert (first.expected, first.answered, first.confidence) == ("Genoa", "(no answer)", 0.9)
    assert (second.expected, second.answered) == ("(no answer)", "Genoa")
    for one in (first, second):
        assert one.text.startswith("Wh") and "in Genoa" in one.text and len(one.text) < 700
    assert KIND.details(judged) == pytest.approx(
        {"exact_match_has_answer": 0.5, "f1_has_answer": 0.5, "exact_match_no_answer": 0, "f1_no_answer": 0}
    )


def test_augmentation_changes_questions_and_no_text(built):
    table = read_examples(built.handle.directory, "train")
    changed = KIND.augmented(table, FinetuneConfig(augment_typos=1.0), 3)
    assert changed["text"].equals(table["text"]) and changed["answers"].equals(table["answers"])
    assert not changed["question"].equals(table["question"])
    assert changed.schema.equals(table.schema)


def test_registered_model_answers_as_the_predictor_and_a_row_without_input_gets_no_answer(model, tmp_path):
    import mlflow
    import pandas as pd

    package = tmp_path / "package"
    write_package(package, KIND, "m-1", None)
    link_served(model.directory, package)
    loaded = mlflow.pyfunc.load_model(str(package))
    rows = [{"question": "word?", "text": "abc QSV de"}, {"question": "number?", "text": "abc QSV de"}]
    answers = loaded.predict(pd.DataFrame([*rows, {"question": None, "text": "abc"}]))
    expected = QuestionAnswerer(model.directory).answer(rows)
    for place, one in enumerate(expected):
        found = answers.iloc[place]
        assert (found["answer"], found["start"], found["end"]) == (one["answer"], one["start"], one["end"])
        assert found["probability"] == pytest.approx(one["probability"], abs=1e-5)
    assert answers.iloc[2]["answer"] is None and answers.iloc[2]["start"] is None


def test_example_of_the_kind_is_a_table_that_can_be_read(tmp_path):
    models = tmp_path / "models.toml"
    models.write_text('[minilm]\nkind = "open"\nfolder = "minilm"\n')
    (tmp_path / "tasks.toml").write_text(KIND.example)
    task = read_tasks(tmp_path / "tasks.toml")["questions"]
    assert task.kind is KIND and task.examples == QuestionExamplesConfig()
