"""Removes passwords and tokens from text that is shown, logged or stored.

In: any text, for instance the message of an error of a library. Out: the same text with `***` in place of the login
in an address (scheme://user:password@host), of secret values in a query (?token=...), of authorisation headers, and
of every secret in the environment of this process: passwords in addresses such as MLFLOW_TRACKING_URI, also malformed
ones, and variables whose names end with PASSWORD, TOKEN, SECRET or the like.

`redact_logs` does this for every record that this process logs, of libraries too.
"""

import logging
import os
import re
import traceback
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote

HIDDEN = "***"
LOGIN = re.compile(r"(?<![\w+.-])([a-z][a-z0-9+.-]*:/{1,2})[^\s/?#'\"<>]*@", re.IGNORECASE)
WORDS = r"token|secret|passw(?:or)?d|pwd?|signature|sig|credentials?|api[_-]?key|access[_-]?key(?:[_-]?id)?|auth|key"
QUERY = re.compile(rf"([?&;#](?:[\w.%-]*[_.-])?(?:{WORDS}|awsaccesskeyid)=)[^&;#\s'\"<>)]+", re.IGNORECASE)
GIVES = r"['\"]?\s*[:=]\s*['\"]?"  # between the name of a header and its value
HEADER = re.compile(
    rf"\b(authorization{GIVES}(?:basic|bearer|token)\s+|x-[a-z-]*(?:key|token){GIVES})[^\s'\",;]+", re.IGNORECASE
)
SECRET_NAME = re.compile(
    r"(?:PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIALS|API_?KEY|ACCESS_KEY|SECRET_KEY)$", re.IGNORECASE
)
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:?/{1,2}", re.IGNORECASE)  # also of an address that lacks its colon
ADDRESS_NAME = re.compile(r"(?:URI|URL|URLS|ADDRESS|ENDPOINT|PROXY|DSN)$", re.IGNORECASE)
SHORTEST = 6  # characters; a shorter secret is only hidden inside an address, because it may occur in any text


def redacted(text: str) -> str:
    """`text` without passwords and tokens."""
    for secret in _secrets(os.environ):
        text = text.replace(secret, HIDDEN)
    text = LOGIN.sub(rf"\g<1>{HIDDEN}@", text)
    text = QUERY.sub(rf"\g<1>{HIDDEN}", text)
    return HEADER.sub(rf"\g<1>{HIDDEN}", text)


def redact_logs() -> None:
    """From now on, every record logged in this process is redacted, with its traceback. A second call has no
    effect."""
    former = logging.getLogRecordFactory()
    if not isinstance(former, _RedactedRecords):
        logging.setLogRecordFactory(_RedactedRecords(former))


class _RedactedRecords:
    def __init__(self, former: Any) -> None:
        self.former = former

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self.former(*args, **kwargs)
        try:
            message = record.getMessage()
        except (TypeError, ValueError, KeyError):  # wrong arguments; the handler reports them
            return record
        if (shown := redacted(message)) != message:
            record.msg, record.args = shown, ()
        if isinstance(record.exc_info, tuple) and record.exc_info[0] is not None:
            record.exc_text = redacted("".join(traceback.format_exception(*record.exc_info)).rstrip("\n"))
        return record


def _secrets(environment: Mapping[str, str]) -> list[str]:
    """Secret values in the environment in every spelling, longest first."""
    found: set[str] = set()
    for name, value in environment.items():
        if SECRET_NAME.search(name):
            found.add(value.strip())
        elif ADDRESS_NAME.search(name) and "@" in value:
            login = SCHEME.sub("", value.rpartition("@")[0], count=1)
            found |= {login, login.partition(":")[2], login.rpartition(":")[2]}
    spelled = {form for secret in found for form in (secret, unquote(secret), quote(secret, safe=""))}
    return sorted((secret for secret in spelled if len(secret) >= SHORTEST), key=len, reverse=True)
