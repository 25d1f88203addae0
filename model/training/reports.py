"""What a training reports of its steps, and when it reads the numbers from the device.

In: StepReports whose numbers are on the device. Out: calls of `report(step, values)`, one per step, in order. All
numbers since the last read are fetched in one copy. `values` holds

- loss (nats), gradient_norm, learning_rate and tokens_per_second (over the steps since the last read);
- on a loss spike (model/training/spikes.py) also spike, in deviations above the median, and skipped, 1 where the
  update was left out;
- of a step without a supervised target only learning_rate, tokens_per_second and skipped_empty = 1: its loss does not
  exist, and nothing was updated.

Rank 0 logs warnings; every process calls `report`.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from model.training.distributed import is_main
from model.training.spikes import SPIKE, loss_spike_of, spike_of, with_step
from model.training.step import StepReport, TrainState

if TYPE_CHECKING:  # batches may be anything, also where there are no shards to read and no pyarrow
    from model.data.batches import Batches

Report = Callable[[int, Mapping[str, float]], None]
MAX_EMPTY_STEPS = 100  # in a row; a run of them means that nothing in the data is supervised
log = logging.getLogger(__name__)


class Diverged(ValueError):
    """A loss or gradient is not a finite number: the learning rate, or the data, is at fault."""


class Reports:
    """Steps whose numbers were not read yet; `read` reads and reports them."""

    def __init__(
        self,
        state: TrainState,
        batches: "Batches",
        report: Report,
        last_good: Callable[[], Path | None],
        min_spike_rise: float,
    ) -> None:
        self.state, self.batches, self.report = state, batches, report
        self.last_good, self.min_spike_rise = last_good, min_spike_rise
        self.pending: list[StepReport] = []
        self.n_empty = 0  # steps in a row without a supervised target
        self.restart_clock()

    def restart_clock(self) -> None:
        """Count seconds from now on: what came before was no training."""
        self.since = time.perf_counter()

    def read(self) -> None:
        """Read and report all pending steps. Raises Diverged when a number is not finite, ValueError when too many
        steps in a row had no target."""
        if not self.pending:
            return
        rows = torch.stack([step_report.numbers for step_report in self.pending]).tolist()
        seconds = max(time.perf_counter() - self.since, 1e-9)
        rate = sum(step_report.n_tokens for step_report in self.pending) / seconds
        for step_report, (loss, norm, is_empty, is_spike) in zip(self.pending, rows, strict=True):
            values = self._empty(step_report) if is_empty else self._trained(step_report, loss, norm, bool(is_spike))
            common = {"learning_rate": step_report.learning_rate, "tokens_per_second": rate}
            self.report(step_report.step, values | common)
        self.pending.clear()
        self.restart_clock()

    def _empty(self, step_report: StepReport) -> dict[str, float]:
        self.n_empty += 1
        if self.n_empty == 1 or self.n_empty >= MAX_EMPTY_STEPS:
            where = f"step {step_report.step}: no target is supervised in {self._documents(step_report.step)}"
            if self.n_empty >= MAX_EMPTY_STEPS:
                before = self.n_empty - 1
                raise ValueError(f"{where}, nor in the {before} steps before; check targets and loss weights")
            if is_main():
                log.warning("%s; its update is left out, as are those of other such steps", where)
        return {"skipped_empty": 1.0}

    def _trained(self, step_report: StepReport, loss: float, norm: float, is_skipped: bool) -> dict[str, float]:
        """Loss and norm, and of a spike how far it is above; the step enters the history."""
        self.n_empty = 0
        if not (math.isfinite(loss) and math.isfinite(norm)):
            documents, checkpoint = self._documents(step_report.step, most=20), self.last_good() or "none yet"
            raise Diverged(
                f"step {step_report.step}: loss {loss}, gradient norm {norm}: not finite. Its batch holds"
                f" {documents}. Last good checkpoint: {checkpoint}."
                " Lower the learning rates, or look at these documents"
            )
        values = {"loss": loss, "gradient_norm": norm}
        before = self.state.history
        self.state.history = with_step(before, loss, norm)
        spike = spike_of(before, loss, norm) if is_skipped else loss_spike_of(before, loss, self.min_spike_rise)
        if spike <= SPIKE and not is_skipped:
            return values
        if is_main():
            log.warning(
                "step %d: spike, %.1f deviations above the steps before: loss %.4f, gradient norm %.4f%s. Its batch"
                " holds %s",
                *(step_report.step, spike, loss, norm, "; update left out" if is_skipped else ""),
                self._documents(step_report.step),
            )
        return values | {"spike": spike, "skipped": float(is_skipped)}

    def _documents(self, step: int, most: int = 3) -> str:
        documents = self.batches.documents_of_batch(step - 1)
        return f"{len(documents)} documents: {', '.join(documents[:most])}{' ...' if len(documents) > most else ''}"
