"""The format of an evaluation report: results with intervals and baselines, tables and figures."""

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.corpus.report.card_markdown import plain_line
from pipeline.evaluation.intervals import Difference, Estimate
from pipeline.store.shards import replacing, write_text
from pipeline.store.store import Outcome

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CONTENT = ("results.json", "report.md", "samples.md", "mistakes.md")
MODEL_COLOUR, BASELINE_COLOUR = "#1f6f8b", "#c9d6df"
Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """What an evaluation found, before it is written."""

    n_rows: int  # documents or examples
    results: list[Result]
    report: str  # Markdown
    samples: str | None = None  # Markdown
    mistakes: str | None = None  # Markdown, with texts of the examples
    figures: "Mapping[str, Figure]" = field(default_factory=dict)  # by file name without suffix


def written(found: Evaluation, directory: Path, **measures: float) -> Outcome:
    """Write the files of a Report folder. Its measures are the values of all metrics, and `measures`."""
    write_text(directory / "results.json", json.dumps(found.results, indent=1))
    write_text(directory / "report.md", found.report)
    for name, text in (("samples.md", found.samples), ("mistakes.md", found.mistakes)):
        if text is not None:
            write_text(directory / name, text)
    for name, figure in found.figures.items():
        save_figure(figure, directory / "figures" / f"{name}.png")
    values = {result["metric"]: result["value"] for result in found.results}
    return Outcome(rows=found.n_rows, measures=values | measures, content=CONTENT)


def result_of(
    metric: str,
    found: Estimate,
    baselines: Mapping[str, float],
    *,
    higher: bool,
    comparisons: Mapping[str, Difference] | None = None,
) -> Result:
    """`low` and `high` are None if there is no interval; `note` is what a reader of the value has to know.

    `comparisons` are the differences of the model and baselines, by name. One over fewer examples than were evaluated
    has the number of its examples, to which the value of that baseline belongs, too.
    """
    return {
        "metric": metric,
        "value": found.value,
        "low": found.low,
        "high": found.high,
        "higher_is_better": higher,
        "baselines": dict(baselines),
        "note": found.note,
        "comparisons": {
            name: {
                "difference": one.value,
                "low": one.low,
                "high": one.high,
                "p_value": one.p_value,
                "n_rows": one.n_rows,
            }
            for name, one in (comparisons or {}).items()
        },
    }


def baseline_names(results: Sequence[Result]) -> dict[str, str]:
    """Every baseline with its name for people, which has the number of examples if it answered fewer than others."""
    n_rows = {name: one["n_rows"] for result in results for name, one in result.get("comparisons", {}).items()}
    all_names = dict.fromkeys(name for result in results for name in result["baselines"])
    few = {name for name, n in n_rows.items() if n < max(n_rows.values())}
    return {name: f"{name} ({n_rows[name]:,} examples)" if name in few else name for name in all_names}


def quoted(text: str) -> str:
    """The text as an indented block, so that nothing in it is interpreted as Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines() or [""])


def note_lines(results: Sequence[Result]) -> str:
    """The notes of the results as Markdown, one per line."""
    return "".join(f"\n- {result['metric']}: {plain_line(result['note'])}" for result in results if result["note"])


def baselines_figure(result: Result, label: str, highest: float | None = None) -> "Figure":
    """A metric of the model and its baselines as bars, the model's with its interval. `highest`: end of the axis."""
    from matplotlib.figure import Figure

    names = baseline_names([result])
    values = {"model": result["value"], **{names[name]: value for name, value in result["baselines"].items()}}
    figure = Figure(figsize=(6, 1.4 + 0.3 * len(values)), layout="constrained")
    axes = figure.subplots()
    colours = [MODEL_COLOUR] + [BASELINE_COLOUR] * len(result["baselines"])
    axes.barh(list(values), list(values.values()), color=colours)
    if result["low"] is not None:
        below, above = result["value"] - result["low"], result["high"] - result["value"]
        axes.errorbar([result["value"]], ["model"], xerr=[[below], [above]], color="black", capsize=3)
    for place, value in enumerate(values.values()):
        end = value if place or result["high"] is None else result["high"]  # beyond the interval of the model
        axes.text(end, place, f" {value:.3f}", va="center")
    axes.invert_yaxis()
    ends = [*values.values(), *(end for end in (result["low"], result["high"]) if end is not None)]
    axes.set_xlim(1.15 * min(0, *ends), highest or 1.15 * max(0, *ends) or 1)  # a metric may be negative, or all 0
    axes.set_xlabel(label)
    return figure


def save_figure(figure: "Figure", path: Path) -> None:
    with replacing(path) as part, warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing from font"
        )  # a label in another script; the report has it
        figure.savefig(part, format="png", dpi=120, metadata={"Software": None})
