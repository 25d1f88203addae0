"""Grammars over bytes: which bytes may follow what was written, as an automaton with a stack.

In: nodes (texts, lexemes, sequences, alternatives), which refer to each other by number, so that they may nest.
Out: a `State` for every text that the grammar allows or that can still become one: the state after each byte, whether
the text may end, and how many tokens it needs at most to end.

A state is a set of stacks, because several alternatives may be open. The top of a stack is a lexeme that is being
read, below it are the nodes that follow. States and their transitions are kept, so that each is computed once.
"""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

NEVER = 1 << 30  # tokens: what cannot be written at all
MOST_STATES = 20_000  # that are kept

Cost = Callable[[bytes], int]  # tokens that a text needs at most; NEVER = the vocabulary can't write it


class Lexeme(Protocol):
    """A part of a text that is read byte by byte without a stack, such as a number. Its states are hashable."""

    @property
    def start(self) -> Hashable: ...
    def step(self, state: Any, byte: int) -> Hashable | None:
        """The state after a byte; None = this byte must not follow."""

    def may_end(self, state: Any) -> bool: ...
    def may_continue(self, state: Any) -> bool: ...
    def cost(self, state: Any, cost: Cost) -> int:
        """Tokens that it needs at most to end."""
        ...


@dataclass(frozen=True, slots=True)
class Text:
    """Exactly these bytes, at least one. A state is the number of bytes that were read."""

    content: bytes
    start: int = 0

    def step(self, state: int, byte: int) -> int | None:
        return state + 1 if self.content[state] == byte else None

    def may_end(self, state: int) -> bool:
        return state == len(self.content)

    def may_continue(self, state: int) -> bool:
        return state < len(self.content)

    def cost(self, state: int, cost: Cost) -> int:
        return cost(self.content[state:])


class InTurn(NamedTuple):
    nodes: tuple[int, ...]


class OneOf(NamedTuple):
    nodes: tuple[int, ...]


Node = Lexeme | InTurn | OneOf
Stack = tuple[Any, ...]  # numbers of nodes, the next one last, and above them (number of a lexeme, its state)


@dataclass(slots=True)
class Grammar:
    nodes: list[Node | None] = field(default_factory=list)

    def add(self, node: Node) -> int:
        self.nodes.append(node)
        return len(self.nodes) - 1

    def text(self, content: bytes) -> int:
        return self.add(Text(content))

    def in_turn(self, *nodes: int) -> int:
        return self.add(InTurn(nodes))

    def one_of(self, *nodes: int) -> int:
        return self.add(OneOf(nodes))

    def maybe(self, content: bytes) -> int:
        return self.one_of(self.text(content), self.in_turn())

    def later(self) -> int:
        """The number of a node that is given by `define`, so that nodes may refer to it before."""
        self.nodes.append(None)
        return len(self.nodes) - 1

    def define(self, number: int, node: int) -> None:
        self.nodes[number] = InTurn((node,))


class State:
    """All that may follow a text. Other modules may keep in `notes` what they compute of it."""

    __slots__ = ("following", "need", "notes", "stacks")

    def __init__(self, stacks: frozenset[Stack], need: int) -> None:
        self.stacks, self.need = stacks, need
        self.following: dict[int, State | None] = {}
        self.notes: Any = None

    @property
    def may_end(self) -> bool:
        return () in self.stacks

    @property
    def may_continue(self) -> bool:
        return self.stacks != frozenset({()})


class Automaton:
    """The states of a grammar. `start` is that of the empty text."""

    def __init__(self, grammar: Grammar, root: int, cost: Cost) -> None:
        """Raises ValueError for a grammar in which a node begins with itself."""
        self.nodes = [_defined(node) for node in grammar.nodes]
        _refuse_endless(self.nodes)
        self.cost = lru_cache(maxsize=None)(cost)
        self.node_costs = _node_costs(self.nodes, self.cost)
        self._states: dict[frozenset[Stack], State] = {}
        self.start = self._known(self._opened((), root))

    def step(self, state: State, byte: int) -> State | None:
        """The state after a byte; None = this byte must not follow."""
        if byte not in state.following:
            state.following[byte] = self.state(self._stepped(state.stacks, byte))
        return state.following[byte]

    def walk(self, state: State | None, text: bytes) -> State | None:
        for byte in text:
            if state is None:
                return None
            state = self.step(state, byte)
        return state

    def after(self, stack: Stack) -> State:
        """The state after the lexeme on top of `stack` has ended."""
        return self._known(self._closed(stack[:-1]))

    def need_below(self, stack: Stack) -> int:
        """Tokens that the nodes below the top of `stack` need at most."""
        return sum(self.node_costs[node] for node in stack[:-1])

    def state(self, stacks: Iterator[Stack]) -> State | None:
        found = frozenset(stacks)
        if not found:
            return None
        if found not in self._states:
            if len(self._states) >= MOST_STATES:
                self._states.clear()  # who holds a state keeps it; others are computed again
            self._states[found] = State(found, min(map(self._need, found)))
        return self._states[found]

    def _known(self, stacks: Iterator[Stack]) -> State:
        found = self.state(stacks)
        assert found is not None
        return found

    def _need(self, stack: Stack) -> int:
        if not stack:
            return 0
        node, place = stack[-1]
        return min(NEVER, self.nodes[node].cost(place, self.cost) + self.need_below(stack))

    def _stepped(self, stacks: frozenset[Stack], byte: int) -> Iterator[Stack]:
        for stack in stacks:
            if not stack:
                continue
            node, place = stack[-1]
            lexeme = self.nodes[node]
            place = lexeme.step(place, byte)
            if place is None:
                continue
            if lexeme.may_end(place):
                yield from self._closed(stack[:-1])
            if lexeme.may_continue(place):
                yield (*stack[:-1], (node, place))

    def _closed(self, below: Stack) -> Iterator[Stack]:
        if below:
            yield from self._opened(below[:-1], below[-1])
        else:
            yield ()

    def _opened(self, below: Stack, number: int) -> Iterator[Stack]:
        node = self.nodes[number]
        if isinstance(node, OneOf):
            for option in node.nodes:
                yield from self._opened(below, option)
        elif isinstance(node, InTurn):
            yield from self._closed((*below, *reversed(node.nodes)))
        else:
            yield (*below, (number, node.start))


def _defined(node: Node | None) -> Any:
    assert node is not None, "a node of the grammar was not defined"
    return node


def _refuse_endless(nodes: Sequence[Any]) -> None:
    """Raises ValueError for a node that can be opened within itself before a byte is read."""
    can_be_empty: dict[int, bool | None] = {}  # None while a node is being looked at

    def look(number: int) -> bool:
        if number not in can_be_empty:
            node, can_be_empty[number] = nodes[number], None
            if isinstance(node, InTurn):
                can_be_empty[number] = all(map(look, node.nodes))
            else:
                options = [look(option) for option in node.nodes] if isinstance(node, OneOf) else []
                can_be_empty[number] = any(options)
        found = can_be_empty[number]
        if found is None:
            raise ValueError("a part of the grammar begins with itself, so that no text ends it")
        return found

    for number in range(len(nodes)):
        look(number)


def _node_costs(nodes: Sequence[Any], cost: Cost) -> list[int]:
    """Tokens that each node needs at most: the least solution, found by repetition until nothing changes."""
    costs = [NEVER] * len(nodes)
    has_changed = True
    while has_changed:
        has_changed = False
        for number, node in reversed(list(enumerate(nodes))):
            if isinstance(node, InTurn):
                found = min(NEVER, sum(costs[part] for part in node.nodes))
            elif isinstance(node, OneOf):
                found = min(costs[option] for option in node.nodes)
            else:
                found = node.cost(node.start, cost) if costs[number] == NEVER else costs[number]
            if found < costs[number]:
                costs[number], has_changed = found, True
    return costs
