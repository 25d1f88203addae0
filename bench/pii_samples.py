"""Texts with personal data whose places are known, and texts with look-alikes that hold none.

In: a seed and a number a kind. Out: samples (text, spans). Values come from Faker in some thirty locales, from
python-stdnum's check digits and from random characters; templates and look-alikes are written here. Numbers that only
a word beside them tells from others (a plain nine-digit id) are put beside such a word; `named` says so.
"""

import random
import string
import uuid
from base64 import b64encode
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from hashlib import md5, sha1, sha256
from importlib import import_module

from faker import Faker

PEOPLE = ("en_US", "en_GB", "fr_FR", "de_DE", "it_IT", "es_ES", "nl_NL", "pl_PL", "sv_SE", "pt_BR", "en_IN", "ja_JP")
PHONES = (
    "en_US", "en_GB", "fr_FR", "de_DE", "it_IT", "es_ES", "nl_NL", "pl_PL", "sv_SE", "pt_BR", "en_IN", "en_CA",
    "fi_FI", "no_NO", "da_DK", "fr_CH", "nl_BE", "ro_RO", "cs_CZ", "en_AU", "ja_JP", "ko_KR", "es_MX", "hu_HU",
)  # fmt: skip
BANKS = ("en_GB", "fr_FR", "de_DE", "it_IT", "es_ES", "nl_NL", "pl_PL", "no_NO", "fi_FI", "fr_CH", "nl_BE", "pt_PT")
CARDS = ("visa", "mastercard", "amex", "discover", "diners", "jcb16", "visa13", "visa19", "maestro")
NEUTRAL = (
    "{name}, {x}, {city}",
    "Please see the record of {name} ({x}) before Friday.",
    "{x}",
    "- {name}: {x}.\n- {city}",
    '{{"name": "{name}", "value": "{x}", "active": true}}',
    "Le dossier de {name} porte la mention {x}, merci.",
    "| {name} | {city} | {x} |",
)
TEMPLATES = {
    "email": ("Write to {x} or come to {city}.", "From: {name} <{x}>", "mailto:{x}?subject=hi", "E-Mail: {x}"),
    "phone": (
        "Call me at {x} after six, {name}.", "Tel: {x}", "Phone: {x} (ask for {name})", "My mobile is {x}.",
        "Fax {x}, {city}", "You can reach {name} on {x}.", "WhatsApp: {x}", "Text {x} to confirm.",
        "T\u00e9l. {x}", "Telefon: {x}", "Contact: {name}, {x}", "Our hotline {x} is open all day.",
    ),
    "credit_card": (
        "My card {x} was declined.",
        "Card number: {x}, exp 12/27, CVV 123", "Please charge {x} (Visa or other card).",
        "Paid by credit card {x} in {city}.", "Kreditkarte {x}", "cc: {x}",
    ),
    "iban": ("IBAN {x}", "Please transfer it to {x}.", "Bank account of {name}: {x}, {city}", "Virement vers {x}"),
    "ip_address": (
        "The client connected from {x} at noon.", "ssh root@{x}", "http://[{x}]/index", "banned [{x}] for an hour",
        '{x} - - [10/Oct/2023:13:55:36] "GET / HTTP/1.1" 200', "IP: {x}",
    ),
    "us_ssn": ("SSN: {x}", "Her social security number is {x}.", "{name}, born 1980-02-03, {x}", "ssn={x}"),
    "api_key": ("export TOKEN_VALUE={x}", "the token {x} was revoked", 'client = Client("{x}")', "key: {x}"),
    "password": ("connect to {x} first", 'url = "{x}"', "DATABASE_URL={x}", "see <{x}>."),
    "private_key": ("Here is mine:\n{x}\nDo not lose it.", "{x}", "key: |\n{x}\nuser: {name}"),
}  # fmt: skip
# id -> (how Faker makes it: locale and method, or the module of stdnum; its words; written forms)
FAKER_IDS = {
    "fr.nir": ("fr_FR", "ssn", None),
    "es.nie": ("es_ES", "nie", None),
    "es.dni": ("es_ES", "nif", None),
    "it.codicefiscale": ("it_IT", "ssn", None),
    "nl.bsn": ("nl_NL", "ssn", "BSN"),
    "pl.pesel": ("pl_PL", "pesel", "PESEL"),
    "se.personnummer": ("sv_SE", "ssn", None),
    "br.cpf": ("pt_BR", "cpf", None),
    "in_.aadhaar": ("en_IN", "aadhaar_id", "Aadhaar"),
    "ca.sin": ("en_CA", "ssn", "SIN"),
    "fi.hetu": ("fi_FI", "ssn", None),
    "no.fodselsnummer": ("no_NO", "ssn", None),
    "ch.ssn": ("fr_CH", "ssn", None),
    "be.nn": ("nl_BE", "ssn", "Rijksregisternummer"),
    "ro.cnp": ("ro_RO", "ssn", "CNP"),
    "tr.tckimlik": ("tr_TR", "ssn", "TC Kimlik"),
    "mx.curp": ("es_MX", "curp", None),
    "cl.rut": ("es_CL", "rut", None),
    "us.itin": ("en_US", "itin", "ITIN"),
    "hr.oib": ("hr_HR", "ssn", "OIB"),
    "ee.ik": ("et_EE", "ssn", "Isikukood"),
    "gr.amka": ("el_GR", "ssn", "AMKA"),
    "il.idnr": ("he_IL", "ssn", "ID number"),
}


@dataclass(frozen=True, slots=True)
class Sample:
    """`spans` are (start, end, kind); `named` says that a word beside the value tells what it is."""

    text: str
    spans: tuple[tuple[int, int, str], ...]
    group: str  # form of the value: a country, a card brand, the sort of a look-alike
    named: bool = False


@cache
def _faker(locale: str) -> Faker:
    return Faker(locale)


def samples(kind: str, n: int, seed: int) -> list[Sample]:
    """`n` texts that each hold one value of `kind`."""
    rng = random.Random(f"{kind} {seed}")
    for locale in {*PEOPLE, *PHONES, *BANKS, *(entry[0] for entry in FAKER_IDS.values())}:
        _faker(locale).seed_instance(f"{kind} {locale} {seed}")
    return [_sample(kind, rng) for _ in range(n)]


def _sample(kind: str, rng: random.Random) -> Sample:
    value, group, word = VALUES[kind](rng)
    named = [f"{word}: {{x}}", f"{word} {{x}}", f"{{name}} ({word} {{x}}), {{city}}"] if word else TEMPLATES.get(kind)
    needs_word = word or group in ("visa13", "visa19", "maestro", "bare", "local")
    is_named = bool(needs_word) or (named is not None and rng.random() < 0.7)
    template = rng.choice(list(named or NEUTRAL) if is_named and named else list(NEUTRAL))
    if kind == "private_key":
        template = rng.choice(TEMPLATES[kind])
    person = _faker(rng.choice(PEOPLE))
    name, city = person.name().replace("{", ""), person.city()
    head, tail = (part.format(name=name, city=city, x="") for part in template.split("{x}"))
    start, end = _secret_part(kind, value)
    span = (len(head) + start, len(head) + end, kind)
    return Sample(head + value + tail, (span,), group, is_named)


def _secret_part(kind: str, value: str) -> tuple[int, int]:
    if kind == "password":  # scheme://user:password@host
        start = value.index(":", value.index("://") + 3) + 1
        return start, value.rindex("@")
    if kind == "api_key" and " " in value:  # name = "value"
        start = max(value.rfind(sign) for sign in "\"'= ") if value[-1] not in "\"'" else value.index(value[-1]) + 1
        return (start, len(value) - 1) if value[-1] in "\"'" else (start + 1, len(value))
    return 0, len(value)


Value = tuple[str, str, str]  # the value, its group, the word it needs or ""


def _email(rng: random.Random) -> Value:
    faker = _faker(rng.choice(PEOPLE))
    method = rng.choice(["email", "company_email", "free_email", "ascii_company_email"])
    value = getattr(faker, method)()
    local, domain = value.split("@")
    if rng.random() < 0.3:
        local = rng.choice([f"{local}+news", local.replace(".", "_"), local.upper(), f"{local}-{rng.randint(1, 99)}"])
    return f"{local}@{domain}", method, ""


def _phone(rng: random.Random) -> Value:
    locale = rng.choice(PHONES)
    value = _faker(locale).phone_number()
    written_internationally = value.startswith(("+", "00"))
    if rng.random() < 0.2:
        value = value.replace(" ", rng.choice([".", "-", " "]))
    return value, "international" if written_internationally else "local", ""


def _card(rng: random.Random) -> Value:
    brand = rng.choice(CARDS)
    number = _faker("en_US").credit_card_number(card_type=brand)
    if len(number) == 16 and rng.random() < 0.6:
        sign = rng.choice([" ", "-"])
        number = sign.join(number[i : i + 4] for i in range(0, 16, 4))
    elif len(number) in (14, 15) and rng.random() < 0.5:
        number = f"{number[:4]} {number[4:10]} {number[10:]}"
    return number, brand, ""


def _iban(rng: random.Random) -> Value:
    value = _faker(rng.choice(BANKS)).iban()
    form = rng.choice(["plain", "spaced", "spaced", "hyphens", "small"])
    if form in ("spaced", "hyphens"):
        sign = " " if form == "spaced" else "-"
        value = sign.join(value[i : i + 4] for i in range(0, len(value), 4))
    return value.lower() if form == "small" else value, form, ""


def _ip(rng: random.Random) -> Value:
    faker = _faker("en_US")
    return (faker.ipv4_public(), "v4", "") if rng.random() < 0.6 else (faker.ipv6(), "v6", "")


def _ssn(rng: random.Random) -> Value:
    value = _faker("en_US").ssn()
    form = rng.choice(["hyphens", "hyphens", "spaces", "bare"])
    if form == "hyphens":
        return value, form, ""
    return value.replace("-", " " if form == "spaces" else ""), form, "SSN"


def _national_id(rng: random.Random) -> Value:
    made_here: dict[str, Callable[[random.Random], Value]] = {
        "gb_nino": _nino, "de.idnr": _german_tax_id, "kr.rrn": _searched("kr.rrn"), "za.idnr": _searched("za.idnr"),
        "gb.nhs": _searched("gb.nhs"), "au.tfn": _searched("au.tfn"), "dk.cpr": _searched("dk.cpr"),
    }  # fmt: skip
    name = rng.choice(sorted([*FAKER_IDS, *made_here]))
    if name in made_here:
        return made_here[name](rng)
    locale, method, word = FAKER_IDS[name]
    module = import_module(f"stdnum.{name}")
    for _ in range(300):  # Faker's check digits are not right for every id
        value = str(getattr(_faker(locale), method)())
        if module.is_valid(value):
            break
    else:
        raise ValueError(f"Faker {locale}.{method}() made no valid {name} in 300 attempts")
    if rng.random() < 0.4 and hasattr(module, "format"):
        value = module.format(module.compact(value))
    return value, name, word or ""


def _nino(rng: random.Random) -> Value:
    prefix = rng.choice(["AB", "CE", "HJ", "JK", "LM", "PR", "SW", "YZ"])
    digits = [f"{rng.randrange(100):02d}" for _ in range(3)]
    return rng.choice(["", " "]).join([prefix, *digits, rng.choice("ABCD")]), "gb_nino", ""


def _german_tax_id(rng: random.Random) -> Value:
    from stdnum.iso7064 import mod_11_10

    nine = rng.sample("0123456789", 9)
    while nine[0] == "0":
        rng.shuffle(nine)
    ten = [*nine, rng.choice(nine)]  # one digit twice
    number = "".join(ten)
    number += mod_11_10.calc_check_digit(number)
    if rng.random() < 0.5:
        number = f"{number[:2]} {number[2:5]} {number[5:8]} {number[8:]}"
    return number, "de.idnr", rng.choice(["Steuer-ID", "IdNr."])


def _searched(name: str) -> Callable[[random.Random], Value]:
    """Random numbers of the right form until one has the right check digit."""
    forms = {
        "kr.rrn": ("{date}-{d7}", ""), "za.idnr": ("{date}{d7}", "ID number"), "gb.nhs": ("{d3} {d3b} {d4}", "NHS"),
        "au.tfn": ("{d3} {d3b} {d3c}", "TFN"), "dk.cpr": ("{dmy}-{d4}", "CPR"),
    }  # fmt: skip
    form, word = forms[name]

    def value(rng: random.Random) -> Value:
        module = import_module(f"stdnum.{name}")
        while True:
            year, month, day = rng.randint(40, 99), rng.randint(1, 12), rng.randint(1, 28)
            number = form.format(
                date=f"{year:02d}{month:02d}{day:02d}", dmy=f"{day:02d}{month:02d}{year:02d}",
                d3=rng.randint(100, 999), d3b=rng.randint(100, 999), d3c=rng.randint(100, 999),
                d4=rng.randint(1000, 9999), d7=rng.randint(1_000_000, 2_999_999),
            )  # fmt: skip
            if module.is_valid(number):
                return number, name, word

    return value


def _characters(rng: random.Random, n: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    return "".join(rng.choices(alphabet, k=n))


def _api_key(rng: random.Random) -> Value:
    web = string.ascii_letters + string.digits + "-_"
    upper = string.ascii_uppercase + string.digits
    secret = rng.choice([_characters(rng, 40, string.hexdigits.lower()[:16]), _characters(rng, 32)])
    name = rng.choice(["api_key", "API_KEY", "secret", "access_token", "client_secret", "auth-token"])
    forms = {
        "aws": "AKIA" + _characters(rng, 16, upper),
        "github": rng.choice(["ghp_", "gho_", "ghs_"]) + _characters(rng, 36),
        "gitlab": "glpat-" + _characters(rng, 20),
        "slack": f"xoxb-{rng.randrange(10**11, 10**12)}-{rng.randrange(10**11, 10**12)}-{_characters(rng, 24)}",
        "stripe": rng.choice(["sk_live_", "sk_test_", "rk_live_"]) + _characters(rng, 24),
        "google": "AIza" + _characters(rng, 34, web) + "x",
        "openai": rng.choice(["sk-", "sk-proj-"]) + _characters(rng, 48),
        "jwt": ".".join(
            ["eyJ" + _characters(rng, 33), "eyJ" + _characters(rng, 60), _characters(rng, 42, web) + "x"]
        ),
        "assigned": rng.choice([f'{name} = "{secret}"', f"{name} = '{secret}'", f"{name}: {secret}"]),
    }
    group = rng.choice(sorted(forms))
    return forms[group], group, ""


def _password(rng: random.Random) -> Value:
    scheme = rng.choice(["postgresql", "mysql", "mongodb", "redis", "https", "ftp", "amqp"])
    password = _characters(rng, rng.randint(6, 20), string.ascii_letters + string.digits + "!.-_")
    host = rng.choice(["db.acme.io:5432/app", "10.1.2.3/main", "cache01:6379/0", "files.corp.net/x"])
    return f"{scheme}://{_characters(rng, 6, string.ascii_lowercase)}:{password}@{host}", scheme, ""


def _private_key(rng: random.Random) -> Value:
    name = rng.choice(["RSA ", "EC ", "OPENSSH ", "", "ENCRYPTED "])
    data = b64encode(rng.randbytes(rng.randint(90, 900))).decode()
    lines = [data[i : i + 64] for i in range(0, len(data), 64)]
    end = rng.choice(["\n", "\n", "\\n"])
    block = end.join([f"-----BEGIN {name}PRIVATE KEY-----", *lines, f"-----END {name}PRIVATE KEY-----"])
    return block, name or "PKCS8", ""


VALUES: dict[str, Callable[[random.Random], Value]] = {
    "email": _email,
    "phone": _phone,
    "credit_card": _card,
    "iban": _iban,
    "ip_address": _ip,
    "us_ssn": _ssn,
    "national_id": _national_id,
    "api_key": _api_key,
    "private_key": _private_key,
    "password": _password,
}


def look_alikes(n: int, seed: int) -> list[Sample]:
    """`n` texts with numbers and signs that are certainly no personal data."""
    rng = random.Random(f"look-alikes {seed}")
    kinds = sorted(LOOK_ALIKES)
    return [Sample(LOOK_ALIKES[group](rng), (), group) for group in (kinds[i % len(kinds)] for i in range(n))]


def _isbn(rng: random.Random) -> str:
    from stdnum import ean

    twelve = f"978{rng.randrange(10**9):09d}"
    number = twelve + ean.calc_check_digit(twelve)
    form = rng.choice([number, f"{number[:3]}-{number[3]}-{number[4:8]}-{number[8:12]}-{number[12]}"])
    return rng.choice([f"ISBN {form}", f"(ISBN: {form}), 2nd edition", f"{form}, O. Author, Some Press"])


def _digest(rng: random.Random) -> str:
    digest = rng.choice([md5, sha1, sha256])(rng.randbytes(8)).hexdigest()
    return rng.choice([f"sha256:{digest}", f"{digest}  file-1.2.tar.gz", f"commit {digest[:12]}", f"at {digest[:7]}"])


def _version(rng: random.Random) -> str:
    v = ".".join(str(rng.randint(0, 40)) for _ in range(rng.choice([3, 4])))
    return rng.choice(
        [f"Released in version {v}", f"pip install thing=={v}", f"v{v}", f"Chrome/{v}", f"thing-{v}.zip"]
    )


def _time(rng: random.Random) -> str:
    y, m, d, h = rng.randint(1970, 2030), rng.randint(1, 12), rng.randint(1, 28), rng.randint(0, 23)
    forms = (f"{y}-{m:02d}-{d:02d}", f"{d:02d}.{m:02d}.{y}", f"{m}/{d}/{y}", f"{y}{m:02d}{d:02d}T{h:02d}3059Z")
    form = rng.choice([*forms, f"{y}-{m:02d}-{d:02d} {h:02d}:30:59.{rng.randrange(10**6):06d}"])
    return rng.choice([f"on {form}", f"Date: {form}", f"[{form}] started", f"{form},{y + 1}"])


def _table(rng: random.Random) -> str:
    width = rng.choice([2, 3, 4])
    low, high = 10 ** (width - 1), 10**width - 1
    rows = [[rng.randint(low, high) for _ in range(rng.randint(5, 9))] for _ in range(3)]
    sign = rng.choice([" ", "  ", " | ", ", ", "\t"])
    return "\n".join(sign.join(map(str, row)) for row in rows)


def _mathematics(rng: random.Random) -> str:
    a, b = rng.random() * 1000, rng.randint(10**5, 10**9)
    forms = (f"x = {a:.12f}", f"{b} * {a:.3f} = {a * b:.4f}", f"f({b}) - ({rng.randint(100, 999)}) {b}", f"{a:.15e}")
    return rng.choice(
        [*forms, f"between {b} and {b + 17}", f"{b:,} people", f"n = 2**{b % 100} = {2 ** (b % 60 + 20)}"]
    )


LOOK_ALIKES: dict[str, Callable[[random.Random], str]] = {
    "isbn": _isbn,
    "digest": _digest,
    "version": _version,
    "time": _time,
    "table": _table,
    "mathematics": _mathematics,
    "uuid": lambda rng: f"id {uuid.UUID(int=rng.getrandbits(128), version=4)} was removed",
    "port": lambda rng: rng.choice(["127.0.0.1:{}", "http://localhost:{}/", "192.168.0.{}"]).format(
        rng.randint(1, 255)
    ),
    "order": lambda rng: rng.choice(["Order #{}", "ticket {}", "invoice no. {}", "bug {}"]).format(
        rng.randrange(10**9)
    ),
    "decorator": lambda rng: rng.choice(
        ["@pytest.mark.skip", "a @ b.T", "logo@2x.png", "user@host", "npm i x@4.17.21"]
    ),
    "unix_time": lambda rng: f"timestamp {rng.randint(10**9, 2 * 10**9)}, {rng.randint(10**12, 2 * 10**12)} ms",
    "hardware": lambda rng: ":".join(f"{rng.randrange(256):02x}" for _ in range(6)) + " up, std::vector<a::b> c::d",
    "reference": lambda rng: (
        f"doi:10.{rng.randint(1000, 9999)}/s{rng.randrange(10**8)}-{rng.randrange(10**4):04d}-{rng.randrange(10)}"
    ),
    "names": lambda rng: rng.choice(
        ["api_key = os.environ['API_KEY']", 'token = "your-api-key-here"', "secret: str = field(default=None)"]
    ),
    "pages": lambda rng: (
        f"pp. {rng.randint(1000, 1999)}-{rng.randint(2000, 2999)}, vol. {rng.randint(1, 99)}, 1998-2004"
    ),
}
