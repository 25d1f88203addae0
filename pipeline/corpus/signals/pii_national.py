"""Personal numbers issued by states: identity, social insurance and tax numbers. Some forty kinds, of 37 countries.

In: a text. Out: (start, end) of each. A number is reported if its form and its check digits (python-stdnum) are
valid. If form and check digits are weak (nine plain digits with one check digit are valid one time in ten or eleven),
one of the id's words must also occur within 60 characters before or 30 after the number.
"""

import re
from collections.abc import Iterator
from functools import cache

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

ANY_ID_WORDS = (
    "national_id identity_number identity_card identification_number id_number id_card personal_id personal_number"
    " ssn national_identification social_security tax_id tax_number tin"
)


class NationalId:
    """One kind of id: `check` is a module of stdnum or `gb_nino`; a `strong` form needs no word next to it."""

    def __init__(self, check: str, form: str, words: str = "", strong: str = "", digits: int = 9) -> None:
        self.check = check
        self.form = re.compile(ALONE_BEFORE + f"(?:{form})" + ALONE_AFTER)
        self.strong = re.compile(
            strong or form if strong or not words else "(?!)"
        )  # without words every form is strong
        self.words = words_pattern(f"{words} {ANY_ID_WORDS}")
        self.digits = digits  # minimum number of digits of the cluster that contains it

    def matches(self, text: str, low: int, high: int) -> Iterator[Match]:
        for match in self.form.finditer(text, low, high):
            start, end = match.span()
            is_strong = self.strong.fullmatch(match[0]) and not (self.check == "es.dni" and DATE.match(match[0]))
            if (is_strong or words_near(self.words, text, start, end)) and _is_valid(self.check, match[0].upper()):
                yield start, end


D2, D3, D4 = "[0-9]{2}", "[0-9]{3}", "[0-9]{4}"
IDS = (
    NationalId("gb_nino", f"[A-Za-z]{{2}} ?{D2} ?{D2} ?{D2} ?[A-DTa-dt]", "nino ni national_insurance insurance",
               strong=f"[A-Z]{{2}}( ?){D2}\\1{D2}\\1{D2}\\1[A-DT]|[A-Z]{{2}} [0-9]{{6}} [A-DT]", digits=6),
    NationalId("gb.nhs", f"{D3}[ -]?{D3}[ -]?{D4}", "nhs"),
    NationalId("fr.nir", f"[12]( ?){D2}\\1{D2}\\1[0-9][0-9AB]\\1{D3}\\1{D3}\\1 ?{D2}", digits=6),  # 2A: Corsica
    NationalId("es.dni", "[0-9]{8}[- ]?[A-Za-z]|[0-9]{1,2}\\.[0-9]{3}\\.[0-9]{3}[- ]?[A-Za-z]", "dni nif documento",
               strong="[0-9]{8}-?[A-Z]|[0-9.]{9,10}[- ]?[A-Z]", digits=7),
    NationalId("es.nie", "[XYZxyz][- ]?[0-9]{7}[- ]?[A-Za-z]", "nie nif documento", strong="[XYZ]-?[0-9]{7}-?[A-Z]",
               digits=7),
    NationalId("de.idnr", f"{D2}[ ]?{D3}[ ]?{D3}[ ]?{D3}",
               "idnr steuer_id steueridentifikationsnummer steuer_idnr steuernummer steuer identifikationsnummer"),
    NationalId("nl.bsn", f"[0-9]{{9}}|{D4}[. ]{D2}[. ]{D3}|{D3}[. ]{D3}[. ]{D3}",
               "bsn burgerservicenummer sofi sofinummer"),
    NationalId("pl.pesel", "[0-9]{11}", "pesel"),
    NationalId("se.personnummer", f"(?:{D2})?[0-9]{{6}}[-+]?{D4}", "personnummer personal_identity_number pnr",
               strong=f"(?:{D2})?[0-9]{{6}}[-+]{D4}"),
    NationalId("no.fodselsnummer", "[0-9]{6} ?[0-9]{5}", "f\u00f8dselsnummer fodselsnummer personnummer fnr",
               strong="[0-9]{6} ?[0-9]{5}"),
    NationalId("dk.cpr", f"[0-9]{{6}}[- ]?{D4}", "cpr personnummer"),
    NationalId("fi.hetu", f"[0-9]{{6}}[-+A-FU-Y]{D3}[0-9A-Y]", digits=6),
    NationalId("br.cpf", f"{D3}\\.?{D3}\\.?{D3}-?{D2}", "cpf cadastro", strong=f"{D3}\\.{D3}\\.{D3}-{D2}"),
    NationalId("in_.aadhaar", f"[2-9]{D3}([ -]?){D4}\\1{D4}", "aadhaar aadhar uid uidai"),
    NationalId("ca.sin", f"{D3}([ -]?){D3}\\1{D3}", "sin social_insurance nas insurance"),
    NationalId("ch.ssn", f"756\\.?{D4}\\.?{D4}\\.?{D2}"),
    NationalId("be.nn", f"{D2}[. ]?{D2}[. ]?{D2}[- .]?{D3}[. ]?{D2}",
               "rijksregisternummer registre niss insz national_number nationaal num\u00e9ro_national",
               strong=f"{D2}\\.{D2}\\.{D2}-{D3}[. ]{D2}"),
    NationalId("us.itin", f"9{D2}([ -]?){D2}\\1{D4}", "itin taxpayer", strong=f"9{D2}-{D2}-{D4}"),
    NationalId("mx.curp", "[A-Z]{4}[0-9]{6}[A-Z]{6}[0-9A-Z][0-9]", digits=6),
    NationalId("cl.rut", f"[0-9]{{1,2}}\\.{D3}\\.{D3}-?[0-9Kk]|[0-9]{{7,8}}-?[0-9Kk]", "rut run",
               strong=f"[0-9]{{1,2}}\\.{D3}\\.{D3}-[0-9Kk]", digits=7),
    NationalId("cn_ric", f"[1-8][0-9]{{5}}(?:19|20){D2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01]){D3}[0-9X]"),
    NationalId("kr_rrn", f"{D2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])-[1-8][0-9]{{6}}"),
    NationalId("za.idnr", f"[0-9]{{13}}|[0-9]{{6}} {D4} {D3}", "id identity rsa"),
    NationalId("au.tfn", f"{D3}[ ]?{D3}[ ]?[0-9]{{2,3}}", "tfn tax_file_number tax_file"),
    NationalId("ie.pps", "[0-9]{7}[A-W][A-IW]?", "pps ppsn personal_public_service", digits=7),
    NationalId("ro.cnp", "[1-9][0-9]{12}", "cnp cod_numeric_personal"),
    NationalId("tr.tckimlik", "[1-9][0-9]{10}", "tc_kimlik kimlik tckn t.c"),
    NationalId("at.vnr", f"{D4} ?[0-9]{{6}}", "svnr sozialversicherungsnummer versicherungsnummer"),
    NationalId("hr.oib", "[0-9]{11}", "oib"),
    NationalId("ee.ik", "[1-8][0-9]{10}", "isikukood"),
    NationalId("lt.asmens", "[1-8][0-9]{10}", "asmens_kodas"),
    NationalId("bg.egn", "[0-9]{10}", "egn"),
    NationalId("gr.amka", "[0-9]{11}", "amka"),
    NationalId("si.emso", "[0-9]{13}", "emso jmbg"),
    NationalId("is_.kennitala", f"[0-9]{{6}}-?{D4}", "kennitala"),
    NationalId("il.idnr", "[0-9]{8}-?[0-9]", "teudat_zehut"),
    NationalId("th.pin", f"[1-8]-?{D4}-?[0-9]{{5}}-?{D2}-?[0-9]", "pin", strong=f"[1-8]-{D4}-[0-9]{{5}}-{D2}-[0-9]"),
    NationalId("cz.rc", f"[0-9]{{6}}/?{D3}[0-9]?", "rodn\u00e9_\u010d\u00edslo rodne_cislo r\u010d",
               strong=f"[0-9]{{6}}/{D4}"),
)  # fmt: skip
# Too few digits in a row for a cluster, so they are found by their first digits: RSSMRA85T10A562S and AAAPL1234C
WITH_FEW_DIGITS = re.compile(
    r"[0-9]{2}(?:"
    r"(?<=[A-Za-z]{6}[0-9]{2})(?<![A-Za-z0-9_][A-Za-z]{6}[0-9]{2})[A-EHLMPR-Ta-ehlmpr-t][0-9]{2}[A-Za-z][0-9]{3}[A-Za-z]"
    r"|[0-9]{2}(?<=[A-Z]{3}[ABCFGHJLPT][A-Z][0-9]{4})(?<![A-Za-z0-9_-][A-Z]{5}[0-9]{4})([A-Z])"
    r")(?![A-Za-z0-9_-])"
)
# 20240131Z is more likely a time stamp than an identity number
DATE = re.compile(r"(?:19|20)[0-9]{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12][0-9]|3[01])")
NINO_PREFIX = re.compile(r"(?!BG|GB|NK|KN|TN|NT)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]")  # ZZ and T: temporary


def national_ids(text: str) -> Iterator[Match]:
    for low, high in clusters(text):
        n_digits = len(digits_of(text[low:high]))
        for id_ in IDS:
            if n_digits >= id_.digits:
                yield from id_.matches(text, max(0, low - MARGIN), high + MARGIN)
    for match in WITH_FEW_DIGITS.finditer(text):
        check, n_letters = ("in_.pan", 5) if match[1] else ("it.codicefiscale", 6)
        start, end = match.start() - n_letters, match.end()
        if _is_valid(check, text[start:end].upper()):
            yield start, end


def _is_valid(check: str, number: str) -> bool:
    if check == "gb_nino":  # python-stdnum does not have it; the number has no check digit
        return NINO_PREFIX.match(number) is not None
    if check == "cn_ric":  # python-stdnum knows only today's regions
        from stdnum.iso7064 import mod_11_2

        return mod_11_2.is_valid(number)
    if check == "kr_rrn":  # its last digit has not been a check digit since 2020
        return True
    if len(set(digits_of(number))) == 1:  # 000000000 and the like pass most checksums
        return False
    return _module(check).is_valid(number)


@cache
def _module(name: str):
    from importlib import import_module

    return import_module(f"stdnum.{name}")
