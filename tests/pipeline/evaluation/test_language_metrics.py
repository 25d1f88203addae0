"""Bits per byte and perplexity: what they are worth by definition, and their intervals."""

import numpy as np
import pytest

from pipeline.evaluation.language_metrics import bits_per_byte, perplexity


def test_bits_per_byte_one_bit_a_byte_is_one():
    n_bytes = np.array([3, 5, 100])
    assert bits_per_byte(np.log(2) * n_bytes, n_bytes).value == pytest.approx(1)


def test_perplexity_of_a_fair_die_is_six():
    n_tokens = np.array([4, 9])
    die = perplexity(np.log(6) * n_tokens, n_tokens)
    assert (die.value, die.low, die.high) == pytest.approx((6, 6, 6))


def test_h_one_document_has_no_interval_and_few_are_told():
    """Bits per byte of one document were 1.9 (1.9 to 1.9)."""
    one = bits_per_byte(np.array([7.0, 0.0]), np.array([5, 0]))
    assert (one.low, one.high, one.note) == (None, None, "over one document, which has no interval")
    assert str(one) == "2.0198 (no interval)" and perplexity(np.array([7.0]), np.array([5])).high is None
    few = bits_per_byte(np.arange(1.0, 9), np.full(8, 5))
    assert few.note == "over only 8 documents, so that the interval is too narrow"
    assert not bits_per_byte(np.arange(1.0, 90), np.full(89, 5)).note
