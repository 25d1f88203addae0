"""Finds e-mail addresses, IP addresses, and passwords inside URLs in a text.

In: a text. Out: (start, end) of each. E-mail addresses are matched outwards from the '@'; file names such as
logo@2x.png and remote names such as git@host: are not reported. An IP address is reported if it is global (RFC 6890).
Loopback, private, link-local, documentation and multicast ranges, networks (a.b.c.0, a.b.c.d/24), public resolvers
and numbers that look like versions are not reported. A password in a URL is reported unless its host is this machine
or it is a placeholder word.
"""

import re
from collections.abc import Iterator
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from pipeline.corpus.signals.pii_context import Match, words_near, words_pattern

DOMAIN = re.compile(r"@((?:[^\W_](?:[\w-]{0,61}[^\W_])?\.){1,8})([^\W\d_]{2,24}|xn--[a-z0-9-]{2,59})(?!\w)")
LOCAL_REVERSED = re.compile(r"[\w.+%'-]{1,64}")
# suffixes of files and units of systemd that no mail host has: logo@2x.png, left-pad@1.3.0.tgz, getty@tty1.service
FILE_ENDINGS = re.compile(
    r"(?i)(?:png|jpe?g|gif|svg|webp|avif|bmp|ico|tiff?|s?css|less|[cm]?js|json|[jt]sx|[cm]?ts|html?|xml|ya?ml|toml|txt|pdf"
    r"|csv|tsv|log|ini|conf|cfg|lock|map|wasm|vue|ipynb|parquet|tgz|tbz|txz|tar|gz|bz|xz|zst|zip|whl|egg|jar|war|gem|crate"
    r"|nupkg|deb|rpm|apk|dmg|exe|msi|dll|iso|img|bin|mpeg|webm|wav|woff|ttf|otf|bak|tmp|orig|diff|patch"
    r"|service|socket|timer|mount|automount|swap|slice|scope)"
)
VERSION = re.compile(r"v?[0-9]+\.[0-9]+[\w-]*\.")  # of a package, name@1.3.0.tar
USER_OF_URL = re.compile(r"://[^\s/@]*\Z")
SERVICE_NAMES = frozenset({"git", "hg", "svn"})  # git@github.com:owner/name

IPV4 = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}\.[0-9]{1,3}(?![\w])(?!\.[0-9])")
NETWORK_LENGTH = re.compile(r"/[0-9]{1,2}(?![0-9])")
NO_ADDRESS_BEFORE = re.compile(
    r"(?:[\w.,+]|[^\W\d_]/|\w-|[=<>~!]=)\Z"
)  # Firefox/3.0.0.10, package-1.2.3.4, x==1.2.3.4
VERSION_WORDS = re.compile(
    r"\b(?:versions?|ver|released?|releases|rev|revision|upgraded?|firmware|driver|oid)\b|object ?identifier"
    r"|(?:\b(?:v|build|sections?|sect?|chapter|clause|paragraph|figure|fig|table|appendix|item)\b|\u00a7)"
    r"[^\n\d]{0,6}\Z",
    re.IGNORECASE,
)
PHONE_WORDS = re.compile(r"(?i)\b(?:phone|telephone|tel|fax|mobile|cell|call|dial|text|sms)\b[^\n\d]{0,6}\Z")
ADDRESS_WORDS = words_pattern("ip ipv4 address addr host server client peer ping dns nameserver")
PUBLIC_RESOLVERS = frozenset(
    {"1.1.1.1", "1.0.0.1", "8.8.8.8", "8.8.4.4", "9.9.9.9", "208.67.222.222", "208.67.220.220"}
)
SMALL_OCTET = 30  # four numbers below it look like a version, unless a word shows that they are an address
TWO_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
IPV6_PART = re.compile(r"[0-9A-Fa-f:.]{0,45}")

URL_PASSWORD = re.compile(
    r"://([^\s:/@\[\]<>{}\"']{0,64}):([^\s/@\[\]<>{}\"']{3,128})@([^\s:/@,;\"'<>)\[\]?#]{1,253})"
)
STANDS_FOR_PASSWORD = re.compile(
    r"(?i)(?:pass(?:word|wd)?|pwd|secret|token|(?:your|some|my)_?(?:pass|secret|token).*|\$.*|%.*|[*x.]+)"
)
THIS_MACHINE = re.compile(
    r"(?i)(?:localhost|127(?:\.\d{1,3}){3}|0\.0\.0\.0|(?:my)?(?:host(?:name)?|server)|example(?:\.\w+)?)"
)


def emails(text: str) -> Iterator[Match]:
    for match in DOMAIN.finditer(text):
        at = match.start()
        if not (local := LOCAL_REVERSED.match(text[max(0, at - 64) : at][::-1])):
            continue
        start = at - local.end()
        while start < at and not (text[start].isalnum() or text[start] == "_"):
            start += 1
        if start == at or text[at - 1] in ".'" or FILE_ENDINGS.fullmatch(match[2]) or VERSION.match(match[1]):
            continue
        if not (match[2].islower() or match[2].isupper() or match[2].istitle()) and match[2].isascii():
            continue  # a method: java.lang.Object@4b1c1ea0.toString
        if USER_OF_URL.search(text[max(0, start - 80) : start]):  # ssh://ann@host, or a password
            continue
        if text[start:at] in SERVICE_NAMES and text.startswith(":", match.end()):
            continue
        runs_on = match[2].istitle() and match[1].count(".") > 1 and match[1].islower()  # mail.com.Next sentence
        yield start, match.end(1) - 1 if runs_on else match.end()


def ip_addresses(text: str) -> Iterator[Match]:
    for match in IPV4.finditer(text):
        if _is_personal_ipv4(text, match.start(), match.end()):
            yield match.start(), match.end()
    end = 0
    for match in TWO_COLONS.finditer(text):
        if match.start() < end:
            continue
        start, end = _colon_run(text, match)
        if _is_personal_ipv6(text, start, end):
            yield start, end


def _is_personal_ipv4(text: str, start: int, end: int) -> bool:
    number = text[start:end]
    before = text[max(0, start - 32) : start]
    if NO_ADDRESS_BEFORE.search(before[-2:]) or NETWORK_LENGTH.match(text, end) or number.endswith(".0"):
        return False
    try:
        address = IPv4Address(number)  # rejects numbers over 255 and leading zeros
    except AddressValueError:
        return False
    if PHONE_WORDS.search(before):  # 66.42.55.24 also looks like a phone number
        return False
    if not address.is_global or address.is_multicast or number in PUBLIC_RESOLVERS or VERSION_WORDS.search(before):
        return False
    return max(address.packed) >= SMALL_OCTET or words_near(ADDRESS_WORDS, text, start, end, before=40, after=0)


def _colon_run(text: str, match: re.Match[str]) -> Match:
    """The run of hexadecimal digits, colons and dots around two colons."""
    low = max(0, match.start() - 45)
    left = IPV6_PART.match(text[low : match.start()][::-1])
    right = IPV6_PART.match(text, match.end())
    assert left and right  # both match the empty string
    end = right.end()
    while end > match.end() and text[end - 1] == ".":  # the end of a sentence
        end -= 1
    return match.start() - left.end(), end


def _is_personal_ipv6(text: str, start: int, end: int) -> bool:
    around = text[max(0, start - 1) : start] + text[end : end + 1]
    if any(c.isalnum() or c in "_-" for c in around):
        return False
    groups = [group for group in text[start:end].split(":") if group]
    if len(groups) < 3 or max(map(len, groups)) < 3 or NETWORK_LENGTH.match(text, end):  # a hardware address, a time
        return False
    try:
        address = IPv6Address(text[start:end])
    except AddressValueError:
        return False
    return address.is_global and not address.is_multicast


def url_passwords(text: str) -> Iterator[Match]:
    for match in URL_PASSWORD.finditer(text):
        if not STANDS_FOR_PASSWORD.fullmatch(match[2]) and not THIS_MACHINE.fullmatch(match[3]):
            yield match.span(2)
