"""The grammar of JSON against Python's json: what dumps writes is accepted, and what is accepted can be loaded."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.generation.grammar import Automaton, State
from model.generation.json_grammar import MOST_NESTED, json_grammar

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**17) + 1, 10**17 - 1),
    st.floats(1e-99, 1e99),
    st.floats(-1e99, -1e-99),
    TEXTS,
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=8
)


def automaton(schema=None) -> Automaton:
    return Automaton(*json_grammar(schema), len)


ANY = automaton()


def accepts(made: Automaton, text: str | bytes) -> bool:
    state = made.walk(made.start, text if isinstance(text, bytes) else text.encode())
    return state is not None and state.may_end


@given(VALUES, st.sampled_from([(", ", ": "), (",", ":")]))
def test_any_value_accepts_what_dumps_writes(value, separators):
    assert accepts(ANY, json.dumps(value, ensure_ascii=False, separators=separators))


def test_any_value_accepts_the_double_with_the_most_digits():
    assert accepts(ANY, json.dumps(0.00012345678901234567))


@given(st.text(st.characters(max_codepoint=0xD7FF), max_size=8))
def test_any_value_accepts_the_escapes_of_characters(text):
    assert accepts(ANY, json.dumps(text))


@given(st.data())
def test_any_value_accepts_only_what_loads_reads(data):
    """A random walk through the grammar, ended by the shortest way."""
    state, text = ANY.start, b""
    for _ in range(data.draw(st.integers(0, 40))):
        state, text = stepped(state, text, data.draw(st.integers(0, 255)))
    while not state.may_end:
        byte = min((b for b in range(256) if (s := ANY.step(state, b)) and s.need < state.need), default=None)
        assert byte is not None, (text, "no byte comes nearer to the end")
        state, text = ANY.step(state, byte), text + bytes([byte])
    value = json.loads(text)
    assert accepts(ANY, json.dumps(value, ensure_ascii=False)) or "e" in text.decode().lower()


def stepped(state: State, text: bytes, number: int) -> tuple[State, bytes]:
    allowed = [byte for byte in range(256) if ANY.step(state, byte) is not None]
    if not allowed:
        return state, text
    byte = allowed[number % len(allowed)]
    found = ANY.step(state, byte)
    assert found is not None
    return found, text + bytes([byte])


@pytest.mark.parametrize("text", ["", "01", "1.", ".5", "+1", "1e", "1e999", "9" * 18, "nul", "NaN", "Infinity"])
def test_any_value_refuses_scalars(text):
    assert not accepts(ANY, text)


@pytest.mark.parametrize("text", ['"a', "'a'", '"\n"', r'"\x"', r'"\u12"', r'"\ud800"', "1  ", "\t1", "1 2"])
def test_any_value_refuses_strings_and_spaces(text):
    assert not accepts(ANY, text)


@pytest.mark.parametrize("text", ["[1,]", "[,1]", "[1 , 2]", "[1]]", '{"a"}', '{"a":}', "{a:1}", '{"a":1,}'])
def test_any_value_refuses(text):
    assert not accepts(ANY, text)


@pytest.mark.parametrize(
    "content",
    [b"\xff", b"\x80", b"\xc0\x80", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"\xf4\x90\x80\x80"],
)
def test_any_value_refuses_strings_that_are_not_utf8(content):
    assert not accepts(ANY, b'"' + content + b'"')


def test_any_value_has_a_deepest_level():
    assert accepts(ANY, "[" * MOST_NESTED + "]" * MOST_NESTED)
    assert not accepts(ANY, "[" * (MOST_NESTED + 1) + "]" * (MOST_NESTED + 1))


@pytest.mark.parametrize(
    ("schema", "valid", "invalid"),
    [
        ({"type": "string", "maxLength": 2}, ['""', '"é日"', '"\\n😀"'], ['"abc"', '"\\u0041bc"', "1"]),
        ({"type": "integer"}, ["0", "-7"], ["1.0", "1e3", "-"]),
        ({"type": ["boolean", "null"]}, ["true", "null"], ["1"]),
        ({"enum": ["a", 1, {"b": []}]}, ['"a"', "1", '{"b": []}'], ["a", '{"b":[]}', "2"]),
        ({"type": "array", "items": {"type": "null"}, "maxItems": 0}, ["[]"], ["[null]"]),
        (
            {"type": "array", "items": {"type": "null"}, "minItems": 1, "maxItems": 2},
            ["[null]", "[null,null]"],
            ["[]", "[null,null,null]"],
        ),
        (
            {"type": "array", "items": {"type": "null"}, "minItems": 2},
            ["[null, null]", "[null,null,null]"],
            ["[null]", "[]"],
        ),
        ({"type": "object"}, ["{}", '{"x": [1]}'], ["[]"]),
        ({"type": "object", "additionalProperties": False}, ["{}"], ['{"x": 1}']),
        (
            {"type": "object", "properties": {"a": True, "b": {"type": "null"}, "c": {}}, "required": ["b"]},
            ['{"b":null}', '{"a": [], "b": null}', '{"b": null, "c": 1}', '{"a":1,"b":null,"c":"x"}'],
            ["{}", '{"a":1}', '{"b":null,"a":1}', '{"b":null,"d":1}', '{"b":null,}', '{,"b":null}'],
        ),
        ({"description": "no keyword but annotations"}, ["[1]"], ["[1"]),
    ],
)
def test_schema_accepts_its_values_and_no_others(schema, valid, invalid):
    made = automaton(schema)
    assert [accepts(made, text) for text in valid] == [True] * len(valid)
    assert [accepts(made, text) for text in invalid] == [False] * len(invalid)
