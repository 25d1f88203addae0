"""Named entities from data to answers: rows that are kept or dropped, training, evaluation, and what is asked of it.

The toy texts have entities by the first letter of a word: a begins a person, c a place, b goes on with either.
"""

import json
import random
from pathlib import Path

import pyarrow as pa
import pytest

from model.data.batch_layout import IGNORE_INDEX
from model.network.registry import read_config
from pipeline.corpus.examples.labelled_rows import labelled_rows
from pipeline.corpus.examples.stage import LabelledFile, read_examples
from pipeline.corpus.tokens.tokenizer import load_tokenizer
from pipeline.evaluation.task import evaluation_stage
from pipeline.serving.generate import predictor_in
from pipeline.store.records import Checkpoint, Report, Shards
from pipeline.store.store import Store
from pipeline.tasks.tagging import KIND, Tagger, TaggingExamplesConfig, labels_of
from pipeline.tasks.tasks_toml import read_tasks
from pipeline.tracking.packaging import link_served, write_package
from pipeline.training.finetune import FinetuneConfig, finetune_stage, random_baseline
from tests.pipeline.training.test_finetune import write_base

PLAIN = TaggingExamplesConfig()
CONTEXT = 24  # of the toy base, whose tokens are bytes


def row(record: dict, cfg: TaggingExamplesConfig = PLAIN):
    (found,) = labelled_rows("r.jsonl", json.dumps(record).encode(), KIND, cfg)
    return found


def spans(found) -> list[tuple[int, int, str]]:
    return [(one["start"], one["end"], one["label"]) for one in found.values["entities"]]


# Rows.


def test_the_text_is_stored_unchanged_and_offsets_are_into_it():
    text = "  Jose\u0301 \u2028 left\r\n"
    found = row({"text": text, "entities": [{"start": 2, "end": 7, "label": " person "}]})
    assert found.text == text and spans(found) == [(2, 7, "person")]
    assert row({"text": "a\ud800b", "entities": [[2, 3, "x"]]}).text == "a?b"


@pytest.mark.parametrize(
    ("entities", "cfg"),
    [
        ([{"start": 0, "end": 3, "label": "p"}, {"start": 8, "end": 11, "label": "q"}], PLAIN),
        ([[8, 11, "q"], [0, 3, "p"], [0, 3, "p"]], PLAIN),
        ([{"at": {"from": 0, "to": 3}, "kind": "p"}, {"at": {"from": 8.0, "to": 11.0}, "kind": "q"}], None),
        ('[[0, 3, "p"], [8, 11, "q"]]', PLAIN),
    ],
)
def test_entities_are_read_in_every_form(entities, cfg):
    cfg = cfg or TaggingExamplesConfig(start="at.from", end="at.to", label="kind")
    assert spans(row({"text": "Ann saw Bob", "entities": entities}, cfg)) == [(0, 3, "p"), (8, 11, "q")]


@pytest.mark.parametrize(
    ("record", "reason", "detail"),
    [
        ({"text": "Ann Lee", "entities": [[0, 7, "p"], [4, 7, "q"]]}, "overlapping_entities", "'Ann Lee' (p) and"),
        ({"text": "Ann", "entities": [[0, 4, "p"]]}, "entity_outside_text", "0 to 4 (p) points outside the text"),
        ({"text": "Ann", "entities": [[-1, 2, "p"]]}, "entity_outside_text", "-1 to 2"),
        ({"text": "Ann", "entities": [[2, 2, "p"]]}, "entity_outside_text", "2 to 2 (p) is empty"),
        ({"text": "Ann \n Lee", "entities": [[3, 6, "p"]]}, "empty_entity", "3 to 6 (p) has only white space"),
        ({"text": "Ann", "entities": [[0, 3, "p" * 501]]}, "long_label", "501 characters, expected at most 500"),
        ({"text": "Ann", "entities": [[True, 2, "p"]]}, "unreadable_entities", "no whole numbers"),
        ({"text": "Ann", "entities": [["0", 2, "p"]]}, "unreadable_entities", "0 and 1 are no whole numbers"),
        ({"text": "Ann", "entities": [0, 2, "p"]}, "unreadable_entities", "start and end are no whole numbers: 0"),
        ({"text": "Ann", "entities": {"start": 0}}, "unreadable_entities", "a list is expected"),
        ({"text": "Ann", "entities": [[0, 2, " "]]}, "no_label", "no text at 2"),
        ({"text": "Ann", "entities": None}, "no_entities", "an empty list"),
        ({"text": " \n", "entities": []}, "no_text", ""),
        ({"text": 7, "entities": []}, "not_text", "7"),
    ],
)  # fmt: skip
def test_rows_whose_entities_cannot_be_are_dropped_with_their_reason(record, reason, detail):
    rest = {"text": "Ann", "entities": []}
    found, _ = labelled_rows("r.jsonl", "\n".join(map(json.dumps, (record, rest))).encode(), KIND, PLAIN)
    assert found.reason == reason and detail in found.detail


def test_labels_are_chosen_and_renamed():
    cfg = TaggingExamplesConfig(**KIND.examples_of({"labels": {"PER": "person"}}, "t"))
    found = row({"text": "Ann in Rome", "entities": [[0, 3, "PER"], [7, 11, "LOC"]]}, cfg)
    assert spans(found) == [(0, 3, "person")]


def test_entities_that_words_cannot_express_are_counted():
    found = row({"text": "the Londoners", "entities": [[4, 10, "place"]]})
    assert spans(found) == [(4, 10, "place")] and found.values["n_widened"] == 1


def test_the_same_column_twice_is_refused():
    with pytest.raises(ValueError, match="must be two columns"):
        TaggingExamplesConfig(token_column=2, tag_column=2)


# Examples.


def sentences(n: int, seed: int = 0) -> list[tuple[list[str], list[str]]]:
    """Words and BIO tags; every third text is longer than the context."""
    rng = random.Random(seed)
    found = []
    for i in range(n):
        words, tags = [], []
        while len(words) < (14 if i % 3 == 0 else 4):
            length = rng.randint(1, 2)
            label = rng.choice(["person", "place", None, None])
            for place in range(length):
                letter = (
                    rng.choice("defg") if label is None else "b" if place else {"person": "a", "place": "c"}[label]
                )
                words.append(letter + "".join(rng.choices("hijk", k=rng.randint(1, 3))))
                tags.append("O" if label is None else f"{'I' if place else 'B'}-{label}")
            words.append(",")
            tags.append("O")
        found.append((words, tags))
    return found


def write_conll(path: Path, n: int = 150, seed: int = 0) -> Path:
    lines = [
        "".join(f"{word}\t{tag}\n" for word, tag in zip(words, tags, strict=True))
        for words, tags in sentences(n, seed)
    ]
    path.write_text("\n".join(lines))
    return path


def build(folder: Path, path: Path, **settings) -> Shards:
    cfg = TaggingExamplesConfig(**settings)
    return KIND.build_examples(Store(root=folder / "store"), LabelledFile(path), cfg, folder).handle


@pytest.fixture(scope="module")
def examples(tmp_path_factory) -> Shards:
    folder = tmp_path_factory.mktemp("tagging")
    return build(folder, write_conll(folder / "r.conll"))


@pytest.fixture(scope="module")
def base(tmp_path_factory, byte_tokenizer) -> Checkpoint:
    return write_base(byte_tokenizer, tmp_path_factory.mktemp("base") / "base")


def test_examples_of_columns_are_described_before_training(examples):
    assert labels_of(examples.directory) == ["person", "place"]
    description = KIND.describe_examples(read_examples(examples.directory, "train"))
    assert "| person |" in description.replace("  ", " ")
    assert KIND.example_warnings(read_examples(examples.directory, "train")) == []


def test_warnings_are_in_the_overview_once_and_without_markup(tmp_path):
    """They were there twice, the second time with the labels of the data as HTML."""
    splits = ("train", "train", "validation", "test")
    rows = [
        {"text": " ".join(letter * n for n in (3, 4, 5)), "entities": [[0, 2, f"<b>{split}</b>"]], "split": split}
        for letter, split in zip("abcdefghijkl", splits * 3, strict=True)
    ]
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store, cfg = Store(root=tmp_path / "store"), TaggingExamplesConfig(split="split")
    built = KIND.build_examples(store, LabelledFile(path), cfg, tmp_path / "cache").handle
    text = (built.directory / "examples.md").read_text()
    assert text.count("do not begin and end where words do") == 1
    assert "\\<b\\>test" in text and "<b>" not in text


TABLES = """
[conll2003]
kind = "tagging"
base = "foundation_model"
data = { path = "conll2003.conll" }
token_column = 1
tag_column = 4

[whole]
kind = "tagging"
base = "foundation_model"
data = { path = "conll2003.conll" }
text_of = "document"

[tabs]
kind = "tagging"
base = "foundation_model"
data = { path = "tabs.tsv" }
test_data = { path = "more.tsv" }

[spans]
kind = "tagging"
base = "foundation_model"
data = { path = "spans.jsonl" }
text = "full_text"
entities = "marks"
start = "from"
end = "to"
label = "type"
labels = ["person", "place"]
"""


def test_common_forms_of_data_need_a_table_and_no_code(tmp_path):
    written = sentences(90)
    lines = [
        "".join(f"{word} NN O {tag.replace('B-', 'I-')}\n" for word, tag in zip(*one, strict=True)) for one in written
    ]
    documents = ["-DOCSTART- -X- O O\n\n" + "\n".join(lines[i : i + 2]) for i in range(0, 90, 2)]
    (tmp_path / "conll2003.conll").write_text("\n".join(documents))
    write_conll(tmp_path / "tabs.tsv", 90)
    write_conll(tmp_path / "more.tsv", 20, seed=1)
    marks = [{"from": 0, "to": 2, "type": "person"}, {"from": 3, "to": 4, "type": "number"}]
    texts = [" ".join(words) for words, _ in written]
    rows_of_spans = [json.dumps({"full_text": f"ab {text}", "marks": marks}) for text in texts]
    (tmp_path / "spans.jsonl").write_text("\n".join(rows_of_spans))
    (tmp_path / "models.toml").write_text('[foundation_model]\nkind = "pretrain"\npreset = "demo"\n')
    (tmp_path / "tasks.toml").write_text(TABLES)
    store, found = Store(root=tmp_path / "store"), {}
    for name, task in read_tasks(tmp_path / "tasks.toml").items():
        built = KIND.build_examples(store, task.data, task.examples, tmp_path, held_out=task.held_out)
        found[name] = labels_of(built.handle.directory), built.handle.rows
    assert found["conll2003"] == (["person", "place"], 90)
    assert found["whole"] == (["person", "place"], 45)
    assert found["tabs"] == (["person", "place"], 110)
    assert found["spans"] == (["person"], 90)


def test_data_without_entities_are_refused_with_what_to_set(tmp_path):
    path = tmp_path / "r.conll"
    path.write_text("\n".join(f"{''.join(words)}\tO\n" for words, _ in sentences(60)))
    with pytest.raises(ValueError, match="none of the training examples has an entity; set `entities`"):
        build(tmp_path, path)


def test_broken_tags_and_labels_without_training_examples_are_warned_of(tmp_path):
    table = pa.table(
        {
            "split": ["train", "test"],
            "entities": [[{"start": 0, "end": 1, "label": "a"}], [{"start": 0, "end": 1, "label": "b"}]],
            "n_mended": [1, 0],
            "n_widened": [0, 1],
        }
    )
    mended, widened, unlearned = KIND.example_warnings(table)
    assert "1 of 2 entities break the scheme" in mended and "1 of 2 entities do not begin" in widened
    assert "label b" in unlearned


# Training and answers.


def test_no_entity_is_lost_in_a_text_longer_than_the_context(examples, base):
    """Gold entities were cut off together with the end of a text (transformers#18050)."""
    tokenizer = load_tokenizer(base.directory / "tokenizer")
    rows = read_examples(examples.directory, "train")
    encoded = KIND.encode(examples, rows, tokenizer, CONTEXT, "right")
    assert encoded.n_cut == 0 and len(encoded.ids) > rows.num_rows
    assert max(map(len, encoded.tokens)) <= CONTEXT
    firsts = sum(int(((labels > 0) & (labels % 2 == 1)).sum()) for labels in encoded.token_targets["labels_BT"])
    assert firsts == sum(map(len, rows["entities"].to_pylist()))


def test_only_the_first_piece_of_a_word_is_supervised(examples, base):
    """Labels of all pieces made seqeval count pieces instead of entities (transformers#14043)."""
    tokenizer = load_tokenizer(base.directory / "tokenizer")
    rows = read_examples(examples.directory, "train")
    encoded = KIND.encode(examples, rows, tokenizer, 1000, "right")
    for text, labels in zip(rows["text"].to_pylist(), encoded.token_targets["labels_BT"], strict=True):
        assert int((labels != IGNORE_INDEX).sum()) == len(text.split())


def test_augmented_texts_keep_their_entities(examples):
    rows = read_examples(examples.directory, "train")
    cfg = FinetuneConfig(augment_typos=0.3, augment_word_dropout=0.3)
    changed = KIND.augmented(rows, cfg, seed=1)
    assert changed.schema == rows.schema and changed["text"] != rows["text"]
    assert changed.equals(KIND.augmented(rows, cfg, seed=1))
    for before, after in zip(rows.to_pylist(), changed.to_pylist(), strict=True):
        assert [one["label"] for one in after["entities"]] == [one["label"] for one in before["entities"]]
        assert all(after["text"][one["start"] : one["end"]].strip() for one in after["entities"])


@pytest.fixture(scope="module")
def models(tmp_path_factory, base, examples) -> tuple[Checkpoint, Checkpoint]:
    """A fine-tuned model, and the same from random weights."""
    store, training = Store(root=tmp_path_factory.mktemp("models")), finetune_stage(KIND)
    cfg = FinetuneConfig(epochs=8, rows=8, muon_lr=0.02, adamw_lr=0.01, validate_every=50)
    built = store.build(training, cfg, base, examples)
    assert built.record["measures"]["validation_f1"] > 0.95
    assert built.record["measures"]["train_n_cut"] == 0
    return built.handle, store.build(training, random_baseline(cfg), base, examples).handle


@pytest.fixture(scope="module")
def report(tmp_path_factory, models, examples) -> Report:
    store, cfg = Store(root=tmp_path_factory.mktemp("report")), KIND.evaluation()
    return store.build(evaluation_stage(KIND), cfg, *models, examples).handle


def test_labels_are_in_the_config_by_name(models):
    """The order of labels was another one in another program (transformers#28589)."""
    description, _ = read_config(models[0].directory)
    assert description["kind"] == "token_classifier"
    assert description["labels"] == ["O", "B-person", "I-person", "B-place", "I-place"]


def test_answers_have_offsets_into_the_text_as_it_was_given(models):
    tagger = predictor_in(Tagger, models[0].directory)
    texts = ["  dh  ahi bhi,chi", "", "dh", "\ud800 ahi", " \n", "dhi " * 30 + "chi bhi"]
    answers = tagger.answer([{"text": text} for text in texts])
    found = [[(one["text"], one["label"]) for one in answer["entities"]] for answer in answers]
    assert found[0] == [("ahi bhi", "person"), ("chi", "place")]
    assert found[1] == found[2] == found[4] == []
    assert ("ahi", "person") in found[3]
    assert found[5] == [("chi bhi", "place")], "the text has five times the context"
    for text, answer in zip(texts, answers, strict=True):
        assert all(
            text[one["start"] : one["end"]].encode(errors="replace").decode() == one["text"]
            for one in answer["entities"]
        )
        assert all(0 < one["probability"] <= 1 for one in answer["entities"])
    assert tagger.n_cut([{"text": text} for text in texts]) == 0
    assert tagger.answer([]) == []


def test_the_report_compares_with_baselines_and_has_every_label(report):
    results = {one["metric"]: one for one in json.loads((report.directory / "results.json").read_text())}
    assert set(results) == set(KIND.metrics)
    f1 = results["f1"]
    assert f1["value"] > 0.95 and f1["low"] <= f1["value"] <= f1["high"]
    assert set(f1["baselines"]) == {"random_init", "gazetteer", "majority"}
    assert f1["baselines"]["majority"] == 0.0
    assert f1["value"] > f1["baselines"]["gazetteer"] and f1["comparisons"]["gazetteer"]["p_value"] < 0.05
    text = (report.directory / "report.md").read_text()
    assert "person" in text and "place" in text


def test_a_model_of_other_labels_is_not_judged(tmp_path, models):
    """Another list of labels gave 7 % instead of 84 % without an error (TextAttack#684)."""
    path = write_conll(tmp_path / "r.conll")
    path.write_text(path.read_text().replace("-place", "-city"))
    other = build(tmp_path, path)
    with pytest.raises(
        ValueError, match=r"knows the labels \['person', 'place'\], the examples also have \['city'\]"
    ):
        Store(root=tmp_path / "reports").build(evaluation_stage(KIND), KIND.evaluation(), *models, other)


def test_a_registered_model_answers_with_lists_of_entities(tmp_path, models):
    import mlflow
    import pandas as pd

    package = tmp_path / "package"
    write_package(package, KIND, "m-0", None)
    link_served(models[0].directory, package)
    model = mlflow.pyfunc.load_model(str(package))
    table = pd.DataFrame({"text": ["dh ahi bhi", None, "dh"]}, index=[4, 7, 9])
    answered = model.predict(table)
    assert answered.index.tolist() == [4, 7, 9] and answered["entities"][7] is None and answered["entities"][9] == []
    (entity,) = answered["entities"][4]
    assert (entity["start"], entity["end"], entity["text"], entity["label"]) == (3, 10, "ahi bhi", "person")
