"""Finds credit card numbers, IBANs and US social security numbers in a text.

In: a text. Out: (start, end) of each. Cards are checked by issuer range and length (ISO/IEC 7812) and by Luhn; short
and very long ones (Maestro, 13 and 19 digits) are reported only next to a word such as "card". IBANs are checked by
the length of their country and mod 97 (ISO 13616). Social security numbers are reported if they are written
123-45-6789 with numbers that are issued, otherwise only next to such a word.
"""

import re
from collections.abc import Iterator

from pipeline.corpus.signals.pii_context import (
    ALONE_AFTER,
    ALONE_BEFORE,
    MARGIN,
    Match,
    clusters,
    digits_of,
    words_near,
    words_pattern,
)

CARD = re.compile(
    rf"{ALONE_BEFORE}(?<![0-9]{{4}}[ -])(?:[0-9]{{12,19}}"
    r"|[0-9]{4}([ .-])[0-9]{4}\1[0-9]{4}(?:\1[0-9]{1,4})?(?:\1[0-9]{1,3})?"
    r"|[0-9]{4}([ .-])[0-9]{6}\2[0-9]{4,5})"
    rf"{ALONE_AFTER}(?![ -][0-9]{{4}})"
)
CARD_WORDS = words_pattern(
    "card cards card_number credit debit visa mastercard master_card amex american_express diners discover maestro"
    " jcb unionpay cc ccn pan payment carte karte kreditkarte tarjeta carta kaart kort cartao cart\u00e3o cvv cvc"
)
IBAN_LENGTHS = {  # ISO 13616 registry, total number of characters
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22, "BR": 29, "BY": 28,
    "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18,
    "FO": 18, "FR": 27, "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HR": 21, "HU": 28, "IE": 22,
    "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28, "LC": 32, "LI": 21, "LT": 20,
    "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22, "MK": 19, "MR": 27, "MT": 31, "MU": 30, "NL": 18,
    "NO": 15, "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "SA": 24, "SC": 31, "SE": 24,
    "SI": 19, "SK": 24, "SM": 27, "ST": 25, "SV": 28, "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24,
    "XK": 20,
}  # fmt: skip
IBAN_HEAD = re.compile(r"[0-9]{2}(?<=[A-Za-z]{2}[0-9]{2})(?<![A-Za-z0-9][A-Za-z]{2}[0-9]{2})(?=[ -]?[A-Za-z0-9]{4})")
SSN = re.compile(rf"{ALONE_BEFORE}([0-9]{{3}})([ -]?)([0-9]{{2}})\2([0-9]{{4}}){ALONE_AFTER}")
SSN_WORDS = words_pattern("ssn ssns social_security soc_sec social")
NEVER_GIVEN = frozenset({"078051120", "219099999", "123456789"})  # printed in advertisements and examples


def card_numbers(text: str) -> Iterator[Match]:
    for low, high in clusters(text):
        for match in CARD.finditer(text, max(0, low - 1), high + 6):
            number = digits_of(match[0])
            if (rule := _card_rule(number)) is None or not _luhn(number):
                continue
            if rule == "plain" or words_near(CARD_WORDS, text, match.start(), match.end()):
                yield match.span()


def _card_rule(number: str) -> str | None:
    """`plain` for a usual length of an issuer, `words` if a word next to it is required, None if it is not a card."""
    n, two, three, four = len(number), int(number[:2]), int(number[:3]), int(number[:4])
    if n == 16 and (number[0] == "4" or 51 <= two <= 55 or 2221 <= four <= 2720):  # Visa, Mastercard
        return "plain"
    if n == 15 and two in (34, 37):  # American Express
        return "plain"
    if n == 16 and (four == 6011 or 644 <= three <= 649 or two in (35, 65)):  # Discover, JCB
        return "plain"
    if n == 14 and (300 <= three <= 305 or four == 3095 or two in (36, 38, 39)):  # Diners Club
        return "plain"
    if n in (13, 19) and number[0] == "4":  # old and long Visa
        return "words"
    if n == 15 and four in (2131, 1800):  # old JCB
        return "words"
    if n >= 16 and (two in (36, 38, 39, 60, 62, 64, 65, 81)):  # UnionPay and long ones
        return "words"
    if two == 50 or 56 <= two <= 69 or number[:4] == "0604":  # Maestro, 12 to 19 digits
        return "words"
    return None


def _luhn(number: str) -> bool:
    odd, even = number[-1::-2], number[-2::-2]
    return (sum(map(int, odd)) + sum(sum(divmod(2 * int(c), 10)) for c in even)) % 10 == 0


def ibans(text: str) -> Iterator[Match]:
    end = 0
    for match in IBAN_HEAD.finditer(text):
        start = match.start() - 2
        length = IBAN_LENGTHS.get(text[start : start + 2].upper())
        if length is None or start < end or text[max(0, start - 1) : start] in ("-", "_"):
            continue
        number, at = "", start
        while len(number) < length and at < len(text):
            c = text[at]
            if c.isascii() and c.isalnum():
                number += c
            elif c not in " -\u00a0" or not text[at - 1].isalnum():
                break
            at += 1
        if len(number) == length and not text[at : at + 1].isalnum() and _mod_97(number) == 1:
            end = at
            yield start, at


def _mod_97(iban: str) -> int:
    return int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97


def social_security_numbers(text: str) -> Iterator[Match]:
    for low, high in clusters(text):
        for match in SSN.finditer(text, max(0, low - 1), high + MARGIN):
            area, separator, group, serial = match.groups()
            if area in ("000", "666") or area[0] == "9" or group == "00" or serial == "0000":
                continue
            if area + group + serial in NEVER_GIVEN:
                continue
            if separator == "-" or words_near(SSN_WORDS, text, match.start(), match.end()):
                yield match.span()
