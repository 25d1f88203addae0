"""Rows of pairs: what both conversations have in common is there once, and nothing of either is lost."""

import numpy as np
import pytest
import torch

from model.data.chat import Rendered
from model.data.pairs import CHOSEN, COMMON, REJECTED, EncodedPairs, encoded_pairs, pair_of, without_excess


def conversation(prompt: list[int], answer: list[int]) -> Rendered:
    return Rendered(np.array(prompt + answer), np.array([False] * len(prompt) + [True] * len(answer)))


CHOSEN_ONE, REJECTED_ONE = conversation([1, 2, 3, 4], [5, 6, 7]), conversation([1, 2, 3, 4], [5, 8])


def read_from(pair, part) -> list[tuple[int, int, int]]:
    """Id, target and position of what one conversation reads."""
    places = np.flatnonzero((pair.parts == COMMON) | (pair.parts == part))
    return [(pair.ids[p], pair.targets[p], pair.positions[p]) for p in places.tolist()]


@pytest.mark.parametrize("shares_beginning", [True, False])
def test_each_conversation_of_a_row_reads_what_it_reads_alone(shares_beginning):
    pair = pair_of(CHOSEN_ONE, REJECTED_ONE, shares_beginning=shares_beginning)
    assert read_from(pair, CHOSEN) == [(1, -100, 0), (2, -100, 1), (3, -100, 2), (4, 5, 3), (5, 6, 4), (6, 7, 5)]
    assert read_from(pair, REJECTED) == [(1, -100, 0), (2, -100, 1), (3, -100, 2), (4, 5, 3), (5, 8, 4)]
    assert len(pair.ids) == (8 if shares_beginning else 11)
    assert pair.n_tokens == (3, 2)


def test_beginning_in_common_ends_before_the_first_difference():
    chosen, rejected = conversation([1, 2, 3, 9], [5]), conversation([1, 2, 4, 9], [6])
    pair = pair_of(chosen, rejected)
    assert pair.ids.tolist() == [1, 2, 3, 9, 4, 9]
    assert pair.parts.tolist() == [COMMON] * 2 + [CHOSEN] * 2 + [REJECTED] * 2


def test_prompt_of_a_single_token_is_read_by_both():
    pair = pair_of(conversation([1], [5, 6]), conversation([1], [7]))
    assert pair.ids.tolist() == [1, 5, 1]
    assert pair.targets.tolist() == [5, 6, 7]


def test_batch_pads_rows_and_names_the_places_that_have_targets():
    pairs = [pair_of(CHOSEN_ONE, REJECTED_ONE), pair_of(conversation([1], [5]), conversation([1], [7, 7]))]
    batch = EncodedPairs(["a", "b"], pairs, np.array([[-1.0, -2.0], [-3.0, -4.0]])).batch(np.array([1, 0]), 10)
    assert batch["ids_BT"].shape == (2, 10)
    assert batch["lengths_B"].tolist() == [3, 8]
    assert batch["supervised_BP"].tolist() == [[0, 1, 2, -1, -1], [3, 4, 5, 6, 7]]
    assert batch["references_B2"].tolist() == [[-3.0, -4.0], [-1.0, -2.0]]


def test_shares_of_processes_are_the_rows_of_the_whole_batch():
    answers = [(conversation([1, 2], [5] * n), conversation([1, 2], [6] * m)) for n, m in ((1, 4), (3, 2), (2, 2))]
    pairs = EncodedPairs(["a", "b", "c"], [pair_of(*both) for both in answers], np.arange(6.0).reshape(3, 2))
    whole = pairs.batch(np.array([2, 0, 1]))
    shares = [pairs.batch(np.array([2, 0, 1]), rank=rank, n_ranks=2) for rank in (0, 1)]
    assert [len(share["ids_BT"]) for share in shares] == [1, 2]
    for name in ("ids_BT", "targets_BT", "positions_BT", "parts_BT", "lengths_B", "references_B2"):
        assert torch.equal(torch.cat([share[name] for share in shares]), whole[name]), name


def test_excess_is_cut_at_the_end_or_at_the_beginning_of_both():
    def cut(max_tokens, side):
        return [one.ids.tolist() for one in without_excess(CHOSEN_ONE, REJECTED_ONE, 4, max_tokens, side)]

    assert cut(6, "left") == cut(6, "right") == [[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 4, 5, 8]]
    assert cut(4, "right") == [[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]
    assert cut(4, "left") == [[3, 4, 5, 6, 7], [3, 4, 5, 8]]
    assert cut(2, "left") == [[4, 5, 6], [4, 5, 8]]  # the prompt keeps a token, and the end is cut


def test_pairs_of_which_no_difference_is_read_are_left_out_by_name():
    prompt = Rendered(np.array([1, 2]), np.array([False, False]))
    late = conversation([1, 2], [5, 6, 7]), conversation([1, 2], [5, 6, 8])
    long = conversation([1, 2, 3, 4, 9], [5]), conversation([1, 2, 3, 4, 9], [6])  # no answer within four tokens
    early = conversation([1, 2], [5, 6, 7, 8]), conversation([1, 2], [9])
    chosen, rejected = zip(late, long, early, strict=True)
    found = encoded_pairs(["late", "long", "early"], [prompt] * 3, chosen, rejected, max_tokens=3)
    assert (found.ids, found.left_out, found.n_cut) == (["early"], ("late", "long"), 1)
    assert found.pairs[0].n_tokens == (2, 1)


def test_answers_of_the_prompt_are_not_supervised():
    """A conversation of several turns: only what follows the prompt is compared."""
    flags = np.array([False, True, False, True, True])
    chosen, rejected = (Rendered(np.array([1, 2, 3, answer, 9]), flags) for answer in (4, 5))
    prompt = Rendered(np.array([1, 2, 3]), np.zeros(3, bool))
    (pair,) = encoded_pairs(["a"], [prompt], [chosen], [rejected], max_tokens=9).pairs
    assert pair.n_tokens == (2, 2)
    assert pair.ids.tolist() == [1, 2, 3, 4, 3, 5]
