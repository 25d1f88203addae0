"""Refuses requests that pages of other sites make a browser send to a server on this machine.

In: an ASGI application and the names under which it is served. Out: the application, which answers only requests with
a known Host (a foreign one means that a name of an attacker was rebound to this machine), with no Origin but its own
(another port of this machine is another origin), and, where the browser tells it, from its own pages. Links to its
pages may stand anywhere. WebSockets are held to the same rules. A form of another site can send only three content
types, so that a POST without an Origin must have another one.

The rules are those of https://fetch.spec.whatwg.org (Origin), https://w3c.github.io/webappsec-fetch-metadata and
https://cheatsheetseries.owasp.org (cross-site request forgery). Programs that are no browser send none of these
headers, and are answered.
"""

import re
from collections.abc import Awaitable, Callable, Collection, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

LOCAL = ("127.0.0.1", "localhost", "[::1]")
HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9_.-]+)(?::(?P<port>[0-9]{1,5}))?", re.IGNORECASE | re.ASCII)
DEFAULT_PORTS = {"http": 80, "https": 443}
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
FORM_TYPES = ("", "text/plain", "multipart/form-data", "application/x-www-form-urlencoded")
CLOSING_CODE = 1008  # of a WebSocket: policy violation
PROTECTED = (  # nor may a page of another site show ours in a frame, or load its answers as pictures and scripts
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"x-content-type-options", b"nosniff"),
    (b"cross-origin-resource-policy", b"same-origin"),
)
Headers = Iterable[tuple[str, str]]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """The HTTP status and one line that says what was expected."""

    status: int
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class SameOrigin:
    """ASGI middleware. `hosts` are names, with a port or without, that a proxy adds to those of this machine.

    `post_only` are paths that must not act on a GET: it shows their page, if it asks for HTML, and is refused
    otherwise.
    """

    app: App
    hosts: Collection[str] = ()
    post_only: Collection[str] = ()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        method = scope.get("method", "WEBSOCKET")
        refused = refusal(method, headers, self.hosts) or self._acting_get(method, scope["path"], headers)
        if refused is None:
            await self.app(scope, receive, protecting(send))
        elif scope["type"] == "websocket":
            await receive()  # the request to connect
            await send({"type": "websocket.close", "code": CLOSING_CODE, "reason": refused.reason})
        else:
            plain = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": refused.status, "headers": plain})
            await send({"type": "http.response.body", "body": f"{refused.reason}\n".encode()})

    def _acting_get(self, method: str, path: str, headers: Headers) -> Refusal | None:
        if method not in SAFE_METHODS or path.strip("/").lower() not in {one.strip("/") for one in self.post_only}:
            return None
        accepted = next((value for name, value in headers if name.lower() == "accept"), "")
        return None if "text/html" in accepted else Refusal(status=405, reason=f"{path} answers POST, not {method}")


def refusal(method: str, headers: Headers, hosts: Collection[str] = ()) -> Refusal | None:
    """Why a request must not be answered; None if it may be. `method` is WEBSOCKET for a WebSocket."""
    given: dict[str, list[str]] = {}
    for name, value in headers:
        given.setdefault(name.lower(), []).append(value.strip())
    for name in ("host", "origin", "sec-fetch-site"):
        if len(given.get(name, ())) > 1:
            return Refusal(status=400, reason=f"the request has several headers {name}, expected one")
    host, origin = (given.get(name, [""])[0] for name in ("host", "origin"))
    if (split := _split(host)) is None or split[0] not in {*LOCAL, *_names(hosts)}:
        return Refusal(
            status=403,
            reason=f"the Host {host[:80]!r} is not a name of this server; see `gristmill ui --allow-host`",
        )
    if "origin" in given and not _is_ours(origin, split, hosts):
        return Refusal(status=403, reason=f"the Origin {origin[:80]!r} is another site than the Host {host!r}")
    return _cross_site(method, given) or _form(method, given)


def split_host(text: str) -> tuple[str, int | None]:
    """Name and port of `name` or `name:port`. Raises ValueError when it is neither."""
    if (found := _split(text)) is None:
        raise ValueError(f"{text!r} is not a host; expected a name like mill.example.org or mill.example.org:8443")
    return found


def _split(text: str) -> tuple[str, int | None] | None:
    match = HOST.fullmatch(text)
    return (match["name"].lower(), int(match["port"]) if match["port"] else None) if match else None


def _names(hosts: Collection[str]) -> set[str]:
    return {split_host(host)[0] for host in hosts}


def _is_ours(origin: str, host: tuple[str, int | None], hosts: Collection[str]) -> bool:
    """Whether `origin` is that of the page's own address, or of a proxy that was permitted with its port."""
    scheme, separator, rest = origin.partition("://")
    if not separator or scheme not in DEFAULT_PORTS or (split := _split(rest)) is None:
        return False  # "null" too: a page in a sandbox, a file, or a redirect from another site
    own = [host, *(split_host(one) for one in hosts)]
    port = DEFAULT_PORTS[scheme]
    return (split[0], split[1] or port) in {(name, own_port or port) for name, own_port in own}


def _cross_site(method: str, given: dict[str, list[str]]) -> Refusal | None:
    site = given.get("sec-fetch-site", ["none"])[0]
    mode, destination = (given.get(f"sec-fetch-{name}", [""])[0] for name in ("mode", "dest"))
    follows_link = method in ("GET", "HEAD") and mode == "navigate" and destination == "document"
    if site in ("same-origin", "none") or follows_link:
        return None
    return Refusal(status=403, reason=f"the request comes from a page of another site (Sec-Fetch-Site: {site[:40]})")


def _form(method: str, given: dict[str, list[str]]) -> Refusal | None:
    told_by_browser = "origin" in given or "sec-fetch-site" in given
    kinds = given.get("content-type", [""])
    is_form = any(kind.partition(";")[0].strip().lower() in FORM_TYPES for kind in kinds)
    if method != "POST" or told_by_browser or not is_form:  # a form has no other method that changes anything
        return None
    return Refusal(
        status=415,
        reason=f"{method} with the content type {kinds[0][:80]!r}, which a form of another site can send;"
        " send application/json",
    )


def protecting(send: Send) -> Send:
    """`send`, with the headers PROTECTED in every response that does not have them."""

    async def protected(message: Message) -> None:
        if message["type"] == "http.response.start":
            given = {name.lower() for name, _ in message.get("headers", ())}
            added = [header for header in PROTECTED if header[0] not in given]
            message = {**message, "headers": [*message.get("headers", ()), *added]}
        await send(message)

    return protected
