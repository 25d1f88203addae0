"""What a row may write: one of several texts, or a value of JSON, by a mask over the tokens.

In: a tokenizer, and texts or a JSON Schema. Out: a `Constraint`, which `generate` takes for each row. Before each
draw it says which tokens may follow. The others get no probability; among these the model's own decides.
When few tokens are left, only those remain after which the shortest ending still has room, so that a row is always
complete within max_new_tokens. A row ends where nothing can follow; where it may end or go on, a stop id decides.

Legend: V vocab, B rows.
"""

import json
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from model.generation.grammar import NEVER, Automaton, Grammar, State
from model.generation.json_grammar import json_grammar
from model.generation.text_tokens import TextTokens


class Writing(Protocol):
    """The text of one row so far."""

    @property
    def may_end(self) -> bool: ...
    @property
    def may_continue(self) -> bool: ...
    def allowed(self, n_left: int) -> Tensor:
        """bool (V,), True = the token may follow, and a complete text has room in `n_left` tokens with it."""
        ...

    def push(self, token: int) -> None: ...


class Constraint(Protocol):
    """Which texts are allowed; any number of rows may begin to write one."""

    @property
    def least_tokens(self) -> int:
        """For so many tokens a complete text exists."""
        ...

    def begin(self) -> Writing: ...


class TextConstraint:
    """The texts of a grammar."""

    def __init__(self, tokens: TextTokens, grammar: Grammar, root: int) -> None:
        """Raises ValueError if the tokens of the vocabulary write none of the texts."""
        self.tokens, self.automaton = tokens, Automaton(grammar, root, tokens.n_tokens)
        if self.automaton.start.need >= NEVER:
            raise ValueError("the tokens of this vocabulary write none of the texts that are allowed")

    @property
    def least_tokens(self) -> int:
        return self.automaton.start.need

    def begin(self) -> "TextWriting":
        return TextWriting(self)

    def allowed(self, state: State, n_left: int) -> Tensor:
        if state.notes is None:
            state.notes = _Allowed(self.tokens, self.tokens.needs(self.automaton, state))
        return state.notes.within(n_left)


class _Allowed:
    """The tokens that may follow in one state. The mask is kept for rows with room for all of them."""

    def __init__(self, tokens: TextTokens, need_W: np.ndarray) -> None:
        places = np.flatnonzero(need_W < NEVER)
        self.vocab_size = tokens.vocab_size
        self.ids, self.need = tokens.ids_W[places], need_W[places]
        self.most = int(self.need.max(initial=0))
        self.all_V: Tensor | None = None

    def within(self, n_left: int) -> Tensor:
        is_whole = self.most < n_left
        if is_whole and self.all_V is not None:
            return self.all_V
        allowed_V = torch.zeros(self.vocab_size, dtype=torch.bool)
        allowed_V[torch.from_numpy(self.ids if is_whole else self.ids[self.need < n_left])] = True
        if is_whole:
            self.all_V = allowed_V
        return allowed_V


class TextWriting:
    def __init__(self, constraint: TextConstraint) -> None:
        self.constraint, self.state = constraint, constraint.automaton.start

    @property
    def may_end(self) -> bool:
        return self.state.may_end

    @property
    def may_continue(self) -> bool:
        return self.state.may_continue

    def allowed(self, n_left: int) -> Tensor:
        return self.constraint.allowed(self.state, n_left)

    def push(self, token: int) -> None:
        text = self.constraint.tokens.text_of.get(token)
        state = None if text is None else self.constraint.automaton.walk(self.state, text)
        assert state is not None, f"token {token} was not allowed"
        self.state = state


def choices(tokens: TextTokens, texts: Sequence[str]) -> TextConstraint:
    """Exactly one of `texts`. If one of them begins another, a stop id ends it."""
    if isinstance(texts, str) or not texts or "" in texts:
        raise ValueError(f"choices={texts!r} must be a list of one or more texts that are not empty")
    if repeated := sorted({text for text in texts if list(texts).count(text) > 1}):
        raise ValueError(f"choices holds {repeated[0]!r} more than once")
    grammar = Grammar()
    return TextConstraint(tokens, grammar, grammar.one_of(*(grammar.text(text.encode()) for text in texts)))


def json_value(tokens: TextTokens, schema: Any = None) -> TextConstraint:
    """A value of JSON, or of a JSON Schema (json_grammar.py says what is supported)."""
    return TextConstraint(tokens, *json_grammar(schema))


def read_schema(text: str, where: str) -> Any:
    """The JSON Schema in a text. Raises ValueError, which begins with `where`, if it isn't JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}); expected a JSON Schema") from error


def checked_constraints(
    constraint: Constraint | Sequence[Constraint | None] | None, rows_left: Sequence[int], has_stop: Sequence[bool]
) -> list[Constraint | None]:
    """One constraint a row. `rows_left`: max_new_tokens of each; `has_stop`: whether it has stop strings, which would
    cut a text that must be complete. Raises ValueError."""
    is_list = isinstance(constraint, Sequence)
    constraints = list(constraint) if is_list else [constraint] * len(rows_left)
    if len(constraints) != len(rows_left):
        raise ValueError(f"{len(constraints)} constraints for {len(rows_left)} prompts: give one for each, or None")
    for row, (one, n_left, stops) in enumerate(zip(constraints, rows_left, has_stop, strict=True)):
        if one is None:
            continue
        if one.least_tokens > n_left:
            raise ValueError(
                f"max_new_tokens={n_left} of prompt {row} may be too few for the shortest text that its constraint"
                f" allows; give at least {one.least_tokens}"
            )
        if stops:
            raise ValueError(f"prompt {row} has a constraint and stop strings, which would cut its text; give one")
    return constraints


def permitted(logits_BV: Tensor, rows: Sequence[tuple[Writing | None, int, Sequence[int]]]) -> Tensor:
    """The logits, with -inf for what a row may not write. A row: its text, how many tokens are left, its stop ids."""
    if all(writing is None for writing, _, _ in rows):
        return logits_BV
    logits_BV = logits_BV.clone()
    for row, (writing, n_left, stop_ids) in enumerate(rows):
        if writing is None:
            continue
        forbidden_V = ~writing.allowed(n_left)
        if writing.may_end:
            forbidden_V[list(stop_ids)] = False
        logits_BV[row].masked_fill_(forbidden_V.to(logits_BV.device), float("-inf"))
    return logits_BV
