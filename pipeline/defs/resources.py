"""The resources of the assets: the mill, which builds stages in the data folder, and the I/O manager for handles.

Both are listed under "Resources" in the Dagster UI. GRISTMILL_DATA names the data folder (pipeline/store/layout.py),
MLFLOW_TRACKING_URI the MLflow server (pipeline/tracking/server.py).
"""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import pydantic

from model.training.launch import LaunchResult, launch
from pipeline.defs.metadata import materialised
from pipeline.defs.names import asset_name
from pipeline.defs.run_process import forget_outputs_of_past_runs
from pipeline.store.chain import links_of
from pipeline.store.engine import LocalProcesses
from pipeline.store.errors import Terminated
from pipeline.store.layout import Layout, load_current, save_current
from pipeline.store.leases import Lease, leased
from pipeline.store.progress import current_show
from pipeline.store.records import Checkpoint, Handle, Report
from pipeline.store.run_handles import load_of_runs, save_of_run
from pipeline.store.settings import read_recorded
from pipeline.store.store import Built, Config, Launch, Show, Stage, Store, read_record
from pipeline.tracking.journal import FAILED, FINISHED, KILLED
from pipeline.tracking.keepsakes import keep_results
from pipeline.tracking.registry import Candidate
from pipeline.tracking.server import URI_VARIABLE, tracking_uri
from pipeline.tracking.tracker import Tracker

C = TypeVar("C")
LOG_SECONDS = 10.0  # between two lines on progress in the log of a run


@dataclass(frozen=True, kw_only=True, slots=True)
class Mill:
    """Builds the stages of one data folder for the assets."""

    layout: Layout
    lease: Lease | None = None  # of the process: until it ends, `gristmill gc` keeps what it built and reads

    def store(self, context: dg.AssetExecutionContext, shown_as: str = "", n_workers: int = 0) -> Store:
        """`shown_as` is the name in the log, by default that of the stage; `n_workers` = 0 is one per core."""
        show = _shown_and_logged(context, current_show(), shown_as)
        return Store(root=self.layout.store, show=show, lease=self.lease, engine=LocalProcesses(n_workers=n_workers))

    def build(
        self,
        context: dg.AssetExecutionContext,
        stage: Stage,
        cfg: Config,
        *inputs: Handle,
        run_name: str = "",
        parent: Handle | None = None,
        candidate: Candidate | None = None,
        devices: int = 1,
    ) -> Built:
        """The output of a stage, built now or found finished. A training or evaluation becomes an MLflow run.

        `run_name` is the name of that run, by default that of the asset; it becomes a child of the run of `parent`.
        `candidate` is the model to register after its evaluation. A training with several `devices` runs one process
        per device, through Dagster Pipes.
        """
        if not issubclass(stage.handle, Checkpoint | Report):
            return self.store(context).build(stage, cfg, *inputs)
        if run_name:
            context.log.info(
                f"{run_name}: trains the same network without pretraining, as a baseline; it takes as long as the"
                " model itself, and the setting random_init of this asset switches it off"
            )
        with self.tracked(context, stage, run_name, parent) as tracker:
            launch = launch_with_pipes(context, devices) if devices > 1 else None
            store = replace(self.store(context, run_name), observer=tracker, launch=launch)
            built = store.build(stage, cfg, *inputs)
            keep_results(tracker, built, inputs, candidate)
        return built

    def build_chain(
        self,
        context: dg.AssetExecutionContext,
        asset: str,
        cfg: Mapping[str, Config],
        inputs: Sequence[Handle],
        own: Mapping[str, Mapping[str, Any]],
    ) -> list[Built]:
        """Build the stages of an asset, one after the other, each from the newest outputs that it reads.

        `cfg`: stage -> settings; `own`: stage -> what its recipe contains besides them.
        """
        handles, builds = list(inputs), []
        for link in links_of(asset):
            recipe = link.settings(cfg[link.name], **own.get(link.name, {}))
            builds.append(self.build(context, link.load()[0], recipe, *link.inputs(handles)))
            handles.append(builds[-1].handle)
        return builds

    def materialised(self, *builds: Built) -> dg.MaterializeResult[Any]:
        """The result of an asset after `builds`, the last of which is its output."""
        return materialised(self.layout, *builds)

    @contextmanager
    def tracked(
        self, context: dg.AssetExecutionContext, stage: Stage, run_name: str, parent: Handle | None
    ) -> Iterator[Tracker]:
        """An observer whose MLflow run ends with the status of the block: finished, failed, or killed on request."""
        key = context.asset_key
        tracker = Tracker(
            layout=self.layout,
            asset=asset_name(key),
            group=context.assets_def.group_names_by_key[key],
            run_name=run_name,
            trains=issubclass(stage.handle, Checkpoint),
            description="" if run_name else context.assets_def.descriptions_by_key.get(key) or "",
            parent=parent.fingerprint if parent else "",
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
    """States that only the first process writes; without that Dagster 1.13 warns."""

    @property
    def expected_writer_count(self) -> int:
        return 1


def launch_with_pipes(context: dg.AssetExecutionContext, devices: int) -> Launch:
    """Starts the processes of a training in a session of Dagster Pipes, which adds their log lines to those of the
    run.

    PipesSubprocessClient is not used: it interrupts once and gives up after 20 seconds, while a checkpoint is
    written.
    """

    def launched(order: Path) -> LaunchResult:
        injector, operation = dg.PipesTempFileContextInjector(), context.op_execution_context
        with dg.open_pipes_session(operation, injector, MessagesOfOneWriter()) as session:
            return launch("pipeline.training.process", [str(order)], devices, session.get_bootstrap_env_vars())

    return launched


def made_with(config: type[C], handle: Handle) -> C:
    """The config that a finished output was built with."""
    record = read_record(handle.directory)
    assert record is not None
    return read_recorded(config, record["config"])


FOLDER = pydantic.Field(description="Absolute path of the data folder (GRISTMILL_DATA, else ./data).")


class MillOfFolder(dg.ConfigurableResource[Mill]):
    """The mill, which builds the stages of a data folder and records trainings and evaluations in MLflow."""

    data_folder: str = FOLDER
    mlflow_tracking_uri: str = pydantic.Field(
        description="Address of the MLflow server that trainings and evaluations are recorded in"
        " (MLFLOW_TRACKING_URI, else a SQLite file below the data folder)."
    )

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Iterator[Mill]:
        layout = Layout(Path(self.data_folder))
        if self.mlflow_tracking_uri != tracking_uri(layout):  # another one was chosen in the launchpad
            os.environ[URI_VARIABLE] = self.mlflow_tracking_uri
        with leased(layout.store) as lease:
            yield Mill(layout=layout, lease=lease)


class HandleFiles(dg.ConfigurableIOManager):
    """The I/O manager: passes the address of a finished folder between assets in one small JSON file per asset.

    An asset reads what its own run made, or the run of which it is a retry; else the newest output.
    """

    data_folder: str = FOLDER

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        if context.instance is not None:
            forget_outputs_of_past_runs(Layout(Path(self.data_folder)), context.instance)

    def handle_output(self, context: dg.OutputContext, obj: Handle) -> None:
        layout, asset = Layout(Path(self.data_folder)), asset_name(context.asset_key)
        save_of_run(layout, context.run_id, asset, obj)
        save_current(layout, asset, obj)

    def load_input(self, context: dg.InputContext) -> Handle:
        layout, asset = Layout(Path(self.data_folder)), asset_name(context.asset_key)
        run = context.step_context.dagster_run
        runs = [one for one in (run.run_id, run.parent_run_id, run.root_run_id) if one]
        return load_of_runs(layout, runs, asset) or load_current(layout, asset)


def resources(layout: Layout) -> dict[str, Any]:
    """Resources by key. The UI shows the name MLFLOW_TRACKING_URI, not its value, which may contain a password."""
    folder = str(layout.data)
    uri = dg.EnvVar(URI_VARIABLE) if os.environ.get(URI_VARIABLE) else tracking_uri(layout)
    return {
        "mill": MillOfFolder(data_folder=folder, mlflow_tracking_uri=uri),
        "io_manager": HandleFiles(data_folder=folder),
    }


def _shown_and_logged(context: dg.AssetExecutionContext, show: Show, shown_as: str) -> Show:
    """Shows progress on the terminal, if there is one, and now and then a line in the log of the run."""
    last = time.monotonic()

    def show_and_log(stage: str, done: int, total: int | None, unit: str) -> None:
        nonlocal last
        stage = shown_as or stage
        show(stage, done, total, unit)
        if time.monotonic() - last >= LOG_SECONDS:
            last = time.monotonic()
            context.log.info(f"{stage}: {done:,}{'' if total is None else f' of {total:,}'} {unit}")

    return show_and_log
