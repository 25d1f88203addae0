"""Sentences and the one that matches a question best."""

import pytest

from pipeline.evaluation.best_sentence import best_sentences, first_sentences, sentences_of

TEXT = 'Rome was built slowly. "Was it?" she asked.\nThe harbour of Genoa has 3.5 miles of quays! Ships come daily'


def test_sentences_cover_all_that_is_not_space_in_order():
    spans = sentences_of(TEXT)
    assert [TEXT[start:end] for start, end in spans] == [
        "Rome was built slowly.",
        '"Was it?"',
        "she asked.",
        "The harbour of Genoa has 3.5 miles of quays!",
        "Ships come daily",
    ]
    left = list(TEXT)
    for start, end in spans:
        left[start:end] = " " * (end - start)
    assert not "".join(left).strip()


@pytest.mark.parametrize(
    ("text", "n"), [("", 0), (" \n ", 0), ("one", 1), ("\u4f60\u597d\u3002\u518d\u89c1\u3002", 2)]
)
def test_sentences_of_odd_texts(text, n):
    assert len(sentences_of(text)) == n


def test_best_sentence_has_the_rare_words_of_the_question():
    questions = ["How long are the quays of the harbour?", "What was built?", "zzz"]
    answers = best_sentences([TEXT], questions, [TEXT] * 3)
    assert [answer["answer"][:4] for answer in answers] == ["The ", "Rome", "Rome"]  # the first one without a match
    for answer in answers:
        assert TEXT[answer["start"] : answer["end"]] == answer["answer"]


def test_best_sentence_questions_on_several_texts_keep_their_order():
    texts = [TEXT, "Cats sleep. Dogs bark.", TEXT, ""]
    questions = ["Who built Rome?", "Which animals bark?", "What do ships do daily?", "What?"]
    answers = best_sentences([TEXT], questions, texts)
    assert [answer["answer"] for answer in answers] == [
        "Rome was built slowly.",
        "Dogs bark.",
        "Ships come daily",
        "",
    ]
    assert [answer["answer"] for answer in first_sentences(texts)][1:] == [
        "Cats sleep.",
        "Rome was built slowly.",
        "",
    ]
