"""Mistakes with their texts, and the share of them in parts of the examples."""

import numpy as np
import pyarrow as pa
import pytest

from pipeline.evaluation.answers import TableRows
from pipeline.evaluation.mistakes import (
    FILE,
    Mistake,
    mistakes_markdown,
    quarters,
    read_mistakes,
    slices_of,
    slices_table,
    worst_mistakes,
)


def test_worst_mistakes_are_the_most_confident_and_an_example_counts_once():
    mistakes = [Mistake(row % 90, "a", "b", confidence=row / 200) for row in range(120)]
    worst, wrong_N = worst_mistakes(iter(mistakes), 100)
    assert [one.confidence for one in worst] == [row / 200 for row in range(119, 69, -1)]
    assert wrong_N.sum() == 90


def test_mistakes_are_quoted_so_that_nothing_of_them_acts():
    """Texts of users went into Markdown as they were; a terminal acts on escapes."""
    examples = [{"text": "# <b>loud</b>\n\n```\nred \x1b[31m and \u202e turned ```\n| a | b |"}, {"text": "x" * 3000}]
    text = mistakes_markdown([Mistake(0, "a|b", "*c*", 0.99), Mistake(1, "a", "", 0.5)], 2, examples)
    assert "2 of 2 examples have a mistake" in text
    assert r"expected **a\|b**, answered **\*c\***, probability 0.990" in text and "answered **-**" in text
    quoted = text[text.index("0.990") :].splitlines()[2:7]
    assert quoted[0] == "    # <b>loud</b>" and all(line.startswith("    ") for line in quoted)
    assert "\x1b" not in text and "\u202e" not in text
    assert max(map(len, text.splitlines())) < 1100 and text.count("x") < 1020


def test_mistake_may_show_another_text_than_that_of_its_example():
    assert "\n    the marked part\n" in mistakes_markdown(
        [Mistake(0, "a", "b", 1, "the marked part")], 1, [{"text": "x"}]
    )


def test_slices_have_the_share_of_wrong_examples_with_its_interval():
    wrong_N = np.array([True] * 15 + [False] * 15 + [True] * 3 + [False] * 27 + [True])
    table = slices_table({"label": ["a"] * 30 + ["b"] * 30 + ["rare"]}, wrong_N)
    assert "19 of 61 examples have a mistake (31.1%)" in table
    assert "| label | a | 50.0% | 31.3% to 68.7% | 30 |" in table and "| label | b | 10.0% |" in table
    assert "rare" not in table  # one example
    assert slices_table({"label": ["a"] * 61}, wrong_N) == ""  # one part is no part


def test_slices_of_texts_are_length_negation_digits_and_capitals():
    texts = ["it is not bad", "it isn\u2019t bad", "a notable film", "7 of 10", "GREAT film", "a USA film", ""] * 3
    found = slices_of(TableRows(pa.table({"text": texts, "id": texts})))
    assert set(found) == {"words", "negation (English)", "digits", "word in capitals"}
    assert found["negation (English)"][:7] == ["yes", "yes", "no", "no", "no", "no", "no"]
    assert found["digits"][:7] == ["no"] * 3 + ["yes"] + ["no"] * 3
    assert found["word in capitals"][:7] == ["no"] * 4 + ["yes", "yes", "no"]


def test_slices_are_in_the_order_of_their_numbers():
    table = slices_table(
        {"words": ["11 to 900"] * 20 + ["9 to 10"] * 20 + ["1,000 to 2,000"] * 20}, np.arange(60) < 5
    )
    assert [line.split("|")[2].strip() for line in table.splitlines()[-3:]] == [
        "9 to 10",
        "11 to 900",
        "1,000 to 2,000",
    ]


def test_slices_are_columns_with_few_texts():
    table = pa.table(
        {
            "text": [str(i) for i in range(50)],
            "label": ["a", "b"] * 25,
            "question": [f"what is {i}?" for i in range(50)],
            "size": list(range(50)),
            "split": ["test", "train"] * 25,
        }
    )
    assert slices_of(TableRows(table))["label"] == ["a", "b"] * 25
    assert not {"question", "size", "split"} & set(slices_of(TableRows(table)))


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        (range(1, 13), ["1 to 3"] * 3 + ["4 to 6"] * 3 + ["7 to 9"] * 3 + ["10 to 12"] * 3),
        ([5] * 8, ["5 to 5"] * 8),
        ([], []),
    ],
)
def test_quarters_of_lengths(lengths, expected):
    assert quarters(np.array(lengths, int)) == expected


def test_mistakes_of_an_evaluation_without_any_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no mistakes.md: the kind of task lists no mistakes"):
        read_mistakes(tmp_path)
    (tmp_path / FILE).write_text("# x")
    assert read_mistakes(tmp_path) == "# x"
