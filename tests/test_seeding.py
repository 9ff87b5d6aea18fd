"""Addressed randomness: the hash, the keyed permutation and the keys."""

import subprocess
import sys

import numpy as np
import pytest

from destruct.seeding import derive, permuted, uniform

MASK = (1 << 64) - 1


def splitmix(state: int) -> int:
    """splitmix64 of the published C code, on Python's integers."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_uniform_is_the_printed_formula_on_python_integers():
    assert splitmix(0) == 0xE220A8397B1DCDAF  # the first output of the reference implementation from seed 0
    sample, position = np.array([0, 5, 2**40]), np.array([0, 1, 999])
    got = uniform(-3, 17, sample, position)
    for row, i in enumerate(sample.tolist()):
        for column, j in enumerate(position.tolist()):
            state = 0
            for word in (-3 & MASK, 17, i, j):
                state = splitmix(state ^ word)
            assert got[row, column] == (state >> 11) / 2**53


def test_uniform_numbers_have_the_moments_of_the_uniform_law_and_no_neighbour_correlates():
    """262,144 numbers: the standard error of the mean is .00056, of a correlation .002 (.0028 on half of them).

    Four standard errors are allowed."""
    sample, position = np.arange(512), np.arange(512)
    u = uniform(0, 0, sample, position)
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 0.5) < 0.0023 and abs(u.var() - 1 / 12) < 0.0006
    pairs = {
        "seed": (u, uniform(1, 0, sample, position)),
        "draw": (u, uniform(0, 1, sample, position)),
        "sample": (u, uniform(0, 0, sample + 1, position)),
        "position": (u, uniform(0, 0, sample, position + 1)),
        "seed and draw exchanged": (uniform(1, 2, sample, position), uniform(2, 1, sample, position)),
        "sample and position exchanged": (np.triu(u, 1), np.tril(u, -1).T),
    }
    for name, (one, other) in pairs.items():
        kept = (one != 0) & (other != 0)  # the triangle, in the last pair
        assert abs(np.corrcoef(one[kept], other[kept])[0, 1]) < 0.011, name
    counts = np.histogram(u, bins=64, range=(0, 1))[0]
    assert ((counts - 4096) ** 2 / 4096).sum() < 103.4  # chi-square, 63 degrees of freedom, one in a thousand


def test_a_number_depends_on_its_address_alone_and_not_on_its_batch():
    rng = np.random.default_rng(0)
    whole = uniform(7, 3, np.arange(40), np.arange(30))
    for _ in range(20):
        rows, columns = rng.permutation(40)[: rng.integers(1, 40)], rng.permutation(30)[: rng.integers(1, 30)]
        np.testing.assert_array_equal(uniform(7, 3, rows, columns), whole[np.ix_(rows, columns)])
    assert uniform(7, 3, np.arange(0), np.arange(5)).shape == (0, 5)


@pytest.mark.parametrize("size", [*range(1, 71), 1024, 100_003])
def test_permuted_is_a_bijection(size):
    for key in (0, derive(1, "a"), 2**64 - 1):
        assert np.bincount(permuted(np.arange(size), size, key), minlength=size).tolist() == [1] * size


def test_permuted_needs_no_table_and_does_not_depend_on_the_batch():
    size = 2**62 - 57
    index = np.array([0, 1, 12345, size - 1])
    whole = permuted(index, size, 5)
    assert ((whole >= 0) & (whole < size)).all() and len(set(whole.tolist())) == 4
    np.testing.assert_array_equal(permuted(index[[2, 0]], size, 5), whole[[2, 0]])


def test_every_order_of_three_and_every_place_of_ten_is_equally_likely_over_keys():
    """Chi-square at one in a thousand: 20.5 for 5 degrees of freedom, 126 for 81."""
    keys = [derive(0, "order", number) for number in range(1200)]
    orders = [tuple(permuted(np.arange(3), 3, key).tolist()) for key in keys]
    counts = np.array([orders.count(order) for order in set(orders)])
    assert len(counts) == 6 and ((counts - 200) ** 2 / 200).sum() < 20.5
    places = np.zeros((10, 10))
    for key in keys:
        places[np.arange(10), permuted(np.arange(10), 10, key)] += 1
    assert ((places - 120) ** 2 / 120).sum() < 126


def test_a_permutation_keeps_no_trace_of_the_order():
    order = permuted(np.arange(10_000), 10_000, 1)
    for lag in (0, 1, 2, 64):
        assert abs(np.corrcoef(order, np.roll(np.arange(10_000), lag))[0, 1]) < 0.04
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.04


def test_permuted_refuses_what_lies_outside():
    for index, size in ((np.array([3]), 3), (np.array([-1]), 3), (np.array([0]), 0), (np.zeros((1, 1), int), 3)):
        with pytest.raises(ValueError, match="permuted"):
            permuted(index, size, 0)


def test_keys_tell_paths_apart():
    paths = [("a", "b"), ("ab",), ("a", "b", ""), ("b", "a"), (1,), ("1",), (-1,), (11,), (1, 1), ()]
    assert len({derive(0, *path) for path in paths} | {derive(1, *path) for path in paths}) == 2 * len(paths)


def test_keys_are_equal_in_every_process():
    expected = 17248301518381496189  # another key would silently reorder every data set of a resumed run
    program = "from destruct.seeding import derive; print(derive(3, 'window order', 'prose', 2))"
    for hash_seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(done.stdout) == derive(3, "window order", "prose", 2) == expected
