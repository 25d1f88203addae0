"""Log-probabilities of drawn tokens: the model's own, for the rows that ask, as many as each asks for."""

import pytest
import torch

from model.generation.logprobs import token_logprobs


def test_rows_get_what_they_ask_for():
    logits_BV = torch.log(torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1], [0.25, 0.5, 0.2, 0.05]])) + 3
    none, own, two = token_logprobs(logits_BV, [0, 2, 3], [None, 0, 2])
    assert none is None and own is not None and two is not None
    assert (own.token, own.top) == (2, ()) and own.logprob == pytest.approx(torch.log(torch.tensor(0.2)).item())
    assert two.token == 3 and [token for token, _ in two.top] == [1, 0]
    assert [logprob for _, logprob in two.top] == pytest.approx(torch.tensor([0.5, 0.25]).log().tolist())


def test_more_than_the_vocabulary_has_gives_all_of_it():
    [found] = token_logprobs(torch.zeros(1, 3), [1], [9])
    assert found is not None and len(found.top) == 3


def test_no_row_asks_gives_none():
    assert token_logprobs(torch.zeros(2, 3), [1, 2], [None, None]) == [None, None]
