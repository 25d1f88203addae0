"""An observer of a training that prints a line now and then, so that a long benchmark shows where it is."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Printed:
    n_steps: int
    every: int = 10  # steps

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        if step % self.every == 0 and "loss" in values:
            print(f"  {step:,} of {self.n_steps:,} steps, loss {values['loss']:.4f}", flush=True)

    def checkpoint(self, path: Path, step: int, values: Mapping[str, float]) -> None: ...
