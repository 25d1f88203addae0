"""What the assets share: the mill, which builds stages, tracks what trains, and says what came of it.

In: a layout. Out: the resources of the code location, and its executor. Both depend on the environment only:

    GRISTMILL_DATA       the data folder (pipeline/store/layout.py)
    MLFLOW_TRACKING_URI  the tracking server (pipeline/tracking/delivery.py)
    GRISTMILL_EXECUTOR   `processes` (default: a process a step, two at once) or `in_process` (quickest start)
"""

import multiprocessing
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import psutil

from model.launch import Ended, launch
from pipeline.defs.io_manager import HandleFiles, asset_name
from pipeline.defs.metadata import materialised
from pipeline.store.errors import Terminated
from pipeline.store.layout import Layout
from pipeline.store.progress import current_show
from pipeline.store.records import Checkpoint, Handle, Report
from pipeline.store.store import Built, Config, Launch, Show, Stage, Store, read_record
from pipeline.tracking.journal import FAILED, FINISHED, KILLED
from pipeline.tracking.keepsakes import keep_results
from pipeline.tracking.registry import Candidate
from pipeline.tracking.tracker import Tracker

C = TypeVar("C")
LOG_SECONDS = 10.0  # between two lines about progress in a run's log
CORES = {"gristmill/cores": "all"}  # tag of the steps that use every core
EXECUTORS = ("processes", "in_process")
PRELOADED = ["torch", "mlflow.tracking", "pipeline.definitions"]  # once, in the process that steps are forked from


@dataclass(frozen=True, kw_only=True, slots=True)
class Mill:
    """Builds the stages of one data folder on behalf of assets."""

    layout: Layout

    def store(self, context: dg.AssetExecutionContext) -> Store:
        return Store(root=self.layout.store, show=_shown_and_logged(context, current_show()))

    def build(
        self,
        context: dg.AssetExecutionContext,
        stage: Stage,
        cfg: Config,
        *inputs: Handle,
        run_name: str = "",
        candidate: Candidate | None = None,
        devices: int = 1,
    ) -> Built:
        """The output of a stage, made now or found finished. What trains or evaluates becomes an MLflow run.

        `run_name` names that run, else the asset does; `candidate` is the model to register after its evaluation;
        a training on more than one of `devices` gets a process for each, through Dagster Pipes.
        """
        if not issubclass(stage.handle, Checkpoint | Report):
            return self.store(context).build(stage, cfg, *inputs)
        with self.tracked(context, stage, run_name) as tracker:
            launch = launch_with_pipes(context, devices) if devices > 1 else None
            store = replace(self.store(context), observer=tracker, launch=launch)
            built = store.build(stage, cfg, *inputs)
            keep_results(tracker, built, inputs, candidate)
        return built

    def materialised(self, *builds: Built) -> dg.MaterializeResult[Any]:
        """The result of an asset that went through `builds`, the last of which is its output."""
        return materialised(self.layout, *builds)

    @contextmanager
    def tracked(self, context: dg.AssetExecutionContext, stage: Stage, run_name: str) -> Iterator[Tracker]:
        """An observer whose MLflow run ends as the block does: finished, failed, or killed on request."""
        tracker = Tracker(
            layout=self.layout,
            asset=asset_name(context.asset_key),
            group=context.assets_def.group_names_by_key[context.asset_key],
            run_name=run_name,
            tags={"dagster.run_id": context.run.run_id, "gristmill.stage": stage.name},
        )
        try:
            yield tracker
        except (Terminated, KeyboardInterrupt, dg.DagsterExecutionInterruptedError) as error:
            tracker.close(KILLED)
            raise dg.DagsterExecutionInterruptedError(str(error)) from error
        except BaseException:
            tracker.close(FAILED)
            raise
        tracker.close(FINISHED)


class MessagesOfOneWriter(dg.PipesTempFileMessageReader):
    """Dagster 1.13 warns whoever leaves it to Dagster how many processes write: the first alone does."""

    @property
    def expected_writer_count(self) -> int:
        return 1


def launch_with_pipes(context: dg.AssetExecutionContext, devices: int) -> Launch:
    """Starts the processes of a training in a session of Dagster Pipes, which brings their log lines into the run's.

    Not by PipesSubprocessClient: it interrupts once and gives up after 20 seconds, while a checkpoint is written.
    """

    def launched(order: Path) -> Ended:
        injector, operation = dg.PipesTempFileContextInjector(), context.op_execution_context
        with dg.open_pipes_session(operation, injector, MessagesOfOneWriter()) as session:
            return launch("pipeline.training.process", [str(order)], devices, session.get_bootstrap_env_vars())

    return launched


def settings(context: dg.AssetExecutionContext) -> Any:
    """The config dataclass of an asset's stage, or stage -> config: see pipeline/defs/run_config.py."""
    return context.op_execution_context.op_config


def made_with(config: type[C], handle: Handle) -> C:
    """The config that a finished output was made with."""
    record = read_record(handle.directory)
    assert record is not None
    return config(**record["config"])


def code_version(*stages: Stage) -> str:
    """What Dagster compares to tell that an asset's code has changed."""
    return " ".join(f"{stage.name}-{stage.version}" for stage in stages)


def resources(layout: Layout) -> dict[str, Any]:
    return {"io_manager": HandleFiles(layout), "mill": dg.ResourceDefinition(lambda context: _mill(context, layout))}


def executor() -> dg.ExecutorDefinition:
    """A process a step, forked from one that has the heavy libraries loaded; or everything in this process."""
    name = os.environ.get("GRISTMILL_EXECUTOR", EXECUTORS[0])
    if name not in EXECUTORS:
        raise ValueError(f"GRISTMILL_EXECUTOR={name!r} must be one of {', '.join(EXECUTORS)}")
    if name == "in_process":
        return dg.in_process_executor
    return dg.multiprocess_executor.configured(
        {
            "max_concurrent": 2,
            # two steps that each want every core take longer together than one after the other
            "tag_concurrency_limits": [{"key": next(iter(CORES)), "limit": 1}],
            "start_method": {"forkserver": {"preload_modules": PRELOADED}},
        }
    )


def _mill(context: dg.InitResourceContext, layout: Layout) -> Mill:
    """Dagster calls this in every step, which is when the run learns whose process works on it."""
    if context.instance and context.run:
        process = psutil.Process(_process_of_run())
        tags = {
            "gristmill/pid": str(process.pid),
            "gristmill/host": socket.gethostname(),
            "gristmill/process_started": str(process.create_time()),
        }
        if not tags.items() <= context.run.tags.items():
            context.instance.add_run_tags(context.run.run_id, tags)
    return Mill(layout=layout)


def _process_of_run() -> int:
    """The process that lives as long as the run does: a step's own one ends before the next step starts."""
    parent = multiprocessing.parent_process()
    forked_for_step = multiprocessing.current_process().name.startswith("ForkServerProcess")
    return (parent.pid if parent is not None and forked_for_step else None) or os.getpid()


def _shown_and_logged(context: dg.AssetExecutionContext, show: Show) -> Show:
    """Progress for a terminal where there is one, and now and then a line in the log of the run."""
    last = time.monotonic()

    def show_and_log(stage: str, done: int, total: int | None, unit: str) -> None:
        nonlocal last
        show(stage, done, total, unit)
        if time.monotonic() - last >= LOG_SECONDS:
            last = time.monotonic()
            context.log.info(f"{stage}: {done:,}{'' if total is None else f' of {total:,}'} {unit}")

    return show_and_log
