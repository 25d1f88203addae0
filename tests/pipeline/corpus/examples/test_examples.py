"""Examples out of labelled files: every drop reason, formats, splits that do not leak, the same bytes again."""

import hashlib
import io
import json
import random
import zipfile
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.data.examples import repaired
from pipeline.corpus.collect.package import PackageSource
from pipeline.corpus.collect.url import UrlSource
from pipeline.corpus.examples.labelled_rows import labelled_rows
from pipeline.corpus.examples.near_texts import leaked
from pipeline.corpus.examples.stage import LabelledFile, build_examples, read_examples
from pipeline.store.errors import CorruptShard
from pipeline.store.records import DROPPED, SPLITS
from pipeline.store.shards import read_table, text_digest
from pipeline.store.store import Store
from pipeline.tasks.classification import KIND, labels_of
from pipeline.tasks.classification import ClassificationExamplesConfig as ExamplesConfig

PLAIN = ExamplesConfig(text="text", label="label")


def lines(*rows) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def many_rows(n_rows: int = 200) -> list[dict]:
    """Rows of which no two are alike."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=6)) for _ in range(2000)]
    return [{"text": " ".join(rng.choices(words, k=7)), "label": "ab"[i % 2]} for i in range(n_rows)]


def build(tmp_path, content: bytes, cfg: ExamplesConfig = PLAIN, name: str = "rows.jsonl"):
    path = tmp_path / name
    path.write_bytes(content)
    return KIND.build_examples(Store(root=tmp_path / "store"), LabelledFile(path), cfg, tmp_path / "cache")


def reasons(rows) -> list[str | None]:
    return [row.reason for row in rows]


def test_examples_every_drop_reason_is_counted_and_kept_with_its_row(tmp_path):
    odd = [
        {"text": "  ", "label": "a"},
        {"label": "a"},
        {"text": "no label here", "label": None},
        {"text": "other label here", "label": "c"},
        {"text": "Said twice, alike", "label": "a"},
        {"text": "said TWICE,  alike\n", "label": "a"},
        {"text": "said twice, unlike", "label": "a"},
        {"text": "said twice, unlike", "label": "b"},
    ]
    content = lines(*odd, *many_rows()) + b"\n{broken\n[1]\n"
    built = build(tmp_path, content, ExamplesConfig(text="text", label="label", labels=("a=good", "b=bad")))
    assert built.counts.rows_in == 210
    assert built.counts.kept == 201
    assert built.counts.is_conserved()
    assert built.counts.dropped == {
        "no_text": 2, "no_label": 1, "unknown_label": 1, "duplicate": 1, "conflicting_labels": 2, "unreadable_row": 2,
    }  # fmt: skip
    dropped = read_table(built.handle.directory / "dropped" / "rows.parquet", DROPPED).to_pylist()
    assert [(row["page_id"], row["reason"]) for row in dropped[1:3]] == [("2", "no_text"), ("3", "no_label")]
    assert dropped[-2]["preview"] == "{broken"
    assert labels_of(built.handle.directory) == ["bad", "good"]


def test_examples_no_near_duplicate_lies_on_two_sides(tmp_path):
    rows = many_rows(300)
    rows += [{"text": f"{row['text']}!! {i}", "label": row["label"]} for i, row in enumerate(rows)]  # of each a twin
    directory = build(tmp_path, lines(*rows)).handle.directory
    sides = {split: read_examples(directory, split) for split in SPLITS}
    assert sum(side.num_rows for side in sides.values()) == 600
    texts = {split: side["text"].to_pylist() for split, side in sides.items()}
    for one, other in [("train", "test"), ("train", "validation"), ("validation", "test")]:
        assert leaked(texts[one], texts[other]) == []
    ids = Counter(group for side in sides.values() for group in set(side["group_id"].to_pylist()))
    assert max(ids.values()) == 1


def test_examples_shares_of_the_splits_are_near_those_asked_for(tmp_path):
    built = build(tmp_path, lines(*many_rows(2000)))
    sizes = [built.record["measures"][f"{split}_examples"] for split in SPLITS]
    assert sum(sizes) == 2000
    assert 1500 < sizes[0] < 1700 and 140 < sizes[1] < 260 and 140 < sizes[2] < 260


def test_examples_an_added_row_moves_no_other(tmp_path):
    before = build(tmp_path, lines(*many_rows(200))).handle.directory
    after = build(tmp_path, lines({"text": "all new words", "label": "a"}, *many_rows(200))).handle.directory
    for split in SPLITS:
        assert set(read_examples(before, split)["id"].to_pylist()) <= set(
            read_examples(after, split)["id"].to_pylist()
        )


def test_examples_again_is_the_same_and_a_changed_file_is_not(tmp_path):
    first = build(tmp_path, lines(*many_rows()))
    assert build(tmp_path, lines(*many_rows())).unchanged
    other = build(tmp_path, lines(*many_rows(150)))
    assert not other.unchanged and other.handle.digest != first.handle.digest
    moved = build(tmp_path, lines(*many_rows()), name="moved.jsonl")
    assert moved.unchanged  # where the file lies does not count


class ChangesMeanwhile(Store):
    """Another process writes the labelled file between the moment it is hashed and the one it is used."""

    def build(self, stage, cfg, *inputs, directory=None):
        (self.root.parent / "rows.jsonl").write_bytes(lines(*many_rows(150)))
        return super().build(stage, cfg, *inputs, directory=directory)


def test_examples_file_that_changes_meanwhile_is_used_as_it_was_hashed(tmp_path):
    """The file was hashed, then read again: its new rows were stored under the fingerprint of the old ones, for ever
    (review 3.6)."""
    path, store = tmp_path / "rows.jsonl", Store(root=tmp_path / "store")
    path.write_bytes(lines(*many_rows()))
    cfg = ExamplesConfig(text="text", label="label")
    hasty = ChangesMeanwhile(root=store.root)
    first = build_examples(hasty, KIND, LabelledFile(path), cfg, tmp_path / "cache")
    assert first.handle.rows == len(many_rows())
    second = build_examples(store, KIND, LabelledFile(path), cfg, tmp_path / "cache")
    assert not second.unchanged and second.handle.rows == 150


def test_examples_two_builds_have_the_same_bytes(tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    one, two = (build(tmp_path / folder, lines(*many_rows())).handle for folder in ("one", "two"))
    assert one.digest == two.digest
    rows = read_table(one.directory / "examples.parquet").to_pylist()
    assert text_digest(json.dumps(rows)) == "6ae994860c4463df32ec606a23c6a0bd", "raise the version of the stage"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", 'label,text\na,"one, two"\nb,"line\nbreak"\n'),
        ("rows.csv", '\ufefflabel,text\r\na,"one, two"\r\nb,"line\nbreak"\r\n'),
        ("rows.tsv", 'label\ttext\na\tone, two\nb\t"line\nbreak"\n'),
        ("rows.jsonl", '{"text": "one, two", "label": "a"}\r\n\r\n{"text": "line\\nbreak", "label": "b"}'),
    ],
)
def test_labelled_rows_formats_read_alike(name, content):
    rows = list(labelled_rows(name, content.encode(), KIND, PLAIN))
    assert [(row.text, row.values["label"]) for row in rows] == [("one, two", "a"), ("line\nbreak", "b")]


def test_labelled_rows_nested_places_and_typed_labels():
    cfg = ExamplesConfig(text="input.1.content", label="meta.is.it", labels=("true=yes", "0=no"))
    rows = [
        {"input": [{}, {"content": "x"}], "meta": {"is.it": True}},
        {"input": [{}, {"content": "y"}], "meta": {"is": {"it": 0}}},
        {"input": [{}], "meta": {"is.it": True}},
        {"input": "text", "meta": "text"},
    ]
    read = list(labelled_rows("r.jsonl", lines(*rows), KIND, cfg))
    assert [(row.text, row.values["label"]) for row in read[:2]] == [("x", "yes"), ("y", "no")]
    assert reasons(read[2:]) == ["no_text", "no_text"]


def test_labelled_rows_unquoted_comma_is_an_unreadable_row():
    rows = list(labelled_rows("r.csv", b"text,label\none, two,a\nthree,b\n", KIND, PLAIN))
    assert reasons(rows) == ["unreadable_row", None]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.xlsx", b"", r"must end in one of \.csv, \.tsv, \.jsonl, \.json, \.parquet, got '\.xlsx'"),
        ("rows.csv", "text,label\ncaf\xe9,a".encode("latin-1"), "byte 14 is not UTF-8"),
        ("rows.csv", b"subject,queue\nx,a\n", "text is 'text', but no row has that; the rows have: queue, subject"),
        ("rows.jsonl", b"", "text is 'text', but no row has that; the rows have: no readable row"),
        ("rows.jsonl", lines({"text": "x", "label": "a"}), r"1 usable rows with the labels \['a'\]"),
        (
            "rows.jsonl",
            lines({"text": "x", "label": "a"}, {"text": "y", "label": "b"}),
            "2 usable rows are too few",
        ),
        (
            "rows.jsonl",
            lines(*({"text": f"t{i}x", "label": f"{i}" * 501} for i in range(9))),
            "9 long_label .501 char",
        ),
        ("rows.jsonl", lines(*({"text": f"t{i}x", "label": f"l{i}"} for i in range(150))), "150 different labels"),
    ],
)
def test_examples_unusable_file_is_refused_with_what_to_do(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        build(tmp_path, content, name=name)


def test_examples_declared_label_without_training_examples_is_refused(tmp_path):
    cfg = ExamplesConfig(text="text", label="label", labels=("a=a", "b=b", "c=c"))
    with pytest.raises(ValueError, match="no training example has the label 'c'"):
        build(tmp_path, lines(*many_rows()), cfg)


def test_examples_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.csv is not a file"):
        KIND.build_examples(Store(root=tmp_path), LabelledFile(tmp_path / "nowhere.csv"), PLAIN, tmp_path)


def test_examples_other_sha256_than_pinned_is_refused(tmp_path):
    with pytest.raises(ValueError, match="but the setting sha256 is 00"):
        build(tmp_path, lines(*many_rows()), ExamplesConfig(text="text", label="label", sha256="00"))


def wheel(tmp_path, member: str) -> PackageSource:
    """A wheel in the cache, so that no network is needed."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("pack/rows.jsonl", lines(*many_rows()))
    sha256 = hashlib.sha256(content.getvalue()).hexdigest()
    folder = tmp_path / "cache" / sha256
    folder.mkdir(parents=True)
    (folder / "pack-1-py3-none-any.whl").write_bytes(content.getvalue())
    pinned = {"package": "pack", "version": "1", "file": "wheel", "sha256": sha256}
    return PackageSource(name="labelled", licence="none", members=(member,), **pinned)


def test_examples_of_a_package_equal_those_of_the_file(tmp_path):
    source = wheel(tmp_path, "pack/rows.jsonl")
    built = KIND.build_examples(Store(root=tmp_path / "store"), source, PLAIN, tmp_path / "cache")
    texts = read_examples(built.handle.directory, "train")["text"].to_pylist()
    file = build(tmp_path, lines(*many_rows())).handle.directory
    assert texts == read_examples(file, "train")["text"].to_pylist()


def test_examples_of_an_address_equal_those_of_the_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(lines(*many_rows()))
    url = f"{path.as_uri()}#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}"
    source = UrlSource(name="labelled", urls=(url,))
    built = KIND.build_examples(Store(root=tmp_path / "store"), source, PLAIN, tmp_path / "cache")
    texts = read_examples(built.handle.directory, "train")["text"].to_pylist()
    file = build(tmp_path, lines(*many_rows())).handle.directory
    assert texts == read_examples(file, "train")["text"].to_pylist()


def test_examples_member_that_is_not_there_is_refused_with_what_is(tmp_path):
    with pytest.raises(ValueError, match=r"matches `pack/row\.jsonl`; its files are for instance pack/rows\.jsonl"):
        KIND.build_examples(Store(root=tmp_path / "s"), wheel(tmp_path, "pack/row.jsonl"), PLAIN, tmp_path / "cache")


def test_read_examples_damaged_file_is_named(tmp_path):
    directory = build(tmp_path, lines(*many_rows())).handle.directory
    (directory / "examples.parquet").write_bytes(b"PAR1")
    with pytest.raises(CorruptShard, match=r"examples\.parquet"):
        read_examples(directory, "train")


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"test_fraction": 0.0}, r"test_fraction is 0\.0, expected a number above 0 and below 1"),
        ({"test_fraction": 0.5, "validation_fraction": 0.5}, "leave no"),
        ({"similarity": 0.2}, r"similarity is 0\.2, expected a number from 0\.5 to 1"),
        ({"text": "label"}, "must be two columns"),
        ({"labels": ("a=a",)}, "has one label"),
        ({"labels": ("a",)}, "of the form value=name"),
    ],
)
def test_examples_config_broken_rule_is_named(settings_, message):
    with pytest.raises(ValueError, match=message):
        ExamplesConfig(**{"text": "text", "label": "label", **settings_})


@settings(max_examples=50, deadline=None)
@given(st.text(alphabet=st.characters(codec=None, categories=None)))
def test_repaired_any_text_is_valid_utf8_and_stays_when_repaired_again(text):
    assert repaired(text).encode().decode() == repaired(text)
    assert repaired(repaired(text)) == repaired(text)
