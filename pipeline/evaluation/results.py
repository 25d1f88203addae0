"""The format of an evaluation report: results with intervals and baselines, tables and figures."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.corpus.report.card_markdown import plain_line
from pipeline.evaluation.metrics import Estimate
from pipeline.store.shards import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTENT = ("results.json", "report.md", "samples.md")
Result = dict[str, Any]


def result_of(metric: str, found: Estimate, baselines: Mapping[str, float], *, higher: bool) -> Result:
    """`low` and `high` are None if there is no interval; `note` says what a reader of the value has to know."""
    return {
        "metric": metric,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "higher_is_better": higher,
        "baselines": dict(baselines),
        "note": found.note,
    }


def quoted(text: str) -> str:
    """The text as an indented block, so that nothing in it is interpreted as Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])


def note_lines(results: Sequence[Result]) -> str:
    """The notes of the results as Markdown, one per line."""
    return "".join(f"\n- {result['metric']}: {plain_line(result['note'])}" for result in results if result["note"])


def save_figure(figure: "Figure", path: Path) -> None:
    with replacing(path) as part, warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from font"
        )  # a label in another script; the report has it
        figure.savefig(part, format="png", dpi=120, metadata={"Software": None})
