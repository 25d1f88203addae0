"""`gristmill demo`: the whole graph in one process, watched from a shell, and what came out of it.

In: the data folder with its sources and tasks. Out: every asset materialised (a Dagster run that the UI shows too), a
progress display while it works, then the evaluations beside their baselines and the seconds of every asset. What is
up to date is not built again, so that a second run takes seconds; what failed is named, and the rest is kept.

Dagster's own event lines go to its log, which the UI shows, and what libraries print to data/dagster/demo.log.
"""

import time
import uuid
from argparse import Namespace
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

from pipeline.commands.tables import table_lines
from pipeline.commands.ui import prepare_dagster_home
from pipeline.store.disk import size_text
from pipeline.store.layout import Layout, asset_records, layout_from_environment
from pipeline.store.progress import Display, clock_text, displayed

JOB = "demo"
NOT_ON_THE_CONSOLE = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
# or else Dagster takes stdout and stderr away for its log, with two watching processes that a Ctrl-C reaches too
NO_CAPTURE = {
    "compute_logs": {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
}
LIBRARIES_LOG = "demo.log"
INTERRUPTED = "DagsterExecutionInterruptedError"
HOW_TO_LOOK = """\
To look at it:
  make ui                                both UIs, until Ctrl-C
  http://127.0.0.1:3000                  Dagster: the graph, every materialisation, checks, plots
  http://127.0.0.1:5000                  MLflow: runs, curves, registered models
  .venv/bin/gristmill generate "The "    a text by the new model"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """An asset that this run built."""

    asset: str
    rows: int
    seconds: float  # inside its stages


@dataclass(kw_only=True, slots=True)
class Watch:
    """Turns Dagster's events into lines of the display, and notes what happened."""

    display: Display
    layout: Layout
    assets_of: Mapping[str, str]  # step -> asset; checks are steps of their own that take no time worth a line
    started_at: str = field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    built: list[Made] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)  # step, message
    interrupted: bool = False  # by Ctrl-C or SIGTERM
    n_passed: int = 0  # checks
    complaints: list[str] = field(default_factory=list)  # of checks that did not pass

    def __call__(self, entry: Any) -> None:
        event = entry.dagster_event
        if event is None:
            return
        kind, step = event.event_type_value, str(event.step_key)
        asset = self.assets_of.get(step)
        if kind == "STEP_START" and asset:
            self.display.begin(asset)
        elif kind == "ASSET_CHECK_EVALUATION":
            self._note_check(event.asset_check_evaluation_data)
        elif kind == "STEP_SUCCESS" and asset:
            self.display.end(self._outcome(asset))
        elif kind == "STEP_FAILURE":
            names, message = chain_of(event.step_failure_data.error)
            self.interrupted |= INTERRUPTED in names
            if asset:
                self.display.end("stopped" if INTERRUPTED in names else "FAILED")
            self.failures.append((asset or step, message))

    def _note_check(self, check: Any) -> None:
        if check.passed:
            self.n_passed += 1
        else:
            name = f"{'/'.join(check.asset_key.path)}: {check.check_name}"
            self.complaints.append(f"check {name} did not pass ({check.severity.value}): {check.description or ''}")

    def _outcome(self, asset: str) -> str:
        records = [r for r in asset_records(self.layout, asset) if r["finished_at"] >= self.started_at]
        if not records:
            self.unchanged.append(asset)
            return "unchanged"
        rows, seconds = records[0]["rows"], sum(record["seconds"] for record in records)
        self.built.append(Made(asset=asset, rows=rows, seconds=seconds))
        return f"{rows:,} rows, {size_text(records[0]['bytes'])}"


def run(args: Namespace) -> int:
    """Materialise everything and print what came out; 1 when an asset failed."""
    layout = layout_from_environment()
    started = time.perf_counter()
    watch, run_id = materialise(layout)
    seconds = time.perf_counter() - started
    print()
    if watch.interrupted:
        raise KeyboardInterrupt
    if watch.failures:
        print("\n".join(failure_lines(layout, watch, run_id)))
        return 1
    print("\n".join(report_lines(layout, watch, seconds)))
    return 0


def materialise(layout: Layout) -> tuple[Watch, str]:
    """Run the job of the whole graph in this process. Returns what happened, and the id of the Dagster run."""
    print("Loading the graph", flush=True)
    prepare_dagster_home(layout)
    from dagster import DagsterInstance
    from dagster._core.instance.ref import InstanceRef  # public calls take no overrides

    from pipeline.definitions import definitions
    from pipeline.defs.run_process import run_here

    graph = definitions(layout)
    steps = graph.resolve_asset_graph().assets_defs
    assets_of = {step.node_def.name: "/".join(step.key.path) for step in steps if step.keys}
    run_id = str(uuid.uuid4())
    with (
        DagsterInstance.from_ref(InstanceRef.from_dir(str(layout.dagster_home), overrides=NO_CAPTURE)) as instance,
        displayed(n_steps=len(assets_of)) as display,
        (layout.dagster_home / LIBRARIES_LOG).open("a") as log,
        redirect_stdout(log),  # what libraries print would tear the display
        redirect_stderr(log),
    ):
        watch = Watch(display=display, layout=layout, assets_of=assets_of)
        instance.add_event_listener(run_id, watch)
        job = graph.resolve_job_def(JOB)
        run_here(job, instance, run_id=run_id, run_config=NOT_ON_THE_CONSOLE, raise_on_error=False)
    return watch, run_id


def failure_lines(layout: Layout, watch: Watch, run_id: str) -> list[str]:
    """What failed, why, and what to do; steps that only miss their input are not told."""
    lines = [f"`{step}` failed: {message}" for step, message in watch.failures]
    return [
        *watch.complaints,
        *lines,
        f"What was finished is kept ({len(watch.built)} built, {len(watch.unchanged)} unchanged). Mend it and run"
        " `make demo` again: it goes on from there.",
        f"The full log: `make ui`, then http://127.0.0.1:3000/runs/{run_id}; what libraries printed:"
        f" {layout.dagster_home / LIBRARIES_LOG}",
    ]


def report_lines(layout: Layout, watch: Watch, seconds: float) -> list[str]:
    """Evaluations, seconds of every asset, and where to look."""
    from pipeline.commands.results import newest_results, result_lines

    lines = [*result_lines(newest_results(layout)), ""]
    lines += [f"{watch.n_passed} of {watch.n_passed + len(watch.complaints)} checks passed", *watch.complaints, ""]
    if watch.built:
        rows = [
            [made.asset, f"{made.rows:,}", f"{made.seconds:.1f}", f"{made.rows / max(made.seconds, 1e-3):,.0f}"]
            for made in watch.built
        ]
        lines += [*table_lines(["built", "rows", "seconds", "rows/s"], rows, right=(1, 2, 3)), ""]
        inside = sum(made.seconds for made in watch.built)
        lines.append(
            f"{clock_text(seconds)} in all, of which {max(seconds - inside, 0):.0f} s outside the stages"
            f" ({max(seconds - inside, 0) / seconds:.0%})"
        )
    if watch.unchanged and not watch.built:
        lines.append(
            f"Nothing had to be rebuilt: all {len(watch.unchanged)} assets are up to date ({seconds:.0f} s)."
        )
    elif watch.unchanged:
        lines.append(f"{len(watch.unchanged)} assets were up to date and were not rebuilt.")
    return [*lines, f"Everything lies below {layout.data}.", "", *HOW_TO_LOOK.splitlines()]


def chain_of(error: Any) -> tuple[list[str], str]:
    """Class names of a chain of Dagster's errors, and the message at its bottom in one line."""
    names = [error.cls_name]
    while error.cause is not None:
        error = error.cause
        names.append(error.cls_name)
    text = " ".join(error.message.split())
    return names, text.removeprefix("ValueError: ").removeprefix("dagster._core.errors.")
