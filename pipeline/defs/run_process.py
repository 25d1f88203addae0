"""Records which process works on a Dagster run, and registers runs outside the UI, such as those of `gristmill demo`.

In: an instance. Out: the process of a run as tags, so that a run whose process died is recognised; runs that the UI
shows in its timeline and below their job; and freed slots in pools of dead runs. Dagster frees the slots of a killed
run only while its daemon runs, and those of a killed `gristmill demo` never, so that the next one would wait for
ever.
"""

import functools
import os
import socket
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import dagster as dg
import psutil
from dagster._core.remote_origin import RegisteredCodeLocationOrigin, RemoteRepositoryOrigin
from dagster._core.storage.tags import REPOSITORY_LABEL_TAG

from pipeline.store.layout import Layout
from pipeline.store.run_handles import forget_runs, runs_with_handles

TAG = ".dagster/gristmill_"  # a prefix that the UI hides
PID_TAG, HOST_TAG, STARTED_TAG = f"{TAG}pid", f"{TAG}host", f"{TAG}process_started"
CLOCK_SECONDS = 2.0  # tolerance between two readings of a process's start
CODE_LOCATION, REPOSITORY = "gristmill", "__repository__"  # as workspace.yaml and Dagster name them
FREE_EVERY_SECONDS = 15.0
RECORDING_SECONDS = 120.0  # within which a run that has started records its process
RETRY_SECONDS = 24 * 3600.0  # how long a failed run can be continued behind the assets that it made


def process_tags() -> dict[str, str]:
    """Tags that record this process as the one that works on a run."""
    started = psutil.Process().create_time()
    return {PID_TAG: str(os.getpid()), HOST_TAG: socket.gethostname(), STARTED_TAG: str(started)}


def is_recorded(tags: Mapping[str, str]) -> bool:
    return PID_TAG in tags and STARTED_TAG in tags


def is_gone(tags: Mapping[str, str], closed_hosts: Collection[str] = ()) -> bool:
    """Whether the recorded process has ended; False if none is recorded, or it is on another machine.

    `closed_hosts` are machines of which a person knows that they are gone.
    """
    if not is_recorded(tags):
        return False
    if is_elsewhere(tags):
        return tags.get(HOST_TAG) in closed_hosts
    return not is_same_process(int(tags[PID_TAG]), float(tags[STARTED_TAG]))


def is_elsewhere(tags: Mapping[str, str]) -> bool:
    """Whether the recorded process is on a machine, or in a container, with another name."""
    return is_recorded(tags) and tags.get(HOST_TAG) != socket.gethostname()


def never_began(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether the process of a run was killed before it recorded itself, which is the first thing that it does.

    The process that reported the start of the run is known from its events.
    """
    record = instance.get_run_record_by_id(run_id)
    if record is None or is_recorded(record.dagster_run.tags):
        return False
    since = record.start_time or record.update_timestamp.timestamp()
    if time.time() - since < RECORDING_SECONDS:
        return False
    events = [entry.dagster_event for entry in instance.all_logs(run_id) if entry.dagster_event]
    pids = {event.pid for event in events if event.pid is not None}
    return not any(is_same_process(pid, None) for pid in pids)


def is_same_process(pid: int, started: float | None) -> bool:
    """Whether the process `pid` that started at `started` (seconds since 1970; None = at any time) still runs."""
    try:
        process = psutil.Process(pid)
        same = started is None or abs(process.create_time() - started) < CLOCK_SECONDS
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def free_slots_of_dead_runs(instance: dg.DagsterInstance) -> None:
    """Frees the slots in pools of runs that have ended, or whose process has ended."""
    for run_id in instance.event_log_storage.get_concurrency_run_ids():
        run = instance.get_run_by_id(run_id)
        if run is None or run.is_finished or is_gone(run.tags):
            instance.event_log_storage.free_concurrency_slots_for_run(run_id)


def forget_outputs_of_past_runs(layout: Layout, instance: dg.DagsterInstance) -> None:
    """Removes what the I/O manager noted for runs that no retry continues: see store/run_handles.py."""
    past = []
    for run_id in runs_with_handles(layout):
        run = instance.get_run_record_by_id(run_id)
        made_at = (layout.run_handles / run_id).stat().st_mtime
        is_old = made_at < time.time() - RETRY_SECONDS and (run is None or run.dagster_run.is_finished)
        if is_old or (run is not None and run.dagster_run.status == dg.DagsterRunStatus.SUCCESS):
            past.append(run_id)
    forget_runs(layout, past)


def run_here(job: dg.JobDefinition, instance: dg.DagsterInstance, **options: Any) -> dg.ExecuteInProcessResult:
    """Executes a job in this process as a run of the code location that the UI loads.

    Without that origin the UI shows the run neither in its timeline nor below its job. Dagster's public functions
    cannot set it for a run in the same process.
    """
    origin = RemoteRepositoryOrigin(RegisteredCodeLocationOrigin(CODE_LOCATION), REPOSITORY)
    tags = {**process_tags(), REPOSITORY_LABEL_TAG: origin.get_label()}
    create = functools.partial(instance.create_run_for_job, remote_job_origin=origin.get_job_origin(job.name))
    instance.create_run_for_job = create  # type: ignore[method-assign]
    with slots_of_dead_runs_freed(instance):
        return job.execute_in_process(instance=instance, tags=tags, **options)


@contextmanager
def slots_of_dead_runs_freed(instance: dg.DagsterInstance) -> Iterator[None]:
    """Frees the slots now, and repeatedly while the block waits for a slot in a pool."""
    free_slots_of_dead_runs(instance)
    ended = threading.Event()

    def free() -> None:
        while not ended.wait(FREE_EVERY_SECONDS):
            free_slots_of_dead_runs(instance)

    thread = threading.Thread(target=free, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
