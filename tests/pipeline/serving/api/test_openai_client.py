"""OpenAI's own client talks to the server as it does to OpenAI: nothing of it is changed."""

import json

import numpy as np
import openai
import pytest

ASK = [{"role": "user", "content": "Who grinds the corn?"}]


def ask(client, **fields):
    return client.chat.completions.create(
        **{"model": "writer", "messages": ASK, "max_tokens": 12, "seed": 1} | fields
    )


def test_models_are_listed_with_what_a_form_needs(client):
    models = {one.id: one for one in client.models.list()}
    assert set(models) == {"writer", "embedder", "moods", "topics", "names", "questions"}
    assert models["writer"].gristmill["routes"] == ["/v1/chat/completions", "/v1/completions"]
    assert models["moods"].gristmill["labels"] == ["glad", "sad", "calm"]
    assert models["questions"].gristmill["inputs"] == {"question": "string", "text": "string"}
    assert client.models.retrieve("embedder").gristmill["dimensions"] == 32
    with pytest.raises(openai.NotFoundError, match="served are writer"):
        client.models.retrieve("gpt-4")


def test_chat_answers_with_usage_and_the_same_text_for_the_same_seed(client):
    one, again = ask(client), ask(client)
    assert one.choices[0].message.role == "assistant" and one.choices[0].finish_reason == "length"
    assert len(one.choices[0].message.content) == 12
    assert one.choices[0].message.content == again.choices[0].message.content
    assert ask(client, seed=2).choices[0].message.content != one.choices[0].message.content
    assert one.usage.completion_tokens == 12
    assert one.usage.total_tokens == one.usage.prompt_tokens + 12
    assert again.usage.prompt_tokens_details.cached_tokens > 0


def test_chat_stream_is_the_whole_answer_in_pieces_with_role_finish_and_usage(client):
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [one.choices[0].finish_reason for one in chunks[:-1]] == [None] * (len(chunks) - 2) + ["length"]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 12
    text = "".join(one.choices[0].delta.content or "" for one in chunks[:-1])
    assert text == ask(client).choices[0].message.content
    assert len({one.id for one in chunks}) == 1


def test_chat_several_choices_differ_and_each_is_streamed_to_its_end(client):
    whole = ask(client, n=3)
    assert len({one.message.content for one in whole.choices}) == 3
    texts, ends = ["", "", ""], {}
    for chunk in ask(client, n=3, stream=True):
        (choice,) = chunk.choices
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            ends[choice.index] = choice.finish_reason
    assert texts == [one.message.content for one in whole.choices]
    assert ends == {0: "length", 1: "length", 2: "length"}


def test_chat_stops_before_a_stop_text_that_two_tokens_share(client):
    free = ask(client, max_tokens=40).choices[0].message.content
    stop = free[5:8]
    stopped = ask(client, max_tokens=40, stop=["#", stop])
    assert stopped.choices[0].message.content == free[: free.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"
    pieces = [one.choices[0].delta.content or "" for one in ask(client, max_tokens=40, stop=stop, stream=True)]
    assert "".join(pieces) == free[: free.index(stop)]


def test_chat_logprobs_are_of_the_tokens_of_the_text(client):
    choice = ask(client, logprobs=True, top_logprobs=3, temperature=0).choices[0]
    tokens = choice.logprobs.content
    assert "".join(one.token for one in tokens) == choice.message.content
    assert all(one.top_logprobs[0].token == one.token and len(one.top_logprobs) == 3 for one in tokens)
    assert all(one.logprob <= 0 and one.bytes == list(one.token.encode()) for one in tokens)
    streamed = ask(client, logprobs=True, temperature=0, stream=True)
    pieces = [one.choices[0].logprobs.content for one in streamed if one.choices[0].logprobs]
    found = [token.logprob for piece in pieces for token in piece]
    np.testing.assert_allclose(found, [one.logprob for one in tokens], atol=1e-4)


def test_chat_response_format_gives_json_of_the_schema(client):
    schema = {
        "type": "object",
        "properties": {"mood": {"enum": ["glad", "sad"]}, "sure": {"type": "boolean"}},
        "required": ["mood", "sure"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "mood", "strict": True, "schema": schema}}
    found = json.loads(ask(client, response_format=form, max_tokens=60).choices[0].message.content)
    assert found["mood"] in ("glad", "sad") and isinstance(found["sure"], bool)
    text = ask(client, response_format={"type": "json_object"}, max_tokens=60).choices[0].message.content
    json.loads(text)


def test_chat_messages_in_parts_of_several_roles_and_unknown_fields_are_read(client):
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [{"type": "text", "text": "Who "}, {"type": "text", "text": "grinds?"}]},
        {"role": "user", "content": "And when?"},
        {"role": "assistant", "content": "Anna."},
        {"role": "user", "content": "Why?"},
    ]
    more = {"user": "me", "metadata": {"a": "b"}, "store": False, "frequency_penalty": 0, "logit_bias": {}}
    plain = [
        {"role": "system", "content": "Be brief.\n\nBe kind."},
        {"role": "user", "content": "Who grinds?\n\nAnd when?"},
        *messages[4:],
    ]
    assert ask(client, messages=messages, **more).choices == ask(client, messages=plain).choices


def test_completions_of_several_prompts_with_several_texts_each(client):
    fields = {"model": "writer", "max_tokens": 6, "seed": 3, "temperature": 2}
    many = client.completions.create(prompt=["abc", "xyz"], n=2, **fields)
    assert [one.index for one in many.choices] == [0, 1, 2, 3] and len({one.text for one in many.choices}) == 4
    first = client.completions.create(prompt="abc", n=2, **fields)
    assert [one.text for one in first.choices] == [one.text for one in many.choices[:2]]
    texts = [""] * 4
    for chunk in client.completions.create(prompt=["abc", "xyz"], n=2, stream=True, **fields):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == [one.text for one in many.choices]


def test_completions_of_tokens_echo_and_logprobs(client):
    fields = {"model": "writer", "max_tokens": 6, "temperature": 0}
    plain = client.completions.create(prompt="abc", **fields).choices[0].text
    ids = [256, *b"abc"]
    assert client.completions.create(prompt=ids, **fields).choices[0].text == plain
    assert client.completions.create(prompt="abc", echo=True, **fields).choices[0].text == "abc" + plain
    logprobs = client.completions.create(prompt="abc", logprobs=2, **fields).choices[0].logprobs
    assert logprobs.tokens == list(plain) and logprobs.text_offset == [0, 1, 2, 3, 4, 5]
    assert all(len(one) == 2 for one in logprobs.top_logprobs)
    assert len(client.completions.create(model="writer", prompt="abc").choices[0].text) == 16  # OpenAI's default


def test_embeddings_as_numbers_and_as_base64_are_the_same_vectors(client):
    texts = ["a text", "another", "a text"]
    packed = client.embeddings.create(model="embedder", input=texts)  # the client asks for base64
    plain = client.embeddings.create(model="embedder", input=texts, encoding_format="float")
    vectors = np.array([one.embedding for one in plain.data])
    np.testing.assert_allclose([one.embedding for one in packed.data], vectors, atol=1e-7)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[2], atol=1e-6)
    short = client.embeddings.create(model="embedder", input="a text", dimensions=5).data[0].embedding
    np.testing.assert_allclose(short, vectors[0][:5] / np.linalg.norm(vectors[0][:5]), atol=1e-5)
    assert plain.usage.total_tokens == plain.usage.prompt_tokens > 0


def test_errors_are_those_that_the_client_knows(client):
    with pytest.raises(openai.NotFoundError) as unknown:
        ask(client, model="gpt-4")
    assert unknown.value.code == "model_not_found" and unknown.value.param == "model"
    with pytest.raises(openai.BadRequestError) as wrong:
        ask(client, temperature=3)
    assert wrong.value.param == "temperature" and "from 0 to 2" in wrong.value.message
    with pytest.raises(openai.BadRequestError) as long:
        ask(client, messages=[{"role": "user", "content": "a" * 5000}])
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="use /v1/embeddings"):
        ask(client, model="embedder")
    with pytest.raises(openai.BadRequestError) as penalty:
        ask(client, frequency_penalty=0.5)
    assert penalty.value.param == "frequency_penalty" and "repetition_penalty" in penalty.value.message
