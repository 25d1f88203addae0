"""Words: split as datatrove's filters see them, never lost, whatever stands in a text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.corpus import words as words_module
from pipeline.corpus.word_splitting import split_chunk
from pipeline.corpus.words import ALPHABETIC, END, PUNCTUATION, SIGN, STOP, words_of


@pytest.mark.parametrize(
    ("chunk", "words"),
    [
        ("mill", "mill"),
        ("mill,", "mill ,"),
        ('("mill")', '( " mill " )'),
        ("mill...", "mill ..."),
        ("mill\u2026and", "mill \u2026 and"),
        ("don't", "do n't"),
        ("Couldn\u2019t", "Could n\u2019t"),
        ("they'd've", "they 'd 've"),
        ("miller's", "miller 's"),
        ("its", "its"),
        ("cannot", "can not"),
        ("well-known", "well - known"),
        ("1990-2020", "1990 - 2020"),
        ("either/or", "either / or"),
        ("and/or", "and/or"),
        ("end.Start", "end . Start"),
        ("mill.example.org", "mill.example.org"),
        ("https://mill.example/a?b=c", "https://mill.example/a?b=c"),
        ("anna@mill.example", "anna@mill.example"),
        ("U.S.", "U.S."),
        ("USA.", "USA ."),
        ("z.B.", "z. B."),
        ("e.g.", "e.g."),
        ("Mr.", "Mr."),
        ("10km", "10 km"),
        ("50%", "50 %"),
        ("$5", "$ 5"),
        ("3,000.5", "3,000.5"),
        ("9am", "9 am"),
        ("f(x):", "f(x ):"),
        ("**kw", "* * kw"),
        (":-)", ":-)"),
        ("--", "--"),
        ("\u4e2d\u6587\u3002", "\u4e2d\u6587 \u3002"),
        ("\u00abmoulin\u00bb", "\u00ab moulin \u00bb"),
    ],
)
def test_words_of_a_chunk(chunk, words):
    assert split_chunk(chunk) == words.split()


@given(st.text(st.characters(exclude_categories=("Zs", "Zl", "Zp", "Cc", "Cs")), min_size=1, max_size=30))
def test_words_of_any_chunk_are_the_chunk(chunk):
    parts = split_chunk(chunk)
    assert "".join(parts) == chunk and all(parts)


@given(st.lists(st.text("ab.,'-():/1s ", min_size=1, max_size=20), max_size=10))
def test_words_of_a_text_are_those_of_its_chunks(texts):
    chunks = " ".join(texts).split()
    expected = [(part, i) for i, chunk in enumerate(chunks) for part in split_chunk(chunk)]
    words = words_of(chunks)
    assert words.lengths.tolist() == [len(part) for part, _ in expected]
    assert words.chunks.tolist() == [i for _, i in expected]
    names = dict(zip(words.ids.tolist(), (part for part, _ in expected), strict=True))
    assert [names[number] for number in words.ids.tolist()] == [part for part, _ in expected]
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("mill", ALPHABETIC),
        ("the", ALPHABETIC | STOP),
        ("The", ALPHABETIC),
        ("12", 0),
        (".", SIGN | END | PUNCTUATION),
        ("\u3002", SIGN | END | PUNCTUATION),
        ("\u061e", SIGN | END | PUNCTUATION),
        (",", SIGN | PUNCTUATION),
        ("-", SIGN | PUNCTUATION),
        ("=", SIGN),
        ("\u2022", PUNCTUATION),  # a bullet is a word by datatrove
    ],
)
def test_words_have_kinds(word, kind):
    assert words_of([word]).kinds.tolist() == [kind]


def test_words_do_not_depend_on_what_was_met_before(monkeypatch):
    chunks = ["The", "mill's", "wheel", "(of", "wood)", "turns."]
    first = words_of(chunks)
    monkeypatch.setattr(words_module, "MOST_CHUNKS", 1)  # the memory begins anew
    words_of(["other", "words", "first"])
    again = words_of(chunks)
    assert again.lengths.tolist() == first.lengths.tolist() and again.kinds.tolist() == first.kinds.tolist()
    assert [a == b for a in first.ids for b in first.ids] == [a == b for a in again.ids for b in again.ids]


def test_words_of_nothing_are_none():
    assert words_of([]).ids.tolist() == []
