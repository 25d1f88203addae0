"""How alike two answers are, against definitions that are written out."""

import functools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.evaluation.answer_texts import is_same, rouge_l, word_f1
from pipeline.evaluation.general_texts import TEXTS, general_losses

sentences = st.lists(st.sampled_from("abcd"), max_size=7).map(" ".join)


def common(one: tuple[str, ...], other: tuple[str, ...]) -> int:
    """The longest common subsequence by its definition, in exponential time but for what is known already."""

    @functools.cache
    def of(i: int, j: int) -> int:
        if i == len(one) or j == len(other):
            return 0
        return max(of(i + 1, j), of(i, j + 1), (one[i] == other[j]) + of(i + 1, j + 1) if one[i] == other[j] else 0)

    return of(0, 0)


@given(one=sentences, other=sentences)
def test_rouge_l_is_f1_of_the_longest_common_subsequence(one, other):
    first, second = tuple(one.split()), tuple(other.split())
    if not first or not second:
        assert rouge_l(one, other) == float(first == second)
        return
    n = common(first, second)
    precision, recall = n / len(first), n / len(second)
    assert rouge_l(one, other) == pytest.approx(2 * precision * recall / (precision + recall) if n else 0)
    assert rouge_l(one, other) == rouge_l(other, one) <= word_f1(one, other) <= 1


def test_words_are_compared_without_case_and_signs_and_the_whole_answer_with_them():
    assert word_f1("The mill, 1904!", "the Mill 1904") == rouge_l("The mill, 1904!", "the Mill 1904") == 1
    assert is_same(" In  Italy.\n", "In Italy.") and not is_same("in Italy.", "In Italy.")
    assert word_f1("b a", "a b") == 1 and rouge_l("b a", "a b") == 0.5
    assert word_f1("", "...") == 1 and word_f1("", "a") == rouge_l("a", "") == 0


def test_general_texts_are_measured_as_far_as_the_context_reaches(base):
    from model.data.tokenizer import load_model_tokenizer
    from model.network.registry import load_decoder

    decoder = load_decoder(base.directory)
    nats, n_bytes = general_losses(decoder, load_model_tokenizer(base.directory, 257))
    assert len(nats) == len(n_bytes) == len(TEXTS) == len(set(TEXTS))
    assert n_bytes.tolist() == [15] * len(TEXTS)  # of 16 tokens, which are bytes, all but the first
    assert all(0.5 * 15 < one < 3 * 15 * 5.6 for one in nats)
