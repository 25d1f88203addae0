"""What all batches have in common: which rows a process computes, and how a position without a target is marked.

The numbers that a loss draws depend on the numbers of its rows, so every part that divides a batch divides it here.
"""

IGNORE_INDEX = -100  # a target where nothing is to be predicted, torch's default; losses ignore all negative ones


def rows_of_rank(n_rows: int, rank: int, n_ranks: int) -> slice:
    """The rows of process `rank` in a batch of `n_rows`: consecutive, and at most one more than others have."""
    return slice(n_rows * rank // n_ranks, n_rows * (rank + 1) // n_ranks)
