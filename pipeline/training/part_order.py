"""Explains why a file that was joined from parts has not the expected sha256, as far as the names of its parts show.

In: package and member of every part, in the order of the table. Out: one clause for the message.
"""

import re
from collections.abc import Sequence

NUMBER = re.compile(r"(\d+)(?:-of-\d+)?\D*$")  # the 2 of part-2.bin and of part-00002-of-00006.bin


def order_fault(parts: Sequence[tuple[str, str]]) -> str:
    """Which part is missing, repeated or out of order."""
    listed = ", ".join(member for _, member in parts)
    numbers = _numbers([member for _, member in parts]) or _numbers([package for package, _ in parts])
    if numbers is None:
        return f"check the order of the parts: {listed}"
    if repeated := [number for number in sorted(set(numbers)) if numbers.count(number) > 1]:
        return f"part {repeated[0]} is there {numbers.count(repeated[0])} times: {listed}"
    if missing := [number for number in range(min(1, *numbers), max(numbers)) if number not in numbers]:
        return f"part {missing[0]} is missing: {listed}"
    for part, (_, rightful) in zip(parts, sorted(zip(numbers, parts, strict=True)), strict=True):
        if part != rightful:
            return f"the parts are out of order: {part[1]} is where {rightful[1]} belongs"
    return f"parts are missing at the end, or contain something else than they did: {listed}"


def _numbers(names: Sequence[str]) -> list[int] | None:
    """The last number in each name, if all have one and they are not all the same."""
    found = [NUMBER.search(name) for name in names]
    numbers = [int(match[1]) for match in found if match]
    return numbers if len(numbers) == len(names) and len(set(numbers)) > 1 else None
