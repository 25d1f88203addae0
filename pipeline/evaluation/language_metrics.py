"""Bits per byte and perplexity with 95 % intervals, from nats, tokens and bytes per document."""

import math

import numpy as np

from pipeline.evaluation.intervals import Estimate, ratio


def bits_per_byte(nats: np.ndarray, n_bytes: np.ndarray, seed: int = 0) -> Estimate:
    """Bits per byte from arrays with one entry per document."""
    return ratio(nats / math.log(2), n_bytes, seed)


def perplexity(nats: np.ndarray, n_tokens: np.ndarray, seed: int = 0) -> Estimate:
    """exp of the mean nats per token, from arrays with one entry per document."""
    mean = ratio(nats, n_tokens, seed)
    low, high = (None if end is None else math.exp(end) for end in (mean.low, mean.high))
    return Estimate(math.exp(mean.value), low, high, mean.note)
