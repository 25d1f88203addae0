"""An order of n things that is computed, not stored: where each stands, and what stands there.

In: n, a seed and the number of an epoch. Out: a permutation of 0..n-1 that looks random, forwards and backwards.
Steps: a Feistel network of six rounds, keyed by (seed, epoch), permutes the next power of four; what falls outside n
is sent through it again until it falls inside (cycle walking: Black and Rogaway 2002, "Ciphers with Arbitrary
Finite Domains"). Memory does not grow with n, and any place is reached at once.
"""

import hashlib

import numpy as np

FEISTEL_ROUNDS = 6


def permuted(indices: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Where a permutation of 0..n-1, chosen by (seed, epoch), sends `indices`; int64."""
    half, keys = _network(n, seed, epoch)
    values = np.array(indices, dtype=np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        values[outside] = _feistel(values[outside], half, keys)
        outside = values >= n
    return values.astype(np.int64)


def places_in_permutation(values: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """The indices that `permuted` sends to `values`: the walk backwards, through the same network."""
    half, keys = _network(n, seed, epoch)
    indices = np.array(values, dtype=np.uint64)
    outside = np.ones(len(indices), dtype=bool)
    while outside.any():
        indices[outside] = _feistel_backwards(indices[outside], half, keys)
        outside = indices >= n
    return indices.astype(np.int64)


def _network(n: int, seed: int, epoch: int) -> tuple[int, np.ndarray]:
    """Bits of half a value, and the keys of the rounds."""
    half = max(1, (max(1, n - 1).bit_length() + 1) // 2)
    digest = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8 * FEISTEL_ROUNDS).digest()
    return half, np.frombuffer(digest, dtype="<u8")


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


def _mixed(values: np.ndarray, key: np.uint64) -> np.ndarray:
    mixed = values + key  # wraps, as do the products: splitmix64's finaliser
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
