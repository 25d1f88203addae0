"""How texts are continued: SampleConfig, every rule checked where it is made.

In: numbers and stop strings. Out: a frozen dataclass. Imports no torch, so that a command line can refuse a number
before it loads a model. The numbers are explained in sampling.py, the stops take effect in generate.py.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig:
    max_new_tokens: int = 100  # a row, at least 1
    temperature: float = 0.8  # 0 = always the likeliest token
    top_k: int | None = 50  # at least 1; None = all tokens
    top_p: float | None = None  # above 0, up to 1; None = all tokens
    min_p: float | None = None  # 0 to 1, share of the likeliest token's probability; None = all tokens
    repetition_penalty: float | None = None  # above 0; above 1 = less repetition (the paper: 1.2); None = off
    stop: tuple[str, ...] = ()  # a row ends before the first of these texts
    stop_ids: tuple[int, ...] = ()  # a row ends before the first of these tokens
    seed: int = 0  # at least 0
    keep_prompt_end: bool = False  # of a prompt longer than the context read the end, instead of refusing it

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={self.max_new_tokens} must be at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature={self.temperature} must be at least 0, which takes the likeliest token")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k={self.top_k} must be at least 1, or None for all tokens")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1, or None for all tokens")
        if self.min_p is not None and not 0 <= self.min_p <= 1:
            raise ValueError(f"min_p={self.min_p} must be between 0 and 1, or None for all tokens")
        if self.repetition_penalty is not None and not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(
                f"repetition_penalty={self.repetition_penalty} must be above 0 (above 1: repeats less), or None"
            )
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise ValueError(f"stop={self.stop!r} must be a tuple of texts, none of them empty")
        if self.seed < 0:
            raise ValueError(f"seed={self.seed} must be at least 0")
