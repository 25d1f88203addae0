"""`gristmill run`: materialises the graph, or a part of it, in this process, with progress and a summary.

In: the data folder with its sources and tasks, and names of assets. Out: the assets materialised in a Dagster run
that the UI shows too; a progress display while it works; then the evaluations with their baselines, the checks and
the seconds of every asset. Assets that are up to date are not rebuilt. Failures are listed, and everything else is
kept.

Dagster's event lines are in its log, which the UI shows; output of libraries is written to data/dagster/demo.log.
"""

import multiprocessing
import time
import uuid
from argparse import Namespace
from collections.abc import Collection, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

from pipeline.commands.tables import count_text, table_lines
from pipeline.store import errors
from pipeline.store.disk import size_text
from pipeline.store.faults import advised
from pipeline.store.layout import Layout, asset_records, usable_layout
from pipeline.store.progress import Display, clock_text, displayed
from pipeline.store.settings import refuse_unknown
from pipeline.store.store import RECORD

JOB, JOB_OF_ANY = "demo", "everything"  # of all assets that are needed; the one with every asset
NOT_ON_THE_CONSOLE = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
# otherwise Dagster redirects stdout and stderr to its log, with two extra processes that also receive Ctrl-C
NO_CAPTURE = {
    "compute_logs": {"module": "dagster._core.storage.noop_compute_log_manager", "class": "NoOpComputeLogManager"}
}
BASE = "base"  # the stage that imports models
PRELOADED = ["pyarrow.parquet", "psutil", "pipeline.store.store"]  # once, in the process that workers are forked from
LIBRARIES_LOG = "demo.log"
INTERRUPTED = "DagsterExecutionInterruptedError"


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """An asset that this run built."""

    asset: str
    rows: int | None  # None for a model that was imported, which has no rows
    seconds: float  # in its stages


@dataclass(kw_only=True, slots=True)
class Watch:
    """Turns Dagster's events into lines of the display, and records what happened."""

    display: Display
    layout: Layout
    assets_of: Mapping[str, str]  # step -> asset; steps of checks are too short for a line
    finished_before: set[str] = field(init=False)  # fingerprints; the time of a record has whole seconds only
    built: list[Made] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)  # step, message
    interrupted: bool = False  # by Ctrl-C or SIGTERM
    n_passed: int = 0  # checks
    complaints: list[str] = field(default_factory=list)  # messages of checks that did not pass
    notes: list[str] = field(default_factory=list)  # what else took time

    def __post_init__(self) -> None:
        self.finished_before = {record.parent.name for record in self.layout.store.glob(f"*/*/{RECORD}")}

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
            self.failures.append((asset or step, advised(message, self.layout)))

    def _note_check(self, check: Any) -> None:
        if check.passed:
            self.n_passed += 1
            return
        word, asset = "ERROR" if check.blocking else "WARNING", "/".join(check.asset_key.path)
        told = (check.description or "it did not pass").rstrip(".")
        self.complaints.append(f"{word}: {told} (check {check.check_name} of {asset})")

    def _outcome(self, asset: str) -> str:
        records = [r for r in asset_records(self.layout, asset) if r["fingerprint"] not in self.finished_before]
        if not records:
            self.unchanged.append(asset)
            return "unchanged"
        is_base, seconds = records[0]["stage"] == BASE, sum(record["seconds"] for record in records)
        rows = None if is_base else records[0]["rows"]
        self.built.append(Made(asset=asset, rows=rows, seconds=seconds))
        if baseline := sum(record["seconds"] for record in records[1:] if record["stage"] == "finetune"):
            self.notes.append(
                f"{asset}: {clock_text(baseline)} of it trained the baseline random_init, the same network without"
                f" pretraining; `random_init = false` in [{asset}] of config.toml leaves it out."
            )
        n_parameters = records[0]["measures"].get("parameters", 0)
        amount = f"{n_parameters:,} parameters" if rows is None else count_text(rows, "row")
        return f"{amount}, {size_text(records[0]['bytes'])}"


def run(args: Namespace) -> int:
    """Materialise the named assets, or everything. Returns 1 if an asset failed."""
    command = " ".join(["gristmill run", *args.assets])
    return run_assets(usable_layout(), args.assets, again=command)


def run_assets(layout: Layout, assets: Sequence[str], again: str, ending: Sequence[str] = ()) -> int:
    """`again` is the command that continues after a failure; `ending` are lines below the summary."""
    started = time.perf_counter()
    watch, run_id = materialise(layout, assets)
    seconds = time.perf_counter() - started
    print()
    if watch.interrupted:
        raise KeyboardInterrupt
    if watch.failures:
        print("\n".join(failure_lines(layout, watch, run_id, again)))
        return 1
    print("\n".join([*report_lines(layout, watch, seconds), *ending]))
    return 0


def materialise(layout: Layout, assets: Sequence[str] = ()) -> tuple[Watch, str]:
    """Run the job of all assets that are needed, or `assets`, in this process. Returns what happened, and the id of
    the run."""
    print("Loading the graph", flush=True)
    multiprocessing.set_forkserver_preload(PRELOADED)
    from pipeline.commands.estimate import estimate, estimate_line
    from pipeline.commands.planning import plan, refuse_faults
    from pipeline.definitions import definitions
    from pipeline.defs.instance import open_instance
    from pipeline.defs.run_process import run_here
    from pipeline.tasks.declared import declared_assets, idle_assets

    graph = definitions(layout)
    names = assets or sorted(declared_assets(layout).difference(idle_assets(layout)))
    keys = selected(graph.resolve_asset_graph(), names)
    steps = graph.resolve_asset_graph().assets_defs
    assets_of = {step.node_def.name: "/".join(step.key.path) for step in steps if step.keys and step.key in keys}
    planned = plan(layout, graph)
    refuse_faults(planned, assets_of.values())
    if work := estimate(planned, set(assets_of.values())):
        print(estimate_line(work), flush=True)
    run_id = str(uuid.uuid4())
    with (
        open_instance(layout, NO_CAPTURE) as instance,
        displayed(n_steps=len(assets_of)) as display,
        (layout.dagster_home / LIBRARIES_LOG).open("a", encoding="utf-8", errors="backslashreplace") as log,
        redirect_stdout(log),  # output of libraries would break the display
        redirect_stderr(log),
    ):
        watch = Watch(display=display, layout=layout, assets_of=assets_of)
        instance.add_event_listener(run_id, watch)
        options = {"asset_selection": sorted(keys)} if assets else {}
        job = graph.resolve_job_def(JOB_OF_ANY if assets else JOB)
        run_here(job, instance, run_id=run_id, run_config=NOT_ON_THE_CONSOLE, raise_on_error=False, **options)
    return watch, run_id


def selected(graph: Any, names: Sequence[str]) -> Collection[Any]:
    """Keys of assets: `NAME`, `+NAME` with everything before it, `NAME+` with everything after it.

    Raises ValueError when there is no such asset.
    """
    from dagster import AssetSelection

    known = {"/".join(key.path): key for key in graph.get_all_asset_keys()}
    refuse_unknown("run", "asset", [name.strip("+") for name in names], sorted(known))
    keys = set()
    for name in names:
        one = AssetSelection.assets(known[name.strip("+")])
        up = one.upstream() if name.startswith("+") else one
        down = one.downstream() if name.endswith("+") else one
        keys |= (up | down).resolve(graph)
    return keys


def failure_lines(layout: Layout, watch: Watch, run_id: str, again: str) -> list[str]:
    """What failed, why, and what to do; steps that only lack their input are left out."""
    return [
        *watch.complaints,
        *(f"ERROR: `{step}` failed: {message}" for step, message in watch.failures),
        f"Finished work is kept: {_built_text(watch)}. Fix the error and run `{again}` again to continue.",
        f"The full log: `gristmill ui`, then run {run_id[:8]} on Dagster's page Runs; the output of libraries:"
        f" {layout.dagster_home / LIBRARIES_LOG}",
    ]


def report_lines(layout: Layout, watch: Watch, seconds: float) -> list[str]:
    """Print evaluations, seconds of every asset and checks. Returns whether everything succeeded."""
    from pipeline.commands.results import newest_results, result_lines

    lines = []
    if any(name.endswith("_evaluation") for name in watch.assets_of.values()):
        lines += [*result_lines(newest_results(layout)), ""]
    if watch.built:
        rows = [
            [made.asset, "", f"{made.seconds:.1f}", ""]
            if made.rows is None
            else [made.asset, f"{made.rows:,}", f"{made.seconds:.1f}", f"{made.rows / max(made.seconds, 1e-3):,.0f}"]
            for made in watch.built
        ]
        lines += [*table_lines(["built", "rows", "seconds", "rows/s"], rows, right=(1, 2, 3)), ""]
        lines += watch.notes
        outside = max(seconds - sum(made.seconds for made in watch.built), 0)
        lines += [
            f"{clock_text(seconds)} in all, of which {outside:.0f} s outside the stages ({outside / seconds:.0%})"
        ]
    n_checks = watch.n_passed + len(watch.complaints)
    lines += [*watch.complaints, f"{watch.n_passed} of {count_text(n_checks, 'check')} passed"]
    if watch.built:
        lines += [f"Succeeded: {_built_text(watch)}."]
    else:
        n_assets = len(watch.unchanged)
        up_to_date = "1 asset is" if n_assets == 1 else f"all {n_assets} assets are"
        lines += [f"Nothing had to be rebuilt: {up_to_date} up to date ({seconds:.0f} s)."]
    return [*lines, f"The results are in {layout.data}."]


def _built_text(watch: Watch) -> str:
    return f"{count_text(len(watch.built), 'asset')} built, {len(watch.unchanged)} unchanged"


def chain_of(error: Any) -> tuple[list[str], str]:
    """The class names of a chain of errors, and the message of the first that is not Dagster's, in one line."""
    chain = [error]
    while chain[-1].cause is not None:
        chain.append(chain[-1].cause)
    told = next((one for one in chain if not one.cls_name.startswith("Dagster")), chain[-1])
    text = " ".join(told.message.split())
    for prefix in ("ValueError: ", "dagster._core.errors.", f"{errors.__name__}.{told.cls_name}: "):
        text = text.removeprefix(prefix)
    return [one.cls_name for one in chain], text
