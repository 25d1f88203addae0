"""Elements of word processor files: children by name, values, switches and numbers.

In: an element of WordprocessingML. Out: what its children and their attribute `val` contain.
Source: ECMA-376 part 1, section 17; switches in section 17.17.4.
"""

from typing import Any

from pipeline.corpus.clean.zip_parts import attribute, local_name

OFF = frozenset({"0", "false", "off"})


def child_of(element: Any, *names: str) -> Any | None:
    """The first child with the first name, its first child with the second name, and so on."""
    for name in names:
        element = next((child for child in element if local_name(child) == name), None)
        if element is None:
            return None
    return element


def value_of(element: Any, *names: str) -> str | None:
    child = child_of(element, *names)
    return None if child is None else attribute(child, "val")


def switch_of(element: Any, *names: str) -> bool | None:
    """Whether a property is on; None if it is not there. Without a value it is on."""
    child = child_of(element, *names)
    return None if child is None else (attribute(child, "val") or "").lower() not in OFF


def whole(text: str | None) -> int | None:
    """A number of at most five digits, or None."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 6 else None
