"""Attributes as text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data.control_text import (
    NOTHING_ASKED,
    asked_in_words,
    attributes_in,
    control_message,
    length_of,
    parsed_attributes,
)


def test_message_does_not_depend_on_the_order_of_attributes():
    one, other = ({"tone": "calm", "length": "short"}, {"length": "short", "tone": "calm"})
    assert control_message(one) == control_message(other) == "length: short\ntone: calm"
    assert asked_in_words(one) == "Write a text so that its length is short and its tone is calm."


@given(
    st.dictionaries(
        st.text("abc_", min_size=1), st.text(st.characters(exclude_characters="\n"), min_size=1), max_size=3
    )
)
def test_attributes_are_found_in_their_message(attributes):
    assert attributes_in(control_message(attributes)) == attributes


def test_no_attribute_asks_for_any_text():
    assert control_message({}) == asked_in_words({}) == NOTHING_ASKED


@pytest.mark.parametrize(
    ("n_words", "length"), [(0, "short"), (4, "short"), (5, "medium"), (9, "medium"), (10, "long")]
)
def test_length_is_counted_in_words(n_words, length):
    assert length_of("word " * n_words, 5, 10) == length


def test_attributes_are_read_with_spaces_and_signs():
    assert parsed_attributes(["tone = a=b ", "length=short"]) == {"tone": "a=b", "length": "short"}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["positive"], "'positive' is no attribute; write name=value"),
        (["a="], "'a='"),
        (["=b"], "'=b'"),
        (["a=b", "a=c"], "'a' is given twice, as 'b' and 'c'"),
    ],
)
def test_attributes_written_otherwise_are_refused(texts, message):
    with pytest.raises(ValueError, match=message):
        parsed_attributes(texts)
