"""The grammar among the sources of the curriculum benchmark: nested brackets of four kinds with letters in them.

Every byte is one choice, so its true probability is known from what is open at that place: a stack says it.
Legend: n windows, T bytes of a window, u (n, T) float64 uniform numbers in [0, 1).
"""

from functools import cache

import numpy as np

from bench.curriculum_known import Float64, Windows, choose, entropy, quantized, skewed

OPENING, CLOSING = (np.frombuffer(brackets, dtype=np.uint8) for brackets in (b"([{<", b")]}>"))
LETTERS = np.frombuffer(b"abcdefgh", dtype=np.uint8)


@cache
def grammar() -> Float64:
    """Choices of `pcfg`, which is nested brackets of four kinds with letters in them.

    The next byte depends on the bracket that is open and on what stands before it in there: nothing, a bracket that was
    closed, or one of the letters.  Each byte is one choice: close, open one of the kinds, or write a letter.

    Returns:
        (kinds + 1, 2 + letters, 1 + kinds + letters) float64 probabilities.  Outside of all brackets, the last kind,
        only an opening one can follow.
    """
    kinds, letters = len(OPENING), len(LETTERS)
    rows = kinds * (2 + letters)
    form = skewed("pcfg form", rows, 3, 0.7) * [3.0, 2.2, 9.0]  # close, open, write; then which kind or letter
    which = quantized(skewed("pcfg kind", rows, kinds, 3.0)), quantized(skewed("pcfg letter", rows, letters, 6.0))
    table = quantized(np.hstack([form[:, :1], form[:, 1:2] * which[0], form[:, 2:] * which[1]]))
    outside = np.zeros((2 + letters, table.shape[1]))
    outside[:, 1 : 1 + kinds] = 1 / kinds
    return np.concatenate([table, outside]).reshape(kinds + 1, 2 + letters, -1)


def pcfg_windows(u: Float64) -> Windows:
    """Documents of `grammar`: an opening bracket, what stands in it, and the closing one of its kind."""
    kinds, contexts, size = grammar().shape
    table, letter = grammar().reshape(-1, size), kinds  # choices: 0 closes, 1 to kinds - 1 open, from `letter` on write
    written = np.concatenate([[0], OPENING, LETTERS])
    tokens, p = np.empty(u.shape, dtype=np.uint8), np.empty(u.shape)
    window = np.arange(len(u))
    open_kinds = np.full((len(u), u.shape[1] + 1), kinds - 1)  # from the outermost inwards; column 0 is the outside
    depth, before = np.zeros_like(window), np.zeros_like(window)
    for t in range(u.shape[1]):
        kind = open_kinds[window, depth]
        choice, p[:, t] = choose(table, kind * contexts + before, u[:, t])
        closes, writes = choice == 0, choice >= letter
        tokens[:, t] = np.where(closes, np.append(CLOSING, 0)[kind], written[choice])
        depth += np.where(closes, -1, np.where(writes, 0, 1))
        open_kinds[window, depth] = np.where(closes | writes, open_kinds[window, depth], choice - 1)
        before = np.where(closes, 1, np.where(writes, choice - letter + 2, 0))
    return Windows(tokens, -np.log(p))


def pcfg_document_means() -> tuple[float, float]:
    """Mean nats and mean bytes of a document of `grammar`.

        v_k = e_0 (I - Q_k)^-1,   M_kj = sum_c v_kc p_kc(open j),   N = (I - M)^-1 h,   B = (I - M)^-1 sum_c v_kc

    v_kc is how often a bracket of kind k stands before its next byte in context c, Q_k how contexts follow one another,
    M_kj how many brackets of kind j it holds, h_k = sum_c v_kc H(p_kc); N and B are what follows the opening byte.

    Raises:
        ValueError: brackets hold one bracket or more on average, and documents are endless.

    Source: Booth and Thompson, IEEE Trans. Computers C-22 (1973), on the means of a context-free grammar.
    """
    kinds, contexts = len(OPENING), 2 + len(LETTERS)
    visits, children = np.empty((kinds, contexts)), np.empty((kinds, kinds))
    for kind, rows in enumerate(grammar()[:kinds]):
        step = np.zeros((contexts, contexts))
        step[:, 1] = rows[:, 1 : 1 + kinds].sum(axis=1)
        step[:, 2:] = rows[:, 1 + kinds :]
        visits[kind] = np.linalg.solve(np.eye(contexts) - step.T, np.eye(contexts)[0])
        children[kind] = visits[kind] @ rows[:, 1 : 1 + kinds]
    if (largest := np.abs(np.linalg.eigvals(children)).max()) >= 1:
        raise ValueError(f"pcfg: a bracket holds {largest:.3f} brackets on average; it must be less than 1")
    own = np.stack([(visits * entropy(grammar()[:kinds])).sum(axis=1), visits.sum(axis=1)], axis=1)
    outside = grammar()[-1, 0]
    nats, size = outside[1 : 1 + kinds] @ np.linalg.solve(np.eye(kinds) - children, own)
    return float(nats + entropy(outside)), float(size + 1)


def pcfg_entropy_rate() -> float:
    """Nats per byte of documents end to end: mean nats of one over its mean bytes."""
    nats, size = pcfg_document_means()
    return nats / size
