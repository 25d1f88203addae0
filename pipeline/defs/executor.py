"""The executors: one process per step, forked from one with the heavy libraries loaded, or all steps in one process.

GRISTMILL_EXECUTOR chooses: `processes` (default) or `in_process`. A step whose process was killed, most often for
lack of memory, is started once more. The assets have no dg.RetryPolicy, because that also repeats steps that failed
with an error, and in Dagster 1.13 even interrupted ones: Ctrl-C would restart the step that it is meant to stop.
"""

import os
from collections.abc import Iterator
from typing import Any

import dagster as dg
from dagster import multiple_process_executor_requirements
from dagster._core.execution.retries import RetryMode
from dagster._core.executor.base import Executor  # these three have no public names
from dagster._core.executor.in_process import InProcessExecutor
from dagster._core.executor.multiprocess import MultiprocessExecutor

from pipeline.defs.run_process import process_tags

NAMES = ("processes", "in_process")
PRELOADED = ["torch", "mlflow.tracking", "pipeline.definitions"]  # once, in the process that steps are forked from
AGAIN = dg.RetryPolicy(max_retries=1, delay=5)  # for a step whose process died


class Recorded(Executor):
    """Records which process works on a run, when the run starts; `gristmill doctor` checks that process."""

    def execute(self, plan_context: Any, execution_plan: Any) -> Iterator[dg.DagsterEvent]:
        plan_context.instance.add_run_tags(plan_context.run_id, process_tags())
        yield from super().execute(plan_context, execution_plan)


class StepsHere(Recorded, InProcessExecutor):
    """All steps in the process of the run."""


class StepProcesses(Recorded, MultiprocessExecutor):
    """One process per step; a step whose process died is started again."""

    def log_failure_or_retry_event_after_error(self, step_context: Any, err_info: Any, known_state: Any) -> Any:
        """Dagster calls this in the process of the run, for a step whose own process ended without a result."""
        context: Any = _WithRetries(step_context)
        return super().log_failure_or_retry_event_after_error(context, err_info, known_state)


class _WithRetries:
    def __init__(self, step_context: Any):
        self._step_context = step_context
        self.op_retry_policy = AGAIN

    def __getattr__(self, name: str) -> Any:
        return getattr(self._step_context, name)


@dg.executor(name="in_process")
def _in_process(context: dg.InitExecutorContext) -> StepsHere:
    return StepsHere(retries=RetryMode.ENABLED)


@dg.executor(
    name="processes",
    config_schema={
        "max_concurrent": dg.Field(int, default_value=2, description="Number of steps that run at the same time.")
    },
    requirements=multiple_process_executor_requirements(),
)
def _processes(context: dg.InitExecutorContext) -> StepProcesses:
    config: Any = context.executor_config
    return StepProcesses(
        retries=RetryMode.ENABLED,
        max_concurrent=config["max_concurrent"],
        start_method="forkserver",
        explicit_forkserver_preload=PRELOADED,
    )


def executor() -> dg.ExecutorDefinition:
    """The executor that GRISTMILL_EXECUTOR names. Raises ValueError for an unknown name."""
    name = os.environ.get("GRISTMILL_EXECUTOR", NAMES[0])
    if name not in NAMES:
        raise ValueError(f"GRISTMILL_EXECUTOR={name!r} must be one of {', '.join(NAMES)}")
    return {"processes": _processes, "in_process": _in_process}[name]
