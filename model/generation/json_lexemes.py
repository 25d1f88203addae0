"""The lexemes of JSON (RFC 8259): strings and numbers, as automata over bytes.

A string is UTF-8 without control characters; an escape never writes half of a surrogate pair, because such a string
has no UTF-8 form. Its automaton is a table, so that token_masks.py can run it over a whole vocabulary at once. A
number has a bounded number of digits, so that every parser reads it.
"""

from dataclasses import dataclass

import numpy as np

from model.generation.grammar import NEVER, Cost

# States of a string: before its quote, inside, in a character of several bytes, in an escape, behind its end.
OPENING, INSIDE, MORE_1, MORE_2, MORE_3, AFTER_E0, AFTER_ED, AFTER_F0, AFTER_F4 = range(9)
ESCAPE, HEX_4, HEX_3, AFTER_D, HEX_2, HEX_1, END = range(9, 16)
N_STATES, NOWHERE = 16, -1
# The shortest way from each state to INSIDE, one byte after the other.
ENDINGS = {
    INSIDE: b"",
    MORE_1: b"\x80",
    MORE_2: b"\x80\x80",
    MORE_3: b"\x80\x80\x80",
    AFTER_E0: b"\xa0\x80",
    AFTER_ED: b"\x80\x80",
    AFTER_F0: b"\x90\x80\x80",
    AFTER_F4: b"\x80\x80\x80",
    ESCAPE: b"n",
    HEX_4: b"0000",
    HEX_3: b"000",
    AFTER_D: b"000",
    HEX_2: b"00",
    HEX_1: b"0",
}
HEX = b"0123456789abcdefABCDEF"


def _table() -> np.ndarray:
    next_SB = np.full((N_STATES, 256), NOWHERE, np.int8)
    next_SB[OPENING, ord('"')] = INSIDE
    next_SB[INSIDE, 0x20:0x80] = INSIDE
    next_SB[INSIDE, ord('"')], next_SB[INSIDE, ord("\\")] = END, ESCAPE
    next_SB[INSIDE, 0xC2:0xE0], next_SB[INSIDE, 0xE0:0xF0], next_SB[INSIDE, 0xF0:0xF5] = MORE_1, MORE_2, MORE_3
    for first, state in ((0xE0, AFTER_E0), (0xED, AFTER_ED), (0xF0, AFTER_F0), (0xF4, AFTER_F4)):
        next_SB[INSIDE, first] = state
    # The second byte of a character: neither an overlong form, nor a surrogate, nor beyond U+10FFFF (RFC 3629).
    for state, first, end, then in (
        (MORE_1, 0x80, 0xC0, INSIDE),
        (MORE_2, 0x80, 0xC0, MORE_1),
        (MORE_3, 0x80, 0xC0, MORE_2),
        (AFTER_E0, 0xA0, 0xC0, MORE_1),
        (AFTER_ED, 0x80, 0xA0, MORE_1),
        (AFTER_F0, 0x90, 0xC0, MORE_2),
        (AFTER_F4, 0x80, 0x90, MORE_2),
    ):
        next_SB[state, first:end] = then
    next_SB[ESCAPE, list(b'"\\/bfnrt')] = INSIDE
    next_SB[ESCAPE, ord("u")] = HEX_4
    for state, then in ((HEX_4, HEX_3), (HEX_3, HEX_2), (HEX_2, HEX_1), (HEX_1, INSIDE)):
        next_SB[state, list(HEX)] = then
    next_SB[HEX_4, list(b"dD")] = AFTER_D
    next_SB[AFTER_D, list(b"01234567")] = HEX_2
    return next_SB


NEXT_SB = _table()  # state after each byte in each state
BEGINS_SB = np.zeros((N_STATES, 256), bool)  # True = a character of the string begins with this byte
BEGINS_SB[INSIDE] = (NEXT_SB[INSIDE] != NOWHERE) & (np.arange(256) != ord('"'))
_NEXT, _BEGINS = NEXT_SB.tolist(), BEGINS_SB.tolist()  # lists are faster for one byte
UNLIMITED = -1


@dataclass(frozen=True, slots=True)
class String:
    """A string with its quotes. A state is a state of the table, and how many characters may still begin."""

    most: int = UNLIMITED  # characters

    @property
    def start(self) -> tuple[int, int]:
        return OPENING, self.most

    def step(self, state: tuple[int, int], byte: int) -> tuple[int, int] | None:
        place, left = state
        then = _NEXT[place][byte]
        if then == NOWHERE or (left == 0 and _BEGINS[place][byte]):
            return None
        return then, left - 1 if left > 0 and _BEGINS[place][byte] else left

    def may_end(self, state: tuple[int, int]) -> bool:
        return state[0] == END

    def may_continue(self, state: tuple[int, int]) -> bool:
        return state[0] != END

    def cost(self, state: tuple[int, int], cost: Cost) -> int:
        return cost_of_string(state[0], cost)


def cost_of_string(place: int, cost: Cost) -> int:
    """Tokens that a string needs at most to end, byte by byte."""
    ending = b'""' if place == OPENING else ENDINGS[place] + b'"'
    return min(NEVER, sum(cost(bytes([byte])) for byte in ending))


# States of a number, each with the number of digits that were read in it.
SIGN, MINUS, ZERO, WHOLE, POINT, FRACTION, E, E_SIGN, EXPONENT = range(9)
MOST_DIGITS = {WHOLE: 17, FRACTION: 20, EXPONENT: 2}  # what json.dumps writes of a double has no more
_ENDS = (ZERO, WHOLE, FRACTION, EXPONENT)


@dataclass(frozen=True, slots=True)
class Number:
    """A number; `is_integer`: without fraction and exponent."""

    is_integer: bool = False
    start: tuple[int, int] = (SIGN, 0)

    def step(self, state: tuple[int, int], byte: int) -> tuple[int, int] | None:
        place, n_digits = state
        if 0x30 <= byte <= 0x39:
            return self._digit(place, n_digits, byte)
        if byte == ord("-"):
            return {SIGN: (MINUS, 0), E: (E_SIGN, 0)}.get(place)
        if byte == ord("+"):
            return (E_SIGN, 0) if place == E else None
        if self.is_integer or place not in (ZERO, WHOLE, FRACTION):
            return None
        if byte == ord("."):
            return (POINT, 0) if place != FRACTION else None
        return (E, 0) if byte in b"eE" else None

    def _digit(self, place: int, n_digits: int, byte: int) -> tuple[int, int] | None:
        if place in (SIGN, MINUS):
            return (ZERO, 1) if byte == 0x30 else (WHOLE, 1)
        if place == ZERO:
            return None
        place = {POINT: FRACTION, E: EXPONENT, E_SIGN: EXPONENT}.get(place, place)
        return (place, n_digits + 1) if n_digits < MOST_DIGITS[place] else None

    def may_end(self, state: tuple[int, int]) -> bool:
        return state[0] in _ENDS

    def may_continue(self, state: tuple[int, int]) -> bool:
        place, n_digits = state
        if place in (ZERO, WHOLE):
            return not self.is_integer or (place == WHOLE and n_digits < MOST_DIGITS[WHOLE])
        return place != EXPONENT or n_digits < MOST_DIGITS[EXPONENT]

    def cost(self, state: tuple[int, int], cost: Cost) -> int:
        return 0 if state[0] in _ENDS else cost(b"0")
