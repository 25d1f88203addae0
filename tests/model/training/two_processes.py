"""What the children of test_distributed.py do: `two_processes.py DIRECTORY ACTION...`.

In: actions, each `function:folder:arguments`; RANK, WORLD_SIZE and STORE, a file in which the processes meet. Out:
files in the folder of each action.
"""

import contextlib
import dataclasses
import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from model.data.batch_layout import IGNORE_INDEX
from model.data.batches import TokenBatches, rows_of_rank
from model.data.token_shards import read_token_shard
from model.evaluate import mean_loss
from model.network.decoder import Decoder, initialise, new_decoder, weightless_decoder
from model.network.registry import describe, save_model
from model.network.shape import DecoderConfig
from model.training.checkpoint import snapshot_of
from model.training.config import TrainConfig
from model.training.distributed import (
    full_tensor,
    is_main,
    local_shard,
    n_processes,
    process_group,
    rank,
)
from model.training.fsdp import sharded
from model.training.loop import Interrupted
from model.training.loss import language_model_loss
from model.training.reports import Diverged
from model.training.run import Job, run
from model.training.selection import Selection
from model.training.step import new_state, train_step

# An odd vocabulary and one key-value head: shards of unequal size; five matrices of one shape for two processes.
DECODER = DecoderConfig(
    vocab_size=31, n_layers=2, n_heads=2, n_kv_heads=1, d_model=16, d_head=8, d_ff=24, max_seq_len=8,
    tie_embeddings=True,
)  # fmt: skip
UNTIED = dataclasses.replace(DECODER, tie_embeddings=False)
TRAIN = TrainConfig(
    n_steps=40,
    rows=4,
    seq_len=8,
    micro_batch=1,
    muon_lr=0.003,
    adamw_lr=0.001,
    warmup_fraction=0.1,
    checkpoint_every=10,
    validate_every=20,
    n_validation_batches=2,
    keep_checkpoints=9,
    n_threads=1,
)
# FSDP is measured with this: 12 layers, so that two of them are a small part.
LARGE = DecoderConfig(
    vocab_size=64, n_layers=12, n_heads=4, n_kv_heads=4, d_model=384, d_head=96, d_ff=1024, max_seq_len=8,
    tie_embeddings=True,
)  # fmt: skip
STORES = itertools.count()  # groups of this process, which meet in a file of their own each

# Rows of a global batch and of a micro-batch. Three rows are one for rank 0 and two for rank 1.
CUTS = {"ddp": ((4, 1), (4, 4), (3, 1)), "fsdp": ((4, 1), (4, 4), (3, 3))}


class Listener:
    """Writes down what it hears, and does something at a step."""

    def __init__(self, path: Path, at: int | None = None, action: Callable[[], None] = lambda: None) -> None:
        self.path, self.at, self.action = path, at, action

    def metrics(self, step: int, values) -> None:
        with self.path.open("a") as file:
            file.write(f"{rank()} {step} {','.join(sorted(values))}\n")
        if step == self.at:
            self.action()

    def checkpoint(self, path: Path, step: int, values) -> None:
        pass


class Acting(TokenBatches):
    """Token batches; every process does something when it reads batch `at`."""

    at: int | None = None
    action: Callable[[], None]

    def batch(self, k: int, rank: int = 0, n_ranks: int = 1):
        if k == self.at:
            self.action()
        return super().batch(k, rank, n_ranks)


def beginning(cfg: DecoderConfig = DECODER) -> Decoder:
    model = new_decoder(cfg, 0)
    scatter(model)
    return model


@torch.no_grad()
def scatter(model: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(7)
    for weight in model.parameters():
        weight.add_(torch.empty(weight.shape).normal_(std=0.2, generator=generator))


def begin(model: torch.nn.Module) -> None:
    """The same weights for a model without any."""
    initialise(model, 0)
    scatter(model)


def group() -> contextlib.AbstractContextManager[None]:
    store = dist.FileStore(f"{os.environ['STORE']}-{next(STORES)}", 2) if n_processes() > 1 else None
    return process_group(store)


def train(directory: Path, parallel: str, at: int | None = None, action: Callable[[], None] = lambda: None) -> None:
    """Train in `directory`; every process calls `action` before step at + 1. Weights go to final-<rank>."""
    batches = Acting([read_token_shard(directory.parent / "tokens.arrow")], rows=4, seq_len=8, seed=0)
    batches.at, batches.action = at, action
    job = Job(
        model=weightless_decoder(DECODER) if n_processes() > 1 and parallel == "fsdp" else beginning(),
        initialise=begin,
        cfg=dataclasses.replace(TRAIN, parallel=parallel),
        description=describe(DECODER),
        batches=batches,
        validate=lambda model: {"validation_loss": mean_loss(model, batches, 2, language_model_loss, 4)},
        selection=Selection(metric="validation_loss"),
    )
    directory.mkdir(exist_ok=True)
    with group():
        run(directory, job, Listener(directory / "heard"))
    save_file({name: w.detach() for name, w in job.model.named_parameters()}, directory / f"final-{rank()}")
    save_model(directory, job.model, job.description)


# What the children do with this file: `test_distributed.py DIRECTORY ACTION...`


def interrupted(directory: Path, parallel: str) -> None:
    """Rank 1 alone gets the signal; every process says how it ended."""
    try:
        train(directory, parallel, 24, lambda: os.kill(os.getpid(), signal.SIGTERM) if rank() == 1 else None)
    except Interrupted as stop:
        (directory / f"ended-{rank()}").write_text(f"{stop.step} {stop.checkpoint.name}")


def diverged(directory: Path) -> None:
    def poison() -> None:
        raise Diverged("the data of rank 1")

    try:
        train(directory, "ddp", 2, poison)
    except Diverged as error:
        (directory / f"ended-{rank()}").write_text(str(error))


def failing(directory: Path) -> None:
    def fail() -> None:
        if rank() == 1:
            raise ValueError("the shard is torn")

    surviving(directory, "ddp", 12, fail)


def dying(directory: Path, parallel: str, step: str) -> None:
    surviving(directory, parallel, int(step), lambda: os.kill(os.getpid(), signal.SIGKILL) if rank() == 1 else None)


def surviving(directory: Path, parallel: str, at: int, action: Callable[[], None]) -> None:
    """Every process that survives writes down its error."""
    try:
        train(directory, parallel, at, action)
    except (ValueError, RuntimeError) as error:
        (directory / f"ended-{rank()}").write_text(f"{type(error).__name__}: {error}")
        raise


def stopping(directory: Path) -> None:
    """Rank 0 asks torchrun itself to stop, as a user or a cluster would."""
    batches = Acting([read_token_shard(directory.parent / "tokens.arrow")], rows=4, seq_len=8, seed=0)
    batches.at, batches.action = 24, lambda: os.kill(os.getppid(), signal.SIGTERM) if is_main() else None
    directory.mkdir(exist_ok=True)
    try:
        run(directory, Job(model=beginning(), cfg=TRAIN, description=describe(DECODER), batches=batches), Silent())
    except Interrupted as stop:
        (directory / f"ended-{rank()}").write_text(f"{stop.step} {stop.checkpoint.name}")


class Silent:
    def metrics(self, step: int, values) -> None: ...
    def checkpoint(self, path: Path, step: int, values) -> None: ...


def groups(directory: Path, n: str) -> None:
    """Groups that end before the model that DDP trained in them, one after the other."""
    directory.mkdir(exist_ok=True)
    for _ in range(int(n)):
        with group():
            state = new_state(beginning(), TRAIN)
            train_step(state, own_rows(4), TRAIN, n_rows=4)
        del state
    (directory / f"ended-{rank()}").write_text(n)


def snapshots(directory: Path, parallel: str) -> None:
    """Names of the tensors of a snapshot that a step after it has changed."""
    directory.mkdir(exist_ok=True)
    cfg = dataclasses.replace(TRAIN, parallel=parallel)
    with group():
        state = new_state(beginning(), cfg)
        train_step(state, own_rows(4), cfg, n_rows=4)
        snapshot = snapshot_of(state, cfg, {}, {})
        tensors = {} if snapshot is None else {**snapshot.weights, **snapshot.optimizer}
        before = {name: tensor.clone() for name, tensor in tensors.items()}
        train_step(state, own_rows(4), cfg, n_rows=4)
    changed = sorted(name for name, tensor in tensors.items() if not torch.equal(tensor, before[name]))
    (directory / f"changed-{rank()}").write_text("\n".join(changed))


def initial(directory: Path) -> None:
    """The weights with which FSDP begins, put together; and the bytes that making them took at the most."""
    directory.mkdir(exist_ok=True)
    with group():
        for name, cfg in (("tied", DECODER), ("untied", UNTIED)):
            model = sharded(weightless_decoder(cfg), begin).model
            weights = {key: full_tensor(local_shard(w), w) for key, w in model.named_parameters()}
            if is_main():
                save_file(weights, directory / name)
        before = peak_bytes()
        cfg = dataclasses.replace(TRAIN, parallel="fsdp")
        state = new_state(weightless_decoder(LARGE), cfg, lambda model: initialise(model, 0))
        (directory / f"peak-{rank()}").write_text(str(peak_bytes() - before))
        held = sum(local_shard(weight).nbytes for weight in state.model.parameters())
        (directory / f"held-{rank()}").write_text(str(held + state.optimizer.n_bytes()))


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text("utf-8").splitlines()
    return 1024 * int(next(line for line in status if line.startswith("VmHWM")).split()[1])


def narrow(directory: Path) -> None:
    """The gradients of one step of which weights were gathered in bfloat16, as on a GPU."""
    directory.mkdir(exist_ok=True)
    with group():
        parallel = sharded(beginning(), dtype=torch.bfloat16)
        loss, n = parallel(language_model_loss, own_rows(4))
        loss.backward()
        weights = dict(parallel.model.named_parameters())
        values = {f"grad.{key}": full_tensor(local_shard(w.grad), w) for key, w in weights.items()}
        assert {local_shard(weight).dtype for weight in weights.values()} == {torch.float32}
        save_file(values | {"loss": loss.detach(), "n": n}, directory / f"rank-{rank()}")


def gradients(directory: Path, parallel: str) -> None:
    """One step of each cut of a batch, whose rows hold 12 .. 1 targets."""
    directory.mkdir(exist_ok=True)
    with group():
        for name, cfg in (("tied", DECODER), ("untied", UNTIED)):
            for rows, n in CUTS[parallel]:
                values = step_values(rows, n, parallel, cfg)
                if is_main():
                    save_file(values, directory / f"{name}-{rows}-{n}")


def step_values(
    rows: int, micro_batch: int, parallel: str, decoder: DecoderConfig = DECODER
) -> dict[str, torch.Tensor]:
    """Loss, norm and mean gradients of the first `rows` rows."""
    cfg = dataclasses.replace(TRAIN, rows=rows, micro_batch=rows, parallel=parallel, gradient_clip=None)
    state = new_state(beginning(decoder), cfg)
    values: dict[str, torch.Tensor] = {}

    def keep(factor: float) -> None:
        for name, weight in state.model.named_parameters():
            assert weight.grad is not None
            values[name] = full_tensor(local_shard(weight.grad), weight).clone()

    state.optimizer.step = keep
    report = train_step(state, own_rows(rows), dataclasses.replace(cfg, micro_batch=micro_batch), n_rows=rows)
    return values | {"loss": report.loss, "norm": report.gradient_norm}


def own_rows(rows: int) -> dict[str, torch.Tensor]:
    part = rows_of_rank(rows, rank(), n_processes())
    return {name: tensor[part] for name, tensor in masked_batch(rows).items()}


def masked_batch(rows: int) -> dict[str, torch.Tensor]:
    ids_BT = torch.randint(0, 31, (4, 9), generator=torch.Generator().manual_seed(5))
    targets_BT = ids_BT[:, 1:].clone()
    targets_BT[1, :5] = targets_BT[2, :7] = targets_BT[3, 2:] = IGNORE_INDEX  # 8, 3, 1 and 2 supervised targets
    return {"ids_BT": ids_BT[:rows, :-1], "targets_BT": targets_BT[:rows]}


def main(directory: Path, actions: list[str]) -> None:
    for action in actions:
        name, folder, *arguments = action.split(":")
        globals()[name](directory / folder, *arguments)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
