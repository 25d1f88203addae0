"""Errors of the HTTP API, in the JSON that clients of OpenAI read.

In: an ApiError, which any code that answers a request may raise. Out: its status, and {"error": {message, type,
param, code}}. `param` names the field of the request that was wrong, `code` is for programs. What nobody expected is
a 500 that says nothing of the inside; its traceback is logged.

    Exception
      ApiError      an answer with a status
      ClientGone    the client has closed the connection, so that nobody reads an answer
"""

import json
from collections.abc import Mapping
from typing import Any

TYPES = {  # of errors, by status
    401: "authentication_error",
    403: "permission_error",
    408: "timeout_error",
    429: "rate_limit_error",
    499: "client_gone",
}
INVALID, SERVER = "invalid_request_error", "server_error"
LONGEST_SHOWN = 100  # characters of a value of the client in a message


class ApiError(Exception):
    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def content(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, INVALID if self.status < 500 else SERVER)
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    @property
    def body(self) -> bytes:
        return json.dumps(self.content).encode()  # ASCII, so that a lone surrogate in a message can be sent


class ClientGone(Exception):
    """The client closed the connection before its answer was complete."""


def wrong(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """The request can't be answered as it is: 400."""
    return ApiError(400, message, param=param, code=code)


def busy(message: str, retry_after: float) -> ApiError:
    """The client should ask again later: 429."""
    return ApiError(429, message, code="rate_limit_exceeded", headers=retry_header(retry_after))


def unavailable(message: str, code: str, retry_after: float) -> ApiError:
    """The server or a model of it is not ready: 503."""
    return ApiError(503, message, code=code, headers=retry_header(retry_after))


def unexpected() -> ApiError:
    return ApiError(500, "the server failed to answer; its log says why", code="internal_error")


def retry_header(seconds: float) -> dict[str, str]:
    """Whole seconds, at least one, as HTTP has them."""
    return {"Retry-After": str(max(1, round(seconds)))}


def shown(value: Any) -> str:
    """A value of the client in a message."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
