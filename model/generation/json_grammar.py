"""JSON as a grammar: any value, or the values of a JSON Schema.

In: a schema, as json.loads returns it, or none. Out: nodes of a Grammar. The layout is that of json.dumps: a space
may follow a comma and a colon, and nothing else stands between values, so that a model can't fill its text with
spaces. The properties of an object are written in the order of the schema, and no others. Every text is a value of
the schema; a keyword that could not be kept is refused by its name and place.

Supported: type (also a list of types), enum, const, anyOf, $ref within the schema; properties, required and
additionalProperties of an object; items, minItems and maxItems of an array; maxLength of a string. Annotations such
as title and description have no effect.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from model.generation.grammar import Grammar
from model.generation.json_lexemes import UNLIMITED, Number, String

ANNOTATIONS = ("$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples")
TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
OF_TYPE = {  # keywords that have a meaning for one type alone
    "properties": "object",
    "required": "object",
    "additionalProperties": "object",
    "items": "array",
    "minItems": "array",
    "maxItems": "array",
    "maxLength": "string",
}
WHOLE = ("enum", "const", "anyOf", "$ref")  # keywords that say alone what a value is
MOST_NESTED = 16  # levels of a value without a schema
MOST_COUNTED = 1000  # items or characters that a schema may count

Place = tuple[str, ...]  # keys that lead to a part of a schema


def json_grammar(schema: Any = None) -> tuple[Grammar, int]:
    """A grammar and its root. Raises ValueError for a schema that is wrong or not supported."""
    values = _Values(schema)
    root = values.any_value() if schema is None else values.of_schema(schema, ())
    return values.grammar, values.grammar.in_turn(values.grammar.maybe(b" "), root)


class _Values:
    def __init__(self, schema: Any) -> None:
        self.grammar = Grammar()
        self.schema = schema
        self.referred: dict[str, int] = {}  # $ref -> node
        text, node = self.grammar.text, self.grammar.one_of
        self.comma = self.grammar.in_turn(text(b","), self.grammar.maybe(b" "))
        self.colon = self.grammar.in_turn(text(b":"), self.grammar.maybe(b" "))
        self.string, self.number = self.grammar.add(String()), self.grammar.add(Number())
        self.integer = self.grammar.add(Number(is_integer=True))
        self.null, self.boolean = text(b"null"), node(text(b"true"), text(b"false"))
        self.any_by_level: dict[int, int] = {}

    def any_value(self, level: int = MOST_NESTED) -> int:
        """A value with at most `level` arrays and objects around each other."""
        if level not in self.any_by_level:
            options = [self.string, self.number, self.null, self.boolean]
            if level:
                options += [self.any_object(level), self.array(self.any_value(level - 1))]
            self.any_by_level[level] = self.grammar.one_of(*options)
        return self.any_by_level[level]

    def any_object(self, level: int) -> int:
        pair = self.grammar.in_turn(self.string, self.colon, self.any_value(level - 1))
        return self.listed(b"{", pair, b"}", 0, None)

    def array(self, item: int, n_min: int = 0, n_max: int | None = None) -> int:
        return self.listed(b"[", item, b"]", n_min, n_max)

    def listed(self, opening: bytes, item: int, closing: bytes, n_min: int, n_max: int | None) -> int:
        """Items with commas between them. From the last counted item on, each may be the last one."""
        grammar, end = self.grammar, self.grammar.text(closing)
        if n_max is None:
            more = grammar.later()
            grammar.define(more, grammar.one_of(end, grammar.in_turn(self.comma, item, more)))
            n_counted = max(n_min, 1)
        else:
            more, n_counted = end, n_max
        for n_before in range(n_counted - 1, 0, -1):
            further = grammar.in_turn(self.comma, item, more)
            more = grammar.one_of(end, further) if n_before >= n_min else further
        items = [grammar.in_turn(item, more)] if n_counted else []
        return grammar.in_turn(grammar.text(opening), grammar.one_of(*items, *([end] if n_min == 0 else [])))

    def of_schema(self, schema: Any, place: Place) -> int:
        if schema is True:
            return self.any_value()
        if not isinstance(schema, Mapping):
            raise ValueError(f"{_at(place)} is {json.dumps(schema)[:60]}, expected an object with keywords, or true")
        keywords = {key: value for key, value in schema.items() if key not in ANNOTATIONS}
        if unknown := sorted(keywords.keys() - {"type", *OF_TYPE, *WHOLE}):
            supported = ", ".join(("type", *OF_TYPE, *WHOLE))
            raise ValueError(f"{_at(place)} has {unknown[0]!r}, which is not supported; supported are {supported}")
        if whole := [key for key in WHOLE if key in keywords]:
            return self._whole(keywords, whole[0], place)
        if not keywords:
            return self.any_value()
        types = self._types(keywords, place)
        return self.grammar.one_of(*(self._of_type(one, keywords, place) for one in types))

    def _whole(self, keywords: Mapping[str, Any], key: str, place: Place) -> int:
        value = keywords[key]
        if beside := sorted(keywords.keys() - {key} - ({"type"} if key in ("enum", "const") else set())):
            raise ValueError(f"{_at(place)} has {beside[0]!r} beside {key!r}, which is not supported")
        if key == "$ref":
            return self._reference(value, place)
        if key == "const":
            value = [value]
        if not isinstance(value, list) or not value:
            raise ValueError(f"{_at((*place, key))} is {json.dumps(value)[:60]}, expected a list that is not empty")
        if key == "anyOf":
            return self.grammar.one_of(*(self.of_schema(one, (*place, key, str(i))) for i, one in enumerate(value)))
        if "type" in keywords:
            types = self._types(keywords, place)
            value = [one for one in value if any(_is_of(one, name) for name in types)]
        if not value:
            raise ValueError(f"{_at((*place, key))} has no value of the type {json.dumps(keywords['type'])}")
        return self.grammar.one_of(*(self.grammar.text(_written(one)) for one in value))

    def _reference(self, value: Any, place: Place) -> int:
        if not isinstance(value, str) or not (value == "#" or value.startswith("#/")):
            raise ValueError(f"{_at((*place, '$ref'))} is {value!r}, expected a place in this schema: #/$defs/name")
        if value not in self.referred:
            part, keys = self.schema, [key.replace("~1", "/").replace("~0", "~") for key in value.split("/")[1:]]
            for key in keys:
                if not isinstance(part, Mapping) or key not in part:
                    raise ValueError(f"{_at((*place, '$ref'))} is {value!r}, which is not in the schema")
                part = part[key]
            self.referred[value] = self.grammar.later()  # before its content, which may refer to itself
            self.grammar.define(self.referred[value], self.of_schema(part, tuple(keys)))
        return self.referred[value]

    def _types(self, keywords: Mapping[str, Any], place: Place) -> list[str]:
        given = keywords.get("type")
        if given is None:
            raise ValueError(f"{_at(place)} has {min(keywords)!r} and no type; expected one of {', '.join(TYPES)}")
        types = [one for one in (given if isinstance(given, list) else [given]) if one in TYPES]
        if not types or (isinstance(given, list) and len(types) < len(given)):
            raise ValueError(f"{_at((*place, 'type'))} is {json.dumps(given)}, expected one of {', '.join(TYPES)}")
        for key, of in OF_TYPE.items():
            if key in keywords and of not in types:
                raise ValueError(f"{_at(place)} has {key!r}, which is of {of}s, but its type is {json.dumps(given)}")
        return types

    def _of_type(self, name: str, keywords: Mapping[str, Any], place: Place) -> int:
        if name == "object":
            return self._object(keywords, place)
        if name == "array":
            n_min, n_max = (_count(keywords, key, place) for key in ("minItems", "maxItems"))
            if n_max is not None and n_max < (n_min or 0):
                raise ValueError(f"{_at(place)} has maxItems {n_max} below minItems {n_min}")
            return self.array(self.of_schema(keywords.get("items", True), (*place, "items")), n_min or 0, n_max)
        if name == "string":
            most = _count(keywords, "maxLength", place)
            return self.grammar.add(String(UNLIMITED if most is None else most))
        return {"number": self.number, "integer": self.integer, "boolean": self.boolean, "null": self.null}[name]

    def _object(self, keywords: Mapping[str, Any], place: Place) -> int:
        properties, required = keywords.get("properties"), keywords.get("required", [])
        further = keywords.get("additionalProperties", True)
        if not isinstance(properties, Mapping | None):
            raise ValueError(f"{_at((*place, 'properties'))} is not an object of schemas")
        names = list(properties or {})
        is_list = isinstance(required, list)
        if not is_list or any(name not in names for name in required):
            shown = (
                repr(next(name for name in required if name not in names)) if is_list else json.dumps(required)[:60]
            )
            raise ValueError(f"{_at((*place, 'required'))} has {shown}, which is not among the properties")
        if properties is None:
            if not isinstance(further, bool):
                raise ValueError(f"{_at((*place, 'additionalProperties'))} without properties must be true or false")
            return self.any_object(MOST_NESTED) if further else self.grammar.text(b"{}")
        pairs = [
            self.grammar.in_turn(
                self.grammar.text(_written(name)), self.colon, self.of_schema(one, (*place, "properties", name))
            )
            for name, one in properties.items()
        ]
        return self._pairs(pairs, [name in required for name in names])

    def _pairs(self, pairs: Sequence[int], is_required: Sequence[bool]) -> int:
        """An object of these pairs in their order, without some of those that are not required."""
        grammar = self.grammar
        first = more = grammar.text(b"}")  # what follows before and behind the first pair that is written
        for pair, is_needed in reversed(list(zip(pairs, is_required, strict=True))):
            with_first, with_more = grammar.in_turn(pair, more), grammar.in_turn(self.comma, pair, more)
            first = with_first if is_needed else grammar.one_of(with_first, first)
            more = with_more if is_needed else grammar.one_of(with_more, more)
        return grammar.in_turn(grammar.text(b"{"), first)


def _written(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError as error:
        raise ValueError(f"{value!r} has no JSON form in UTF-8 ({error})") from error


def _is_of(value: Any, name: str) -> bool:
    if isinstance(value, bool):
        return name == "boolean"
    if name == "integer":
        return isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    of = {"object": dict, "array": list, "string": str, "number": (int, float), "null": type(None)}
    return name in of and isinstance(value, of[name])


def _count(keywords: Mapping[str, Any], key: str, place: Place) -> int | None:
    value = keywords.get(key)
    if value is not None and (type(value) is not int or not 0 <= value <= MOST_COUNTED):
        shown = json.dumps(value)[:60]
        raise ValueError(f"{_at((*place, key))} is {shown}, expected a whole number from 0 to {MOST_COUNTED}")
    return value


def _at(place: Place) -> str:
    return "the schema at " + ".".join(("$", *place))
