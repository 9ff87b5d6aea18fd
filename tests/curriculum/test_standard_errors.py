"""Bias and coverage of the standard errors, by drawing the panels again and again.

An interval of two standard errors covers 95.4% of a normal error. `coverage` is the part of the draws it does cover.
"""

import math

import numpy as np
import pytest

from destruct.curriculum.panels import PanelLosses, panel_items
from destruct.curriculum.progress import measure_difficulty, measure_progress

pytestmark = pytest.mark.slow  # thousands of simulated rounds

WINDOW, ITEMS, POPULATION = 12, 40, 200
DRAWS = 800  # a coverage of 93% is known to .9%
FALL, OWN = 0.02, 0.03  # nats/token that losses fall per round; noise of an item in a round


def coverage(off: np.ndarray, error: np.ndarray) -> float:
    return float(np.mean(np.abs(off) < 2 * error))


@pytest.mark.parametrize("n", [24, 100])
@pytest.mark.parametrize("longest", [64, 640])
def test_difficulty_of_a_part_of_256_sequences(n, longest):
    """Skewed losses, of sequences of 64 tokens or of 16 to 640; long ones are easier, so D is not the plain mean."""
    rng = np.random.default_rng(0)
    sizes = np.full(256, 64) if longest == 64 else rng.integers(16, longest + 1, 256)
    losses = rng.gamma(8, 0.4, 256) - 0.5 * (sizes / sizes.mean() - 1)
    truth = np.sum(sizes * losses) / np.sum(sizes)
    off, errors = np.empty(2000), np.empty(2000)
    for draw in range(2000):
        items = rng.permutation(256)[:n]
        got = measure_difficulty(PanelLosses(items, losses[items], sizes[items], 256), kappa=0.0)
        off[draw], errors[draw] = got.difficulty - truth, got.difficulty_se
    assert abs(off.mean()) < 4 * off.std() / math.sqrt(2000) + 0.05 * off.std()
    # The ratio's error is that of its first order, which is short of the truth by O(1/n).
    assert math.sqrt(np.mean(errors**2)) == pytest.approx(off.std(), rel=0.06 if n == 100 else 0.1)
    assert 0.90 < coverage(off, errors) < 0.99
    # Without 1 - n/N the bar would be too long by 1/sqrt(1 - 100/256) = 1.28.
    assert math.sqrt(np.mean(errors**2)) / math.sqrt(1 - n / 256) > off.std() * (1.15 if n == 100 else 0.95)


def slopes(
    common: float, differing: float, kappa: float, rounds: int = WINDOW, seed: int = 1, draws: int = DRAWS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(draws,) error of LP, its residual and its paired standard error, each from new items on rotating panels.

    l_it = 3 + a_i - b_i t + e_it + u_t: what an item is like (.4), how fast it is learnt, noise of its own in a round,
    and noise that a round puts on all items. With kappa the spread of the items falls too, by a twentieth a round.

    Args:
        common: standard deviation of u_t.
        differing: of b_i between items, unless kappa > 0, where b_i = FALL + .05 a_i.
    """
    rng, t = np.random.default_rng(seed), np.arange(rounds)
    narrowing = 0.05 if kappa else 0.0
    metric = 3 - FALL * t + kappa * np.sqrt(0.16 * (1 - narrowing * t) ** 2 + OWN**2)
    truth = -np.polyfit(t, metric, 1)[0]
    sizes, figures = np.full(ITEMS, 64), []
    panels = [panel_items(r * (ITEMS // 5), ITEMS, POPULATION) for r in t]
    for _ in range(draws):
        a = rng.normal(0, 0.4, POPULATION)
        b = FALL + (narrowing * a if kappa else rng.normal(0, differing, POPULATION))
        losses = 3 + a - b * t[:, None] + rng.normal(0, OWN, (rounds, POPULATION)) + rng.normal(0, common, (rounds, 1))
        window = [PanelLosses(items, row[items], sizes, POPULATION) for items, row in zip(panels, losses, strict=True)]
        figures.append(measure_progress(window, kappa))
    progress, residual, paired = np.array(figures).T
    return progress - truth, residual, paired


@pytest.mark.parametrize(("kappa", "differing"), [(0.0, 0.02), (0.5, 0.0)])
def test_the_paired_error_covers_where_noise_is_the_items_own(kappa, differing):
    """Items are learnt at different paces: a smooth course, of which the residuals of the line show a fraction."""
    off, residual, paired = slopes(common=0.0, differing=differing, kappa=kappa)
    assert abs(off.mean()) < 4 * off.std() / math.sqrt(DRAWS)
    assert math.sqrt(np.mean(paired**2)) == pytest.approx(off.std(), rel=0.1)
    assert 0.90 < coverage(off, paired) < 0.99
    assert 0.90 < coverage(off, np.maximum(residual, paired)) < 0.99
    assert coverage(off, residual) < 0.7


@pytest.mark.parametrize("kappa", [0.0, 0.5])
def test_noise_of_a_round_is_what_the_residuals_are_for(kappa):
    """It is common to the whole panel, so differences between items do not show it: paired alone covers too little."""
    off, residual, paired = slopes(common=0.1, differing=0.002, kappa=kappa)
    assert abs(off.mean()) < 4 * off.std() / math.sqrt(DRAWS)
    assert math.sqrt(np.mean(residual**2)) == pytest.approx(off.std(), rel=0.1)
    assert coverage(off, paired) < 0.5
    assert 0.90 < coverage(off, np.maximum(residual, paired)) < 0.99


def test_where_both_are_alike_the_larger_is_too_short_by_a_root_of_two_at_most():
    """The two add up as squares, and only one is taken: P(|z| < 2/sqrt(2)) = .843 is the least, were they exact."""
    off, residual, paired = slopes(common=0.03, differing=0.02, kappa=0.0)
    assert math.sqrt(np.mean(paired**2)) == pytest.approx(math.sqrt(np.mean(residual**2)), rel=0.15)
    assert 0.82 < coverage(off, np.maximum(residual, paired)) < 0.93
    assert coverage(off, np.hypot(residual, paired)) > 0.93


def test_three_rounds_leave_one_degree_of_freedom():
    """P(|t_1| < 2) = 2/pi * atan(2) = .705: the residual error of the shortest window is often too small by chance."""
    off, residual, paired = slopes(common=0.1, differing=0.002, kappa=0.0, rounds=3, draws=2000)
    assert coverage(off, residual) == pytest.approx(2 / math.pi * math.atan(2), abs=0.04)
    assert coverage(off, np.maximum(residual, paired)) >= coverage(off, residual)
