"""The quality rules of Gopher, C4 and FineWeb, with their published thresholds, applied to the columns of `signals`.

In: FilterConfig, the settings of single sources (SourceRules), and columns of records.SIGNALS. Out: for every row the
first rule that it breaks, with the value that broke it.

- gopher_quality, gopher_repetition: arXiv:2112.11446, section A.1.1 and table A1
- c4: arXiv:1910.10683, section 2.2; its line rules are edits, which stage.py applies
- fineweb: arXiv:2406.17557, section 3.5 and appendix E
Limits on language, profane and adult words apply whatever the rule sets are, if they are set.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge, Le

from pipeline.corpus.collect.source_rules import RULE_SETS, RuleSet, SourceRules, check_languages
from pipeline.corpus.signals.pii import PII_KINDS, PiiKind
from pipeline.store.settings import Count, Fraction, Natural, OptionalFraction, check_values
from pipeline.store.store import AS_SET

Ratio = Annotated[float, Ge(0)]
WITHOUT_SPACES = ("dz", "ja", "km", "lo", "my", "th", "wuu", "yue", "zh")  # their words are counted by an estimate
WITHOUT_FULL_STOPS = ("lo", "th")
SPACED_BY_SYLLABLE = ("vi",)  # what is between spaces is a syllable, 3.2 letters long


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterConfig:
    """Settings of `filter`. A document whose value is equal to a limit is kept."""

    rules: Annotated[tuple[RuleSet, ...], "Sets of rules that judge every document; an empty list applies none."] = (
        field(default=("gopher_quality", "gopher_repetition"), metadata=AS_SET)
    )
    languages: Annotated[tuple[str, ...], "ISO 639-1 codes of the languages to keep; an empty list keeps all."] = (
        field(default=("en",), metadata=AS_SET)
    )
    min_language_confidence: Annotated[
        Fraction, "Smallest allowed probability of the detected language (FineWeb uses 0.65, with another detector)."
    ] = 0.65
    pii: Annotated[
        tuple[PiiKind, ...], "Kinds of personal data to mask; an empty list masks none. See docs/data.md."
    ] = field(default=PII_KINDS, metadata=AS_SET)
    max_profane_word_fraction: Annotated[
        OptionalFraction, "Largest allowed fraction of profane words; without a value there is no limit."
    ] = None
    max_adult_word_fraction: Annotated[
        OptionalFraction, "Largest allowed fraction of sexually explicit words; without a value there is no limit."
    ] = None

    min_words: Annotated[
        Natural, "Smallest allowed number of words per document, not counting punctuation (Gopher uses 50)."
    ] = 50
    max_words: Annotated[
        Natural,
        "Largest allowed number of words per document, not counting punctuation. Gopher uses"
        " 100,000, but whole books are"
        " longer.",
    ] = 1_000_000
    min_mean_word_length: Annotated[Ratio, "Smallest allowed mean word length in characters (Gopher uses 3)."] = 3.0
    max_mean_word_length: Annotated[Ratio, "Largest allowed mean word length in characters (Gopher uses 10)."] = 10.0
    max_hash_ratio: Annotated[Ratio, "Largest allowed number of hash signs per word (Gopher uses 0.1)."] = 0.1
    max_ellipsis_ratio: Annotated[Ratio, "Largest allowed number of ellipses per word (Gopher uses 0.1)."] = 0.1
    max_bullet_line_fraction: Annotated[
        Fraction, "Largest allowed fraction of lines that begin with a bullet (Gopher uses 0.9)."
    ] = 0.9
    max_ellipsis_line_fraction: Annotated[
        Fraction, "Largest allowed fraction of lines that end in an ellipsis (Gopher uses 0.3)."
    ] = 0.3
    min_alphabetic_word_fraction: Annotated[
        Fraction, "Smallest allowed fraction of words that contain a letter (Gopher uses 0.8)."
    ] = 0.8
    signs_are_words: Annotated[
        bool,
        "Whether punctuation marks count as words for min_alphabetic_word_fraction. datatrove counts them, but most"
        " technical manuals are then dropped.",
    ] = False
    min_stop_words: Annotated[
        int,
        Ge(0),
        Le(8),
        "Smallest allowed number of Gopher's eight English stop words that must occur (Gopher uses 2).",
    ] = 2
    stop_word_languages: Annotated[
        tuple[str, ...],
        "ISO 639-1 codes of the languages in which stop words are required; an empty list requires them in all"
        " languages, as datatrove does.",
    ] = field(default=("en",), metadata=AS_SET)

    max_duplicate_line_fraction: Annotated[
        Fraction, "Largest allowed fraction of lines that repeat an earlier line (Gopher uses 0.3)."
    ] = 0.3
    max_duplicate_paragraph_fraction: Annotated[
        Fraction, "Largest allowed fraction of paragraphs that repeat an earlier paragraph (Gopher uses 0.3)."
    ] = 0.3
    max_duplicate_line_characters: Annotated[
        Fraction, "Largest allowed fraction of characters in lines that repeat an earlier line (Gopher uses 0.2)."
    ] = 0.2
    max_duplicate_paragraph_characters: Annotated[
        Fraction, "Largest allowed fraction of characters in paragraphs that repeat an earlier one (Gopher uses 0.2)."
    ] = 0.2
    max_top_2_gram: Annotated[
        Ratio,
        "Largest allowed ratio of characters in the most frequent word 2-gram to all characters (Gopher uses 0.2).",
    ] = 0.2
    max_top_3_gram: Annotated[
        Ratio,
        "Largest allowed ratio of characters in the most frequent word 3-gram to all characters (Gopher uses 0.18).",
    ] = 0.18
    max_top_4_gram: Annotated[
        Ratio,
        "Largest allowed ratio of characters in the most frequent word 4-gram to all characters (Gopher uses 0.16).",
    ] = 0.16
    max_duplicate_5_gram: Annotated[
        Ratio, "Largest allowed ratio of characters in repeated word 5-grams to all characters (Gopher uses 0.15)."
    ] = 0.15
    max_duplicate_6_gram: Annotated[
        Ratio, "Largest allowed ratio of characters in repeated word 6-grams to all characters (Gopher uses 0.14)."
    ] = 0.14
    max_duplicate_7_gram: Annotated[
        Ratio, "Largest allowed ratio of characters in repeated word 7-grams to all characters (Gopher uses 0.13)."
    ] = 0.13
    max_duplicate_8_gram: Annotated[
        Ratio, "Largest allowed ratio of characters in repeated word 8-grams to all characters (Gopher uses 0.12)."
    ] = 0.12
    max_duplicate_9_gram: Annotated[
        Ratio, "Largest allowed ratio of characters in repeated word 9-grams to all characters (Gopher uses 0.11)."
    ] = 0.11
    max_duplicate_10_gram: Annotated[
        Ratio, "Largest allowed ratio of characters in repeated word 10-grams to all characters (Gopher uses 0.1)."
    ] = 0.1

    min_sentences: Annotated[
        Count, "Smallest number of sentences that rule set `c4` must leave in a document (C4 uses 5)."
    ] = 5
    terminal_punctuation: Annotated[
        bool,
        "Whether rule set `c4` removes lines that do not end in a period, question mark, exclamation mark or"
        " quotation mark (C4 does, FineWeb does not).",
    ] = False

    min_terminal_line_fraction: Annotated[
        Fraction, "Rule set `fineweb`: smallest allowed fraction of lines that end a sentence (FineWeb uses 0.12)."
    ] = 0.12
    max_short_line_fraction: Annotated[
        Fraction,
        "Rule set `fineweb`: largest allowed fraction of lines of at most 30 characters (FineWeb uses 0.67).",
    ] = 0.67
    max_repeated_line_characters: Annotated[
        Fraction, "Rule set `fineweb`: largest allowed fraction of characters in repeated lines (FineWeb uses 0.01)."
    ] = 0.01
    max_newline_ratio: Annotated[
        Ratio, "Rule set `fineweb`: largest allowed number of line breaks per word (FineWeb uses 0.3)."
    ] = 0.3

    def __post_init__(self) -> None:
        check_values(self)
        check_languages("languages", self.languages)
        check_languages("stop_word_languages", self.stop_word_languages)
        for low, high in (("min_words", "max_words"), ("min_mean_word_length", "max_mean_word_length")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(f"{low}={getattr(self, low)} is above {high}={getattr(self, high)}")


def as_datatrove(**changes: Any) -> FilterConfig:
    """The settings under which the rule sets decide like the filters of datatrove 0.10.1, whatever the language."""
    theirs = {"languages": (), "max_words": 100_000, "signs_are_words": True, "stop_word_languages": ()}
    return FilterConfig(**{**theirs, "rules": RULE_SETS, **changes})


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterRecipe:
    """Everything that determines the output of `filter`; `sources` has only sources with settings of their own."""

    config: FilterConfig
    sources: Mapping[str, SourceRules] = field(default_factory=dict)

    def languages(self, source: str) -> tuple[str, ...]:
        own = self.sources.get(source, SourceRules()).languages
        return self.config.languages if own is None else own

    def rules(self, source: str) -> tuple[str, ...]:
        own = self.sources.get(source, SourceRules()).rules
        return self.config.rules if own is None else own

    def pii(self, source: str) -> tuple[str, ...]:
        own = self.sources.get(source, SourceRules()).pii
        return self.config.pii if own is None else own


@dataclass(frozen=True, slots=True)
class Rule:
    """Broken by a value of `signal` below `low` or above `high`; a null value breaks no rule.

    It judges documents of `languages` (empty = all) except `unsuited`, the languages that it can't judge.
    """

    reason: str
    signal: str
    low: float | None = None
    high: float | None = None
    languages: tuple[str, ...] = ()
    unsuited: tuple[str, ...] = ()


def rules_of(cfg: FilterConfig, sets: Iterable[str]) -> list[Rule]:
    """The rules of `sets` in the order in which they are applied."""
    wanted = set(sets)
    c4_lines = "c4_terminated_" if cfg.terminal_punctuation else "c4_"
    lines = c4_lines if "c4" in wanted else ""  # FineWeb judges what C4 leaves
    by_set = {
        "gopher_quality": _gopher_quality(cfg),
        "gopher_repetition": _gopher_repetition(cfg),
        "c4": [
            Rule("c4_lorem_ipsum", f"{c4_lines}lorem_ipsum_lines", high=0),
            Rule("c4_curly_bracket", f"{c4_lines}curly_bracket_lines", high=0),
            Rule("c4_few_sentences", f"{c4_lines}sentences", low=cfg.min_sentences, unsuited=WITHOUT_FULL_STOPS),
        ],
        "fineweb": [
            Rule(
                "fineweb_terminal_lines",
                f"{lines}terminal_line_fraction",
                low=cfg.min_terminal_line_fraction,
                unsuited=WITHOUT_FULL_STOPS,
            ),
            Rule("fineweb_short_lines", f"{lines}short_line_fraction", high=cfg.max_short_line_fraction),
            Rule("fineweb_repeated_lines", f"{lines}repeated_line_characters", high=cfg.max_repeated_line_characters),
            Rule("fineweb_newlines", f"{lines}newline_ratio", high=cfg.max_newline_ratio),
        ],
    }
    return [
        *(rule for name in RULE_SETS if name in wanted for rule in by_set[name]),
        Rule("profane_words", "profane_word_fraction", high=cfg.max_profane_word_fraction),
        Rule("adult_words", "adult_word_fraction", high=cfg.max_adult_word_fraction),
    ]


def _gopher_quality(cfg: FilterConfig) -> list[Rule]:
    unit = "word" if cfg.signs_are_words else "chunk"
    return [
        Rule("too_few_words", "n_words", low=cfg.min_words),
        Rule("too_many_words", "n_words", high=cfg.max_words),
        Rule(
            "mean_word_length",
            "mean_word_length",
            cfg.min_mean_word_length,
            cfg.max_mean_word_length,
            unsuited=(*WITHOUT_SPACES, *SPACED_BY_SYLLABLE),
        ),
        Rule("hash_ratio", "hash_ratio", high=cfg.max_hash_ratio),
        Rule("ellipsis_ratio", "ellipsis_ratio", high=cfg.max_ellipsis_ratio),
        Rule("bullet_lines", "bullet_line_fraction", high=cfg.max_bullet_line_fraction),
        Rule("ellipsis_lines", "ellipsis_line_fraction", high=cfg.max_ellipsis_line_fraction),
        Rule("few_alphabetic_words", f"alphabetic_{unit}_fraction", low=cfg.min_alphabetic_word_fraction),
        Rule("few_stop_words", "n_stop_words", low=cfg.min_stop_words, languages=cfg.stop_word_languages),
    ]


def _gopher_repetition(cfg: FilterConfig) -> list[Rule]:
    return [
        Rule("duplicate_paragraphs", "duplicate_paragraph_fraction", high=cfg.max_duplicate_paragraph_fraction),
        Rule(
            "duplicate_paragraph_characters",
            "duplicate_paragraph_characters",
            high=cfg.max_duplicate_paragraph_characters,
        ),
        Rule("duplicate_lines", "duplicate_line_fraction", high=cfg.max_duplicate_line_fraction),
        Rule("duplicate_line_characters", "duplicate_line_characters", high=cfg.max_duplicate_line_characters),
        *(Rule(f"top_{n}_gram", f"top_{n}_gram", high=getattr(cfg, f"max_top_{n}_gram")) for n in (2, 3, 4)),
        *(
            Rule(f"duplicate_{n}_gram", f"duplicate_{n}_gram", high=getattr(cfg, f"max_duplicate_{n}_gram"))
            for n in range(5, 11)
        ),
    ]


def unjudged(cfg: FilterConfig, sets: Iterable[str], languages: Iterable[str]) -> dict[str, list[str]]:
    """Rule -> those of `languages` that it can't judge, so that it keeps their documents."""
    wanted = set(languages)
    found = {
        rule.reason: sorted(wanted - set(rule.languages) if rule.languages else wanted & set(rule.unsuited))
        for rule in rules_of(cfg, sets)
    }
    return {reason: own for reason, own in found.items() if own}


def judge(
    columns: Mapping[str, np.ndarray], cfg: FilterConfig, languages: tuple[str, ...], sets: Iterable[str]
) -> tuple[np.ndarray, np.ndarray]:
    """(reason or None, value) of every row, by the first rule that it breaks.

    The minimum of words comes first, because few words do not show a language; then the language, then the others.
    """
    rules = rules_of(cfg, sets)
    verdicts = [(rule.reason, _broken(rule, columns), columns[rule.signal]) for rule in rules]
    if languages:
        confidence = columns["language_confidence"]
        sure = np.isin(columns["language"], languages) & (confidence >= cfg.min_language_confidence)
        verdicts.insert(int(rules[0].reason == "too_few_words"), ("wrong_language", ~sure, confidence))
    n_rows = len(columns["language"])
    reasons, values = np.full(n_rows, None, dtype=object), np.full(n_rows, np.nan)
    for reason, broken, value in reversed(verdicts):  # reversed, so that the first broken rule is written last
        reasons[broken] = reason
        values[broken] = value[broken]
    return reasons, values


def _broken(rule: Rule, columns: Mapping[str, np.ndarray]) -> np.ndarray:
    value = columns[rule.signal]
    broken = np.zeros(len(value), dtype=bool)
    if rule.low is not None:
        broken |= value < rule.low
    if rule.high is not None:
        broken |= value > rule.high
    if rule.languages:
        broken &= np.isin(columns["language"], rule.languages)
    return broken & ~np.isin(columns["language"], rule.unsuited) if rule.unsuited else broken
