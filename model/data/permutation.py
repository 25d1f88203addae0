"""A random order of n items that is computed, not stored.

In: n, a seed and the number of an epoch. Out: a pseudorandom permutation of 0..n-1, and its inverse. Steps: a Feistel
network of six rounds, keyed by (seed, epoch), permutes the numbers below the next power of four; a result of n or
more goes through the network again until it falls below n (cycle walking: Black and Rogaway 2002, "Ciphers with
Arbitrary Finite Domains"). Memory does not grow with n, and the item at any place is computed directly.

Legend: N values, R rounds.
"""

import functools
import hashlib
from collections.abc import Callable

import numpy as np

FEISTEL_ROUNDS = 6
Epochs = int | np.ndarray  # one for all values, or one per value


def permuted(indices: np.ndarray, n: int, seed: int, epoch: Epochs) -> np.ndarray:
    """The images of `indices` under the permutation of 0..n-1 that (seed, epoch) selects; int64."""
    return _walk(_feistel, indices, n, seed, epoch)


def places_in_permutation(values: np.ndarray, n: int, seed: int, epoch: Epochs) -> np.ndarray:
    """The indices that `permuted` maps to `values`: the inverse, through the same network backwards."""
    return _walk(_feistel_backwards, values, n, seed, epoch)


def _walk(network: Callable, numbers: np.ndarray, n: int, seed: int, epoch: Epochs) -> np.ndarray:
    half = max(1, (max(1, n - 1).bit_length() + 1) // 2)  # bits of half a value
    keys = _keys(seed, epoch)
    values = np.array(numbers, dtype=np.uint64)
    outside = np.arange(len(values))
    while len(outside):
        values[outside] = network(values[outside], half, keys if keys.ndim == 1 else keys[:, outside])
        outside = outside[values[outside] >= n]
    return values.astype(np.int64)


def _keys(seed: int, epoch: Epochs) -> np.ndarray:
    """Keys of the rounds, (R,) for one epoch and (R, N) for several."""
    epochs, inverse = np.unique(epoch, return_inverse=True)
    keys = np.array([_keys_of(seed, one) for one in epochs.tolist()], np.uint64).reshape(-1, FEISTEL_ROUNDS).T
    return keys[:, 0] if len(epochs) == 1 else keys[:, inverse]


@functools.lru_cache(maxsize=64)
def _keys_of(seed: int, epoch: int) -> np.ndarray:
    digest = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8 * FEISTEL_ROUNDS).digest()
    return np.frombuffer(digest, dtype="<u8")


def _feistel(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    mask = np.uint64((1 << half) - 1)
    left, right = values >> np.uint64(half), values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right, key) & mask)
    return (left << np.uint64(half)) | right


def _feistel_backwards(values: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    mask = np.uint64((1 << half) - 1)
    left, right = values >> np.uint64(half), values & mask
    for key in keys[::-1]:
        left, right = right ^ (_mixed(left, key) & mask), left
    return (left << np.uint64(half)) | right


def _mixed(values: np.ndarray, key: np.ndarray) -> np.ndarray:
    mixed = values + key  # wraps, as do the products: splitmix64's finaliser
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
