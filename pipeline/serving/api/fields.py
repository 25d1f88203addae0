"""Reads the body of a request: bytes to checked fields.

In: the JSON of a client. Out: a Fields, whose methods return values of the right type and range, or raise ApiError
(400) with the name of the field, what was given and what is expected. Fields that nobody asks for are ignored,
because clients send fields of services that this is not; those that would change the answer are refused (`refuse`).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from pipeline.serving.api.errors import shown, wrong


def parsed_body(body: bytes) -> "Fields":
    """Raises ApiError for what is not a JSON object in UTF-8."""
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise wrong(f"the body is not UTF-8 (byte {error.start})", code="invalid_utf8") from error
    try:
        values = json.loads(text, parse_constant=_no_json)
    except RecursionError as error:
        raise wrong("the body is nested too deeply", code="invalid_json") from error
    except ValueError as error:
        raise wrong(f"the body is not JSON: {shown(str(error))}", code="invalid_json") from error
    if not isinstance(values, dict):
        raise wrong(f"the body is {shown(values)}, expected a JSON object", code="invalid_json")
    return Fields(values)


def _no_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no value of JSON")


class Fields:
    """The fields of an object; null is as if a field was not there. `place` is the object's own name in messages."""

    def __init__(self, values: Mapping[str, Any], place: str = "") -> None:
        self.values, self.place = values, place

    def name(self, key: str) -> str:
        return f"{self.place}.{key}" if self.place else key

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def required(self, key: str, expected: str) -> Any:
        if (value := self.get(key)) is None:
            raise wrong(f"the field {self.name(key)!r} is missing; expected {expected}", self.name(key))
        return value

    def number(self, key: str, low: float, high: float) -> float | None:
        value = self.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            self.refuse(key, f"a number from {low:g} to {high:g}")
        return float(value)

    def whole(self, key: str, low: int, high: int) -> int | None:
        value = self.get(key)
        if value is None:
            return None
        is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not is_whole or not low <= value <= high:
            self.refuse(key, f"a whole number from {low:,} to {high:,}")
        return int(value)

    def flag(self, key: str) -> bool:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            self.refuse(key, "true or false")
        return bool(value)

    def one_of(self, key: str, options: Sequence[str]) -> str:
        """The first one is the default."""
        value = self.get(key)
        if value is not None and value not in options:
            self.refuse(key, f"one of {', '.join(options)}")
        return options[0] if value is None else value

    def object(self, key: str) -> "Fields":
        """An empty one if there is none."""
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            self.refuse(key, "an object")
        return Fields(value or {}, self.name(key))

    def texts(self, key: str, most: int) -> list[str]:
        """One text or several; none if the field is not there."""
        value = self.get(key)
        found = [value] if isinstance(value, str) else [] if value is None else value
        if not isinstance(found, list) or len(found) > most or not all(isinstance(one, str) for one in found):
            self.refuse(key, f"a text, or a list of at most {most:,} texts")
        return [checked_text(one, self.name(key)) for one in found]

    def refuse(self, key: str, expected: str) -> NoReturn:
        value = self.get(key)
        raise wrong(f"{self.name(key)} is {shown(value)}, expected {expected}", self.name(key))

    def refuse_unsupported(self, harmless: Mapping[str, Iterable[Any]], advice: Mapping[str, str]) -> None:
        """Raises ApiError for a field that would change the answer and is not supported, unless its value is one of
        the harmless ones."""
        for key, values in harmless.items():
            value = self.get(key)
            if value is not None and not any(value == one and type(value) is type(one) for one in values):
                told = advice.get(key, "leave it out")
                raise wrong(
                    f"{self.name(key)} is {shown(value)}, which this server does not support; {told}",
                    self.name(key),
                    "unsupported_parameter",
                )


def checked_text(text: str, param: str) -> str:
    """`text` itself. Raises ApiError for one that has no UTF-8 form."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise wrong(
            f"{param} has no UTF-8 form: character {error.start} is the lone surrogate {text[error.start]!r}",
            param,
            "invalid_utf8",
        ) from error
    return text
