"""The rules: a text for every reason, each limit at its edge, and mistakes in a config named."""

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from pipeline.corpus.collect.source_rules import RULE_SETS, SourceRules
from pipeline.corpus.filter.rules import FilterConfig, FilterRecipe, as_datatrove, judge, rules_of
from pipeline.corpus.signals.pii import PII_KINDS
from pipeline.corpus.signals.stage import signals_of
from pipeline.defs.run_config import ConfigFile, asset_config

GOOD = (
    "The miller carried the grain to the mill, and the wheel turned with the water.\n"
    "At noon his daughter brought bread that she had baked of last year's rye.\n"
    "They sat by the river, ate without a word, and listened to the old stones.\n"
    "Nobody remembered who had built the house, nor how its roof had once burned.\n"
    "In the evening the carts came down from the hills to be loaded with flour.\n"
)
WORDS = GOOD.split()
GERMAN = "Der M\u00fcller trug das Korn zur M\u00fchle, und das Rad drehte sich mit dem Wasser des Flusses.\n" * 5
TWICE = f"{GOOD.replace(chr(10), ' ')}\nAnd so it went, day by day: {GOOD.replace(chr(10), ' ')}"
BROKEN = {  # reason -> the limit that decides, the text
    "too_few_words": ("min_words", " ".join(WORDS[:20])),
    "too_many_words": ("max_words", GOOD * 3),
    "mean_word_length": ("max_mean_word_length", GOOD + "incomprehensibilities " * 70),
    "hash_ratio": ("max_hash_ratio", GOOD.replace("the ", "the # ").replace("a", "#a")),
    "ellipsis_ratio": ("max_ellipsis_ratio", GOOD.replace("the ", "the ... ").replace("a", "\u2026a")),
    "bullet_lines": ("max_bullet_line_fraction", "".join(f"- {line}\n" for line in GOOD.splitlines())),
    "ellipsis_lines": ("max_ellipsis_line_fraction", GOOD + "He ground on...\nShe waited...\nIt rained\u2026\n"),
    "few_alphabetic_words": ("min_alphabetic_word_fraction", GOOD + "12 34 " * 15),
    "few_stop_words": ("min_stop_words", "Millers grind grain; wheels turn; rivers flow south; bakers bake daily."),
    "duplicate_paragraphs": ("max_duplicate_paragraph_fraction", GOOD + "\n\nYes\n\nNo" * 4),
    "duplicate_paragraph_characters": ("max_duplicate_paragraph_characters", f"{GOOD}\n{GOOD}\n{GOOD}"),
    "duplicate_lines": ("max_duplicate_line_fraction", GOOD + "Yes.\nNo.\n" * 4),
    "duplicate_line_characters": ("max_duplicate_line_characters", GOOD * 2),
    "top_2_gram": ("max_top_2_gram", "grinding mill " * 9 + GOOD),
    "top_3_gram": ("max_top_3_gram", " ".join(f"grind the corn {word}" for word in WORDS)),
    "top_4_gram": ("max_top_4_gram", " ".join(f"go to mill now {word}" for word in WORDS)),
    **{f"duplicate_{n}_gram": (f"max_duplicate_{n}_gram", TWICE) for n in range(5, 11)},
    "c4_few_sentences": ("min_sentences", "The mill stands by the river. It grinds rye.\n"),
    "fineweb_terminal_lines": ("min_terminal_line_fraction", GOOD.replace(".\n", ",\n")),
    "fineweb_short_lines": ("max_short_line_fraction", "".join(f"The {word} turns.\n" for word in WORDS[:40])),
    "fineweb_repeated_lines": ("max_repeated_line_characters", GOOD * 2),
    "fineweb_newlines": ("max_newline_ratio", "".join(f"{word} goes on\n" for word in WORDS if word.isalpha())),
    "profane_words": ("max_profane_word_fraction", GOOD + "Fucking shit.\n"),
    "adult_words": ("max_adult_word_fraction", GOOD + "Porn and more porn.\n"),
}
LIMITS = {"max_profane_word_fraction": 0.01, "max_adult_word_fraction": 0.01, "max_words": 150}


def loosest(name: str) -> float | int:
    if name == "min_sentences":
        return 1
    return 0 if name.startswith("min_") else 1.0 if "fraction" in name or "characters" in name else 10**9


# every rule set judges, and no limit can be broken
LOOSE = FilterConfig(
    rules=RULE_SETS, **{f.name: loosest(f.name) for f in fields(FilterConfig) if f.name.startswith(("min_", "max_"))}
)


def verdict(text: str, cfg: FilterConfig, signals: dict[str, Any] | None = None) -> tuple[str | None, float]:
    """The first rule that `text` breaks, as `filter` asks it, with the value."""
    columns = {
        name: np.array([value]) for name, value in (signals_of(text) | (signals or {})).items() if name != "edits"
    }
    reasons, values = judge(columns, cfg, cfg.languages, cfg.rules)
    return reasons[0], float(values[0])


@pytest.mark.parametrize(("reason", "limit", "text"), [(reason, *rest) for reason, rest in BROKEN.items()])
def test_rules_text_beyond_one_limit_is_dropped_for_it(reason, limit, text):
    paper = LIMITS.get(limit, getattr(FilterConfig(), limit))
    assert verdict(text, replace(LOOSE, **{limit: paper}))[0] == reason


@pytest.mark.parametrize(("reason", "limit", "text"), [(reason, *rest) for reason, rest in BROKEN.items()])
def test_rules_limit_itself_is_kept_and_the_next_value_dropped(reason, limit, text):
    (rule,) = [rule for rule in rules_of(LOOSE, RULE_SETS) if rule.reason == reason]
    value = signals_of(text)[rule.signal]
    exact = replace(LOOSE, **{limit: value})
    assert verdict(text, exact)[0] is None
    beyond = np.nextafter(value, np.inf if limit.startswith("min_") else -np.inf)
    beyond = value + (1 if limit.startswith("min_") else -1) if isinstance(value, int) else float(beyond)
    assert verdict(text, replace(LOOSE, **{limit: beyond})) == (reason, value)


@pytest.mark.parametrize("rules", [("gopher_quality",), ("gopher_repetition",), ("c4",), ("fineweb",), RULE_SETS])
def test_rules_good_prose_breaks_none(rules):
    assert verdict(GOOD, FilterConfig(rules=rules))[0] is None
    assert verdict(GOOD, as_datatrove(rules=rules))[0] is None


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        ("c4_lorem_ipsum", GOOD + "Lorem ipsum dolor sit amet.\n"),
        ("c4_curly_bracket", GOOD + "The wheel is { round }.\n"),
    ],
)
def test_rules_of_c4_for_documents_have_no_limit(reason, text):
    assert verdict(text, LOOSE) == (reason, 1.0)
    assert verdict(text, replace(LOOSE, rules=("gopher_quality", "gopher_repetition", "fineweb")))[0] is None


def test_rules_of_c4_do_not_look_at_lines_that_c4_removes():
    text = GOOD + "Lorem ipsum\nvar javascript = { lorem }\n"
    assert verdict(text, LOOSE)[0] is None
    unterminated = GOOD + "Lorem ipsum dolor sit amet\n"
    assert verdict(unterminated, LOOSE)[0] == "c4_lorem_ipsum"
    assert verdict(unterminated, replace(LOOSE, terminal_punctuation=True))[0] is None


def test_rules_of_fineweb_judge_what_c4_leaves():
    menu = "".join(f"Menu {i}\n" for i in range(20))  # short lines without an end, of two words
    assert verdict(GOOD + menu, FilterConfig(rules=("fineweb",)))[0] == "fineweb_short_lines"
    assert verdict(GOOD + menu, FilterConfig(rules=("c4", "fineweb")))[0] is None


def test_rules_language_is_judged_after_few_words_and_whatever_the_sets():
    assert verdict(GERMAN, FilterConfig())[0] == "wrong_language"
    assert verdict(GERMAN, FilterConfig(rules=()))[0] == "wrong_language"
    assert verdict(GERMAN[:90], FilterConfig())[0] == "too_few_words"
    assert verdict(GERMAN, FilterConfig(rules=(), languages=("en", "de")))[0] is None
    assert verdict(GERMAN, FilterConfig(rules=(), languages=()))[0] is None


def test_rules_confidence_at_its_limit_is_kept_and_below_it_dropped():
    assert verdict(GOOD, FilterConfig(), {"language_confidence": 0.65})[0] is None
    assert verdict(GOOD, FilterConfig(), {"language_confidence": 0.649}) == ("wrong_language", 0.649)


def test_rules_stop_words_count_in_english_only_unless_told():
    german = " ".join(f"{line} {i}." for i, line in enumerate(GERMAN.split(".")))
    config = FilterConfig(rules=("gopher_quality",), languages=())
    assert verdict(german, config)[0] is None
    assert verdict(german, replace(config, stop_word_languages=()))[0] == "few_stop_words"


def test_rules_signs_count_as_words_only_when_told():
    code = "\n".join(f"{line} (a, b): [c]; (d), {i} + {i}." for i, line in enumerate(GOOD.splitlines()))
    assert verdict(code, FilterConfig())[0] is None
    assert verdict(code, FilterConfig(signs_are_words=True))[0] == "few_alphabetic_words"


def test_rules_unknown_language_of_toxicity_is_no_verdict():
    nothing = {"profane_word_fraction": np.nan, "adult_word_fraction": np.nan}
    assert verdict(GOOD, FilterConfig(max_profane_word_fraction=0.0, max_adult_word_fraction=0.0), nothing)[0] is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rules": ("gopher_qualty",)}, "rules is \\['gopher_qualty'\\], expected .* did you mean `gopher_quality`"),
        ({"pii": ("emial",)}, "pii is \\['emial'\\], expected a list with any of .*email.*; did you mean `email`"),
        ({"languages": ("english",)}, r"languages contains 'english', which is no .* did you mean 'en'\?"),
        ({"stop_word_languages": ("EN",)}, r"stop_word_languages contains 'EN'.* did you mean 'en'\?"),
        ({"min_words": 10, "max_words": 5}, "min_words=10 is above max_words=5"),
        ({"min_mean_word_length": 11.0}, "min_mean_word_length=11.0 is above max_mean_word_length=10.0"),
        ({"min_stop_words": 9}, "min_stop_words is 9, expected a whole number from 0 to 8"),
        ({"min_sentences": 0}, "min_sentences is 0, expected a whole number of at least 1"),
        *(
            ({f.name: value}, f"{f.name} is {value}, expected")
            for f in fields(FilterConfig)
            if f.name.startswith(("min_", "max_"))
            for value in (-0.5, *([1.5] if f.name.endswith(("_fraction", "_characters", "_confidence")) else []))
        ),
    ],
)
def test_rules_config_outside_its_range_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        FilterConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rules": ("c5",)}, r"rules is \['c5'\]"),
        ({"pii": ("e-mail",)}, "did you mean `email`"),
        ({"languages": ("",)}, "no language that can be detected"),
    ],
)
def test_rules_of_a_source_with_a_mistake_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SourceRules(**values)


def test_rules_of_a_source_stand_before_those_of_the_config():
    config = FilterConfig(rules=("c4",), languages=("en",))
    recipe = FilterRecipe(config=config, sources={"verse": SourceRules(rules=(), languages=(), pii=("email",))})
    assert (recipe.rules("verse"), recipe.languages("verse"), recipe.pii("verse")) == ((), (), ("email",))
    assert (recipe.rules("prose"), recipe.languages("prose"), recipe.pii("prose")) == (("c4",), ("en",), PII_KINDS)


def test_rules_config_becomes_a_run_config(tmp_path):
    file = ConfigFile(tmp_path / "config.toml", {"documents": {"filter": {"rules": ["c4"], "max_top_2_gram": 0.3}}})
    field = asset_config("documents", {"filter": FilterConfig}, file)
    assert field.default_value["filter"]["rules"] == ["c4"]
    with pytest.raises(ValueError, match=r"config.toml: \[documents.filter\]: rules is \['c5'\]"):
        asset_config(
            "documents", {"filter": FilterConfig}, replace(file, tables={"documents": {"filter": {"rules": ["c5"]}}})
        )
