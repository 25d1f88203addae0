"""Which passage a sentence rests on: words, numbers and names that it contains."""

import pytest

from model.retrieval.citations import Citing, Source, marked, numbers_in, without_marks

SOURCES = [
    Source("Stones", "The stones weigh 1,200 kg each. They were cut in 1873 by Ann Miller."),
    Source("Belts", "Belts of leather drive the sieves. A worn belt is replaced in spring."),
]
QUESTION = "What do the stones of the mill weigh?"


def citing(question: str = QUESTION) -> Citing:
    return Citing(question, SOURCES, lambda term: 0.1 if term in ("the", "of", "a", "in") else 2.0, "prefix")


@pytest.mark.parametrize(
    ("sentence", "source", "says"),
    [
        ("The stones weigh 1200 kg.", 0, "The stones weigh 1,200 kg each."),
        ("They weigh 1,200 kg each", 0, "The stones weigh 1,200 kg each."),
        ("They were cut by Ann Miller.", 0, "They were cut in 1873 by Ann Miller."),
        ("Worn belts are replaced in spring.", 1, "A worn belt is replaced in spring."),
        ("1873.", 0, "They were cut in 1873 by Ann Miller."),
        ("Belts drive sieves.", 1, "Belts of leather drive the sieves."),
    ],
)
def test_supported_sentences_rest_on_the_sentence_that_says_it(sentence, source, says):
    support = citing().support(sentence)
    assert support is not None and support.source == source and support.share >= 0.6
    assert SOURCES[source].text[support.start : support.end] == says


@pytest.mark.parametrize(
    "sentence",
    [
        "The stones weigh 1,300 kg.",
        "The stones weigh 12 kg.",
        "They were cut by Ann Baker.",
        "They were cut by John Miller in 1873.",
        "The river turns a wheel.",
        "Yes.",
        "According to the passage, yes.",
        "...",
        "",
        "1873 belts were replaced in spring.",
    ],
)
def test_sentences_with_other_numbers_names_or_words_are_not_supported(sentence):
    assert citing().support(sentence) is None


def test_words_of_the_question_alone_do_not_support_an_answer():
    assert citing("Do the stones come from France?").support("The stones come from France.") is None
    assert citing("Were the stones cut?").support("The stones were cut.") is not None


def test_own_marks_of_a_decoder_are_taken_out():
    assert without_marks("They weigh 1,200 kg [2]. See [1, 3] and passage 2.") == "They weigh 1,200 kg. See and ."
    first, second = citing().sentences("They weigh 1,200 kg [7]. It rains on Mars.")
    assert first.text == "They weigh 1,200 kg." and first.support is not None and first.support.source == 0
    assert second.support is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3.5 m.", "3.5 m [2]."), ("Why?!", "Why [2]?!"), ("open", "open [2]"), ("\u7c89\u3002", "\u7c89 [2]\u3002")],
)
def test_marks_stand_before_the_full_stop(text, expected):
    assert marked(text, 2) == expected


def test_numbers_are_compared_without_commas_of_thousands():
    assert numbers_in("1,200 and 3.5, 12,5 or 1,234,567.") == {"1200", "3.5", "12,5", "1234567"}
