"""Addressed randomness: every random number is a pure function of where it is used, never of a rank or of history.

A sampled token's uniform number is a hash of (seed, draw, sample, position), and the order of a data set is a keyed
permutation.  So any batch replays alone, at any world size, and resume needs no generator state.
"""

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
UInt64 = NDArray[np.uint64]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)  # 2**64 over the golden ratio: splitmix64's increment
_STEPS = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)
_LAST_SHIFT = np.uint64(31)
_MASK = (1 << 64) - 1
_ROUNDS = 8  # of the Feistel network: 4 suffice for wide blocks (Luby and Rackoff), blocks of a few bits need more


def derive(seed: int, *words: int | str) -> int:
    """Make a 64-bit key from a seed and a path of names and numbers; equal in every process and on every machine.

        key = BLAKE2b-64 of (seed, words), each with its type and length, so that no two paths spell the same bytes

    Args:
        seed: any integer.
        words: names or integers, e.g. `derive(seed, "window order", source, epoch)`.

    Returns:
        key in [0, 2**64).

    Source: RFC 7693 (BLAKE2).
    """
    digest = hashlib.blake2b(digest_size=8)
    for word in (seed, *words):
        kind, text = (b"s", word) if isinstance(word, str) else (b"i", str(int(word)))
        # Lone surrogates cannot be tokenized, but a text that holds one must still reach the check that says so.
        encoded = text.encode("utf-8", "surrogatepass")
        digest.update(kind + len(encoded).to_bytes(8, "little") + encoded)
    return int.from_bytes(digest.digest(), "little")


def uniform(seed: int, draw: int, sample: Int64, position: Int64) -> NDArray[np.float64]:
    """Hash each address (seed, draw, sample, position) to a number in [0, 1).

        h = 0;  for each word a of the address: h = mix((h xor a) + gamma);  u = floor(h / 2**11) / 2**53

    `mix` is splitmix64's finaliser, a bijection of 64-bit words, so two positions of a sample never share a hash.

    Args:
        seed: the run's seed.
        draw: number of the rollout batch.
        sample: (N,) int64 global sample index, never an index on a rank.
        position: (M,) int64 position in the sample.

    Returns:
        (N, M) float64 in [0, 1), multiples of 2**-53; each entry depends on its own address alone.

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014, with the
    multipliers of Stafford's variant 13; the chaining over words is ours.
    """
    state = np.zeros((1, 1), dtype=np.uint64)
    state = _absorb(_absorb(state, _word(seed)), _word(draw))
    state = _absorb(state, np.asarray(sample, dtype=np.int64).astype(np.uint64)[:, None])
    state = _absorb(state, np.asarray(position, dtype=np.int64).astype(np.uint64)[None, :])
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permuted(index: Int64, size: int, key: int) -> Int64:
    """Map each index to its place in the permutation of [0, size) that `key` names.

        (left, right) <- (right, left xor F(round, right)), 8 rounds over the next even number of bits;
        repeat while the result is not below `size` (cycle walking, under 4 passes on average)

    Memory is that of `index`: no table of `size` entries is ever made.

    Args:
        index: (N,) int64 in [0, size).
        size: number of items, 1 to 2**62.
        key: 64-bit integer, e.g. from `derive`.

    Returns:
        (N,) int64 in [0, size); over all indices a bijection.

    Raises:
        ValueError: size or an index is out of range.

    Source: Luby and Rackoff, SIAM J. Comput. 17 (1988); cycle walking: Black and Rogaway, CT-RSA 2002.
    """
    if not 1 <= size <= 1 << 62:
        raise ValueError(f"permuted: size is {size}; it must be from 1 to 2**62")
    index = np.asarray(index, dtype=np.int64)
    if index.ndim != 1 or (index.size and not 0 <= index.min() <= index.max() < size):
        raise ValueError(f"permuted: index must be (N,) in [0, {size}); it has shape {index.shape}")
    height = math.isqrt(size - 1) + 1
    width = -(-size // height)  # height * width < size + height
    round_keys = _absorb(_word(key), np.arange(_ROUNDS, dtype=np.uint64))
    out = _feistel(index.astype(np.uint64), np.uint64(height), np.uint64(width), round_keys)
    while (outside := out >= np.uint64(size)).any():
        out[outside] = _feistel(out[outside], np.uint64(height), np.uint64(width), round_keys)
    return out.astype(np.int64)


def _feistel(number: UInt64, height: np.uint64, width: np.uint64, round_keys: UInt64) -> UInt64:
    row, column = np.divmod(number, width)
    for even, odd in round_keys.reshape(-1, 2):
        row = (row + _absorb(even, column) % height) % height
        column = (column + _absorb(odd, row) % width) % width
    return row * width + column


def _absorb(state: UInt64 | np.uint64, word: UInt64) -> UInt64:
    """mix((state xor word) + gamma), elementwise modulo 2**64."""
    mixed = (state ^ word) + _GAMMA
    for shift, multiplier in _STEPS:
        mixed = (mixed ^ (mixed >> shift)) * multiplier
    return mixed ^ (mixed >> _LAST_SHIFT)


def _word(number: int) -> UInt64:
    # An array and not a numpy scalar: only arrays wrap modulo 2**64 without a warning.
    return np.array([int(number) & _MASK], dtype=np.uint64)
