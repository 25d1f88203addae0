"""Seconds of a training step, split into forward + backward and update, for three optimisers side by side.

In: --preset, --steps, --vocab, --threads. Out: a table. Tokens are random, since speed does not depend on them. The
three take turns step by step, so that other load on the machine affects all alike, and each figure is the fastest of
its steps.

    python -m bench.train_step --preset demo --steps 40
"""

import argparse
import dataclasses
import time

import torch

from model.network.decoder import new_decoder
from model.network.shape import DecoderConfig
from model.training.config import TrainConfig
from model.training.cross_entropy import backward_of_sum
from model.training.loss import language_model_loss
from model.training.machine import precision
from model.training.newton_schulz import orthogonalised
from model.training.presets import PRESETS
from model.training.step import TrainState, micro_batches, new_state, scale_and_clip


class OneByOne:
    """Muon without stacking: a Newton-Schulz iteration for every matrix."""

    def __init__(self, state: TrainState) -> None:
        self.optimizer = state.optimizer
        self.n_steps = state.optimizer.cfg.newton_schulz_steps

    @torch.no_grad()
    def step(self, factor: float) -> None:
        muon = self.optimizer.muon
        for group in muon.groups:
            for weight, momentum in zip(group.weights.values(), group.momentum_NRC, strict=True):
                assert weight.grad is not None
                gradient = weight.grad if weight.size(0) <= weight.size(1) else weight.grad.mT
                momentum.lerp_(gradient, 0.05)
                update = orthogonalised(gradient.lerp(momentum, 0.95).unsqueeze(0), self.n_steps)[0]
                scale = max(1.0, weight.size(0) / weight.size(1)) ** 0.5
                update = update if weight.size(0) <= weight.size(1) else update.mT
                weight.add_(update, alpha=-0.03 * factor * scale)
        self.optimizer.adamw.step()


def timed_step(state: TrainState, optimizer, batch, cfg: TrainConfig) -> tuple[float, float]:
    """Seconds of forward and backward, and of clipping and update."""
    start = now(state)
    for micro in micro_batches(batch, cfg.micro_batch or cfg.rows):
        with precision(batch["ids_BT"].device):
            loss, _ = language_model_loss(state.model, micro)
        backward_of_sum(loss)
    middle = now(state)
    gradients = [weight.grad for weight in state.model.parameters() if weight.grad is not None]
    scale_and_clip(gradients, torch.tensor(cfg.tokens_per_step, device=batch["ids_BT"].device), cfg.gradient_clip)
    optimizer.step(1.0)
    state.model.zero_grad(set_to_none=True)
    return middle - start, now(state) - middle


def now(state: TrainState) -> float:
    if next(state.model.parameters()).is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def contestants(decoder: DecoderConfig, cfg: TrainConfig, device: torch.device) -> dict[str, tuple]:
    without_muon = dataclasses.replace(cfg, muon_lr=None)
    batched, single, adamw = (
        new_state(new_decoder(decoder, cfg.seed).to(device), c) for c in (cfg, cfg, without_muon)
    )
    return {
        "Muon, stacked": (batched, batched.optimizer),
        "Muon, one by one": (single, OneByOne(single)),
        "AdamW for all": (adamw, adamw.optimizer),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="demo")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    preset = PRESETS[arguments.preset]
    cfg, decoder = preset.train, preset.shape.with_vocab(arguments.vocab)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ids_BT = torch.randint(0, arguments.vocab, (cfg.rows, cfg.seq_len + 1), device=device)
    batch = {"ids_BT": ids_BT[:, :-1], "targets_BT": ids_BT[:, 1:]}
    entries = contestants(decoder, cfg, device)
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in entries}
    for _ in range(arguments.steps):
        for name, (state, optimizer) in entries.items():
            seconds[name].append(timed_step(state, optimizer, batch, cfg))
    print(f"{arguments.preset}: {cfg.rows} x {cfg.seq_len} tokens per step, {device}, {arguments.threads} threads")
    print(f"{'optimiser':<18}{'forward+backward ms':>21}{'update ms':>11}{'step ms':>9}{'tokens/s':>10}")
    for name, times in seconds.items():
        passes, updates, steps = (min(part) for part in zip(*((a, b, a + b) for a, b in times), strict=True))
        rate = cfg.tokens_per_step / steps
        print(f"{name:<18}{passes * 1e3:>21.1f}{updates * 1e3:>11.1f}{steps * 1e3:>9.1f}{rate:>10.0f}")


if __name__ == "__main__":
    main()
