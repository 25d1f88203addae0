"""Whatever JSON comes, the server answers it, or refuses it in OpenAI's form; nothing makes it fail."""

import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.pipeline.serving.api.test_refusals import is_error

NAMES = ("writer", "embedder", "moods", "topics", "names", "questions", "gpt-4")
FIELDS = (
    *(
        "messages",
        "prompt",
        "input",
        "question",
        "text",
        "stop",
        "n",
        "seed",
        "temperature",
        "top_p",
        "top_k",
        "echo",
    ),
    *("logprobs", "top_logprobs", "stream", "stream_options", "response_format", "dimensions", "encoding_format"),
    *("role", "content", "type", "schema", "json_schema", "best_of", "truncation", "truncate", "include_usage"),
)
ROUTES = ("chat/completions", "completions", "embeddings", "classify", "extract", "answer")
leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(("user", "system", "text", "json_object", "base64", "auto", *NAMES))
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(FIELDS), inner, max_size=3),
    max_leaves=8,
)
messages = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(("user", "assistant", "tool")), "content": values})
)
bodies = st.fixed_dictionaries(
    {"model": st.sampled_from(NAMES) | leaves, "max_tokens": st.integers(1, 3) | leaves},
    optional={"messages": messages | values, **{name: values for name in FIELDS if name != "messages"}},
)


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(ROUTES), bodies)
def test_any_body_is_answered_or_refused(server, route, body):
    body["n"] = body.get("n") if isinstance(body.get("n"), str) else 1  # a thousand texts are another test's matter
    raw = json.dumps(body).encode()
    answer = server.post(f"/v1/{route}", data=raw, headers={"Content-Type": "application/json"})
    assert answer.status_code in (200, 400, 404), answer.text
    if answer.status_code != 200:
        assert is_error(answer.json())
    elif answer.headers["content-type"] != "application/json":
        assert answer.text.endswith("data: [DONE]\n\n") and '"error"' not in answer.text
