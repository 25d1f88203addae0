"""What a source may set for itself: the rule sets and languages that judge its documents."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pipeline.corpus.signals.pii import PII_KINDS

RULE_SETS = ("gopher_quality", "gopher_repetition", "c4", "fineweb")
LANGUAGE_CODE = re.compile(r"[a-z]{2,3}")


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRules:
    """What one source says for itself; None = as the config says."""

    languages: tuple[str, ...] | None = None
    rules: tuple[str, ...] | None = None
    pii: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_languages("languages", self.languages or ())
        check_names("rules", self.rules or (), RULE_SETS)
        check_names("pii", self.pii or (), PII_KINDS)


def check_names(name: str, given: Iterable[str], known: Sequence[str]) -> None:
    """ValueError for a name that is not among `known`, with the one that was probably meant."""
    for one in given:
        if one not in known:
            close = difflib.get_close_matches(one, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"{name}: there is no {one!r}, expected any of {', '.join(known)}{hint}")


def check_languages(name: str, codes: tuple[str, ...]) -> None:
    if bad := [code for code in codes if not LANGUAGE_CODE.fullmatch(code)]:
        raise ValueError(f"{name}={codes}: {bad} are no ISO 639-1 codes such as 'en'")
