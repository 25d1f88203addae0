"""Rows of every format, with and without a header; parts by path and by template; given splits of rows and files."""

import gzip
import io
import json
import random
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.examples.data_files import LabelledFile
from pipeline.corpus.examples.labelled_file import PARQUET_ROWS
from pipeline.corpus.examples.labelled_rows import check_beginning, labelled_rows
from pipeline.corpus.examples.rows import Row
from pipeline.corpus.examples.stage import read_examples
from pipeline.store.records import DROPPED, SPLITS
from pipeline.store.shards import read_table
from pipeline.store.store import Store
from pipeline.tasks.classification import KIND, Classification, labels_of
from pipeline.tasks.classification import ClassificationExamplesConfig as ExamplesConfig

ROWS = [("one, two", "a"), ('say "x"\nthree', "b"), ("caf\u00e9", "a")]
RECORDS = [{"text": text, "label": label} for text, label in ROWS]


def config(**settings) -> ExamplesConfig:
    return ExamplesConfig(**{"text": "text", "label": "label", **settings})


def read(name: str, content: bytes, cfg: ExamplesConfig | None = None) -> list[tuple[str, str]]:
    rows = labelled_rows(name, content, KIND, cfg or config())
    return [(row.text, row.reason or row.values["label"]) for row in rows]


def parquet(**columns) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(columns), out)
    return out.getvalue()


def as_json(document) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("document", "settings"),
    [
        (RECORDS, {}),
        ({"version": "1", "rows": RECORDS}, {}),
        ({"data": {"rows": RECORDS, "other": []}}, {"records": "data.rows"}),
        ({f"id{i}": record for i, record in enumerate(RECORDS)}, {}),
    ],
)
def test_json_rows_are_found(document, settings):
    assert read("r.json", as_json(document), config(**settings)) == ROWS


def test_json_object_of_objects_has_the_name_of_each_as_key():
    document = {"first one": {"label": "a"}, "second one": {"label": "b"}}
    assert read("r.json", as_json(document), config(text="key")) == [("first one", "a"), ("second one", "b")]


def test_json_lines_under_another_ending_are_read():
    assert read("r.json", b"\n".join(map(as_json, RECORDS))) == ROWS


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        (b"[1, 2", {}, "r.json is not valid JSON"),
        (as_json({"a": [], "b": []}), {}, r'got dict with the keys a, b; name the list by its keys: records = "data'),
        (as_json({"a": [{}]}), {"records": "b"}, "expected a list of objects at records = 'b', got NoneType"),
        (as_json([1, {"text": "x", "label": "a"}, {"text": "y"}]), {"label": "lable"}, "did you mean `label`"),
    ],
)
def test_json_without_rows_is_refused_with_what_it_has(content, settings, message):
    with pytest.raises(ValueError, match=message):
        read("r.json", content, config(**settings))


def test_parquet_rows_come_batch_by_batch_with_nested_values_and_dates():
    n_rows = PARQUET_ROWS + 10
    texts = [f"text {i}" for i in range(n_rows)]
    content = parquet(
        **{"text": texts, "meta": [{"is": {"it": bool(i % 2)}} for i in range(n_rows)], "unused.x": texts},
        day=pa.array([0] * n_rows, pa.date32()),
    )
    assert read("r.parquet", content, config(label="meta.is.it"))[-1] == (texts[-1], "true")
    assert read("r.parquet", content, config(text="{day} {unused.x}", label="meta.is.it"))[1] == (
        "1970-01-01 text 1",
        "true",
    )
    with pytest.raises(ValueError, match="label is 'mood', but no row has that; the rows have: day, meta, text, un"):
        read("r.parquet", content, config(label="mood"))
    with pytest.raises(ValueError, match=r"r\.parquet is not a readable parquet file"):
        read("r.parquet", content[:-10])


@pytest.mark.parametrize(
    ("name", "content", "settings"),
    [
        ("r.csv", '"3","one, two"\n"4","say ""x""\nthree"\n"3",caf\u00e9\n', {}),  # as AG News
        ("r.csv", 'label,text\n3,"one, two"\n4,"say ""x""\nthree"\n3,caf\u00e9\n', {}),
        ("r.csv", '3;one, two\n4;"say ""x""\nthree"\n3;caf\u00e9\n', {}),
        ("r.data", '3|one, two\n4|"say ""x""\nthree"\n3|caf\u00e9\n', {"delimiter": "|"}),
    ],
)
def test_table_without_a_header_has_the_columns_that_are_named(name, content, settings):
    cfg = config(columns=("label", "text"), labels=("3=a", "4=b"), **settings)
    assert read(name, content.encode(), cfg) == ROWS


def test_table_whose_header_is_missing_asks_for_its_columns():
    with pytest.raises(
        ValueError, match=r"the rows have: 3, Stocks fall\. If the file has no header, name its columns"
    ):
        read("r.csv", b"3,Stocks fall\n4,Stocks rise\n")
    with pytest.raises(ValueError, match=r"the rows have: mood, subject$"):
        read("r.csv", b"subject,mood\nStocks rise,4\n")


def test_table_with_fewer_cells_than_columns_has_no_values_in_the_last():
    with pytest.raises(ValueError, match=r"text is 'text', but that has no value in any row"):
        read("r.csv", b"3,Stocks fall\n4,Stocks rise\n", config(columns=("id", "label", "text")))


def test_table_of_a_label_and_the_rest_of_the_line_is_read_literally():
    """As the Stanford Sentiment Treebank; a quotation mark that nobody closes is a character like others."""
    content = b'1 a "great , film\n\n0 bad\r\n1\n'
    cfg = config(columns=("label", "text"), delimiter=" ")
    assert read("r.txt", content, cfg) == [('a "great , film', "1"), ("bad", "0"), ("1", "unreadable_row")]
    with pytest.raises(ValueError, match="needs the names of the columns"):
        read("r.csv", content, config(delimiter=" "))


def test_table_of_another_ending_asks_for_its_columns():
    with pytest.raises(ValueError, match=r"must end in one of .*columns = \["):
        read("r.txt", b"1 great\n")


@pytest.mark.parametrize("settings", [{"delimiter": "ab"}, {"delimiter": '"'}, {"columns": ("a", "a")}])
def test_form_that_cannot_be_is_refused(settings):
    with pytest.raises(ValueError, match=r"delimiter is|has a name twice"):
        config(**settings)


def test_template_joins_values_and_drops_rows_without_one():
    rows = [
        {"passage": "Rivers flow.", "question": "do they", "label": True},
        {"passage": "", "question": "empty", "label": 1},
        {"passage": None, "question": "x", "label": True},
        {"passage": ["two", "parts"], "question": 4, "label": True},
    ]
    cfg = config(text="{passage}\nQuestion: {question}?")
    assert [text for text, _ in read("r.json", as_json(rows), cfg)] == [
        "Rivers flow.\nQuestion: do they?",
        "Question: empty?",
        "",
        "two\nparts\nQuestion: 4?",
    ]
    with pytest.raises(ValueError, match="text is 'answer', but no row has that"):
        read("r.json", as_json(rows), config(text="{passage} {answer}"))


def sentences(n_rows: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    return [" ".join("".join(rng.choices("adeilmnorst", k=5)) for _ in range(8)) for _ in range(n_rows)]


def build(tmp_path, rows: list[dict], cfg: ExamplesConfig, held_out=None, kind=KIND):
    def file(name: str, content: list[dict]) -> LabelledFile:
        (tmp_path / name).write_bytes(as_json(content))
        return LabelledFile(tmp_path / name)

    others = {split: file(f"{split}.json", of_split) for split, of_split in (held_out or {}).items()}
    store = Store(root=tmp_path / "store")
    return kind.build_examples(store, file("train.json", rows), cfg, tmp_path, held_out=others)


def labelled(texts: list[str]) -> list[dict]:
    return [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate(texts)]


def split_texts(built) -> dict[str, list[str]]:
    return {split: read_examples(built.handle.directory, split)["text"].to_pylist() for split in SPLITS}


def test_given_test_data_stay_and_train_loses_what_is_like_them(tmp_path):
    """A published test split is what others measure on: it is never made smaller by rows of train."""
    texts = sentences(300)
    test, train = labelled(texts[:60]), labelled(texts[60:])
    train += [{"text": f"{texts[5]}!", "label": "b"}, {"text": texts[6], "label": "a"}]
    built = build(tmp_path, train, config(), {"test": test})
    sides = split_texts(built)
    assert sides["test"] == texts[:60]
    assert len(sides["validation"]) + len(sides["train"]) == 240
    assert 20 <= len(sides["validation"]) <= 28  # a tenth of what is left
    assert built.counts.dropped == {"near_duplicate_of_test": 2}
    dropped = read_table(built.handle.directory / "dropped" / "rows.parquet", DROPPED).to_pylist()
    assert [row["url"] for row in dropped] == ["train.json#241", "train.json#242"]
    assert "row 241 of train.json" in (built.handle.directory / "examples.md").read_text()


def test_given_data_are_part_of_the_identity(tmp_path):
    texts = sentences(200)
    first = build(tmp_path, labelled(texts[50:]), config(), {"test": labelled(texts[:50])})
    other = build(tmp_path, labelled(texts[50:]), config(), {"test": labelled(texts[:49])})
    assert first.handle.fingerprint != other.handle.fingerprint
    with pytest.raises(ValueError, match=r"test\.json has sha256 .*, but the setting test_sha256 is 00"):
        build(tmp_path, labelled(texts[50:]), config(test_sha256="00"), {"test": labelled(texts[:50])})
    with pytest.raises(ValueError, match="the split of a row is given twice"):
        build(tmp_path, labelled(texts[50:]), config(split="text"), {"test": labelled(texts[:50])})
    with pytest.raises(ValueError, match=r"test\.json: label is 'label', but no row has that"):
        build(tmp_path, labelled(texts[50:]), config(), {"test": [{"text": "x", "mood": "a"}]})


def test_column_of_the_split_holds(tmp_path):
    rows = labelled(sentences(120))
    for i, row in enumerate(rows):
        row["part"] = ["Train", "train", "dev", "TEST"][i % 4]
    rows[0]["part"], rows[1]["part"] = "extra", None
    built = build(tmp_path, rows, config(split="part"))
    assert {split: len(texts) for split, texts in split_texts(built).items()} == {
        "train": 58, "validation": 30, "test": 30
    }  # fmt: skip
    assert built.counts.dropped == {"unknown_split": 2}


def test_column_of_the_split_without_rows_of_train_is_refused(tmp_path):
    rows = [row | {"part": ["dev", "test"][i % 2]} for i, row in enumerate(labelled(sentences(20)))]
    with pytest.raises(ValueError, match="all usable rows are for test or validation, none for train"):
        build(tmp_path, rows, config(split="part"))


def test_labels_are_those_of_the_rows_by_name_whatever_their_order(tmp_path):
    """A list of labels in the order of the rows made a model answer with another label (transformers#28589)."""
    rows = [{"text": text, "label": ["b", "c", "a"][i % 3]} for i, text in enumerate(sentences(120))]
    (tmp_path / "other").mkdir()
    one, other = build(tmp_path, rows, config()), build(tmp_path / "other", rows[::-1], config())
    assert labels_of(one.handle.directory) == labels_of(other.handle.directory) == ["a", "b", "c"]
    by_text = [
        {row["text"]: row["label"] for split in SPLITS for row in _rows(built, split)} for built in (one, other)
    ]
    assert by_text[0] == by_text[1]


def test_conflicting_label_in_train_leaves_test_alone(tmp_path):
    texts = sentences(200)
    train = [*labelled(texts[50:]), {"text": texts[0], "label": "b"}]
    built = build(tmp_path, train, config(), {"test": labelled(texts[:50])})
    assert built.counts.dropped == {"near_duplicate_of_test": 1}
    assert split_texts(built)["test"][0] == texts[0]


def test_rows_of_one_group_are_in_one_split(tmp_path):
    rows = labelled(sentences(400))
    for i, row in enumerate(rows):
        row["author"] = i // 4
    built = build(tmp_path, rows, config(group="author"))
    table = [(row["text"], split) for split in SPLITS for row in _rows(built, split)]
    author_of = {row["text"]: row["author"] for row in rows}
    sides = {(author_of[text], split) for text, split in table}
    assert len(table) == 400 and len(sides) == 100
    assert all(n >= 5 for n in Counter(split for _, split in sides).values())


def _rows(built, split: str) -> list[dict]:
    return read_examples(built.handle.directory, split).to_pylist()


class Keyed(Classification):
    """Rows that share their text, as questions about one passage do."""

    parts, optional = ("text", "label", "question"), ("question",)

    def row(self, parts, cfg):
        row = super().row(parts, cfg)
        row.key, row.group = parts["question"] or "", parts["text"][:5]
        return row


class QuestionConfig(ExamplesConfig):
    question: str = "question"


def test_key_makes_rows_of_one_text_different_examples_of_one_group(tmp_path):
    rows = [{"text": text, "label": "ab"[i % 2], "question": f"q{i}"} for text in sentences(60) for i in range(3)]
    built = build(tmp_path, [*rows, rows[0]], QuestionConfig(text="text", label="label"), kind=Keyed())
    assert built.counts.kept == 180 and built.counts.dropped == {"duplicate": 1}
    assert built.record["measures"]["contradictions"] == 0  # two questions about one text may have two answers
    table = [row for split in SPLITS for row in _rows(built, split)]
    assert len({row["id"] for row in table}) == 180
    assert len({(row["text"], row["split"]) for row in table}) == 60


def test_optional_part_may_be_missing():
    cfg = QuestionConfig(text="text", label="label")
    rows = list(labelled_rows("r.json", as_json(RECORDS), Keyed(), cfg))
    assert [row.key for row in rows] == [""] * 3
    assert [row.id for row in rows] == [Row(text).id for text, _ in ROWS]  # an empty key is no key


@pytest.mark.parametrize("name", ["r.csv.gz", "r.jsonl.gz", "r.json.gz", "r.parquet"])
def test_compressed_files_are_read_and_checked_at_their_beginning(tmp_path, name):
    texts = sentences(100)
    content = {
        "r.csv.gz": "text,label\n" + "".join(f"{text},{'ab'[i % 2]}\n" for i, text in enumerate(texts)),
        "r.jsonl.gz": "\n".join(json.dumps(row) for row in labelled(texts)),
        "r.json.gz": json.dumps(labelled(texts)),
    }
    packed = gzip.compress(content[name].encode()) if name in content else parquet(
        text=texts, label=["ab"[i % 2] for i in range(100)]
    )  # fmt: skip
    path = tmp_path / name
    path.write_bytes(packed)
    built = KIND.build_examples(Store(root=tmp_path / "s"), LabelledFile(path), config(), tmp_path)
    assert built.handle.rows == 100
    with pytest.raises(ValueError, match=r"text is 'txt'.*did you mean `text`"):
        check_beginning(KIND, path, config(text="txt"))


def test_compressed_file_that_ends_early_is_refused(tmp_path):
    path = tmp_path / "r.csv.gz"
    path.write_bytes(gzip.compress(b"text,label\n" + b"a b,c\n" * 1000)[:-20])
    with pytest.raises(ValueError, match=r"r\.csv\.gz.* is damaged"):
        KIND.build_examples(Store(root=tmp_path / "s"), LabelledFile(path), config(), tmp_path)
