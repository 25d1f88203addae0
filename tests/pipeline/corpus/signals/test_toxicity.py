"""Profane and adult words: what is counted, what is not, and where there is no list."""

import time

import pytest

from pipeline.corpus.signals.toxicity import toxicity_signals


@pytest.mark.parametrize(
    ("text", "language", "profane", "adult"),
    [
        ("what a load of shit", "en", 1 / 5, 0),
        ("SHITTY, fucking place!", "en", 2 / 3, 0),
        ("this f***ing thing is f**king s**t", "en", 3 / 6, 0),
        ("watch free porn here", "en", 0, 1 / 4),
        ("a blow job scene", "en", 0, 2 / 4),
        ("so eine Schei\u00dfe", "de", 1 / 3, None),
        ("quel connard, enfoir\u00e9", "fr", 2 / 3, None),
        ("\u00a1mierda y joder!", "es", 2 / 3, None),
        ("", "en", 0, 0),
        ("... ---", "en", 0, 0),
    ],
)
def test_toxicity_signals_are_shares_of_the_words(text, language, profane, adult):
    signals = toxicity_signals(text, language)
    assert list(signals) == ["profane_word_fraction", "adult_word_fraction"]
    assert signals["profane_word_fraction"] == pytest.approx(profane)
    assert signals["adult_word_fraction"] == (None if adult is None else pytest.approx(adult))


@pytest.mark.parametrize(
    "text",
    [
        "The penis, the vagina and the anus; sexual intercourse and semen; breast cancer.",
        "She is a lesbian, he is gay, they are queer and bisexual; homosexuality and sexuality are studied.",
        "The rape trial; incest laws; a swastika on the wall; the sociology of pornography.",
        "An ass, a cock and two blue tits; Dick escorts the queen; butt joints, hardcore parking, Scunthorpe, Essex.",
        "Damn, that sucks. What the hell, crap.",
        "girl on the hill, tied up at work, how to kill a process, xxx, summa cum laude, classic assassin shitake",
        "def f(*args, **kwargs): return of**kwargs, f**kw, t*f**f***, 2*f*g, *s*, s*t",
        "a Wankel engine after the Slutsky equation",
    ],
)
def test_toxicity_signals_medicine_identity_law_and_mild_words_do_not_count(text):
    assert toxicity_signals(text, "en") == {"profane_word_fraction": 0, "adult_word_fraction": 0}


@pytest.mark.parametrize("language", ["und", "ja", "it", ""])
def test_toxicity_signals_language_without_a_list_has_none(language):
    assert toxicity_signals("shit porn", language) == {"profane_word_fraction": None, "adult_word_fraction": None}


def test_toxicity_signals_megabyte_of_first_words_of_phrases_costs_linear_time():
    start = time.thread_time()
    toxicity_signals("blow " * 100_000 + "job " * 100_000, "en")
    assert time.thread_time() - start < 10
