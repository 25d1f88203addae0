"""Writes names and values of the user as MLflow accepts them.

In: the name of a metric, parameter, tag or model, for instance `f1_C#`, which contains a label. Out: the same name if
MLflow accepts it, else one in which every other character is written as in an address, with a colon in place of the
percent sign: `f1_C:23`. `original_name` is the inverse. Only a name that is longer than MLflow's limit loses its end,
to a hash of the whole.
"""

import hashlib
import re
from collections.abc import Mapping
from posixpath import normpath
from urllib.parse import unquote

ACCEPTED = re.compile(r"[\w.\- /]+")  # MLflow also accepts colons, which begin an escape here
KEPT = re.compile(r"[\w.\- ]")
LONGEST_NAME, LONGEST_DATASET = 250, 500  # characters, MLflow's limits
LONGEST_PARAM, LONGEST_TAG, LONGEST_DESCRIPTION = 6000, 8000, 5000
CUT = "..."  # ends a value that was cut
HASH_DIGITS = 16


def accepted_name(name: str, longest: int = LONGEST_NAME) -> str:
    """`name` as MLflow accepts it for a metric, a parameter or a tag; different names stay different."""
    if not _is_accepted(name):
        kept = [character if KEPT.fullmatch(character) else _escaped(character) for character in name]
        name = "".join(kept)
        if name.startswith("."):  # otherwise it may mean the folder above
            name = _escaped(".") + name[1:]
        name = name or ":"
    if len(name) > longest:
        digest = hashlib.sha256(name.encode()).hexdigest()[:HASH_DIGITS]
        name = f"{name[: longest - HASH_DIGITS - 1]}-{digest}"
    return name


def original_name(name: str) -> str:
    """The name that `accepted_name` was given, unless it was too long."""
    return "" if name == ":" else unquote(name.replace("%", "%25").replace(":", "%"))


def accepted_values(values: Mapping[str, str], longest: int) -> dict[str, str]:
    """Parameters or tags as MLflow accepts them; a value that is too long is cut."""
    return {accepted_name(name): cut_value(value, longest) for name, value in values.items()}


def cut_value(value: str, longest: int) -> str:
    return value if len(value) <= longest else value[: longest - len(CUT)] + CUT


def _is_accepted(name: str) -> bool:
    """Whether MLflow takes the name as it is, which must not resolve to another one when it is read as a path."""
    is_path = normpath(name) == name and name != "." and not name.startswith(("..", "/"))
    return is_path and ACCEPTED.fullmatch(name) is not None


def _escaped(character: str) -> str:
    return "".join(f":{byte:02X}" for byte in character.encode("utf-8", "surrogatepass"))
