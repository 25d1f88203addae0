"""The tokens of a vocabulary that are text, and which of them a grammar allows next.

In: a tokenizer, and states of a grammar (grammar.py). Out: per state the tokens after which the text can still become
one of the grammar, each with the number of tokens that it then needs at most. A token may span several parts of the
grammar, and may end within a character.

Steps: the sorted tokens are walked from the state, and all tokens with a beginning that leads nowhere are skipped at
once. Inside a string of JSON nearly every token is allowed, whatever surrounds the string: there the automaton of the
string runs over all tokens at once, once for a vocabulary (the idea of arXiv:2411.15100), and only what follows a
closing quote is walked.

Legend: W tokens that are text, in the order of their bytes; L byte of a token; V ids of the model.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from model.data.tokenizer import NO_TOKEN, Tokenizer
from model.generation.grammar import NEVER, Automaton, Stack, State
from model.generation.json_lexemes import (
    BEGINS_SB,
    END,
    ENDINGS,
    N_STATES,
    NEXT_SB,
    NOWHERE,
    OPENING,
    UNLIMITED,
    String,
    cost_of_string,
)


@dataclass(frozen=True, slots=True)
class InString:
    """What every token does to a string that is in one state."""

    state_W: np.ndarray  # int64: state behind the token; NOWHERE = not allowed, or it ends the string
    n_begun_W: np.ndarray  # int64: characters that begin in the token, before the string ends
    ending: np.ndarray  # places of the tokens that end the string
    rest: np.ndarray  # of each of them: which of `rests` follows the closing quote
    rests: list[bytes]


class TextTokens:
    def __init__(self, tokenizer: Tokenizer) -> None:
        special = {*tokenizer.control.values(), *tokenizer.special.values(), *tokenizer.stops}
        found = sorted(
            (text, token)
            for token, text in enumerate(tokenizer.tokens)
            if text and text != NO_TOKEN and token not in special
        )
        self.vocab_size = tokenizer.vocab_size
        self.texts = [text for text, _ in found]
        self.ids_W = np.array([token for _, token in found], np.int64)
        self.text_of = {token: text for text, token in found}
        self._known = set(self.texts)
        self._longest = max(map(len, self.texts), default=0)
        self.in_string = lru_cache(maxsize=None)(self._in_string)

    def n_tokens(self, text: bytes) -> int:
        """The smallest number of tokens that write `text`; NEVER if none do."""
        least = [0, *[NEVER] * len(text)]
        for end in range(1, len(text) + 1):
            starts = range(max(0, end - self._longest), end)
            counts = [least[start] + 1 for start in starts if text[start:end] in self._known]
            least[end] = min(counts, default=NEVER)
        return min(NEVER, least[-1])

    def needs(self, automaton: Automaton, state: State) -> np.ndarray:
        """Tokens that a text needs at most behind each token, int64 (W,); NEVER = the token is not allowed."""
        need_W = np.full(len(self.texts), NEVER, np.int64)
        walked: list[Stack] = []
        for stack in state.stacks:
            lexeme = automaton.nodes[stack[-1][0]] if stack else None
            if isinstance(lexeme, String) and stack[-1][1][0] != OPENING:
                np.minimum(need_W, self._needs_in_string(automaton, stack), out=need_W)
            else:
                walked.append(stack)
        rest = automaton.state(iter(walked))
        if rest is not None:
            for place, then in self._walk(automaton, rest):
                need_W[place] = min(need_W[place], then.need)
        return need_W

    def _walk(self, automaton: Automaton, state: State) -> Iterator[tuple[int, State]]:
        """The places of the tokens that may follow, and the state behind each."""
        path, states, place = b"", [state], 0
        while place < len(self.texts):
            text = self.texts[place]
            n_shared = _n_shared(path, text)
            del states[n_shared + 1 :]
            then: State | None = states[-1]
            for byte in text[n_shared:]:
                then = automaton.step(states[-1], byte)
                if then is None:
                    break
                states.append(then)
            path = text[: len(states) - 1]
            if then is not None:
                yield place, then
                place += 1
            else:  # over all tokens that begin alike up to the byte that leads nowhere
                place = self._behind(text[: len(states)], place)

    def _behind(self, beginning: bytes, place: int) -> int:
        """The place of the first token from `place` that is greater than all with this beginning."""
        kept = beginning.rstrip(b"\xff")
        if not kept:
            return len(self.texts)
        return bisect_left(self.texts, kept[:-1] + bytes([kept[-1] + 1]), place)

    def _needs_in_string(self, automaton: Automaton, stack: Stack) -> np.ndarray:
        place, left = stack[-1][1]
        found, below = self.in_string(place), automaton.need_below(stack)
        need_S = [cost_of_string(one, automaton.cost) + below if one in ENDINGS else NEVER for one in range(N_STATES)]
        need_W = np.minimum(NEVER, np.array([*need_S, NEVER]))[found.state_W]  # the last one is that of NOWHERE
        after = automaton.after(stack)
        behind = [automaton.walk(after, rest) for rest in found.rests]
        need_W[found.ending] = np.array([NEVER if one is None else one.need for one in behind], np.int64)[found.rest]
        if left != UNLIMITED:
            need_W[found.n_begun_W > left] = NEVER
        return need_W

    def _in_string(self, start: int) -> InString:
        lengths_W = np.array([len(text) for text in self.texts])
        bytes_WL = np.frombuffer(b"".join(text.ljust(self._longest, b"\0") for text in self.texts), np.uint8)
        bytes_WL = bytes_WL.reshape(len(self.texts), self._longest)
        state_W, n_begun_W = np.full(len(self.texts), start), np.zeros(len(self.texts), np.int64)
        ends_at_W = np.zeros(len(self.texts), np.int64)
        active = np.arange(len(self.texts))
        for place in range(self._longest):
            active = active[lengths_W[active] > place]
            before, byte = state_W[active], bytes_WL[active, place]
            n_begun_W[active] += BEGINS_SB[before, byte]
            state_W[active] = NEXT_SB[before, byte]
            ends_at_W[active[state_W[active] == END]] = place + 1
            active = active[(state_W[active] != END) & (state_W[active] != NOWHERE)]
        ending = np.flatnonzero(state_W == END)
        behind = [self.texts[one][ends_at_W[one] :] for one in ending]
        rests = sorted(set(behind))
        number = {rest: i for i, rest in enumerate(rests)}
        state_W[ending] = NOWHERE
        return InString(state_W, n_begun_W, ending, np.array([number[rest] for rest in behind], np.int64), rests)


def _n_shared(one: bytes, other: bytes) -> int:
    most = min(len(one), len(other))
    return next((place for place in range(most) if one[place] != other[place]), most)
