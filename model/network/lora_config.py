"""The size of low-rank adapters (LoRA, arXiv:2106.09685), and which layers have one.

In: numbers and names. Out: LoraConfig, every rule checked where it is made. Imports no torch, so that forms and
fingerprints are cheap to make from it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    rank: int = 8  # rows of A and columns of B
    alpha: float = 16.0  # the adapter's output is multiplied by alpha / rank, section 4.1
    # last parts of names of linear layers, as q_proj or layers.0.mlp.up_proj; none = all linear layers of the blocks
    targets: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank={self.rank} of LoRA must be at least 1")
        if not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha={self.alpha} of LoRA must be a finite number above 0")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def takes(self, name: str) -> bool:
        """Whether the linear layer `name` of a block has an adapter."""
        return not self.targets or any(f".{name}".endswith(f".{target}") for target in self.targets)


BASE = "base_sha256"  # beside the sizes in a config.json: of the base's weights


def lora_in(description: Mapping[str, Any]) -> LoraConfig:
    """The config in a config.json of adapters."""
    return lora_config({name: value for name, value in description["lora"].items() if name != BASE})


def lora_config(values: Mapping[str, Any]) -> LoraConfig:
    """The config from the values that `dataclasses.asdict` and JSON made of it."""
    return LoraConfig(**{**values, "targets": tuple(values["targets"])})
