"""Explains in one line why a file could not be fetched: which server or proxy, and what it did.

In: an exception of requests, inside which others are nested several levels deep. Out: a sentence without addresses
that may contain a password.
"""

import socket
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from pipeline.store.redaction import redacted

ADVICE_OF_STATUS = {
    401: "a login is needed",
    403: "access is denied",
    404: "there is no such file",
    407: "log in to it",
}


def reason_of(error: Exception) -> str:
    """Why a request failed, for instance: the name of index.example.org cannot be resolved."""
    import requests
    import urllib3.exceptions as nested

    causes = list(_causes(error))
    where, response = _host_of(error), getattr(error, "response", None)

    def is_any(*kinds: type) -> bool:
        return any(isinstance(cause, kinds) for cause in causes)

    if response is not None:
        advice = ADVICE_OF_STATUS.get(response.status_code)
        answer = f"{response.status_code} {response.reason or ''}".strip()
        return f"{where} answered {answer}" + (f": {advice}" if advice else "")
    if is_any(requests.exceptions.InvalidProxyURL):
        return "the address of the proxy is not valid"
    if is_any(requests.exceptions.ProxyError, nested.ProxyError):
        return f"the proxy for {where} cannot be used: {_innermost(causes)}"
    if is_any(requests.exceptions.SSLError, nested.SSLError):
        return f"there is no secure connection to {where}: {_innermost(causes)}"
    if is_any(nested.NameResolutionError, socket.gaierror):
        return f"the name of {where} cannot be resolved"
    if is_any(ConnectionRefusedError):
        return f"{where} refuses connections"
    if is_any(requests.exceptions.ConnectTimeout):  # urllib3's own is the parent of what is no timeout
        return f"{where} cannot be reached in time"
    if is_any(requests.exceptions.ReadTimeout, nested.ReadTimeoutError):
        return f"{where} does not answer in time"
    if is_any(nested.IncompleteRead, requests.exceptions.ChunkedEncodingError):
        return f"the connection to {where} broke off"
    if is_any(requests.exceptions.TooManyRedirects):
        return str(error)
    return f"the connection to {where} failed: {_innermost(causes)}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """`error` and what is nested in it, from the outside to the inside."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        cause = waiting.pop(0)
        if isinstance(cause, BaseException) and id(cause) not in seen:
            seen.add(id(cause))
            yield cause
            waiting += [*cause.args, getattr(cause, "reason", None), getattr(cause, "original_error", None)]
            waiting += [cause.__cause__, cause.__context__]


def _innermost(causes: list[BaseException]) -> str:
    """The words of the system or, if it has none, of the innermost exception."""
    for cause in reversed(causes):
        if isinstance(cause, OSError) and isinstance(cause.strerror, str):
            return redacted(cause.strerror)[:200]
    texts = [arg for cause in causes for arg in cause.args if isinstance(arg, str)]
    text = redacted(texts[-1]) if texts else type(causes[-1]).__name__
    return text.rpartition(": ")[2].replace("\n", " ")[:200]


def _host_of(error: Exception) -> str:
    """Host and port, without a user name and a password."""
    asked = getattr(error, "response", None) or getattr(error, "request", None)
    url = getattr(asked, "url", None)
    return (urlsplit(url).netloc.rpartition("@")[2] if isinstance(url, str) else "") or "the server"
