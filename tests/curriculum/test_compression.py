"""What LZMA takes, against entropies that are known and against what it cannot know."""

import math

import numpy as np

from destruct.curriculum.compression import compressed_nats


def test_noise_takes_its_entropy_and_a_few_per_cent_whatever_the_width_of_a_token():
    """Uniform over 64, 1024 and 100,000 tokens: 1, 2 and 4 bytes each."""
    rng = np.random.default_rng(0)
    for symbols, most in ((64, 1.04), (1024, 1.2), (100_000, 1.35)):
        taken = compressed_nats(rng.integers(0, symbols, (400, 100))) / 40_000
        assert math.log(symbols) <= taken < most * math.log(symbols), symbols


def test_copies_take_far_less_than_their_letters():
    """`x#x;` with 13 random letters of 16: half of the letters are free, and LZMA finds that."""
    rng = np.random.default_rng(1)
    letters = rng.integers(0, 16, (3000, 13))
    ends = np.full((3000, 1), 16), np.full((3000, 1), 17)
    taken = compressed_nats(np.hstack([letters, ends[0], letters, ends[1]])) / (3000 * 28)
    entropy = 13 * math.log(16) / 28
    assert entropy < taken < 0.75 * math.log(16)


def test_nothing_takes_next_to_nothing():
    assert compressed_nats(np.zeros((1000, 100), dtype=np.int64)) < 1000


def test_a_window_that_comes_again_later_is_as_dear_as_any_other():
    """Noise, and all of it once more: no model sees the first copy in the context of the second."""
    noise = np.random.default_rng(2).integers(0, 64, (256, 128))
    once, twice = compressed_nats(noise), compressed_nats(np.concatenate([noise, noise]))
    assert abs(twice / once - 2) < 0.01
