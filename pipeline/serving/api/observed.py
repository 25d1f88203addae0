"""The outermost part of the application: errors become JSON, and every request is counted and logged.

In: an ASGI application. Out: the same, which never raises. Of each request one line of JSON is written: its time, id,
route, model, status, durations and tokens. Texts stand in it only where that was asked for; a token never does, nor
the query of an address.
"""

import asyncio
import datetime
import json
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.serving.api.calls import Noted, send_whole
from pipeline.serving.api.errors import ApiError, ClientGone, unavailable, unexpected
from pipeline.serving.api.metrics import Metrics
from pipeline.serving.api.served import DRAINING_SECONDS
from pipeline.serving.same_origin import App, Message, Receive, Send

GONE = 499  # what nginx logs for a client that closed the connection
LONGEST_PATH = 200
log = logging.getLogger(__name__)
WriteLine = Callable[[str], object]


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """ASGI middleware. `write_line` gets the lines of the log; None = no log."""

    app: App
    metrics: Metrics
    write_line: WriteLine | None = None
    logs_texts: bool = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._refuse_other(scope, receive, send)
            return
        noted = scope["noted"] = Noted(f"req-{secrets.token_hex(8)}")

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                noted.status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", noted.id.encode())]}
            await send(message)

        self.metrics.open.inc()
        try:
            await self._answered(scope, receive, noting, noted)
        finally:
            self.metrics.open.dec()
            self.metrics.note(noted)
            self._log(scope, noted)

    async def _answered(self, scope: Message, receive: Receive, send: Send, noted: Noted) -> None:
        try:
            await self.app(scope, receive, send)
        except ClientGone:
            noted.status = GONE
        except asyncio.CancelledError:  # the server is stopped, and this answer took too long
            if not noted.status:
                told = "the server was stopped before the answer was complete"
                await self._failed(unavailable(told, "draining", DRAINING_SECONDS), send, noted)
            raise
        except ApiError as error:
            await self._failed(error, send, noted)
        except Exception:
            log.exception("%s %s failed", noted.id, noted.route)
            await self._failed(unexpected(), send, noted)

    async def _failed(self, error: ApiError, send: Send, noted: Noted) -> None:
        if noted.status:  # the answer has begun; closing the connection is all that is left
            raise error
        await send_whole(send, error.status, error.body, error.headers)

    async def _refuse_other(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": "this server has no WebSockets"})
        else:  # lifespan
            await self.app(scope, receive, send)

    def _log(self, scope: Message, noted: Noted) -> None:
        if self.write_line is None:
            return
        client = scope.get("client")
        line: dict[str, Any] = {
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds"),
            "id": noted.id,
            "client": client[0] if client else "",
            "method": scope["method"],
            "path": scope["path"][:LONGEST_PATH],
            "status": noted.status,
            "model": noted.model,
            "seconds": round(noted.seconds, 4),
            "prompt_tokens": noted.prompt_tokens,
            "cached_tokens": noted.cached_tokens,
            "completion_tokens": noted.completion_tokens,
        }
        if noted.first_token_seconds is not None:
            line["first_token_seconds"] = round(noted.first_token_seconds, 4)
        if self.logs_texts and noted.texts:
            line["texts"] = noted.texts
        try:
            self.write_line(json.dumps(line, default=str))
        except OSError as error:
            log.warning("the access log could not be written: %s", error)
