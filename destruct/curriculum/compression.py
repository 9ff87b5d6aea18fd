"""What a general-purpose compressor makes of a source: no less than what a model that has learnt it would pay."""

import lzma
import math

from numpy.typing import NDArray

LEAST_DICTIONARY = 4096  # bytes; LZMA has no smaller one
COMPRESSED_WINDOWS = 2048
"""Held-out windows of a source that are compressed at most: a second or two for windows of 512 tokens."""


def compressed_nats(tokens: NDArray) -> float:
    """Nats in which LZMA writes all the tokens down: no less than their entropy, but for what it gains by chance.

    A model above it has something to learn, such as text that is repeated in its context, even while it makes no
    progress; one below it may have or not, since a compressor knows little but repetition.  It looks back 4 KiB, or a
    window where that is longer: what no model sees in its context, such as a window that stands there twice, is not to
    count.

    Args:
        tokens: (n, T) whole numbers from 0 on, windows in a random order.
    """
    width = 1 if tokens.max(initial=0) < 2**8 else 2 if tokens.max() < 2**16 else 4
    bits = int(math.log2(width))
    back = max(LEAST_DICTIONARY, width * tokens.shape[1])
    coder = {"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": back, "lp": bits, "lc": 3 - bits}
    packed = lzma.compress(tokens.astype(f"<u{width}").tobytes(), format=lzma.FORMAT_RAW, filters=[coder])
    return 8 * len(packed) * math.log(2)
