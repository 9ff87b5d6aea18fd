"""The sources of the curriculum benchmark of known entropy: one uniform number per byte becomes that byte.

A byte is drawn by inversion of its true distribution given the bytes before it in its window, so its cost, -ln of the
probability drawn, is exact.  The alphabets are apart, `easy` and `noise` alone share theirs, so that a window's first
byte, which nobody predicts, tells the source: otherwise the least excess that a model can reach would depend on the
shares of the mixture.

Legend: n windows, T bytes of a window, K choices, u (n, T) float64 uniform numbers in [0, 1).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from destruct.data.embedded import stationary_pairs
from destruct.seeding import derive, uniform

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
Bytes = NDArray[np.uint8]

NOISE_SYMBOLS = np.arange(128, 192, dtype=np.uint8)
MARKOV_SYMBOLS = np.arange(192, 208, dtype=np.uint8)
SMALL_SYMBOLS = np.arange(208, 224, dtype=np.uint8)
COPY_SYMBOLS = np.arange(224, 240, dtype=np.uint8)
HASH, SEMICOLON = ord("#"), ord(";")

PHRASE_BYTES, REPLACED = 60, 0.01  # of `easy`
SHORTEST_COPY, LONGEST_COPY = 6, 20  # letters of x in `x#x;`
TABLE_SEED = 20  # of phrase, tables and grammar: one for all runs, so that their entropies are known numbers


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows of one source."""

    tokens: Bytes  # (n, T) uint8
    nats: Float64  # (n, T) float64  -ln p(byte | the window's bytes before it); zeros where the source is not known

    def __post_init__(self) -> None:
        if self.tokens.shape != self.nats.shape:
            raise ValueError(f"Windows.nats is {self.nats.shape}; tokens is {self.tokens.shape}")


def noise_windows(u: Float64) -> Windows:
    """Independent uniform draws of 64 symbols."""
    size = len(NOISE_SYMBOLS)
    return Windows(NOISE_SYMBOLS[(size * u).astype(np.int64)], np.full(u.shape, np.log(size)))


@cache
def phrase() -> Bytes:
    """What `easy` repeats: (PHRASE_BYTES,) symbols of the noise."""
    return noise_windows(uniform(derive(TABLE_SEED, "easy"), 0, np.arange(1), np.arange(PHRASE_BYTES))).tokens[0]


def easy_windows(u: Float64) -> Windows:
    """The phrase over and over; with probability `REPLACED` a symbol of the noise stands in place of a byte of it.

    p(byte) = (1 - REPLACED) [byte = phrase's] + REPLACED / 64
    """
    written = np.resize(phrase(), u.shape[1])
    replacement = noise_windows(np.minimum(u / REPLACED, np.nextafter(1, 0))).tokens
    tokens = np.where(u < REPLACED, replacement, written)
    by_chance = REPLACED / len(NOISE_SYMBOLS)
    return Windows(tokens, -np.log((1 - REPLACED) * (tokens == written) + by_chance))


def easy_entropy_rate() -> float:
    """Entropy of one byte, nats: one symbol at 1 - REPLACED + REPLACED/64 and 63 at REPLACED/64."""
    other = np.full(len(NOISE_SYMBOLS) - 1, REPLACED / len(NOISE_SYMBOLS))
    return float(entropy(np.append(other, 1 - other.sum())))


@cache
def markov_table(name: str) -> Float64:
    """Transition table of an order-2 chain: (16, 16, 16) float64, probability of k after i, j; all at least 2**-16."""
    size = len(MARKOV_SYMBOLS)
    return quantized(skewed(name, size * size, size, 3.0)).reshape(size, size, size)


def markov_windows(table: Float64, symbols: Bytes, u: Float64) -> Windows:
    """An order-2 chain that begins in its stationary distribution.

    p(b_0) = sum_j pi_{b_0 j},   p(b_1 | b_0) = pi_{b_0 b_1} / p(b_0),   p(b_t | ...) = table[b_{t-2}, b_{t-1}, b_t]

    Args:
        table: (K, K, K) float64, all positive.
        symbols: (K,) uint8, the bytes of the chain's symbols.
        u: (n, T).
    """
    pairs = stationary_pairs(table)
    first = pairs.sum(axis=1)
    drawn, p = np.empty(u.shape, dtype=np.int64), np.empty(u.shape)
    for t in range(u.shape[1]):
        if t < 2:
            rows = first[None] if t == 0 else pairs / first[:, None]
            state = drawn[:, 0] if t else np.zeros(len(u), dtype=np.int64)
        else:
            rows, state = table.reshape(-1, len(symbols)), drawn[:, t - 2] * len(symbols) + drawn[:, t - 1]
        drawn[:, t], p[:, t] = choose(rows, state, u[:, t])
    return Windows(symbols[drawn], -np.log(p))


def copy_windows(u: Float64) -> Windows:
    """Documents `x#x;`, x of 6 to 20 random letters, all lengths alike.

    With h_i = P(length = i | length >= i) = 1 / (21 - i) from i = 6 on, a `#` after i letters costs -ln h_i, a letter
    there ln 16 - ln(1 - h_i), and what follows the `#` nothing.
    """
    size = len(COPY_SYMBOLS)
    after = np.arange(LONGEST_COPY + 1)
    hazard = np.where(after < SHORTEST_COPY, 0.0, 1 / (LONGEST_COPY + 1 - after))
    tokens, p = np.empty(u.shape, dtype=np.uint8), np.ones(u.shape)
    window = np.arange(len(u))
    begin, letters = np.zeros_like(window), np.full_like(window, -1)  # of x: where, and how many once `#` is there
    for t in range(u.shape[1]):
        reading, copied = letters < 0, t - letters - 1  # the second: where the letter stands that is due
        closes = ~reading & (copied == begin + letters)
        due = np.where(closes, SEMICOLON, tokens[window, np.where(reading, 0, copied)])
        stop = np.where(reading, hazard[np.minimum(t - begin, LONGEST_COPY)], 0.0)
        ends = u[:, t] < stop
        letter = size * (u[:, t] - stop) / np.where(stop < 1, 1 - stop, 1)  # below 0 where it ends
        fresh = COPY_SYMBOLS[letter.astype(np.int64).clip(0, size - 1)]
        tokens[:, t] = np.where(ends, HASH, np.where(reading, fresh, due))
        p[:, t] = np.where(ends, stop, np.where(reading, (1 - stop) / size, 1.0))
        letters = np.where(ends, t - begin, np.where(closes, -1, letters))
        begin = np.where(closes, t + 1, begin)
    return Windows(tokens, -np.log(p))


def copy_entropy_rate() -> float:
    """Nats of a document over its bytes: (E[length] ln 16 + ln 15) / (2 E[length] + 2), the length being 6 to 20."""
    lengths = np.arange(SHORTEST_COPY, LONGEST_COPY + 1)
    nats = lengths.mean() * np.log(len(COPY_SYMBOLS)) + np.log(len(lengths))
    return float(nats / (2 * lengths.mean() + 2))


def choose(rows: Float64, state: Int64, u: Float64) -> tuple[Int64, Float64]:
    """Draw from the row of each state: the choices (n,) and their probabilities (n,), from rows (*, K) and u (n,)."""
    below = rows.cumsum(axis=1)[:, :-1]  # without the last, which is 1 but for rounding
    choice = (u[:, None] >= below[state]).sum(axis=1)
    return choice, rows[state, choice]


def skewed(name: str, rows: int, columns: int, exponent: float) -> Float64:
    """Positive weights (rows, columns), the more unequal the larger the exponent: (-ln(1 - u))**exponent."""
    return (-np.log1p(-uniform(derive(TABLE_SEED, name), 0, np.arange(rows), np.arange(columns)))) ** exponent


def quantized(weights: Float64) -> Float64:
    """Rows of probabilities (*, K) from rows of positive weights: multiples of 2**-16, none 0, that sum to exactly 1.

    So the last bit of a logarithm, which machines do not agree on, is of no account, and no sum of them is rounded.
    """
    rows, columns = weights.shape
    parts = np.floor((2.0**16 - columns) * weights / weights.sum(axis=1, keepdims=True)) + 1
    parts[np.arange(rows), parts.argmax(axis=1)] += 2.0**16 - parts.sum(axis=1)
    return parts / 2.0**16


def entropy(p: Float64) -> Float64:
    """Nats of each distribution along the last axis; 0 ln 0 = 0."""
    return -(p * np.log(np.where(p > 0, p, 1))).sum(axis=-1)
