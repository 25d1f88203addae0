"""Constrained text: always valid, whatever model and vocabulary write it; other rows are not touched."""

import dataclasses
import json
import random

import numpy as np
import pytest
import torch

from model.data.tokenizer import Tokenizer, tokenizer_of
from model.data.vocabularies import END_OF_TEXT, TRAINED_PATTERNS
from model.generation.constraints import choices, json_value, read_schema
from model.generation.decode import pack
from model.generation.generate import generate, generate_text
from model.generation.sample_config import SampleConfig
from model.generation.text_tokens import TextTokens
from model.network.decoder import Decoder, new_decoder
from model.network.shape import DecoderConfig

PIECES = [
    '"',
    '",',
    '":',
    '{"',
    '"}',
    "]}",
    '", "',
    "[[",
    "1",
    "-12",
    "00",
    ".5",
    "e+",
    "e9",
    "tru",
    "rue",
    "null",
    "é",
]
PIECES += [
    "\\",
    '\\"',
    "\\u",
    "\\n",
    "a",
    "name",
    '"name":',
    "x y",
    " ",
    "  ",
    "日本",
    "😀",
    "\n",
    "red",
    "re",
    '{"a',
    ",",
]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 5},
        "age": {"type": ["integer", "null"]},
        "score": {"type": "number"},
        "tags": {"type": "array", "items": {"enum": ["a", "bé", 3, None]}, "minItems": 1, "maxItems": 3},
        "home": {"$ref": "#/$defs/place"},
    },
    "required": ["name", "tags"],
    "$defs": {
        "place": {
            "type": "object",
            "properties": {
                "city": {"anyOf": [{"const": "Rome"}, {"type": "boolean"}]},
                "near": {"type": "array", "items": {"$ref": "#/$defs/place"}},
            },
        }
    },
}


def random_tokenizer(seed: int, n_more: int = 150) -> Tokenizer:
    """All bytes, and random joins of pieces of JSON, cut within characters and across parts of the grammar."""
    rng, tokens = random.Random(seed), {bytes([value]): value for value in range(256)}
    while len(tokens) < 256 + n_more:
        text = "".join(rng.choices(PIECES, k=rng.randint(1, 3))).encode()
        start = rng.randrange(len(text))
        tokens.setdefault(text[start : rng.randint(start + 1, len(text))], len(tokens))
    return tokenizer_of(tokens, TRAINED_PATTERNS["qwen2"], {END_OF_TEXT: len(tokens)}, len(tokens) + 1)


@torch.no_grad()
def random_decoder(tokenizer: Tokenizer, seed: int) -> Decoder:
    shape = {"n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_model": 16, "d_head": 8, "d_ff": 24, "max_seq_len": 48}
    model = new_decoder(DecoderConfig(vocab_size=tokenizer.vocab_size, **shape), seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        if weight.ndim == 2:
            weight.normal_(std=0.6, generator=generator)
    return model.eval()


def written(seed: int, constrain, n_rows: int, n_more: int, **settings) -> list[str]:
    """Texts of `n_rows` rows with at most `n_more` tokens more than the shortest text needs."""
    tokenizer = random_tokenizer(seed)
    constraint = constrain(TextTokens(tokenizer))
    cfg = SampleConfig(
        max_new_tokens=constraint.least_tokens + n_more, stop_ids=tuple(tokenizer.stops), seed=seed, **settings
    )
    prompts = [[row % 200] for row in range(n_rows)]
    model = pack(random_decoder(tokenizer, seed), n_rows)
    return generate_text(model, prompts, cfg, tokenizer.decode_bytes, constraints=constraint)


def is_valid(value, schema) -> bool:
    """A check of the keywords in SCHEMA, written apart from the grammar."""
    if "$ref" in schema:
        return is_valid(value, SCHEMA["$defs"]["place"])
    if "anyOf" in schema:
        return any(is_valid(value, one) for one in schema["anyOf"])
    if "const" in schema or "enum" in schema:
        return any(value == one and type(value) is type(one) for one in schema.get("enum", [schema.get("const")]))
    of = {"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool}
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    if not any(value is None if name == "null" else isinstance(value, of[name]) for name in types):
        return False
    if isinstance(value, dict):
        known = schema["properties"]
        return set(schema.get("required", [])) <= value.keys() <= known.keys() and all(
            is_valid(one, known[name]) for name, one in value.items()
        )
    if isinstance(value, list):
        n_most = schema.get("maxItems", len(value))
        return schema.get("minItems", 0) <= len(value) <= n_most and all(is_valid(i, schema["items"]) for i in value)
    return len(value) <= schema.get("maxLength", len(value)) if isinstance(value, str) else True


@pytest.mark.parametrize(("n_more", "temperature"), [(0, 1.0), (3, 5.0), (12, 1.0), (60, 2.0), (40, 0)])
def test_json_of_random_models_and_vocabularies_is_valid_for_any_number_of_tokens(n_more, temperature):
    texts = [
        text
        for seed in range(3)
        for text in written(seed, json_value, 30, n_more, temperature=temperature, top_k=None)
    ]
    for text in texts:
        json.loads(text).__repr__().encode()  # also without half of a surrogate pair
    assert len(set(texts)) > 1


@pytest.mark.parametrize("n_more", [0, 5, 25, 80])
def test_json_of_a_schema_has_its_form(n_more):
    found = [
        json.loads(text)
        for seed in range(3)
        for text in written(
            seed, lambda tokens: json_value(tokens, SCHEMA), 30, n_more, temperature=2.0, top_k=20, top_p=0.9
        )
    ]
    assert all(is_valid(value, SCHEMA) for value in found)
    if n_more == 80:
        assert {name for value in found for name in value} == set(SCHEMA["properties"])


def test_choices_are_one_of_the_texts_and_each_of_them_occurs():
    texts = ["no", "none", "yes é", "日本", "red"]
    found = [
        text
        for seed in range(4)
        for text in written(seed, lambda tokens: choices(tokens, texts), 40, 8, temperature=3.0, top_k=None)
    ]
    assert set(found) == set(texts)


def test_choices_follow_the_probabilities_of_the_model():
    """Of choices of one token each, the most likely one is taken, and draws are as frequent as the model has them."""
    tokenizer = random_tokenizer(0)
    model, letters = random_decoder(tokenizer, 0), [97, 98, 99, 100]
    with torch.no_grad():
        probabilities = model(torch.tensor([[7]]))[0, -1][letters].softmax(0)
    constraint = choices(TextTokens(tokenizer), [chr(letter) for letter in letters])
    settings = {"max_new_tokens": 1, "top_k": None}
    (likeliest,) = generate(model, [[7]], SampleConfig(temperature=0, **settings), constraints=constraint)
    assert likeliest == [letters[int(probabilities.argmax())]]
    drawn = generate(model, [[7]] * 4000, SampleConfig(temperature=1, **settings), constraints=constraint)
    counts = np.bincount([token for (token,) in drawn], minlength=128)[letters]
    np.testing.assert_allclose(counts / counts.sum(), probabilities.numpy(), atol=0.03)


def test_rows_without_a_constraint_write_the_same_beside_rows_with_one():
    tokenizer = random_tokenizer(1)
    model, cfg = random_decoder(tokenizer, 1), SampleConfig(max_new_tokens=30, top_k=None, repetition_penalty=1.2)
    alone = generate(model, [[1], [2], [3]], cfg)
    constraint = json_value(TextTokens(tokenizer))
    beside = generate(
        model, [[1], [9], [2], [9], [3]], cfg, constraints=[None, constraint, None, constraint, None],
        row_numbers=[0, 7, 1, 8, 2], n_slots=3,
    )  # fmt: skip
    assert [beside[0], beside[2], beside[4]] == alone
    for row in (1, 3):
        json.loads(tokenizer.decode(beside[row]))


class Everything:
    """A constraint of a user's own: any text."""

    least_tokens, may_end, may_continue = 0, True, True

    def begin(self):
        return self

    def allowed(self, n_left: int) -> torch.Tensor:
        return torch.ones(257, dtype=torch.bool)

    def push(self, token: int) -> None:
        pass


def test_constraint_that_allows_every_text_changes_nothing():
    tokenizer = random_tokenizer(2, n_more=0)
    model, cfg = random_decoder(tokenizer, 2), SampleConfig(max_new_tokens=20, top_k=None, stop_ids=(256, 3))
    assert generate(model, [[5], [6]], cfg, constraints=Everything()) == generate(model, [[5], [6]], cfg)


def test_needs_of_all_tokens_are_those_of_each_token_walked_alone():
    """The whole vocabulary at once, against one token after the other, in the states along random texts."""
    for seed in range(3):
        tokens = TextTokens(random_tokenizer(seed))
        rng = random.Random(seed)
        for constraint in (json_value(tokens), json_value(tokens, SCHEMA), choices(tokens, ["name", "names", "né"])):
            automaton = constraint.automaton
            state = automaton.start
            for _ in range(25):
                needs = tokens.needs(automaton, state)
                walked = [automaton.walk(state, text) for text in tokens.texts]
                assert needs.tolist() == [1 << 30 if one is None else one.need for one in walked]
                following = [one for one in walked if one is not None and one.may_continue]
                if not following:
                    break
                state = rng.choice(following)


def test_needs_fall_by_one_token_at_least_on_the_shortest_way():
    """So a text that has room can always be ended."""
    tokens = TextTokens(random_tokenizer(5))
    rng, constraint = random.Random(0), json_value(tokens, SCHEMA)
    for _ in range(20):
        state = constraint.automaton.start
        for _ in range(30):
            if not state.may_continue:
                break
            if not state.may_end:
                assert tokens.needs(constraint.automaton, state).min() < state.need
            place = rng.choice(np.flatnonzero(tokens.needs(constraint.automaton, state) < 1 << 30))
            state = constraint.automaton.walk(state, tokens.texts[place])


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "string", "pattern": "a+"}, r"the schema at \$ has 'pattern', which is not supported"),
        (
            {"type": "object", "properties": {"a": {"type": "number", "minimum": 0}}},
            r"\$\.properties\.a has 'minimum'",
        ),
        ({"type": "text"}, r'\$\.type is "text", expected one of object, array'),
        ({"maxLength": 3}, "has 'maxLength' and no type"),
        ({"type": "integer", "maxLength": 3}, "'maxLength', which is of strings"),
        ({"type": "string", "maxLength": -1}, r"\$\.maxLength is -1, expected a whole number from 0"),
        ({"type": "array", "minItems": 3, "maxItems": 2}, "maxItems 2 below minItems 3"),
        ({"type": "object", "properties": {}, "required": ["x"]}, "has 'x', which is not among the properties"),
        ({"enum": []}, "expected a list that is not empty"),
        ({"$ref": "#/$defs/none"}, "which is not in the schema"),
        ({"$ref": "https://example.org/x"}, "expected a place in this schema"),
        ({"$ref": "#"}, "begins with itself"),
        ({"anyOf": [{"type": "null"}], "type": "null"}, "'type' beside 'anyOf'"),
        (False, "is false, expected an object"),
        ({"const": float("inf")}, "no JSON form"),
    ],
)
def test_schema_that_cannot_be_kept_is_refused_by_name(schema, message):
    with pytest.raises(ValueError, match=message):
        json_value(TextTokens(random_tokenizer(0)), schema)


def test_schema_that_only_an_endless_value_satisfies_is_refused():
    endless = {"type": "array", "items": {"$ref": "#"}, "minItems": 1}
    with pytest.raises(ValueError, match="write none of the texts"):
        json_value(TextTokens(random_tokenizer(0)), endless)


def test_schema_that_is_not_json_is_refused():
    with pytest.raises(ValueError, match=r"^form\.json: not JSON .*expected a JSON Schema"):
        read_schema("{type: string}", "form.json")


def test_vocabulary_without_a_needed_byte_is_refused():
    tokenizer = random_tokenizer(0, n_more=0)
    tokens = [b"" if token == b"a" else token for token in tokenizer.tokens]
    with pytest.raises(ValueError, match="write none of the texts"):
        choices(TextTokens(dataclasses.replace(tokenizer, tokens=tokens)), ["a"])


@pytest.mark.parametrize(
    ("settings", "texts", "message"),
    [
        ({"max_new_tokens": 2}, ["abcdef"], "max_new_tokens=2 of prompt 0 may be too few.*at least"),
        ({"stop": ("x",)}, ["a"], "a constraint and stop strings"),
    ],
)
def test_settings_that_leave_no_room_for_a_constraint_are_refused(settings, texts, message):
    tokenizer = random_tokenizer(0, n_more=0)
    constraint = choices(TextTokens(tokenizer), texts)
    with pytest.raises(ValueError, match=message):
        generate_text(
            random_decoder(tokenizer, 0), [[1]], SampleConfig(**settings), tokenizer.decode_bytes,
            constraints=constraint,
        )  # fmt: skip


@pytest.mark.parametrize("texts", [[], [""], "yes", ["a", "a"]])
def test_choices_that_are_none_are_refused(texts):
    with pytest.raises(ValueError, match="choices"):
        choices(TextTokens(random_tokenizer(0)), texts)


def test_constraints_of_another_number_than_the_prompts_are_refused():
    tokenizer = random_tokenizer(0)
    with pytest.raises(ValueError, match="2 constraints for 1 prompts"):
        generate(random_decoder(tokenizer, 0), [[1]], SampleConfig(), constraints=[None, None])
