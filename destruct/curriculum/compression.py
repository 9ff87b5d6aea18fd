"""What a general-purpose compressor makes of a source: an upper bound on what a model that has learnt it would pay."""

import lzma
import math

from numpy.typing import NDArray

COMPRESSED_WINDOWS = 2048
"""Held-out windows of a source that are compressed at most: a second or two for windows of 512 tokens."""


def compressed_nats(tokens: NDArray) -> float:
    """Nats in which LZMA writes all the tokens down: no less than their entropy, but for what it gains by chance.

    A model above it has something to learn, such as text that is repeated in its context, even while it makes no
    progress; one below it may have or not, since a compressor knows nothing but repetition.

    Args:
        tokens: of any shape, whole numbers from 0 on.
    """
    width = 1 if tokens.max(initial=0) < 2**8 else 2 if tokens.max() < 2**16 else 4
    coder = {"id": lzma.FILTER_LZMA2, "preset": 6, "lp": int(math.log2(width)), "lc": 3 - int(math.log2(width))}
    packed = lzma.compress(tokens.astype(f"<u{width}").tobytes(), format=lzma.FORMAT_RAW, filters=[coder])
    return 8 * len(packed) * math.log(2)
