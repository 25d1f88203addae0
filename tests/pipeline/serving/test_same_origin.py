"""Requests that pages of other sites make a browser send are refused; those of own pages and programs are not."""

import asyncio

import pytest

from pipeline.serving.same_origin import SameOrigin, refusal, split_host

HERE = ("Host", "127.0.0.1:3000")
JSON = ("Content-Type", "application/json")
LINK = [("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "document")]


def of(site: str) -> tuple[str, str]:
    return ("Sec-Fetch-Site", site)


@pytest.mark.parametrize(
    ("method", "headers"),
    [
        ("GET", [HERE]),  # curl
        ("POST", [HERE, JSON]),
        ("PUT", [HERE, ("Content-Type", "application/octet-stream")]),  # an artifact
        ("GET", [("Host", "localhost:3000"), of("none")]),
        ("GET", [("host", "[::1]:3000"), ("origin", "http://[::1]:3000"), of("same-origin")]),
        ("POST", [HERE, ("Origin", "http://127.0.0.1:3000"), of("same-origin"), ("Content-Type", "text/plain")]),
        ("POST", [("Host", "localhost:8080"), ("Origin", "http://localhost:8080"), JSON]),  # through a tunnel
        ("GET", [HERE, of("cross-site"), *LINK]),  # a link from anywhere
        ("HEAD", [HERE, of("same-site"), *LINK]),
        ("WEBSOCKET", [HERE, ("Origin", "http://127.0.0.1:3000")]),
        ("WEBSOCKET", [HERE]),
        ("GET", [("Host", "mill.example:8443"), ("Origin", "https://mill.example:8443")]),
        ("POST", [("Host", "mill.example"), ("Origin", "https://mill.example"), JSON]),
        ("POST", [("Host", "127.0.0.1:3000"), ("Origin", "https://mill.example"), JSON]),  # the proxy changes Host
        ("POST", [("Host", "127.0.0.1:3000"), ("Origin", "https://other.example:8443"), JSON]),
    ],
)
def test_same_origin_own_requests_are_answered(method, headers):
    assert refusal(method, headers, ["mill.example", "other.example:8443"]) is None


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", [], 403),
        ("GET", [("Host", "evil.example:3000")], 403),  # DNS rebinding
        ("GET", [("Host", "10.0.0.1.evil.example")], 403),
        ("GET", [("Host", "127.0.0.1.evil.example:3000")], 403),
        ("GET", [("Host", "user@127.0.0.1:3000")], 403),
        ("GET", [("Host", "[::1].evil.example")], 403),
        ("GET", [("Host", "0.0.0.0:3000")], 403),
        ("GET", [HERE, ("Host", "evil.example")], 400),
        ("GET", [HERE, ("Origin", "http://evil.example")], 403),
        ("GET", [HERE, ("Origin", "null")], 403),
        ("GET", [HERE, ("Origin", "")], 403),
        ("GET", [HERE, ("Origin", "file://")], 403),
        ("GET", [HERE, ("Origin", "chrome-extension://abc")], 403),
        ("POST", [HERE, ("Origin", "http://127.0.0.1:8080"), JSON], 403),  # another program of this machine
        ("POST", [HERE, ("Origin", "http://localhost:3000"), JSON], 403),
        ("POST", [HERE, ("Origin", "http://127.0.0.1"), JSON], 403),
        ("POST", [HERE, ("Origin", "https://other.example"), JSON], 403),  # it is permitted with port 8443 only
        ("POST", [HERE, ("Origin", "http://127.0.0.1:3000.evil.example"), JSON], 403),
        ("POST", [HERE, ("Origin", "http://127.0.0.1:3000"), ("Origin", "http://evil.example")], 400),
        ("OPTIONS", [HERE, ("Origin", "http://evil.example"), ("Access-Control-Request-Method", "POST")], 403),
        ("WEBSOCKET", [HERE, ("Origin", "http://evil.example")], 403),
        ("WEBSOCKET", [("Host", "evil.example"), ("Origin", "http://evil.example")], 403),
        ("GET", [HERE, of("cross-site"), ("Sec-Fetch-Mode", "no-cors"), ("Sec-Fetch-Dest", "image")], 403),
        ("GET", [HERE, of("same-site")], 403),  # an image on a page of another port
        ("GET", [HERE, of("cross-site"), ("Sec-Fetch-Mode", "navigate"), ("Sec-Fetch-Dest", "iframe")], 403),
        ("POST", [HERE, of("cross-site"), *LINK, JSON], 403),  # a form that is sent
        ("WEBSOCKET", [HERE, of("cross-site"), *LINK], 403),
        ("POST", [HERE], 415),  # browsers that tell no Origin: a form's content types
        ("POST", [HERE, ("Content-Type", "text/plain; application/json")], 415),
        ("POST", [HERE, ("Content-Type", "multipart/form-data; boundary=x")], 415),
        ("POST", [HERE, ("Content-Type", "application/x-www-form-urlencoded")], 415),
        ("POST", [HERE, JSON, ("Content-Type", "text/plain")], 415),
    ],
)
def test_same_origin_forged_requests_are_refused(method, headers, status):
    assert refusal(method, headers, ["mill.example", "other.example:8443"]).status == status


@pytest.mark.parametrize("host", ["http://mill.example", "mill.example/", "", "a b", "mill.example:"])
def test_same_origin_what_is_no_host_name_cannot_be_permitted(host):
    with pytest.raises(ValueError, match="is not a host"):
        split_host(host)


def answer(scope: dict, headers: list[tuple[str, str]]) -> list[dict]:
    """What a guarded application, which answers everything with 200, sends."""
    sent: list[dict] = []

    async def page(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    raw = [(name.lower().encode(), value.encode()) for name, value in headers]
    guarded = SameOrigin(app=page, post_only=("/graphql",))
    asyncio.run(guarded({"path": "/", "headers": raw, **scope}, receive, send))
    return sent


@pytest.mark.parametrize("path", ["/graphql", "/graphql/", "//GraphQL"])
def test_same_origin_get_never_acts(path):
    """An image `<img src="http://127.0.0.1:3000/graphql?query=mutation...">` deleted runs (own trials)."""
    get = {"type": "http", "method": "GET", "path": path}
    assert answer(get, [HERE])[0]["status"] == 405
    assert answer({**get, "method": "HEAD"}, [HERE, ("Accept", "image/png")])[0]["status"] == 405
    assert answer(get, [HERE, ("Accept", "text/html")])[0]["status"] == 200  # the page GraphiQL, which runs nothing
    assert answer({**get, "method": "POST"}, [HERE, JSON])[0]["status"] == 200


def test_same_origin_pages_may_not_be_framed_and_a_websocket_is_closed_before_it_opens():
    (start,) = answer({"type": "http", "method": "GET"}, [HERE])
    assert (b"x-frame-options", b"SAMEORIGIN") in start["headers"]
    (closed,) = answer({"type": "websocket"}, [HERE, ("Origin", "null")])
    assert closed["type"] == "websocket.close" and "another site" in closed["reason"]


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
def test_upload_by_a_program_is_answered_whatever_its_content_type(method):
    """A form of another site can only GET and POST; MLflow's client uploads a JSON file with PUT as text/plain."""
    assert refusal(method, [("Host", "127.0.0.1:5000"), ("Content-Type", "text/plain")]) is None
