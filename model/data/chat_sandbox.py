"""Chat templates made elsewhere, run so that they can do nothing but write text.

In: a template in Jinja with the variables and functions that transformers gives to one. Out: the text that it writes.
Steps: refuse templates that read others; count every loop, call and text of the template, so that one rendering ends
after MOST_STEPS; write.

The sandbox of Jinja keeps a template from Python's internals, and a template has no files to read. Jinja itself
bounds neither time nor memory: of its filters and of the methods of texts a template has those that make a text at
most as long as their operands together, and other ways to a longer text are counted before they are taken. Today's
date is not given (`strftime_now`), so that a conversation has the same ids on every day.
"""

import json
import operator
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from jinja2 import Template, TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MOST_SOURCE = 1_000_000  # characters of a template
MOST_STEPS = 1_000_000  # of one rendering: a pass of a loop, or CHARACTERS of a text; a call counts as STEPS_OF_CALL
CHARACTERS, STEPS_OF_CALL = 100, 10
MOST_NUMBER = 2**63
FILTERS = (
    *("abs", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float", "int", "items"),
    *("last", "length", "list", "lower", "map", "max", "min", "reject", "rejectattr", "reverse", "round", "safe"),
    *("select", "selectattr", "sort", "string", "sum", "title", "trim", "unique", "upper"),
)
METHODS = (
    *("capitalize", "count", "endswith", "find", "index", "isalnum", "isalpha", "isdigit", "islower", "isspace"),
    *("isupper", "join", "lower", "lstrip", "partition", "removeprefix", "removesuffix", "replace", "rfind"),
    *("rpartition", "rsplit", "rstrip", "split", "splitlines", "startswith", "strip", "swapcase", "title", "upper"),
)
OTHERS = (nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)  # statements that read other templates
_steps: ContextVar[list[int]] = ContextVar("steps")  # how many are left, of the rendering in progress


def compiled(source: str) -> Template:
    """Raises ValueError, with the number of the line, for a text that is no template or reads another one."""
    if len(source) > MOST_SOURCE:
        raise ValueError(f"a chat template of {len(source):,} characters, expected at most {MOST_SOURCE:,}")
    environment = _environment()
    try:
        tree = environment.parse(source)
        for statement in tree.find_all(OTHERS):
            name = type(statement).__name__.lower()
            raise TemplateSyntaxError(f"a chat template is one file, but this one has `{name}`", statement.lineno)
        return environment.from_string(_Counting().visit(tree))
    except (TemplateError, RecursionError, SyntaxError) as error:
        line = getattr(error, "lineno", None)
        where = "" if line is None else f", line {line}"
        raise ValueError(f"not a chat template{where}: {getattr(error, 'message', error)}") from error


def written(template: Template, variables: Mapping[str, Any]) -> str:
    """What the template writes. Raises ValueError where it fails, refuses the variables, or takes too many steps."""
    token = _steps.set([MOST_STEPS])
    try:
        return "".join(map(_taken, template.generate(variables)))
    except Exception as error:  # whatever the code of somebody else raises
        raise ValueError(f"{error}" or type(error).__name__) from error
    finally:
        _steps.reset(token)


def _take(n_characters: int = 0) -> None:
    left = _steps.get()
    left[0] -= 1 + n_characters // CHARACTERS
    if left[0] < 0:
        raise SecurityError(f"it takes more than {MOST_STEPS:,} steps or writes too much")


def _taken(value: Any) -> Any:
    """The value, after its length was counted."""
    _take(len(value) if isinstance(value, str | list | tuple | dict) else 0)
    return value


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        sized = [one for one in (left, right) if isinstance(one, str | list | tuple)]
        if sized and operator == "%":
            raise SecurityError("it formats a text by %")
        if sized and operator == "*":
            _take(len(sized[0]) * max(0, *(one for one in (left, right) if isinstance(one, int)), 0))
        elif operator == "**" and not sized and abs(right) > 64:
            raise SecurityError(f"it computes a power of {right}")
        found = _taken(super().call_binop(context, operator, left, right))
        if isinstance(found, int) and abs(found) > MOST_NUMBER:
            raise SecurityError("it computes a number of more than 64 bits")
        return found

    def wrap_str_format(self, value: Any) -> None:
        """Formats may ask for any width."""

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return super().is_safe_attribute(obj, attr, value) and (not isinstance(obj, str) or attr in METHODS)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """As Jinja, whose parameters are named like this because a template may pass any keyword."""
        _take(STEPS_OF_CALL * CHARACTERS)
        text = getattr(__obj, "__self__", None)
        if isinstance(text, str) and __obj.__name__ == "replace":
            _take(_replaced_length(text, *args))
        if isinstance(text, str) and __obj.__name__ == "join":
            args = (list(args[0]),)
            _take(len(text) * len(args[0]))
        return _taken(super().call(__context, __obj, *args, **kwargs))


def _replaced_length(text: str, old: str, new: str, count: int = -1) -> int:
    return len(text) + min(text.count(old), count if count >= 0 else len(text) + 1) * len(new)


class _Counting(NodeTransformer):
    """Puts a count into every loop, and around every part of a template that makes a text."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "counted")
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(nodes.List(node.nodes, lineno=node.lineno), "together")

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, "taken")

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:
        self.generic_visit(node)
        node.filter = _filtered(node.filter, "taken")
        return node


def _filtered(node: Any, name: str) -> nodes.Filter:
    """`node`: an expression, or None for the content of a block."""
    return nodes.Filter(node, name, [], [], None, None, lineno=0 if node is None else node.lineno)


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}, which marks answers in the training templates of transformers; here
    it is only its content."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def _environment() -> _Environment:
    made = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation])
    made.filters = {name: made.filters[name] for name in FILTERS} | {
        "counted": _counted,
        "join": _joined,
        "replace": _replaced,
        "taken": _taken,
        "together": _together,
        "tojson": _as_json,
    }
    made.globals = {name: made.globals[name] for name in ("dict", "namespace", "range")}
    made.globals["raise_exception"] = _refuse
    return made


def _counted(values: Any) -> Iterator[Any]:
    for value in values:
        _take()
        yield value


def _together(parts: list[Any]) -> str:
    texts = [str(part) for part in parts]
    _take(sum(map(len, texts)))
    return "".join(texts)


def _joined(values: Any, separator: str = "", attribute: str | None = None) -> str:
    if attribute is not None:
        values = map(operator.itemgetter(attribute), values)
    texts = [str(value) for value in values]
    _take(sum(map(len, texts)) + len(separator) * len(texts))
    return str(separator).join(texts)


def _replaced(text: Any, old: str, new: str, count: int = -1) -> str:
    _take(_replaced_length(str(text), old, new, count))
    return str(text).replace(old, new, count)


def _as_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """As transformers: without the escapes that Jinja's own filter makes for HTML."""
    if indent is not None and not 0 <= int(indent) <= 16:
        raise SecurityError(f"it indents JSON by {indent}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise TemplateError(message)
