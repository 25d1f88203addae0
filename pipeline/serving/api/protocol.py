"""HTTP over one connection, with limits on what comes before the application sees a request.

In: the bytes of a connection. Out: what uvicorn makes of them, but: a head (address and headers) that is too large or
too slow is refused, further connections than the limit are, bytes that are no HTTP are, and each of these answers is
an error of the API. The rest of a body that nobody wants is read for a while, so that the client gets its answer, and
then the connection is closed.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from pipeline.serving.api.calls import MOST_UNWANTED
from pipeline.serving.api.errors import ApiError, retry_header
from pipeline.serving.api.limits import Limits

BUSY_SECONDS = 1.0  # after which a client may connect again


class LimitedProtocol(HttpToolsProtocol):
    limits: Limits  # set in a subclass by `limited_protocol`

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0  # that came while the head is being read
        self._line_bytes = 0  # of its address and headers
        self._unwanted_bytes = 0
        self._is_in_head = True
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.max_connections:
            told = f"{self.limits.max_connections:,} connections are open; try again later"
            headers = retry_header(BUSY_SECONDS)
            self._refuse(ApiError(503, told, code="too_many_connections", headers=headers))
            return
        self._begin_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._is_in_head:
            self._head_bytes += len(data)  # perhaps with the beginning of the body, which is not counted below
        super().data_received(data)
        if self._is_in_head and self._head_bytes > self.limits.max_header_bytes:
            self._refuse_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._line_bytes = 0
        if self._head_timer is None and not self._is_in_head:
            self._begin_head()

    def on_url(self, url: bytes) -> None:
        self._line_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._line_bytes += len(name) + len(value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._end_head()
        if self._line_bytes > self.limits.max_header_bytes:
            self._refuse_head()
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.cycle is None:  # its head was refused
            return
        if self.cycle.response_complete:
            self._unwanted_bytes += len(body)
            if self._unwanted_bytes > MOST_UNWANTED:
                self.transport.close()
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        self._refuse(ApiError(400, msg, code="invalid_http"))

    def _begin_head(self) -> None:
        self._is_in_head, self._head_bytes = True, 0
        self._head_timer = self.loop.call_later(self.limits.header_seconds, self._head_is_late)

    def _end_head(self) -> None:
        self._is_in_head = False
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        told = f"no request arrived within {self.limits.header_seconds:g} seconds"
        self._refuse(ApiError(408, told, code="header_timeout"))

    def _refuse_head(self) -> None:
        told = f"address and headers have more than {self.limits.max_header_bytes:,} bytes"
        self._refuse(ApiError(431, told, code="headers_too_large"))

    def _refuse(self, error: ApiError) -> None:
        """Answers outside of the application, and closes the connection."""
        self._end_head()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:  # else another answer is being sent
            lines = [(b"content-type", b"application/json"), (b"content-length", str(len(error.body)).encode())]
            lines += [(name.encode(), value.encode()) for name, value in error.headers.items()]
            lines.append((b"connection", b"close"))
            head = b"".join(b"%s: %s\r\n" % line for line in lines)
            self.transport.write(STATUS_LINE[error.status] + head + b"\r\n" + error.body)
        self.transport.close()


def limited_protocol(limits: Limits) -> type[LimitedProtocol]:
    return type("Limited", (LimitedProtocol,), {"limits": limits})
