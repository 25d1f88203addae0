"""A training run that lives in a folder: begun or resumed, always to the same end.

In: a folder and a Job (model with its initial weights, batches, loss, validation). Out: the trained model, the curve
and the last checkpoints in the folder: curve.jsonl (one line per step and per validation) and checkpoints/.

A run that was killed anywhere and started again ends with the same bits as one that was not (on a GPU:
TrainConfig.deterministic). The last complete checkpoint restores weights, optimiser, generators, step, the length of
the curve, and the choices made at the start: thread count, micro-batch, whether to compile. Later steps are repeated,
so the observer may receive them again. A damaged checkpoint is set aside, and the one before it takes its place.
Checkpoints are written in a thread (checkpoint.CheckpointWriter). Where validations choose the weights
(model/training/selection.py), every validated step has a checkpoint, and the run ends with the weights of the best.

Under torchrun every process calls `run` with the same Job; rank 0 alone writes files and calls the observer. A run
may stop on one process and go on with several, under DDP or FSDP, and back: the same data at every step, and losses
equal but for the order of sums.
"""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from model.training.adapters import check_same_base
from model.training.checkpoint import (
    CheckpointWriter,
    complete_checkpoints,
    folder_of,
    load_best,
    load_checkpoint,
    prune_checkpoints,
    save_values,
    snapshot_of,
    step_of,
    values_of,
)
from model.training.compilation import chosen_compile, compile_layers, strictly_compiled
from model.training.config import TrainConfig
from model.training.curve import Curve, opened_curve
from model.training.distributed import (
    any_process,
    broadcast_int,
    gather_weights,
    is_fsdp,
    is_main,
    local_shard,
    n_processes,
    process_group,
    rank,
    release_weights,
    total,
)
from model.training.launch import stop_signals
from model.training.loop import Interrupted, fit
from model.training.loss import LossFunction, language_model_loss
from model.training.machine import deterministic_kernels, training_device
from model.training.memory import chosen_micro_batch, explained_out_of_memory
from model.training.replicas import replicas_for
from model.training.resume import drop_later, newest_whole
from model.training.schedule import stable_end
from model.training.selection import Ending, Selection, Valued
from model.training.step import new_state
from model.training.weights import n_trained_parameters

if TYPE_CHECKING:
    from model.data.batches import Batches

CHECKPOINTS = "checkpoints"
log = logging.getLogger(__name__)


class Observer(Protocol):
    """Receives the values of a run: of each step and validation, and each checkpoint that is complete.

    After a kill the steps since the last complete checkpoint are repeated, and received again, with the same values.
    """

    def metrics(self, step: int, values: Mapping[str, float]) -> None: ...
    def checkpoint(self, path: Path, step: int, values: Mapping[str, float]) -> None: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    # on its device (machine.training_device) with its initial weights; or, for FSDP, on the meta device, and
    # `initialise` makes them one after the other, so that no process ever holds the whole model
    model: nn.Module
    initialise: Callable[[nn.Module], None] | None = None
    cfg: TrainConfig
    description: Mapping[str, Any]  # config.json of the model, from registry.describe
    batches: "Batches"
    has_varying_lengths: bool = False  # of the rows of different batches
    loss_function: LossFunction = language_model_loss
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None
    selection: Selection | None = None  # by a value of `validate`; None = no checkpoint is better than another
    made_from: Mapping[str, str] | None = None  # fingerprints of data and tokenizer; a resume must have the same
    min_spike_rise: float = 0.0  # nats by which a loss must rise to be reported as a spike


def run(
    directory: Path, job: Job, observer: Observer, progress: Callable[[int, int], None] = lambda done, total: None
) -> Ending:
    """Train job.model to job.cfg.n_steps, from the last complete checkpoint in `directory` where there is one.

    job.selection may end it earlier. In every process job.model ends with the weights that are kept, whole.
    `directory` must be one folder for all of them. Raises Interrupted after a signal and Diverged when a loss is not
    finite (model/training/reports.py), in all processes; OutOfMemory, which says what to change
    (model/training/memory.py); ValueError when the checkpoint belongs to another model, config or data.
    """
    n_threads, device = torch.get_num_threads(), training_device()
    try:
        with (
            deterministic_kernels(job.cfg.deterministic),
            torch.random.fork_rng([device] if device.type == "cuda" else []),  # the caller's generators stay
            process_group(),
            opened_curve(directory, writes=is_main()) as curve,
            contextlib.closing(_Run(directory, job, observer, progress, curve)) as one,
        ):
            return one.execute()
    finally:
        torch.set_num_threads(n_threads)


class _Run:
    def __init__(self, directory: Path, job: Job, observer: Observer, progress, curve: Curve) -> None:
        self.root = directory / CHECKPOINTS
        self.job, self.observer, self.progress, self.curve = job, observer, progress, curve
        if job.cfg.activation_checkpointing:
            job.model.trunk.recompute_layers()  # type: ignore[union-attr,operator]
        self.state = new_state(job.model, job.cfg, job.initialise)
        self.cfg = job.cfg  # with what it left open, once that is chosen
        if is_fsdp(self.state.model):
            release_weights(job.model)
        self.n_threads = job.cfg.n_threads or torch.get_num_threads()
        self.validates = job.validate is not None
        self.validations: list[Valued] = []  # so far, by the metric of job.selection
        self.writer = CheckpointWriter(self.root, self.written)
        self.pinned: dict[str, Tensor] = {}  # buffers of the last snapshot
        self.later: list[Path] = []  # checkpoints of a shorter run, of its decay, that this run does not go on from

    def execute(self) -> Ending:
        # For a loss that draws: other numbers on each process. A resume then takes the checkpoint's generators.
        torch.manual_seed(self.job.cfg.seed + rank())
        folder = self.last_checkpoint()
        self.resolve_open_settings(self.resume(folder) if folder is not None else {})
        self.divide_work()
        if folder is not None and self.validates and self.is_validated(self.state.step):
            self.validate_again(folder)
        self.state.model.train()
        assert self.cfg.micro_batch is not None
        try:
            with (
                explained_out_of_memory(self.job.cfg, self.cfg.micro_batch, self.last_good),
                strictly_compiled(self.cfg.compile is True),
            ):
                self.fit()
        except Interrupted:
            with stop_signals():  # a second signal does not break off the write that the first one asked for
                self.writer.finish()
            raise
        self.writer.finish()
        if is_main():
            self.prune()
        best = self.kept()
        if best is not None:
            any_process(False)  # no process reads the checkpoint before rank 0 has written it
            load_best(folder_of(self.root, best[0]), self.state.model)
        if is_fsdp(self.state.model):
            gather_weights(self.state.model, self.job.model)
        return Ending(self.state.step, best)

    def kept(self) -> Valued | None:
        """The validation whose weights the run keeps; None: it keeps those of the last step."""
        selection = self.job.selection
        return selection.best(self.validations) if selection is not None and selection.keeps_best else None

    def is_over(self) -> bool:
        return self.job.selection is not None and self.job.selection.is_over(self.validations)

    def close(self) -> None:
        """End the threads of this run."""
        self.writer.close()
        self.state.use_replicas(None)

    def divide_work(self) -> None:
        """Give the threads their work, before the first product: it decides roundings."""
        replicas = replicas_for(self.state.model, self.n_threads, self.cfg.rows)
        self.state.use_replicas(replicas)
        torch.set_num_threads(self.n_threads if replicas is None else replicas.n_threads_each)

    def fit(self) -> None:
        fit(
            self.state,
            self.job.batches,
            self.cfg,
            loss_function=self.job.loss_function,
            report=self.report,
            save=self.save,
            validate=self.validate if self.validates else None,
            saves_validated=self.job.selection is not None and self.job.selection.keeps_best,
            is_over=self.is_over,
            last_good=self.last_good,
            min_spike_rise=self.job.min_spike_rise,
        )

    def last_good(self) -> Path | None:
        self.writer.wait()
        return next(reversed(complete_checkpoints(self.root)), None)

    def resolve_open_settings(self, notes: Mapping[str, Any]) -> None:
        """Choose what the config leaves open: at a resume as the notes have it, at the start as this machine allows.

        Both decide roundings. A value of the config wins, so that a run that has no memory left can go on with less.
        """
        cfg, model = self.job.cfg, self.state.model
        device = next(model.parameters()).device
        micro_batch = cfg.micro_batch or notes.get("micro_batch")
        if micro_batch is None:
            n_rows = math.gcd(cfg.rows, max(1, cfg.rows // n_processes()))
            held_bytes = sum(local_shard(weight).nbytes for weight in model.parameters())
            held_bytes += self.state.optimizer.n_bytes()
            chosen = chosen_micro_batch(
                model.cfg,  # type: ignore[arg-type]
                cfg, device, n_rows, n_shards=n_processes() if is_fsdp(model) else 1, held_bytes=held_bytes,
                n_trained=n_trained_parameters(model),
            )  # fmt: skip
            micro_batch = broadcast_int(chosen)
        wish = cfg.compile if cfg.compile is not None else notes.get("compile")
        if wish is None and is_fsdp(model):
            wish = False  # layers that are put together while they run are not worth compiling unasked
        self.cfg = dataclasses.replace(cfg, micro_batch=micro_batch, compile=chosen_compile(wish, device.type))
        if self.cfg.compile:
            compile_layers(model, has_varying_lengths=self.job.has_varying_lengths)

    def last_checkpoint(self) -> Path | None:
        """The checkpoint to go on from, as rank 0 finds it."""
        folder = None
        if is_main():
            folder, self.later = newest_whole(self.root, self.job.cfg)
            if folder is None:
                self.curve.clear()
        step = broadcast_int(-1 if folder is None else step_of(folder))
        return None if step < 0 else folder_of(self.root, step)

    def resume(self, folder: Path) -> dict[str, Any]:
        """Load `folder`, cut the curve to what it was when that was written, and return the notes."""
        check_same_base(folder, self.job.description)
        resumed = load_checkpoint(folder, self.state, self.job.cfg, is_checked=True)
        was, is_now = resumed.notes["made_from"], dict(self.job.made_from or {})
        if was != is_now:
            raise ValueError(f"{folder} was trained on {was}, now the data is {is_now}; train in another folder")
        # The config wins. On another number of processes roundings differ anyway, and cores are shared out anew.
        if self.job.cfg.n_threads is None and resumed.notes["n_processes"] == n_processes():
            self.n_threads = resumed.notes["n_threads"]
        self.state.history = [(loss, norm) for loss, norm in resumed.notes["history"]]
        self.validations = [(step, value) for step, value in resumed.notes["validations"]]
        if is_main():
            if resumed.train.n_steps < self.job.cfg.n_steps:
                drop_later(resumed.train, self.job.cfg, resumed.step, self.later)
            self.curve.cut(resumed.notes, resumed.step)
        return resumed.notes

    def is_validated(self, step: int) -> bool:
        return step == self.job.cfg.n_steps or step % self.job.cfg.validate_every == 0

    def report(self, step: int, values: Mapping[str, float]) -> None:
        if is_main():
            self.writer.poll()
            self.curve.write(step, values)
            self.observer.metrics(step, values)
            self.progress(step, self.job.cfg.n_steps)

    def save(self) -> Path:
        """Copy the state and begin to write it. Every process must call it."""
        self.writer.finish()
        notes = {
            **(self.curve.mark() if is_main() else {}),
            "n_threads": self.n_threads,
            "n_processes": n_processes(),
            "micro_batch": self.cfg.micro_batch,
            "compile": self.cfg.compile,
            "history": self.state.history,
            "validations": self.validations,
            "made_from": dict(self.job.made_from or {}),
        }
        snapshot = snapshot_of(self.state, self.job.cfg, self.job.description, notes, self.pinned)
        if snapshot is not None:
            self.writer.start(snapshot)
        return folder_of(self.root, self.state.step)

    def written(self, folder: Path) -> None:
        """Report a checkpoint that is complete. One that is due for validation is reported with its values."""
        if not (self.validates and self.is_validated(step_of(folder))):
            self.observer.checkpoint(folder, step_of(folder), {})
        self.prune()

    def validate(self) -> None:
        """Validate the model; the values also go to the checkpoint of this step, where there is one."""
        values = self.validation_values()
        self.note(values)
        if not is_main():
            return
        self.writer.finish()  # which was going on meanwhile
        step = self.state.step
        folder = next((f for f in complete_checkpoints(self.root) if step_of(f) == step), None)
        if folder is not None:
            save_values(folder, values)  # before the observer gets them, so that it gets them once
        self.curve.write(step, values)
        self.observer.metrics(step, values)
        if folder is not None:
            self.observer.checkpoint(folder, step, values)

    def validate_again(self, folder: Path) -> None:
        """After a resume: the curve ends before the validation of the checkpoint's own step."""
        values = values_of(folder) if is_main() else None
        if any_process(values is not None):
            self.curve.write(self.state.step, values or {})  # the others' curve is thrown away
            self.note(values or {})
        else:
            self.validate()

    def note(self, values: Mapping[str, float]) -> None:
        """Keep what the selection needs of a validation, as rank 0 has it."""
        if self.job.selection is not None:
            value = values.get(self.job.selection.metric, math.nan) if is_main() else 0.0
            of_all = total(torch.tensor([value], dtype=torch.float64))
            self.validations.append((self.state.step, float(of_all.item())))

    def validation_values(self) -> dict[str, float]:
        """The same in every process: `validate` sees whole weights, and may share its work out (mean_loss)."""
        assert self.job.validate is not None
        model, are_gathered = self.job.model, is_fsdp(self.state.model)
        if are_gathered:
            gather_weights(self.state.model, model)
        model.eval()
        values = dict(self.job.validate(model))
        model.train()
        if are_gathered:
            release_weights(model)
        return values

    def prune(self) -> None:
        """Also kept is the checkpoint from which the run can be extended."""
        prune_checkpoints(self.root, self.cfg.keep_checkpoints, self.job.selection, stable_end(self.cfg))
