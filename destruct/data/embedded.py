"""Six texts that need no download: real prose and code, two grammars, and two sources of known entropy.

Each generator takes (bytes wanted, seed) and is deterministic for those two and the Python version.  Documents are
about 200 to 2,000 bytes long and all different; a generator stops with the document that reaches the size.
"""

import random
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from destruct.data.grammars import arithmetic_documents, dialogue_documents
from destruct.data.stdlib_text import LONGEST, SHORTEST, code_documents, prose_documents
from destruct.errors import DestructError
from destruct.seeding import uniform

MARKOV_ALPHABET = "abcdefg "  # with a space, so that the text falls into words as tokenizers expect
NOISE_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+-"
NOISE_ENTROPY = float(np.log(len(NOISE_ALPHABET)))
"""Entropy rate of `noise`: ln 64 nats per symbol, which is one byte."""


def prose(bytes_wanted: int, seed: int) -> list[str]:
    """English: paragraphs of the language reference and of docstrings.  Raises DestructError as `_take` does."""
    rng = random.Random(seed)
    return _take("prose", bytes_wanted, prose_documents(rng, partial(_length, rng)))


def code(bytes_wanted: int, seed: int) -> list[str]:
    """Python: functions, methods and classes of the standard library.  Raises DestructError as `_take` does."""
    return _take("code", bytes_wanted, code_documents(random.Random(seed)))


def dialogue(bytes_wanted: int, seed: int) -> list[str]:
    """Conversations of two people from a grammar; facts recur over many turns."""
    rng = random.Random(seed)
    return _take("dialogue", bytes_wanted, dialogue_documents(rng, partial(_length, rng)))


def arithmetic(bytes_wanted: int, seed: int) -> list[str]:
    """Sums, differences and products with their working, one a line; every equation holds."""
    rng = random.Random(seed)
    return _take("arithmetic", bytes_wanted, arithmetic_documents(rng, partial(_length, rng)))


def markov(bytes_wanted: int, seed: int) -> list[str]:
    """Text of the order-2 chain of `markov_table`, each document begun in the stationary distribution."""
    return _take("markov", bytes_wanted, _markov_documents(random.Random(seed)))


def noise(bytes_wanted: int, seed: int) -> list[str]:
    """Independent uniform draws from 64 symbols: `NOISE_ENTROPY` nats each, whatever model reads them."""
    return _take("noise", bytes_wanted, _noise_documents(random.Random(seed)))


@cache
def markov_table() -> NDArray[np.float64]:
    """Transition table of `markov`: one for all seeds, so that its entropy rate is one known number.

        p[i, j, k] = e_ijk / sum_k e_ijk,   e = (-ln(1 - u))**2.5 + 1e-4,   u uniform in [0, 1)

    Returns:
        (K, K, K) float64, K = len(MARKOV_ALPHABET): probability of symbol k after the symbols i, j; all positive.
    """
    size = len(MARKOV_ALPHABET)
    u = uniform(0, 0, np.arange(size * size), np.arange(size)).reshape(size, size, size)
    table = (-np.log1p(-u)) ** 2.5 + 1e-4
    table /= table.sum(axis=-1, keepdims=True)
    table.flags.writeable = False  # it is cached
    return table


def stationary_pairs(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Solve pi = pi T for the distribution of two neighbouring symbols of an order-2 chain.

    Args:
        table: (K, K, K) float64 transition probabilities, all positive.

    Returns:
        (K, K) float64, summing to 1.
    """
    size = table.shape[0]
    step = np.zeros((size, size, size, size))  # from the pair (i, j) to the pair (j, k)
    for j in range(size):
        step[:, j, j, :] = table[:, j, :]
    equations = step.reshape(size * size, size * size).T - np.eye(size * size)
    equations[-1] = 1.0  # one of the balance equations is redundant; its row says that pi sums to 1
    return np.linalg.solve(equations, np.eye(size * size)[-1]).reshape(size, size)


def markov_entropy_rate(table: NDArray[np.float64] | None = None) -> float:
    """Entropy rate of an order-2 chain: H = -sum_ij pi_ij sum_k p_ijk ln p_ijk.

    Args:
        table: (K, K, K) float64, all positive; by default that of `markov`.

    Returns:
        nats per symbol (of `markov`, per byte).

    Source: Cover and Thomas, Elements of Information Theory, theorem 4.2.4.
    """
    p = markov_table() if table is None else table
    return float(-(stationary_pairs(p)[..., None] * p * np.log(p)).sum())


def _markov_documents(rng: random.Random) -> Iterator[str]:
    size = len(MARKOV_ALPHABET)
    rows = markov_table().reshape(size * size, size).cumsum(axis=-1)[:, :-1].tolist()
    starts = stationary_pairs(markov_table()).ravel().cumsum()[:-1].tolist()
    while True:
        pair = bisect(starts, rng.random())
        symbols = list(divmod(pair, size))
        for _ in range(_length(rng) - 2):
            symbol = bisect(rows[pair], rng.random())
            symbols.append(symbol)
            pair = pair % size * size + symbol
        yield "".join(MARKOV_ALPHABET[symbol] for symbol in symbols)


def _noise_documents(rng: random.Random) -> Iterator[str]:
    while True:
        yield "".join(rng.choices(NOISE_ALPHABET, k=_length(rng)))


def _length(rng: random.Random) -> int:
    """Bytes of the next document, log-uniform; its last piece may pass them, hence the distance to LONGEST."""
    return int(SHORTEST * (0.8 * LONGEST / SHORTEST) ** rng.random())


def _take(name: str, bytes_wanted: int, documents: Iterable[str]) -> list[str]:
    """Documents up to the one that reaches the size, each text once.

    Raises:
        DestructError: the standard library of this Python holds less than `bytes_wanted`.
    """
    taken: dict[str, None] = {}
    total = 0
    for document in documents:
        if document in taken:
            continue
        taken[document] = None
        total += len(document.encode())
        if total >= bytes_wanted:
            return list(taken)
    raise DestructError(
        f"data.embedded_bytes is {bytes_wanted}, but this Python's standard library holds {total} bytes of {name!r}",
        f"set data.embedded_bytes to at most {total}, or give the source a path",
    )


EMBEDDED: dict[str, Callable[[int, int], list[str]]] = {
    "prose": prose,
    "code": code,
    "dialogue": dialogue,
    "arithmetic": arithmetic,
    "markov": markov,
    "noise": noise,
}
"""`embedded:` of a source in the config -> its generator (bytes wanted, seed) -> documents."""
