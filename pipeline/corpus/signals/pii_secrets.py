"""Secrets: API keys and tokens in the formats of their issuers, assigned secrets, and PEM private keys.

In: a text. Out: (start, end) of each. Tokens are searched only in runs of at least sixteen characters without a
space. An assignment (`api_key = "..."`) is reported if its name means a secret and its value looks random: digits and
letters mixed, and at least 3 bits of entropy per character. Values such as your-api-key-here are not reported.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator

from pipeline.corpus.signals.pii_context import Match

LONG_TOKEN = re.compile(r"[A-Za-z0-9_+/.\-]{16,2048}={0,2}")
ISSUED = re.compile(
    r"(?<![A-Za-z0-9_])(?:"
    r"(?:AKIA|ASIA|AGPA|AIDA|AROA)[0-9A-Z]{16}"  # AWS
    r"|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_[A-Za-z0-9_]{22,255}"  # GitHub
    r"|gl(?:pat|ptt|dt|rt|cbt|soat)-[A-Za-z0-9_\-]{20,64}"  # GitLab
    r"|xox[abeoprs]-[A-Za-z0-9\-]{10,250}|xapp-[0-9]-[A-Za-z0-9\-]{20,250}"  # Slack
    r"|[spr]k_(?:live|test)_[A-Za-z0-9]{10,250}|whsec_[A-Za-z0-9+/]{20,64}"  # Stripe
    r"|AIza[0-9A-Za-z_\-]{35}|ya29\.[0-9A-Za-z_\-]{20,512}|GOCSPX-[A-Za-z0-9_\-]{28}"  # Google
    r"|sk-(?:proj-|ant-|svcacct-|or-)?[A-Za-z0-9_\-]{20,250}"  # OpenAI, Anthropic and those that copy the format
    r"|hf_[A-Za-z0-9]{30,64}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_\-]{50,512}"  # Hugging Face, npm, PyPI
    r"|SG\.[A-Za-z0-9_\-]{16,32}\.[A-Za-z0-9_\-]{32,64}|key-[0-9a-f]{32}"  # SendGrid, Mailgun
    # Twilio, DigitalOcean, Shopify, Grafana, Docker, Linear
    r"|(?:SK|AC)[0-9a-f]{32}|do[opr]_v1_[0-9a-f]{64}|shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}"
    r"|glsa_[A-Za-z0-9]{32}_[0-9a-f]{8}|dckr_pat_[A-Za-z0-9_\-]{20,64}|lin_api_[A-Za-z0-9]{32,64}"
    r"|eyJ[A-Za-z0-9_\-]{8,1024}\.eyJ[A-Za-z0-9_\-]{8,2048}(?:\.[A-Za-z0-9_\-]{8,1024})?"  # JSON web token
    r")(?![A-Za-z0-9_])"
)
MAY_BE_SECRET = re.compile(
    r"[0-9]|(?:AKIA|ASIA|AIza|xox|\bgh[pousr]_|\bgl[a-z]{2,4}-|\b[spr]k[_-]|\bhf_|\bnpm_)[A-Za-z]"
)
SLACK_HOOK = re.compile(r"hooks\.slack\.com/(?:services|workflows)/([A-Za-z0-9/]{20,128})")
BOT_TOKEN = re.compile(r":(?<=[0-9]{8}:)[A-Za-z0-9_\-]{35}(?![A-Za-z0-9_\-])")  # Telegram, from its colon
BEFORE_VALUE = re.compile(
    r"(?i)(?:(?:api|access|auth|authentication|secret|private|client|app|consumer|session|refresh|encryption|signing"
    r"|account|shared|service|master|webhook|secret_access|subscription)[ _.\-]?(?:key|token|secret)|apikey"
    r"|secret|token|passwd|password|pwd|credentials?|bearer|authorization)[\"'\])]{0,2}[ \t]{0,3}"
    r"(?:[:=]|=>|:=|[ \t]is[ \t:]|bearer|basic)[ \t]{0,3}(?:bearer[ \t]|basic[ \t])?[\"'`]?\Z"
)
STANDS_FOR_VALUE = re.compile(
    r"(?i)your|example|sample|dummy|change|replace|insert|placeholder|xxxx|1234567890|abcdef|\.\.\.|redacted|todo"
)
DOTTED_NAME = re.compile(r"[A-Za-z_]\w{0,40}(?:\.[A-Za-z_]\w{0,40}){1,10}")  # os.environ.get
AFTER_DIGEST_NAME = re.compile(r"(?i)sha-?(?:1|224|256|384|512)[=:-]\Z")
MIN_ENTROPY = 3.0  # bits per character; English words in a row have fewer digits, not less entropy
NAME_WIDTH = 64

PEM_BEGIN = re.compile(r"-----BEGIN (?:[A-Z0-9]{2,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
PEM_END = re.compile(r"-----END (?:[A-Z0-9]{2,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
PEM_BODY = re.compile(
    r"(?:\\[nr]|[\s>|#*\"'+,]|[A-Z][A-Za-z\-]{2,30}:[^\n]{0,200}\n|[A-Za-z0-9+/=]{16,4096}"
    r"|[A-Za-z0-9+/=]{1,15}(?=(?:\\[nr]|[\s\"'+>|#*]){0,40}(?:-----END|=[A-Za-z0-9+/]{4}\s)))*(?:\.\.\.|\u2026)?\s*"
)
PEM_DATA = re.compile(r"[A-Za-z0-9+/=]{16}")


def api_keys(text: str) -> Iterator[Match]:
    for token in LONG_TOKEN.finditer(text):
        value = token[0]
        start, end = token.span()
        if not MAY_BE_SECRET.search(value) or AFTER_DIGEST_NAME.search(text[max(0, start - 8) : start]):
            continue
        issued = [
            match.span() for match in ISSUED.finditer(text, start, min(len(text), end + 1)) if match.end() <= end
        ]
        if issued:
            yield from issued
        elif _is_assigned_secret(text, start, value):
            yield start, end - len(value) + len(value.rstrip("."))
    if "hooks.slack.com" in text:
        for match in SLACK_HOOK.finditer(text):
            yield match.span(1)
    for match in BOT_TOKEN.finditer(text):
        start = match.start() - 8
        while start and text[start - 1].isdigit() and match.start() - start < 10:
            start -= 1
        if not text[max(0, start - 1) : start].isalnum():
            yield start, match.end()


def _is_assigned_secret(text: str, start: int, value: str) -> bool:
    before = text[max(0, start - NAME_WIDTH) : start]
    if not before or before[-1] not in " \t\"'`=:" or not BEFORE_VALUE.search(before):
        return False
    if STANDS_FOR_VALUE.search(value) or value.startswith(("/", ".", "http")) or DOTTED_NAME.fullmatch(value):
        return False
    n_digits = sum(c.isdigit() for c in value)
    n_letters = sum(c.isalpha() for c in value)
    return n_digits >= 2 and n_letters >= 4 and _entropy(value) >= MIN_ENTROPY


def _entropy(value: str) -> float:
    """Shannon entropy in bits per character."""
    return -sum(n / len(value) * math.log2(n / len(value)) for n in Counter(value).values())


def private_keys(text: str) -> Iterator[Match]:
    """A whole block, or the part of its body that is there if the end is cut off."""
    if "PRIVATE KEY" not in text:
        return
    end = 0
    for begin in PEM_BEGIN.finditer(text):
        if begin.start() < end:
            continue
        body = PEM_BODY.match(text, begin.end())
        assert body  # matches the empty string
        if not PEM_DATA.search(body[0]):
            continue
        close = PEM_END.match(text, body.end())
        end = close.end() if close else begin.end() + len(body[0].rstrip())
        yield begin.start(), end
