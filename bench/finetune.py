"""Does pretraining help? A task's model from pretrained and from random weights, over seeds, on the test split.

In: a data folder that `gristmill demo` has filled (GRISTMILL_DATA, else data/). Out: a markdown table, printed.
What was trained before is found in the store and not trained again.

    .venv/bin/python -m bench.finetune [--task sarcasm] [--seeds 3]
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

from pipeline.defs.resources import made_with
from pipeline.evaluation.task import evaluation_stage
from pipeline.store.layout import layout_from_environment, load_current
from pipeline.store.store import Store, read_record
from pipeline.tasks.kind import kind_of
from pipeline.training.finetune import finetune_stage, random_baseline

METRICS = ("accuracy", "macro_f1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default="sarcasm")
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    layout = layout_from_environment()
    base, examples = load_current(layout, "foundation_model"), load_current(layout, f"{args.task}_examples")
    model = load_current(layout, f"{args.task}_model")
    kind = kind_of(read_record(model.directory))
    chosen, training, evaluation = made_with(kind.finetune, model), finetune_stage(kind), evaluation_stage(kind)
    store = Store(root=layout.store)
    reports = []
    for seed in range(args.seeds):
        cfg = replace(chosen, seed=seed)
        models = [store.build(training, one, base, examples).handle for one in (cfg, random_baseline(cfg))]
        report = store.build(evaluation, kind.evaluation(), *models, examples).handle
        reports.append(read_metrics(report.directory))
    print(f"{args.task}, test split, {args.seeds} seeds: mean and standard deviation over seeds\n")
    print("| metric | pretrained | random weights | difference | TF-IDF + logistic regression |")
    print("|---|---:|---:|---:|---:|")
    for metric in METRICS:
        pretrained = [report[metric]["value"] for report in reports]
        random = [report[metric]["baselines"]["random_init"] for report in reports]
        difference = [a - b for a, b in zip(pretrained, random, strict=True)]
        tfidf = reports[0][metric]["baselines"]["tfidf_logistic"]
        print(f"| {metric} | {spread(pretrained)} | {spread(random)} | {spread(difference)} | {tfidf:.4f} |")


def read_metrics(report: Path) -> dict[str, dict]:
    return {result["metric"]: result for result in json.loads((report / "results.json").read_text("utf-8"))}


def spread(values: list[float]) -> str:
    return f"{mean(values):.4f} +- {stdev(values):.4f}" if len(values) > 1 else f"{values[0]:.4f}"


if __name__ == "__main__":
    main()
