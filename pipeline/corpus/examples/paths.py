"""Finds the parts of a row: by a path, or by a template that joins the values at several paths.

In: a record and `title`, `input.1.content` or `{title}\n{body}`. Out: the value there, or None.
"""

import json
import re
from functools import lru_cache
from typing import Any

SHOWN_CHARACTERS = 60  # of a value in a message
FIELD = re.compile(r"\{([^{}]+)\}")


def shown(value: Any) -> str:
    """A value of the data in a message."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


@lru_cache  # asked for every row
def fields_of(path: str) -> tuple[str, ...]:
    """The paths in a template; the path itself if it is none."""
    return tuple(FIELD.findall(path)) or (path,)


def part_of(record: Any, path: str) -> Any:
    """The value of a path, or the text of a template. A template has no value where one of its paths has none."""
    fields = fields_of(path)
    if fields == (path,):
        return value_at(record, path)
    values = {field: value_at(record, field) for field in fields}
    if any(value is None for value in values.values()):
        return None
    return FIELD.sub(lambda match: _text(values[match[1]]), path)


def _text(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(one, str) for one in value):
        return "\n".join(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def value_at(record: Any, path: str) -> Any:
    """The value at `path`, or None. A key that itself contains dots is found too."""
    if isinstance(record, dict) and path in record:
        return record[path]
    head, dot, rest = path.partition(".")
    if not dot:
        return (
            record[int(head)] if isinstance(record, list) and head.isdecimal() and int(head) < len(record) else None
        )
    return value_at(value_at(record, head), rest)
