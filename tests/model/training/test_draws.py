"""Random numbers of rows: the published generator, uniform, and the same wherever a row is computed."""

import pytest
import torch

from model.training.draws import row_seeds, uniform_of_rows, with_row_seeds


def test_uniform_numbers_are_those_of_splitmix64():
    """Its first outputs from seed 0 (https://prng.di.unimi.it/splitmix64.c), of which the upper 24 bits count."""
    outputs = (0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC)
    expected = [(output >> 40) / (1 << 24) for output in outputs]
    assert uniform_of_rows(torch.zeros(1, dtype=torch.int64), 4).tolist() == [expected]


def test_rows_have_their_numbers_whoever_computes_them():
    whole = uniform_of_rows(row_seeds(7, 3, range(8)), 5)
    parts = [uniform_of_rows(row_seeds(7, 3, range(first, end)), 5) for first, end in ((0, 3), (3, 4), (4, 8))]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(uniform_of_rows(row_seeds(7, 3, range(8)), 9)[:, :5], whole)


def test_processes_have_the_seeds_of_their_own_rows(monkeypatch):
    """Three processes share seven rows as 2, 2 and 3."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    seeds = []
    for rank, n_rows in enumerate((2, 2, 3)):
        monkeypatch.setenv("RANK", str(rank))
        batch = {"ids_BT": torch.zeros(n_rows, 4, dtype=torch.int64)}
        seeds += with_row_seeds(batch, 7, 3, 7)["row_seeds_B"].tolist()
    assert seeds == row_seeds(7, 3, range(7)).tolist()


def test_seeds_batches_and_rows_have_different_numbers():
    seeds = torch.cat([row_seeds(seed, batch, range(50)) for seed in (-1, 0, 1, 2**40) for batch in range(20)])
    assert len(seeds.unique()) == len(seeds)


@pytest.mark.parametrize("dim", [0, 1])
def test_uniform_numbers_are_uniform_and_independent_along_rows_and_columns(dim):
    numbers_BN = uniform_of_rows(row_seeds(0, 0, range(400)), 400).double()
    assert numbers_BN.min() >= 0 and numbers_BN.max() < 1
    counts = torch.histc(numbers_BN, 100, 0, 1)
    assert (counts - 1600).square().sum() / 1600 < 150  # chi square of 99 degrees of freedom: 1 in 1,000 is above
    one, two = numbers_BN.narrow(dim, 0, 399) - 0.5, numbers_BN.narrow(dim, 1, 399) - 0.5
    assert abs(float((one * two).mean() * 12)) < 0.01  # correlation of neighbours; 4 deviations
