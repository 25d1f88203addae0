"""Finds phone numbers in a text.

In: a text. Out: (start, end) of each. A number is reported if it is in one of these forms: international
(+41 44 668 18 00) and possible; North American (201-555-0123); with a trunk zero or an area code in brackets, if
libphonenumber finds it valid in one of REGIONS; or seven to fifteen digits in any form next to a word such as "phone"
or "call". Dates, times, ISBNs, amounts and numbers introduced by a word such as "order" are not reported.
"""

import re
from collections.abc import Iterator

from pipeline.corpus.signals.pii_context import Match, clusters, digits_of, words_near, words_pattern

REGIONS = "US GB FR DE IT ES NL BE CH AT SE NO DK FI PL CZ PT IE AU NZ IN BR MX AR ZA JP KR CN TR GR IL RO HU"
STRONG_WORDS = words_pattern(
    "phone phones telephone tel telephones mobile cell cellphone fax whatsapp sms hotline helpline phone_number"
    " landline voicemail t\u00e9l t\u00e9l\u00e9phone telefon telefone tel\u00e9fono telefono telefoon telefonnummer"
    " handy mobil m\u00f3vil celular cellulare gsm rufnummer mobiltelefon puhelin telefonu mob"
)
WEAK_WORDS = words_pattern(
    "call calls called calling contact contacts reach reached dial dialed message messages"
    " registered answering numero num\u00e9ro n\u00famero nummer"
)
LABEL = re.compile(r"(?i)\b(?:office|desk|home|work|direct|line|number|private|business)[ ]?[:.#]?\s{0,3}\Z")
LABEL_AFTER = re.compile(r"(?i)[ -]{0,2}\(?(?:office|desk|home|work|direct|private|business)\b")
CALLED = re.compile(
    r"(?i)\b(?:call|dial|text|ring|reach|contact)(?: (?:me|us|him|her|them))?(?: (?:at|on|under))?[: ]{1,2}\Z"
)
NO_PHONE_WORDS = re.compile(
    r"(?i)\b(?:isbn|issn|doi|arxiv|pmid|order|invoice|ticket|bug|issue|rev(?:ision)?|version|commit|uuid|serial|tracking"
    r"|zip|postcode|port|pid|ean|upc|gtin|sku|part|model|item|case|ref(?:erence)?|article|account|acct|id|size|bytes"
    r"|line|lines|page|pages|pp|timestamp|since|until|date|year|years|rfc|iso|no|between|population|error|code|row"
    r"|rows|process|thread|total|sum|score|seed|hash|checksum|customer|booking|flight|lot|batch)\W{0,4}"
    r"(?:no|number|nr|num|id|#|is|of|-?1[03]|code)?\W{0,3}\Z"
)
DATE = re.compile(
    r"(?:1[0-9]|20)[0-9]{2}(?P<sep>[-./ ]?)(?:0?[1-9]|1[0-2])(?P=sep)(?:0?[1-9]|[12][0-9]|3[01])"
    r"(?:[ -.]+[0-9]{1,6}){0,2}"
    r"|(?:0?[1-9]|[12][0-9]|3[01])([-./])(?:0?[1-9]|[12][0-9]|3[01])\2(?:1[0-9]|20)?[0-9]{2}(?:[ -]+[0-9]{1,2})?"
    r"|(?:1[0-9]|20)[0-9]{2} ?[-/\u2013] ?(?:1[0-9]|20)[0-9]{2}"
)
SPLIT = re.compile(
    r"[ \u00a0]{2,}|(?<=[0-9]{4}) (?=\()| [-\u2013] |(?<=[0-9]{4}) / |\)[-.]?\("
    r"|(?<=[0-9])/(?=[0-9]{5,})|(?<=[0-9]{5})/(?=[0-9])"
)
NORTH_AMERICAN = re.compile(r"(?:1[-. ])?(?:\([2-9][0-9]{2}\)[ .-]?|[2-9][0-9]{2}([-.]))[0-9]{3}[-.][0-9]{4}")
EXTENSION = re.compile(r"(?:[ ,]{0,2}(?:x|ext\.?|extension|#)[ .:]?[0-9]{1,6})(?![\w])", re.IGNORECASE)
# a social security number that was never issued, an American postcode, a CVE, a date next to something else
OTHER = re.compile(
    r"[0-9]{3}-[0-9]{2}-[0-9]{4}|[0-9]{5}-[0-9]{4}|(?:19|20)[0-9]{2}-[0-9]{4,7}|.*\b(?:19|20)[0-9]{2}-[01][0-9]-[0-3][0-9]\b.*"
)
# A coordinate, also two of them in ISO 6709's notation, or another signed decimal. Registries of domains write phone
# numbers like that (RFC 5733, +1.2015550123), but with a word such as "phone" in front.
DECIMAL = re.compile(
    r"\+[0-9]+\.[0-9]{1,2}|\+[0-9]{1,6}\.[0-9]{3,}(?:[-+][0-9]{1,3}\.[0-9]+)?|(?:1?[0-9])?[0-9]\.[0-9]{5,}"
)
FLAT_ROW = re.compile(r"[0-9]{1,4}(?: [0-9]{1,4}){5,}")  # more likely a row of a table than a number
NO_NUMBER_BEFORE = re.compile(r"(?:[\w.$\u20ac\u00a3%^*<\[]|[\w][-/,+.(])\Z")
NEAREST = re.compile(r"[^0-9}\]);]*\Z")
MAX_PART = 40  # characters of the longest notation of fifteen digits


def phone_numbers(text: str) -> Iterator[Match]:
    for low, high in clusters(text):
        for start, end in _parts(text, low, high):
            if 7 <= sum(c in "0123456789" for c in text[start:end]) <= 17 and _is_phone(text, start, end):
                extension = EXTENSION.match(text, end)
                yield start, extension.end() if extension else end


def _parts(text: str, low: int, high: int) -> Iterator[Match]:
    """The parts of a cluster that can be one number each, with their plus sign and opening bracket."""
    at = low
    for gap in (*SPLIT.finditer(text, low, high), None):
        end = gap.start() if gap else high
        if end - at <= MAX_PART:
            yield _with_head(text, at, end)
        at = gap.end() if gap else high
        if gap and gap[0].endswith("("):
            at -= 1


def _with_head(text: str, start: int, end: int) -> Match:
    if start and text[start - 1] == "(" and ")" in text[start:end]:
        start -= 1
    if start and text[start - 1] == "+":
        start -= 1
    return start, end


def _is_phone(text: str, start: int, end: int) -> bool:
    number = text[start:end]
    before, after = text[max(0, start - 40) : start], text[end : end + 2]
    if _is_other_number(number, before, after):
        return False
    n_digits = len(digits_of(number))
    if DECIMAL.fullmatch(number):
        return _is_named(STRONG_WORDS, text, start, end) and n_digits <= 15
    if number[0] == "+":
        return _is_international(number, n_digits)
    if NORTH_AMERICAN.fullmatch(number):
        return not NO_PHONE_WORDS.search(before)
    if number.startswith("00") and _is_international("+" + number[2:].lstrip(" -."), n_digits - 2):
        return True
    if _is_named(STRONG_WORDS, text, start, end):
        return n_digits <= 15
    if NO_PHONE_WORDS.search(before) or FLAT_ROW.fullmatch(number):
        return False
    if _has_form_of_a_region(number, n_digits):
        return True
    if not words_near(WEAK_WORDS, text, start, end, before=40, after=0) and not (
        LABEL.search(before) or CALLED.search(before) or LABEL_AFTER.match(text, end)
    ):
        return False
    if not number.isdigit():
        return n_digits <= 15
    if 7 <= n_digits <= 9 and CALLED.search(before):
        return not number.endswith("000")
    return (number[0] == "0" and 9 <= n_digits <= 11) or (10 <= n_digits <= 12 and _is_valid_somewhere(number))


def _is_named(words: re.Pattern[str], text: str, start: int, end: int) -> bool:
    """Whether a word is next to the number. Before plain digits, no digit or closing bracket may be in between."""
    if not text[start:end].isdigit():
        return words_near(words, text, start, end, before=32, after=12)
    between = NEAREST.search(text, max(0, start - 32), start)
    return words_near(words, text, start, end, before=len(between[0]) if between else 0, after=12)


def _is_other_number(number: str, before: str, after: str) -> bool:
    if NO_NUMBER_BEFORE.search(before[-2:]) or DATE.fullmatch(number) or OTHER.fullmatch(number):
        return True
    if after[:1] in tuple("%\u00b0_$\u20ac") or (after[:1] in tuple(".,:-=") and after[1:].isdigit()):
        return True
    if after[:1].isalpha() and after[:1] not in "xe":
        return True
    if number.count("(") != number.count(")") or "--" in number:  # vol. 35, number 152 (1980); pages 665--699
        return True
    groups = number.split(".")
    reads_as_version = len(groups) > 2 and all(map(str.isdigit, groups)) and min(map(len, groups)) == 1  # 1.2.10.400
    return reads_as_version and not NORTH_AMERICAN.fullmatch(number)


def _is_international(number: str, n_digits: int) -> bool:
    import phonenumbers

    if not 8 <= n_digits <= 16:
        return False
    try:
        parsed = phonenumbers.parse(number.replace("(0)", ""), None)
    except phonenumbers.NumberParseException:
        return False
    return phonenumbers.is_possible_number(parsed)


def _has_form_of_a_region(number: str, n_digits: int) -> bool:
    """Whether it has a trunk zero or bracketed area code, at least two groups, and is valid in one of the regions."""
    if not 9 <= n_digits <= 12 or number.isdigit():
        return False
    groups = [group for group in re.split(r"[^0-9]+", number) if group]
    if len(groups) < 2 or min(map(len, groups[1:])) < 2:
        return False
    in_brackets = number[0] == "(" and ")" in number and (len(groups) > 2 or number[1] == "0")
    with_trunk_zero = number[0] == "0" and len(groups[0]) > 1 and (len(groups) > 2 or "-" in number or "/" in number)
    return (in_brackets or with_trunk_zero) and _is_valid_somewhere(number)


def _is_valid_somewhere(number: str) -> bool:
    import phonenumbers

    for region in REGIONS.split():
        try:
            if phonenumbers.is_valid_number(phonenumbers.parse(number, region)):
                return True
        except phonenumbers.NumberParseException:
            continue
    return False
