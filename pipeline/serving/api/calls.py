"""One request: reading its body, answering it whole or as a stream, and noticing that its client has gone.

In: an endpoint, a function of a Call and the fields of the request. Out: an ASGI application. The endpoint runs
beside a watch of the connection: when the client disconnects, the endpoint is cancelled, which gives back its place
in the engine and its model, wherever it waits at that moment.
"""

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.serving.api.errors import ApiError, ClientGone, unexpected
from pipeline.serving.api.fields import Fields, parsed_body
from pipeline.serving.api.limits import Limits
from pipeline.serving.api.loaded import routed
from pipeline.serving.api.served import ServedModels, Serving
from pipeline.serving.same_origin import Message, Receive, Send

JSON, EVENTS = b"application/json", b"text/event-stream; charset=utf-8"
MOST_UNWANTED = 64_000_000  # bytes of a body that is refused and read all the same
DONE = b"data: [DONE]\n\n"
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Noted:
    """What the log and the metrics say of a request."""

    id: str
    route: str = "other"  # one of the application's, so that the number of labels is bounded
    model: str = ""  # a served one
    status: int = 0
    started: float = field(default_factory=time.perf_counter)
    first_token_seconds: float | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    texts: dict[str, Any] = field(default_factory=dict)  # what was asked and answered, if that is logged

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.started

    def wrote(self) -> None:
        """Called for every piece of an answer."""
        if self.first_token_seconds is None:
            self.first_token_seconds = self.seconds

    def used(self, usage: Mapping[str, int]) -> None:
        self.prompt_tokens += usage.get("prompt_tokens", 0)
        self.cached_tokens += usage.get("cached_tokens", 0)
        self.completion_tokens += usage.get("completion_tokens", 0)


class Call:
    def __init__(self, scope: Message, receive: Receive, send: Send, served: ServedModels, limits: Limits) -> None:
        self.scope, self._receive, self._own_send = scope, receive, send
        self.is_answered = False
        self.served, self.limits = served, limits
        self.noted: Noted = scope["noted"]

    async def fields(self) -> Fields:
        """Raises ApiError for a body that is no JSON object, too large or too slow, and ClientGone."""
        headers = {name: value.decode("latin-1") for name, value in self.scope["headers"]}
        kind = headers.get(b"content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json" and not kind.endswith("+json"):
            raise ApiError(415, f"the content type is {kind[:80]!r}, expected application/json")
        if (coding := headers.get(b"content-encoding", "identity").lower()) != "identity":
            raise ApiError(415, f"the content encoding {coding[:80]!r} is not supported; send the body as it is")
        length = headers.get(b"content-length", "")
        n_bytes = int(length) if length.isdecimal() else 0
        if n_bytes > self.limits.max_body_bytes:
            if n_bytes <= MOST_UNWANTED and b"expect" not in headers:
                await self._discard(0)
            raise self._too_large()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                body = await self._body()
        except TimeoutError:
            raise ApiError(
                408,
                f"the body did not arrive within {self.limits.body_seconds:g} seconds",
                code="body_timeout",
                headers={"Connection": "close"},
            ) from None
        return parsed_body(body)

    @contextlib.asynccontextmanager
    async def serving(self, fields: Fields, route: str) -> AsyncIterator[Serving]:
        """The model that the fields name, which nobody closes meanwhile. Raises ApiError for a name that is not
        served, while it is not ready, and for a model that does not answer at this route."""
        name = self.served.name_for(fields.get("model"), route)
        async with self.served.use(name) as serving:
            self.noted.model = name
            routed(serving.model, route, name)
            yield serving

    async def _body(self) -> bytes:
        parts, size, is_complete = [], 0, False
        while not is_complete and size <= self.limits.max_body_bytes:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            is_complete = not message.get("more_body", False)
        if size > self.limits.max_body_bytes:
            if not is_complete:
                await self._discard(size)
            raise self._too_large()
        return b"".join(parts)

    async def _discard(self, size: int) -> None:
        """Reads the rest of a body that is not wanted, because a client that still sends does not see its answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.limits.body_seconds):
                while size <= MOST_UNWANTED:
                    message = await self._receive()
                    size += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            f"the body is larger than {self.limits.max_body_bytes:,} bytes, the most that this server reads",
            code="body_too_large",
            headers={"Connection": "close"},
        )

    async def _send(self, message: Message) -> None:
        # Before the last part, because a connection whose answer is complete says that its client has gone.
        self.is_answered = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._own_send(message)

    async def gone(self) -> None:
        """Returns when the client has closed the connection, or has its whole answer."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def check_time(self) -> None:
        """Raises ApiError when the request has taken as long as it may."""
        if self.noted.seconds > self.limits.request_seconds:
            raise ApiError(
                503,
                f"the answer took longer than {self.limits.request_seconds:g} seconds; send fewer texts at once",
                code="request_timeout",
            )

    async def reply(self, content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content, ensure_ascii=False).encode()
        await send_whole(self._send, status, body, headers or {})

    async def stream(self, events: AsyncIterator[bytes]) -> None:
        """Server-sent events, each as soon as it is there. An error after the first one becomes an event."""
        headers = [(b"content-type", EVENTS), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]
        async with contextlib.aclosing(events):  # type: ignore[type-var]
            first = await anext(events)  # what fails before it still has a status
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._part(first)
            try:
                async for one in events:
                    await self._part(one)
            except ApiError as error:
                await self._part(event(error.content))
            except Exception:
                log.exception("%s: the answer was not completed", self.noted.id)
                await self._part(event(unexpected().content))
            await self._part(DONE)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _part(self, body: bytes) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": True})


Function = Callable[[Call, Fields], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An ASGI application, which Starlette's Route takes as it is."""

    function: Function
    served: ServedModels
    limits: Limits

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        call = Call(scope, receive, send, self.served, self.limits)
        call.noted.route = scope["path"]  # that of the route, which has no parameters
        fields = await call.fields()
        work = asyncio.ensure_future(self.function(call, fields))
        gone = asyncio.ensure_future(call.gone())
        try:
            await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
            if not work.done() and not call.is_answered:
                raise ClientGone
            await work
        finally:
            for task in (work, gone):
                task.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)


def event(content: Any) -> bytes:
    return b"data: " + json.dumps(content, ensure_ascii=False).encode() + b"\n\n"


async def send_whole(send: Send, status: int, body: bytes, headers: Mapping[str, str], kind: bytes = JSON) -> None:
    sent = [(b"content-type", kind), (b"content-length", str(len(body)).encode())]
    sent += [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": sent})
    await send({"type": "http.response.body", "body": body, "more_body": False})
