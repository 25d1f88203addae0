"""`gristmill results`: shows the newest evaluation of every model; the demo shows the same table.

In: a layout with the current outputs of the `*_evaluation` assets. Out: one result per metric: asset, metric, value,
95 % interval, whether higher is better, baselines, a note, fingerprint and MLflow run of the evaluation.
"""

import json
from argparse import Namespace
from typing import Any

from pipeline.commands.tables import table_lines
from pipeline.evaluation.comparisons import p_text, standing
from pipeline.evaluation.mistakes import read_mistakes
from pipeline.store.layout import Layout, all_current, existing_layout
from pipeline.store.outputs import read_results
from pipeline.tasks.declared import declared_assets
from pipeline.tracking.server import run_id_of

Result = dict[str, Any]
SUFFIX = "_evaluation"


def run(args: Namespace) -> int:
    if args.mistakes is not None:
        print(mistakes_of(existing_layout(), args.mistakes))
        return 0
    results = newest_results(existing_layout(), retired=args.all)
    print(json.dumps(results, indent=1) if args.json else "\n".join(result_lines(results)))
    return 0


def newest_results(layout: Layout, *, retired: bool = False) -> list[Result]:
    """Results sorted by the names of the assets. Raises ValueError when nothing was evaluated yet.

    With `retired` also those of tasks that tasks.toml does not declare any more.
    """
    current = all_current(layout, None if retired else declared_assets(layout))
    reports = {asset: handle for asset, handle in current.items() if asset.endswith(SUFFIX)}
    if not reports:
        raise ValueError(f"no evaluation has been materialised below {layout.data}; run `gristmill run`")
    return [
        {
            "asset": asset,
            "metric": result["metric"],
            "value": result["value"],
            "low": result["low"],
            "high": result["high"],
            "higher_is_better": result["higher_is_better"],
            "baselines": result["baselines"],
            "note": result.get("note", ""),
            "comparisons": result.get("comparisons", {}),
            "main": result.get("main", True),
            "n_rows": report.rows,
            "fingerprint": report.fingerprint,
            "mlflow_run_id": run_id_of(layout, report.fingerprint),
        }
        for asset, report in reports.items()
        for result in read_results(report.directory)
    ]


def mistakes_of(layout: Layout, task: str) -> str:
    """The most confident mistakes of the model of a task, with their texts, as Markdown.

    Raises ValueError when it was not evaluated, or its kind of task lists no mistakes.
    """
    report = all_current(layout).get(f"{task}{SUFFIX}")
    if report is None:
        raise ValueError(f"the task {task!r} was not evaluated; run `gristmill run +{task}{SUFFIX}`")
    return read_mistakes(report.directory)


def result_lines(results: list[Result]) -> list[str]:
    """A table with notes below; each baseline is marked as better than the model, worse, equal to it, or not told
    apart from it: by the p value of their comparison on the same examples, otherwise because it is within the model's
    interval."""
    shown = [result for result in results if result.get("main", True)]
    rows = [
        [
            result["asset"].removesuffix(SUFFIX),
            result["metric"],
            _number(result["value"]),
            "" if result["low"] is None else f"{_number(result['low'])} to {_number(result['high'])}",
            "higher" if result["higher_is_better"] else "lower",
            ", ".join(
                f"{name} {_number(value)} ({_standing(result, name, value)})"
                for name, value in result["baselines"].items()
            ),
        ]
        for result in shown
    ]
    notes = [
        f"{row[0]} {row[1]}: {note}" for row, result in zip(rows, shown, strict=True) if (note := result["note"])
    ]
    if len(shown) < len(results):
        notes.append("Other metrics of the tasks: --json shows them, and report.md of an evaluation.")
    table = table_lines(["model", "metric", "value", "95 % interval", "better is", "baselines"], rows, right=(2,))
    return [*table, *(["", *notes] if notes else [])]


def _standing(result: Result, name: str, baseline: float) -> str:
    """How a baseline compares with the model; equal = with the same printed value."""
    if compared := result.get("comparisons", {}).get(name):
        of_baseline = {"better": "worse", "worse": "better"}.get(one := standing(result, name), one)
        some = f", on {compared['n_rows']:,} examples" if compared["n_rows"] < result["n_rows"] else ""
        return f"{of_baseline}, p {p_text(compared['p_value'], '= ')}{some}"
    if _number(result["value"]) == _number(baseline):
        return "equal"
    if result["low"] is not None and result["low"] <= baseline <= result["high"]:
        return "not told apart"
    return "better" if (baseline > result["value"]) == result["higher_is_better"] else "worse"


def _number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
