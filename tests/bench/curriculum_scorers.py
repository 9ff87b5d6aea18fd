"""The true distributions of the curriculum benchmark's sources a second time, read off the bytes of one prefix.

Each function takes the bytes of a window so far and returns {next byte: probability} without impossible ones.
"""

from collections import Counter
from functools import cache

import numpy as np

from bench.curriculum_grammar import grammar
from bench.curriculum_known import phrase

NEXT_AFTER_NOTHING, NEXT_AFTER_BRACKET, FIRST_LETTER = 0, 1, 2  # second index of the grammar's table


def next_of_easy(prefix: bytes) -> dict[int, float]:
    expected = phrase()[len(prefix) % 60]
    p = Counter({symbol: 0.01 / 64 for symbol in range(128, 192)})
    p[int(expected)] += 0.99
    return p


@cache
def long_run_pairs(table: bytes, size: int) -> np.ndarray:
    """Shares (K, K) of the pairs of a chain after 2,000 steps from uniform ones; table are the bytes of (K, K, K)."""
    p = np.frombuffer(table).reshape(size, size, size)
    pairs = np.full((size, size), 1 / size**2)
    for _ in range(2000):
        pairs = np.einsum("ij,ijk->jk", pairs, p)
    return pairs


def next_of_chain(prefix: bytes, table: np.ndarray, first: int) -> dict[int, float]:
    """Of an order-2 chain whose symbols are the bytes from `first` on."""
    size = len(table)
    pairs = long_run_pairs(table.tobytes(), size)
    if len(prefix) == 0:
        row = pairs.sum(axis=1)
    elif len(prefix) == 1:
        row = pairs[prefix[0] - first] / pairs[prefix[0] - first].sum()
    else:
        row = table[prefix[-2] - first, prefix[-1] - first]
    return {first + k: float(row[k]) for k in range(size)}


def next_of_copy(prefix: bytes) -> dict[int, float]:
    """By counting the lengths from 6 to 20 that are still possible."""
    document = prefix.rsplit(b";", 1)[-1]
    if b"#" in document:
        x, copied = document.split(b"#")
        return {(x + b";")[len(copied)]: 1.0}
    possible = [length for length in range(6, 21) if length >= len(document)]
    ending = possible.count(len(document)) / len(possible)
    p = {letter: (1 - ending) / 16 for letter in range(224, 240)} | {ord("#"): ending}
    return {byte: q for byte, q in p.items() if q > 0}


def next_of_pcfg(prefix: bytes) -> dict[int, float]:
    """By parsing the prefix with a stack.  Raises AssertionError where a bracket is closed that is not open."""
    stack: list[str] = []
    text = prefix.decode()
    for symbol in text:
        if symbol in "([{<":
            stack.append(symbol)
        elif symbol in ")]}>":
            assert stack.pop() + symbol in ("()", "[]", "{}", "<>")
        else:
            assert stack and symbol in "abcdefgh"
    if not stack:
        return dict.fromkeys(b"([{<", 0.25)
    if text[-1] in "([{<":
        before = NEXT_AFTER_NOTHING
    else:
        before = NEXT_AFTER_BRACKET if text[-1] in ")]}>" else FIRST_LETTER + "abcdefgh".index(text[-1])
    kind = "([{<".index(stack[-1])
    return dict(zip(")]}>"[kind].encode() + b"([{<abcdefgh", grammar()[kind, before].tolist(), strict=True))
