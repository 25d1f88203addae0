"""Who may ask: a check of Host and Origin, and a bearer token.

In: an ASGI application, the names under which it is served, and perhaps a token. Out: the application, which answers
only what passes. Host and Origin are checked by the rules of pipeline/serving/same_origin.py, so that a page of
another site can't use the server through a visitor's browser. With a token any Host is accepted, unless names
were given: such a page doesn't know the token, and a server behind an address has many names. The token is compared
in constant time. Health, readiness and the pages, which contain nothing of the models, need none.
"""

import hashlib
import hmac
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from pipeline.serving.api.errors import ApiError
from pipeline.serving.same_origin import App, Message, Receive, Send, protecting, refusal, split_host

NEEDS_TOKEN = ("/v1/", "/metrics")  # beginnings of paths
LEAST_TOKEN = 16  # characters
CODES = {400: "bad_header", 403: "foreign_origin", 415: "unsupported_media_type"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Guard:
    """ASGI middleware. Raises ApiError for a request that is refused."""

    app: App
    hosts: Collection[str] = ()
    token: str | None = None

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        given = {name.lower(): value for name, value in headers}
        if (refused := refusal(scope["method"], headers, self._hosts(given))) is not None:
            raise ApiError(refused.status, refused.reason, code=CODES[refused.status])
        path = scope["path"]
        if self.token is not None and any(path == one.rstrip("/") or path.startswith(one) for one in NEEDS_TOKEN):
            self._check_token(given.get("authorization", ""))
        await self.app(scope, receive, protecting(send))

    def _hosts(self, headers: Mapping[str, str]) -> Collection[str]:
        if self.token is None or self.hosts:
            return self.hosts
        try:
            return [split_host(headers.get("host", ""))[0]]
        except ValueError:
            return ()

    def _check_token(self, given: str) -> None:
        scheme, _, token = given.partition(" ")
        assert self.token is not None
        # Hashes have one length, so that the time does not tell that of the token.
        own, theirs = (hashlib.sha256(one.encode("utf-8", "replace")).digest() for one in (self.token, token.strip()))
        if scheme.lower() != "bearer" or not hmac.compare_digest(own, theirs):
            told = "the token is wrong" if given else "this server needs a token"
            raise ApiError(
                401,
                f"{told}; send it as the header Authorization: Bearer TOKEN (api_key of OpenAI's client)",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def checked_token(text: str, where: str) -> str:
    """Raises ValueError for what can't be a token."""
    token = text.strip()
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(
            f"{where} has no token of at least {LEAST_TOKEN} letters, digits and signs; make one with"
            ' python -c "import secrets; print(secrets.token_urlsafe(32))"'
        )
    return token
