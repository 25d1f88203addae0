"""Compares a model with its baselines on the same examples, in the same way for every kind of task.

In: the answers of all models, and a function that counts them per example (`Counted`). Out: a result per metric with
the interval of the model, the values of the baselines, and the paired difference from each of them; and Markdown
tables of them.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipeline.corpus.report.card_markdown import code, table
from pipeline.evaluation.intervals import (
    Counted,
    Difference,
    difference_from,
    estimate_from,
    paired,
    resampled_values,
)
from pipeline.evaluation.results import Result, baseline_names, result_of

if TYPE_CHECKING:
    from pipeline.evaluation.task import Judged

MODEL = "model"  # name of the answers that are compared with all others
SIGNIFICANT = 0.05  # p value
Rows = Sequence[Mapping[str, Any]]
Count = Callable[[Rows, Rows], Mapping[str, Counted]]  # examples and answers -> what is counted for each metric


def compared_results(
    judged: "Judged", count: Count, seed: int, lower_is_better: Collection[str] = ()
) -> list[Result]:
    """A result for every metric of the model that has a value; ROC-AUC of examples of one class has none.

    A baseline has no value of a metric that needs what it does not answer, such as probabilities: `count` leaves it
    out.
    """
    of_model = _counted(count, judged.examples, judged.model)
    whole = {
        (name, metric): one
        for name in judged.baselines
        if name not in judged.rows
        for metric, one in _counted(count, judged.examples, judged.answers[name]).items()
        if metric in of_model
    }
    everything = {**{(MODEL, metric): one for metric, one in of_model.items()}, **whole}
    values = dict(zip(everything, resampled_values(list(everything.values()), seed), strict=True))
    compared = {
        (name, metric): (
            one.over_all(),
            difference_from(of_model[metric], one, values[MODEL, metric], values[name, metric]),
        )
        for (name, metric), one in whole.items()
    }
    for name in judged.rows:
        compared |= _partial(judged, count, name, seed)
    return [
        result_of(
            metric,
            estimate_from(one, values[MODEL, metric]),
            {name: value for (name, of), (value, _) in compared.items() if of == metric},
            higher=metric not in lower_is_better,
            comparisons={name: difference for (name, of), (_, difference) in compared.items() if of == metric},
        )
        for metric, one in of_model.items()
    ]


def _counted(count: Count, examples: Rows, answers: Rows) -> dict[str, Counted]:
    return {metric: one for metric, one in count(examples, answers).items() if not math.isnan(one.over_all())}


def _partial(judged: "Judged", count: Count, name: str, seed: int) -> dict[tuple[str, str], tuple[float, Difference]]:
    """Values and differences of a baseline that answered some of the examples, and the model on the same ones."""
    examples, ours, theirs = judged.paired_with(name)
    of_model, of_baseline = _counted(count, examples, ours), _counted(count, examples, theirs)
    return {
        (name, metric): (one.over_all(), paired(of_model[metric], one, seed))
        for metric, one in of_baseline.items()
        if metric in of_model
    }


def results_table(results: Sequence[Result]) -> str:
    """Markdown: a row per metric with the value and the interval of the model, and the value of each baseline."""
    names = baseline_names(results)
    rows = [
        [
            result["metric"].replace("_", " "),
            f"{result['value']:.4f}",
            "-" if result["low"] is None else f"{result['low']:.4f} to {result['high']:.4f}",
            *(f"{result['baselines'][name]:.4f}" if name in result["baselines"] else "-" for name in names),
        ]
        for result in results
    ]
    return table(["metric", "model", "95 % interval", *map(code, names.values())], rows)


def comparison_table(results: Sequence[Result]) -> str:
    """Markdown: the difference from each baseline with interval and p value, "" if nothing was compared."""
    rows = [
        [
            result["metric"].replace("_", " "),
            code(name),
            f"{one['difference']:+.4f}",
            f"{one['low']:+.4f} to {one['high']:+.4f}",
            p_text(one["p_value"]),
            standing(result, name),
            f"{one['n_rows']:,}",
        ]
        for result in results
        for name, one in result["comparisons"].items()
    ]
    if not rows:
        return ""
    header = ["metric", "baseline", "difference", "95 % interval", "p", "the model is", "examples"]
    return (
        "\n## Compared with the baselines\n\nThe value of the model minus that of the baseline on the same examples."
        " The p value is how often a difference at least as large would be found between two equally good models:"
        " exact McNemar test for a share of right answers, paired bootstrap for other metrics; a p value is for one"
        " comparison, so of twenty one is below 0.05 by chance.\n\n" + table(header, rows)
    )


def standing(result: Result, baseline: str) -> str:
    """ "better", "worse" or "not told apart": the model beside a baseline that it was compared with."""
    one = result["comparisons"][baseline]
    if one["p_value"] >= SIGNIFICANT or not one["difference"]:
        return "not told apart"
    return "better" if (one["difference"] > 0) == result["higher_is_better"] else "worse"


def p_text(p_value: float, equals: str = "") -> str:
    return "< 0.001" if p_value < 0.001 else f"{equals}{p_value:.3f}"
