"""The format of an evaluation report: results with intervals and baselines, tables and figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.evaluation.metrics import (
    Estimate,
)
from pipeline.store.shards import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTENT = ("results.json", "report.md", "samples.md")
Result = dict[str, Any]


def result_of(metric: str, found: Estimate, baselines: Mapping[str, float], *, higher: bool) -> Result:
    return {
        "metric": metric,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "higher_is_better": higher,
        "baselines": dict(baselines),
    }


def quoted(text: str) -> str:
    """The text as an indented block, so that nothing in it is interpreted as Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines) + "\n"


def save_figure(figure: "Figure", path: Path) -> None:
    with replacing(path) as part:
        figure.savefig(part, format="png", dpi=120, metadata={"Software": None})
