"""Distinguishes what MLflow refuses for good from a server that is away, which accepts the same request later.

In: the error of a request. Out: one of REFUSED, LOGIN and AWAY. An event that is refused would be refused again and
block all later ones, so it is set aside (journal.py); while a server is away or refuses the login, events wait.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pipeline.store.redaction import redacted

REFUSED, LOGIN, AWAY = "refused", "login", "away"
LOGIN_CODES = (401, 403, 407)
PASSING_CODES = (408, 409, 423, 425, 429, 499)  # the same request may succeed later
STATUS = re.compile(r"failed with error code (\d{3}) !=")  # MLflow's words for an answer without an error code
CONNECTION = re.compile(r"API request to \S+ failed with (?:timeout )?exception (.*)")  # MLflow's words
CAUSE = re.compile(r"\[Errno -?\d+\] ([^'\")]+)")
LONGEST_REASON = 300  # characters
Item = TypeVar("Item")


def failure_of(error: BaseException) -> str:
    """What an error of a request means: REFUSED, LOGIN or AWAY."""
    if (status := _status(error)) is None:
        # a value that MLflow's client, or our code, cannot handle, will be the same next time
        return REFUSED if isinstance(error, ValueError | TypeError | LookupError | AttributeError) else AWAY
    if status in LOGIN_CODES:
        return LOGIN
    return REFUSED if 400 <= status < 500 and status not in PASSING_CODES else AWAY


def is_missing(error: BaseException) -> bool:
    """Whether the server answered that it does not have what was asked for."""
    return getattr(error, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "NOT_FOUND")


def reason_of(error: BaseException) -> str:
    """The error in one line, without passwords; of a connection that failed only the cause."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    if failed := CONNECTION.search(line):
        cause = CAUSE.search(failed[1])
        return "it did not answer in time" if "timed out" in failed[1] else cause[1] if cause else "no connection"
    return f"{type(error).__name__}: {redacted(line)}"[:LONGEST_REASON]


def send_all(
    items: Sequence[Item], send: Callable[[Sequence[Item]], Any], refuse: Callable[[Item, Exception], None]
) -> None:
    """Send `items` at once; if they are refused, in halves, so that only those that MLflow refuses are missing."""
    if not items:
        return
    try:
        send(items)
    except Exception as error:
        if failure_of(error) != REFUSED:
            raise
        if len(items) == 1:
            refuse(items[0], error)
            return
        half = len(items) // 2
        send_all(items[:half], send, refuse)
        send_all(items[half:], send, refuse)


def _status(error: BaseException) -> int | None:
    """The HTTP status of an error of MLflow, or of the transfer of an artifact; None for any other error."""
    response = getattr(error, "response", None)
    if isinstance(status := getattr(response, "status_code", None), int):
        return status
    if isinstance(error, OSError) or not hasattr(error, "get_http_status_code"):
        return 503 if isinstance(error, OSError) else None
    found = STATUS.search(str(error))
    return int(found[1]) if found else error.get_http_status_code()  # type: ignore[attr-defined]
