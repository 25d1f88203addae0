"""The settings of `filter` that a source may override: languages, rule sets and kinds of personal data."""

from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args

from pipeline.corpus.signals.language import DETECTED
from pipeline.corpus.signals.pii import PiiKind
from pipeline.store.settings import check_values
from pipeline.store.store import AS_SET

RuleSet = Literal["gopher_quality", "gopher_repetition", "c4", "fineweb"]
RULE_SETS: tuple[RuleSet, ...] = get_args(RuleSet)
OTHER_CODES = {"nb": "no", "iw": "he", "in": "id", "fil": "tl", "cmn": "zh", "zh-cn": "zh", "zh-tw": "zh", "jp": "ja"}
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

    languages: Languages = field(default=None, metadata=AS_SET)
    rules: Rules = field(default=None, metadata=AS_SET)
    pii: Pii = field(default=None, metadata=AS_SET)

    def __post_init__(self) -> None:
        check_values(self)
        check_languages("languages", self.languages or ())


def check_languages(name: str, codes: tuple[str, ...]) -> None:
    """Raises ValueError for a code that no text can have, because with it every text would be dropped."""
    if bad := [code for code in codes if code not in DETECTED]:
        code = bad[0].lower()
        near = OTHER_CODES.get(code) or next((part for part in (code, code[:2]) if part in DETECTED), None)
        raise ValueError(
            f"{name} contains {bad[0]!r}, which is no language that can be detected"
            + (f"; did you mean {near!r}?" if near else "")
            + f"; expected codes among {' '.join(sorted(DETECTED))}"
        )
