"""Reads the finished folder of a model or a report: its curve, its results, its best checkpoint."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from model.training.config import VALIDATION_METRIC
from pipeline.store.errors import CorruptShard
from pipeline.store.record_file import rebuilding

VALUES = "values.json"


def best_checkpoint(directory: Path) -> Path | None:
    """The kept checkpoint with the lowest validation value; None if none was validated."""
    valued = [
        (value, path.parent)
        for path in sorted((directory / "checkpoints").glob(f"*/{VALUES}"))
        for name, value in json.loads(path.read_text("utf-8")).items()
        if name in VALIDATION_METRIC.values()
    ]
    return min(valued)[1] if valued else None


def read_curve(directory: Path) -> list[dict[str, float]]:
    """The lines of curve.jsonl: `step`, and values of that step."""
    path = directory / "curve.jsonl"
    try:
        return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []
    except ValueError as error:
        raise CorruptShard(f"{path} is damaged ({error}); {rebuilding(directory)}") from error


def read_results(directory: Path) -> list[dict[str, Any]]:
    """results.json of a Report: metric, value, low, high, higher_is_better, baselines, comparisons."""
    path = directory / "results.json"
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise CorruptShard(f"{path} is damaged ({error}); {rebuilding(directory)}") from error


def result_metrics(results: Sequence[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """Each result under its own name, its interval as <name>.low and .high, each baseline as <name>.<baseline>, the
    p value of its comparison with the model as <name>.<baseline>.p_value."""
    for result in results:
        values = {"": result["value"], ".low": result["low"], ".high": result["high"]}
        values |= {f".{name}": value for name, value in result["baselines"].items()}
        values |= {f".{name}.p_value": one["p_value"] for name, one in result.get("comparisons", {}).items()}
        yield from ((result["metric"] + suffix, value) for suffix, value in values.items() if value is not None)
