"""What is wrong with a request, or with the bytes of it, is answered by an error in OpenAI's form."""

import json
import socket

import pytest
import requests

from pipeline.serving.api.limits import Limits
from tests.pipeline.serving.api.tiny_models import running

CHAT = {"model": "writer", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}


def is_error(content: dict) -> bool:
    return set(content) == {"error"} and set(content["error"]) == {"message", "type", "param", "code"}


def exchange(port: int, *parts: bytes, shuts: bool = False) -> tuple[int, dict]:
    """Status and JSON of the answer to bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        for part in parts:
            connection.sendall(part)
        if shuts:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
            head, _, body = answer.partition(b"\r\n\r\n")
            length = head.lower().rpartition(b"content-length: ")[2].split(b"\r")[0]
            if body and len(body) >= int(length):
                break
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)


def post(
    body: bytes, *lines: bytes, path: bytes = b"/v1/chat/completions", kind: bytes = b"application/json"
) -> bytes:
    head = [b"POST " + path + b" HTTP/1.1", b"Host: 127.0.0.1", b"Content-Type: " + kind, *lines]
    return b"\r\n".join([*head, b"Content-Length: %d" % len(body), b"", b""]) + body


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (post(b"{"), 400, "invalid_json"),
        (post(b""), 400, "invalid_json"),
        (post(b"[1]"), 400, "invalid_json"),
        (post(b'{"model": NaN}'), 400, "invalid_json"),
        (post(b'{"a": ' * 50_000), 400, "invalid_json"),
        (post(b'{"max_tokens": ' + b"9" * 5000 + b"}"), 400, "invalid_json"),
        (post(b'{"model": "\xff\xfe"}'), 400, "invalid_utf8"),
        (post(b"{}", kind=b"text/csv"), 415, None),
        (post(b"{}", kind=b"text/plain"), 415, "unsupported_media_type"),
        (post(b"{}", b"Content-Encoding: gzip"), 415, None),
        (post(b"{}", path=b"/v1/nothing"), 404, "unknown_url"),
        (post(b"{}", path=b"/v1/models"), 405, "method_not_allowed"),
        (post(b"{}", path=b"/v1/chat/completions/"), 404, "unknown_url"),
        (b"GET /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 405, "method_not_allowed"),
        (b"GET /v1/models HTTP/1.1\r\nHost: evil.example\r\n\r\n", 403, "foreign_origin"),
        (b"GET /v1/models HTTP/1.1\r\n\r\n", 403, "foreign_origin"),
        (post(b"{}", b"Origin: http://evil.example"), 403, "foreign_origin"),
        (b"this is no HTTP\r\n\r\n", 400, "invalid_http"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "invalid_http"),  # TLS
        (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", 431, "headers_too_large"),
    ],
)
def test_broken_request_is_an_error_of_the_api(server, request_bytes, status, code):
    found, content = exchange(server.port, request_bytes)
    assert is_error(content) and (found, content["error"]["code"]) == (status, code), content


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hello"}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "robot", "content": "a"}]}, "messages"),
        ({"messages": [{"role": "user", "content": "a \ud800"}]}, "messages[0].content"),
        ({"messages": [*CHAT["messages"], {"role": "assistant", "content": "a"}]}, "messages"),
        ({"messages": [*CHAT["messages"], {"role": "system", "content": "a"}]}, "messages"),
        ({"temperature": "hot"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"n": 17}, "n"),
        ({"stop": [""]}, "stop"),
        ({"stop": 5}, "stop"),
        ({"seed": "x"}, "seed"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"5": 100}}, "logit_bias"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"pattern": "a"}}}},
            "response_format",
        ),
        ({"response_format": {"type": "json_object"}, "stop": "a"}, None),
        ({"truncation": "middle"}, "truncation"),
    ],
)
def test_wrong_field_of_a_chat_is_named(server, fields, param):
    answer = server.post("/v1/chat/completions", CHAT | fields)
    assert answer.status_code == 400, answer.text
    assert is_error(answer.json()) and answer.json()["error"]["param"] == param, answer.text


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("completions", {"model": "writer", "prompt": [[]]}, "prompt"),
        ("completions", {"model": "writer", "prompt": [999]}, "prompt"),
        ("completions", {"model": "writer", "prompt": {}}, "prompt"),
        ("completions", {"model": "writer", "prompt": ["a"] * 9, "n": 2}, "prompt"),
        ("completions", {"model": "writer", "prompt": "a", "best_of": 3}, "best_of"),
        ("completions", {"model": "writer", "prompt": "a", "suffix": "b"}, "suffix"),
        ("completions", {"model": "writer", "prompt": "a", "echo": True, "logprobs": 1}, "logprobs"),
        ("embeddings", {"model": "embedder"}, "input"),
        ("embeddings", {"model": "embedder", "input": []}, "input"),
        ("embeddings", {"model": "embedder", "input": ["a", ""]}, "input"),
        ("embeddings", {"model": "embedder", "input": "a", "dimensions": 33}, "dimensions"),
        ("embeddings", {"model": "embedder", "input": "a", "encoding_format": "int8"}, "encoding_format"),
        ("embeddings", {"model": "embedder", "input": "a" * 100}, "input"),
    ],
)
def test_wrong_field_of_completions_and_embeddings_is_named(server, path, fields, param):
    answer = server.post(f"/v1/{path}", fields)
    assert answer.status_code == 400, answer.text
    assert is_error(answer.json()) and answer.json()["error"]["param"] == param, answer.text


def test_long_text_is_embedded_without_its_end_where_that_is_asked_for(server):
    fields = {"model": "embedder", "truncate": True}
    one, other = (server.post("/v1/embeddings", fields | {"input": "a" * 63 + end}).json() for end in ("b", "c"))
    assert one["data"] == other["data"] and one["usage"]["prompt_tokens"] == 64


def test_long_conversation_loses_its_oldest_questions_where_that_is_asked_for(server):
    turns = [{"role": role, "content": f"{place} " * 300} for place in range(8) for role in ("user", "assistant")][
        :-1
    ]
    body = CHAT | {"messages": turns}
    assert server.post("/v1/chat/completions", body).json()["error"]["code"] == "context_length_exceeded"
    usage = server.post("/v1/chat/completions", body | {"truncation": "auto"}).json()["usage"]
    assert 600 < usage["prompt_tokens"] <= 4092


def test_answer_of_the_server_has_an_id_and_says_how_to_show_it(server):
    headers = server.post("/v1/chat/completions", CHAT).headers
    assert headers["x-request-id"].startswith("req-") and headers["x-content-type-options"] == "nosniff"


@pytest.fixture(scope="module")
def strict(tiny_models, tmp_path_factory):
    """A server with a token and small limits."""
    limits = Limits(
        max_body_bytes=2000,
        header_seconds=0.3,
        body_seconds=0.6,
        max_connections=5,
        max_texts=4,
        n_slots=1,
        max_waiting=0,
    )
    models = [str(tiny_models["writer"]), str(tiny_models["moods"])]
    with running(models, tmp_path_factory.mktemp("strict"), limits=limits, token="a-secret-of-a-test") as one:
        yield one


BEARER = {"Authorization": "Bearer a-secret-of-a-test"}
LINE = b"Authorization: Bearer a-secret-of-a-test"


@pytest.mark.parametrize("given", [None, "Bearer wrong", "Bearer ", "Basic a-secret-of-a-test", "a-secret-of-a-test"])
@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/v1/chat/completions", "/v1"])
def test_token_is_needed_for_everything_that_tells_something(strict, given, path):
    answer = strict.get(path, headers={"Authorization": given} if given else {})
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer" and is_error(answer.json())
    assert answer.json()["error"]["code"] == "invalid_api_key"


def test_token_lets_in_under_any_name_and_is_not_needed_for_health(strict):
    assert strict.get("/v1/models", headers=BEARER | {"Host": "mill.example"}).status_code == 200
    assert strict.get("/healthz").status_code == strict.get("/readyz").status_code == 200
    assert strict.get("/v1/models", headers=BEARER | {"Origin": "http://evil.example"}).status_code == 403
    assert "a-secret" not in json.dumps(strict.log)


def test_large_body_is_refused_by_its_length_and_by_its_bytes(strict):
    answer = strict.post("/v1/chat/completions", CHAT | {"user": "a" * 3000}, headers=BEARER)
    assert answer.status_code == 413 and answer.json()["error"]["code"] == "body_too_large"
    whole = post(b"x" * 3_000_000, LINE, b"Connection: close")  # of a client that reads only when all is sent
    assert exchange(strict.port, whole)[0] == 413
    parts = (b"x" * 500 for _ in range(10))  # in chunks, so that its length is not told
    headers = BEARER | {"Content-Type": "application/json"}
    assert strict.post("/v1/chat/completions", data=parts, headers=headers).status_code == 413


def test_slow_head_and_slow_body_are_not_waited_for(strict):
    assert exchange(strict.port, b"POST /v1/chat")[1]["error"]["code"] == "header_timeout"
    slow = post(b"{" + b" " * 100, LINE)[:-50]
    status, content = exchange(strict.port, slow)
    assert (status, content["error"]["code"]) == (408, "body_timeout")


def test_cut_off_request_leaves_nothing_behind(strict):
    with socket.create_connection(("127.0.0.1", strict.port)) as connection:
        connection.sendall(post(b"{" + b" " * 100, LINE)[:-50])
    assert strict.post("/v1/classify", {"model": "moods", "input": "a"}, headers=BEARER).status_code == 200


def test_connections_beyond_the_limit_are_told_to_come_back(strict):
    connections = [socket.create_connection(("127.0.0.1", strict.port)) for _ in range(5)]
    try:
        status, content = exchange(strict.port, b"")
        assert (status, content["error"]["code"]) == (503, "too_many_connections")
    finally:
        for one in connections:
            one.close()


def test_request_beyond_the_queue_is_told_when_to_come_back(strict):
    body = CHAT | {"max_tokens": 4000, "stream": True}
    with requests.post(
        f"{strict.url}/v1/chat/completions", json=body, headers=BEARER, stream=True, timeout=60
    ) as first:
        lines = first.iter_lines()  # while this is there, the connection is
        next(lines)  # it has the only slot
        answer = strict.post("/v1/chat/completions", CHAT, headers=BEARER)
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) >= 1
    assert answer.json()["error"]["type"] == "rate_limit_error" and is_error(answer.json())
