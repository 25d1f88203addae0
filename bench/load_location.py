"""How long Dagster needs to load our code location, over an empty one.

In: nothing. Out: seconds, median of five child processes each: Python with an empty location, and with ours. The
difference is what the UI, the daemon and every step process pay for this project.

    .venv/bin/python -m bench.load_location
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
N_RUNS = 5
LOAD = "import dagster as dg; dg.Definitions.validate_loadable({})"
LOCATIONS = {
    "empty": LOAD.format("dg.Definitions()"),
    "gristmill": f"from pipeline.definitions import definitions, layout_from_environment as layout; {LOAD}".format(
        "definitions(layout())"
    ),
}


def seconds_of(program: str) -> float:
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
    return time.perf_counter() - started


def main() -> None:
    runs = [{name: seconds_of(program) for name, program in LOCATIONS.items()} for _ in range(N_RUNS)]
    medians = {name: statistics.median(run[name] for run in runs) for name in LOCATIONS}
    for name, seconds in medians.items():
        print(f"{name:<10} {seconds:.2f} s")
    print(f"difference {medians['gristmill'] - medians['empty']:.2f} s")


if __name__ == "__main__":
    main()
