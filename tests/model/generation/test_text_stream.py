"""Tokens to pieces of text: the same text however it is cut, whole characters, nothing of a stop string."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.generation.text_stream import TextStream

ALPHABET = "ab\u00e9\u20ac\U0001f600"  # one to four bytes a character


def pieces_of(tokens: list[bytes], stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    """The text after each token and at the end, and whether a stop string was met."""
    stream = TextStream(lambda ids: b"".join(tokens[token] for token in ids), stop)
    return [*(stream.push(token) for token in range(len(tokens))), stream.finish()], stream.is_done


def cut(raw: bytes, places: list[int]) -> list[bytes]:
    borders = [0, *sorted(place % (len(raw) + 1) for place in places), len(raw)]
    return [raw[begin:end] for begin, end in itertools.pairwise(borders)]


@given(text=st.text(ALPHABET, max_size=20), places=st.lists(st.integers(0, 99), max_size=12))
def test_text_stream_pieces_are_whole_characters_and_together_the_text(text, places):
    pieces, _ = pieces_of(cut(text.encode(), places))
    assert "".join(pieces) == text and "\ufffd" not in "".join(pieces)


@given(raw=st.binary(max_size=20), places=st.lists(st.integers(0, 99), max_size=12))
def test_text_stream_of_broken_bytes_equals_their_whole_decoding(raw, places):
    assert "".join(pieces_of(cut(raw, places))[0]) == raw.decode("utf-8", "replace")


@given(
    text=st.text("ab\u20ac", max_size=30),
    stop=st.lists(st.text("ab\u20ac", min_size=1, max_size=4), min_size=1, max_size=3),
    places=st.lists(st.integers(0, 99), max_size=12),
)
def test_text_stream_stop_strings_cut_alike_however_the_text_is_cut(text, stop, places):
    """By the definition: the shortest beginning that ends in a stop string, without the longest such one."""
    pieces, is_done = pieces_of(cut(text.encode(), places), tuple(stop))
    ends = [end for end in range(len(text) + 1) if text[:end].endswith(tuple(stop))]
    expected = min(text[: ends[0] - len(one)] for one in stop if text[: ends[0]].endswith(one)) if ends else text
    assert ("".join(pieces), is_done) == (expected, bool(ends))


def test_text_stream_holds_back_no_more_than_a_stop_string_may_need():
    pieces, is_done = pieces_of([b"one E", b"N", b"D", b"!", b" two EN", b"D.", b"more"], ("END.",))
    assert pieces == ["one ", "", "", "END!", " two ", "", "", ""] and is_done


def test_text_stream_half_a_character_at_the_end_is_replaced():
    assert pieces_of([b"a\xe2", b"\x82"])[0] == ["a", "", "\ufffd"]
    assert pieces_of([b"a\xe2", b"\x82"], ("b",))[0] == ["a", "", "\ufffd"]


@pytest.mark.parametrize("stop", [(), ("zz",)])
def test_text_stream_gives_each_token_at_once_where_nothing_is_open(stop):
    assert pieces_of([b"a", b"b c", "\u20ac".encode()], stop)[0] == ["a", "b c", "\u20ac", ""]
