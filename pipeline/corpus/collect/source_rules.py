"""The settings of `filter` that a source may override: languages, rule sets and kinds of personal data."""

import re
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from pipeline.corpus.signals.pii import PiiKind
from pipeline.store.settings import check_values

RuleSet = Literal["gopher_quality", "gopher_repetition", "c4", "fineweb"]
RULE_SETS: tuple[str, ...] = get_args(RuleSet)
LANGUAGE_CODE = re.compile(r"[a-z]{2,3}")
Languages = Annotated[
    tuple[str, ...] | None,
    "ISO 639-1 codes of the languages to keep from this source, where they differ from the setting of `filter`; an"
    " empty list keeps all.",
]
Rules = Annotated[
    tuple[RuleSet, ...] | None,
    "Rule sets that judge this source, where they differ from the setting of `filter`; an empty list applies none.",
]
Pii = Annotated[
    tuple[PiiKind, ...] | None,
    "Kinds of personal data to mask in this source, where they differ from the setting of `filter`; an empty list"
    " masks none.",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceRules:
    """Settings of one source; None = as in the settings of `filter`."""

    languages: Languages = None
    rules: Rules = None
    pii: Pii = None

    def __post_init__(self) -> None:
        check_values(self)
        check_languages("languages", self.languages or ())


def check_languages(name: str, codes: tuple[str, ...]) -> None:
    if bad := [code for code in codes if not LANGUAGE_CODE.fullmatch(code)]:
        raise ValueError(f"{name} contains {bad[0]!r}, expected ISO 639-1 codes such as 'en'")
