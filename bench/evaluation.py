"""What intervals and comparisons cost: processor seconds and memory for 100,000 examples with 28 labels.

In: nothing; probabilities are made up. Out: a Markdown table, printed: seconds of the processor and growth of the
peak memory for F1 and calibration, then for the ranking metrics, of one model and of a model beside one baseline.

    python -m bench.evaluation [--rows 100000] [--labels 28]
"""

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from pipeline.evaluation.classification_metrics import calibration_error, f1_metrics, ranking_metrics
from pipeline.evaluation.intervals import resampled_values


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--labels", type=int, default=28)
    args = parser.parse_args()
    rng, labels = np.random.default_rng(0), [str(i) for i in range(args.labels)]
    true_NC = rng.random((args.rows, args.labels)) < 0.04
    model_NC, other_NC = (
        np.clip(rng.random(true_NC.shape) * 0.6 + share * true_NC, 0, 1).astype(np.float32) for share in (0.4, 0.3)
    )

    def ranking(probabilities_NC: np.ndarray) -> list[Any]:
        return list(ranking_metrics(probabilities_NC, true_NC, labels).values())

    def chosen(probabilities_NC: np.ndarray) -> list[Any]:
        f1s = f1_metrics(true_NC, probabilities_NC > 0.5, labels)
        return [*f1s.values(), calibration_error(probabilities_NC, true_NC)]

    print("| metrics | CPU s, model | CPU s, model and a baseline | peak memory, MB more |\n|---|---:|---:|---:|")
    for name, counted in (("F1 and calibration", chosen), ("ROC-AUC and average precision", ranking)):
        before = _peak()
        alone = _seconds(lambda counted=counted: resampled_values(counted(model_NC), seed=0))
        both = _seconds(lambda counted=counted: resampled_values([*counted(model_NC), *counted(other_NC)], seed=0))
        print(f"| {name} | {alone:.1f} | {both:.1f} | {_peak() - before:,} |", flush=True)


def _seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main()
