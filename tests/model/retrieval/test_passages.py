"""Passages: nothing of a text is lost, none is too long, and they follow its structure."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from model.data.tokenizer import load_tokenizer
from model.retrieval.passages import cut
from model.retrieval.sentences import sentence_spans

LINES = (
    *("# Mill", "## Stones ##", "Title\n=====", "- wheat", "  - rye\n    and oats", "3. oats", "~~~", "| a | b |"),
    *("```python\n# no heading\n```", "    indented", "GRINDING CORN", "2.3 Methods", "Chapter 4", "as follows:"),
    *("Corn is ground. It is sold! Is it 3.5 kg?", "A very long line " * 30, "x" * 300, "", "", " \t"),
    *("\u7c89\u3092\u3072\u304f\u3002\u58f2\u308b\u3002", "e\u0301\U0001f642"),
)
TEXTS = st.lists(st.one_of(st.sampled_from(LINES), st.text(max_size=30)), max_size=25).map("\n".join)


def n_words(text: str) -> int:
    return len(text.split())


def passages(text: str, most: int = 20) -> list[tuple[str, tuple[str, ...]]]:
    return [(text[start:end], headings) for start, end, headings in cut(text, n_words, most)]


law = settings(max_examples=150, deadline=None)


@example("x" * 1000, 3)
@example("a b c d e", 1)  # cut at single characters, with white space where a part begins
@law
@given(TEXTS, st.integers(1, 40))
def test_passages_lose_nothing_but_white_space_and_keep_to_their_length(text, most):
    last = 0
    for start, end, headings in cut(text, n_words, most):
        assert last <= start < end and not text[last:start].strip()
        assert n_words(text[start:end]) <= most and end - start < 16 * (most + 1)
        assert not text[start].isspace() and not text[end - 1].isspace()
        assert all(" ".join(heading.split()) in " ".join(text.split()) for heading in headings)
        last = end
    assert not text[last:].strip()


@law
@given(TEXTS)
def test_sentences_lose_nothing_but_white_space(text):
    last = 0
    for start, end in sentence_spans(text):
        assert last <= start < end and not text[last:start].strip()
        last = end
    assert not text[last:].strip()


def test_passages_of_a_real_tokenizer_have_at_most_its_tokens(trained_encoder):
    tokenizer = load_tokenizer(trained_encoder / "tokenizer")
    text = "\n\n".join(
        f"## Part {n}\n\nthe mill grinds {n} tons of corn a day. it's old.\n\n- one\n- two" for n in range(9)
    )
    for start, end, _ in cut(text, lambda part: len(tokenizer.encode(part)), 30):
        assert len(tokenizer.encode(text[start:end])) <= 30


def test_passages_stand_under_their_headings():
    body = "Corn. " * 15
    text = f"# Manual\n\n{body}\n\n## Stones\n\n{body}\n\n### Old\n\n{body}\n\n## Belts\n\n{body}"
    assert [headings for _, headings in passages(text)] == [
        ("Manual",),
        ("Manual", "Stones"),
        ("Manual", "Stones", "Old"),
        ("Manual", "Belts"),
    ]


def test_headings_without_marks_count_only_where_no_heading_has_one():
    body = "Corn is ground. " * 5
    plain = f"CHAPTER I.\n\nTHE OLD MILL\n\n{body}\n\n1. Stones\n\n{body}\n\n1.1 Their age\n\n{body}"
    assert [headings for _, headings in passages(plain)] == [
        ("CHAPTER I.", "THE OLD MILL"),
        ("1. Stones",),
        ("1. Stones", "1.1 Their age"),
    ]
    assert [headings for _, headings in passages(f"# Mill\n\n{plain}", 200)] == [("Mill",)]


def test_headings_are_found_under_lines_and_not_in_code():
    body = "Corn is ground here. " * 4
    text = f"Mill\n====\n\n{body}\n\n```\n# a comment\n\nx = 1\n```\n\nStones\n---\n\n{body}"
    assert passages(text)[0][1] == ("Mill",)
    assert passages(text)[-1][1] == ("Mill", "Stones")
    assert not any("a comment" in headings for _, headings in passages(text))


def test_small_paragraphs_and_sections_are_joined_up_to_the_size():
    text = "# A\n\none two\n\nthree four\n\n## B\n\nfive\n\n## C\n\nsix"
    assert passages(text) == [(text, ("A",))]


def test_lists_and_code_stay_whole_where_they_fit_and_are_divided_at_their_parts():
    items = "\n".join(f"- item {n} is here" for n in range(4))
    code = "```\nfor x in y:\n    print(x)\n\ndone\n```"
    text = f"{'Word ' * 14}\n\n{items}\n\n{'Word ' * 14}\n\n{code}"
    assert {items, code} <= {part for part, _ in passages(text)}
    longer = "\n".join(f"- item {n} is here now" for n in range(9))
    assert all(part.startswith("- item") for part, _ in passages(longer))


def test_headings_and_announcements_stay_with_what_follows():
    text = f"{'Word ' * 17}\n\n# Steps\n\nDo as follows:\n\n- grind it well\n- sell it\n- buy corn again"
    assert passages(text)[-1][0].startswith("# Steps\n\nDo as follows:\n\n- grind")


def test_passages_of_a_section_are_of_about_equal_length():
    text = "\n\n".join("one two three" for _ in range(7))  # 21 words: not 18 and 3
    assert [n_words(part) for part, _ in passages(text)] == [12, 9]


def test_texts_without_words_have_no_passages():
    assert not cut("", n_words, 5) and not cut(" \n\t\n\u3000", n_words, 5)


def test_passages_of_no_tokens_are_refused():
    with pytest.raises(ValueError, match="most_tokens=0 must be at least 1"):
        cut("a", n_words, 0)
    with pytest.raises(ValueError, match="'a' alone has more tokens"):
        cut("abc", lambda text: 2 * len(text), 1)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Dr. Mill came. He left!", ["Dr. Mill came.", "He left!"]),
        ("See e.g. fig. 2. It (the mill) is 3.5 m.", ["See e.g. fig. 2.", "It (the mill) is 3.5 m."]),
        ("\u201cGood.\u201d Yes", ["\u201cGood.\u201d", "Yes"]),
        ("J. Doe etc. went... and came.", ["J. Doe etc. went... and came."]),
        ("\u7c89\u3067\u3059\u3002\u58f2\u308b\u3002", ["\u7c89\u3067\u3059\u3002", "\u58f2\u308b\u3002"]),
        ("Title\n\nText\ngoes.\n1. Grind.\n2. Sell.", ["Title", "Text\ngoes.", "1. Grind.", "2. Sell."]),
    ],
)
def test_sentences_end_where_a_reader_ends_them(text, sentences):
    assert [text[start:end] for start, end in sentence_spans(text)] == sentences
