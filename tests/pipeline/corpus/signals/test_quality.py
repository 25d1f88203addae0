"""Quality: the numbers of small texts, counted by hand, and the lines that C4 removes."""

import pytest

from pipeline.corpus.signals.quality import quality_signals
from pipeline.store.records import QUALITY_NUMBERS, QUALITY_RATIOS


def signals(text: str) -> dict[str, float]:
    return quality_signals(text)[0]


def test_quality_of_a_small_text():
    measured = signals("# The mill\n- Be quick and\n\n\u2022 turn 12 \u2026\n...")
    words = ["#", "The", "mill", "-", "Be", "quick", "and", "\u2022", "turn", "12", "\u2026", "..."]
    assert {name: measured[name] for name in list(measured)[:9]} == {
        "n_words": 8,  # all but # - \u2026 ...
        "mean_word_length": pytest.approx(
            sum(map(len, ["The", "mill", "Be", "quick", "and", "\u2022", "turn", "12"])) / 8
        ),
        "hash_ratio": 1 / len(words),
        "ellipsis_ratio": 2 / len(words),
        "bullet_line_fraction": 2 / 5,  # blank lines are lines
        "ellipsis_line_fraction": 2 / 5,
        "alphabetic_word_fraction": 6 / len(words),
        "alphabetic_chunk_fraction": 6 / len(words),
        "n_stop_words": 1,  # not `Be`, which is written large
    }


def test_quality_has_the_columns_of_the_records():
    assert set(signals("A mill.")) == {"n_words", *QUALITY_RATIOS, *QUALITY_NUMBERS}


def test_quality_alphabetic_words_count_signs_and_chunks_do_not():
    measured = signals("f(a, b): [c]")
    assert measured["alphabetic_chunk_fraction"] == 1.0
    assert measured["alphabetic_word_fraction"] == 3 / 7  # f(a , b ): [ c ]


def test_quality_of_lines_as_fineweb_counts_them():
    measured = signals("The wheel of the old mill turns with the water.\nMenu\n\nMenu\n")
    assert measured["terminal_line_fraction"] == 1 / 3
    assert measured["short_line_fraction"] == 2 / 3
    assert measured["repeated_line_characters"] == 4 / 55
    assert measured["newline_ratio"] == 4 / 13


@pytest.mark.parametrize(
    ("text", "n_sentences"),
    [
        ("One mill stands here. Two mills stand there.", 2),
        ("One mill stands here", 1),
        ('He said: "Go to the mill!" She went (alone).', 2),
        ("Mr. Miller, e.g. from the U.S., came at 3.5 miles.", 1),
        ("Is it so?! Yes it is... And then it went.", 2),
        ("Many words here. And\nmany words there. And more", 4),
        ("Too short.\nOne mill stands here.", 1),
    ],
)
def test_quality_sentences_are_counted_in_the_lines_that_stay(text, n_sentences):
    assert signals(text)["c4_sentences"] == n_sentences


@pytest.mark.parametrize(
    ("line", "stays"),
    [
        ("A line of five words.", True),
        ("Two words", False),
        ("", False),
        ("Please enable JavaScript to go on.", False),
        ("We use cookies to make it better.", False),
        ("See our Privacy Policy for all of it.", False),
        (f"A word of {'x' * 1000} characters.", True),
        (f"A word of {'x' * 1001} characters.", False),
    ],
)
def test_quality_lines_that_c4_removes_are_edits(line, stays):
    before, after = "The mill stands by the river.\n", "\nThe wheel turns and turns."
    _, edits = quality_signals(before + line + after)
    removed = [(start, end) for start, end, kind in edits if kind == "c4_line"]
    assert removed == ([] if stays else [(len(before), len(before) + len(line) + 1)])


def test_quality_neighbouring_lines_are_one_edit():
    text = "Menu\n\nHome\nThe mill stands by the river.\nShop\n"
    assert [text[start:end] for start, end, kind in quality_signals(text)[1]] == ["Menu\n\nHome\n", "Shop\n"]


def test_quality_unterminated_lines_and_citations_are_edits_of_their_own_kind():
    text = "The mill [12] stands there.[citation needed]\nIt has a wheel[edit]\n"
    found = [(kind, text[start:end]) for start, end, kind in quality_signals(text)[1]]
    assert found == [
        ("c4_citation", "[12]"),
        ("c4_citation", "[citation needed]"),
        ("c4_unterminated", "It has a wheel[edit]\n"),
        ("c4_citation", "[edit]"),
    ]


def test_quality_after_c4_is_that_of_the_text_that_c4_leaves():
    text = "Menu\nHome\nThe mill stands by the river.\nThe wheel of it turns and turns"
    measured, left = signals(text), signals("The mill stands by the river.\nThe wheel of it turns and turns")
    ended = signals("The mill stands by the river.")
    for name in ("terminal_line_fraction", "short_line_fraction", "repeated_line_characters", "newline_ratio"):
        assert (measured[f"c4_{name}"], measured[f"c4_terminated_{name}"]) == (left[name], ended[name])
