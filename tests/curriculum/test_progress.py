"""Difficulty, progress and their errors, by hand, against np.polyfit and against the spread of simulated panels."""

import json
import math

import numpy as np
import pytest
from numpy.typing import ArrayLike

from destruct.curriculum.estimates import Floats, LossEstimates
from destruct.curriculum.panels import PanelLosses, next_start, panel_items
from destruct.curriculum.progress import (
    UNKNOWN,
    Integers,
    ProgressEstimator,
    measure_difficulty,
    measure_progress,
    window_length,
)
from tests.curriculum.estimates_of import estimates_of


def panel(
    items: ArrayLike, losses: ArrayLike, tokens: ArrayLike | None = None, population: int | None = None
) -> PanelLosses:
    tokens = np.ones_like(items) if tokens is None else tokens
    return PanelLosses(np.array(items, np.int64), np.array(losses, float), np.array(tokens, np.int64), population)


def rotating_panels(losses: Floats, size: int, tokens: Integers | None = None) -> list[PanelLosses]:
    """Panels of consecutive rounds cut out of losses (rounds, population)."""
    tokens = np.ones(losses.shape[1], np.int64) if tokens is None else tokens
    panels, start = [], 0
    for row in losses:
        items = panel_items(start, size, losses.shape[1])
        panels.append(panel(items, row[items], tokens[items], losses.shape[1]))
        start = next_start(start, size)
    return panels


def test_the_window_is_the_last_quarter_and_its_start_never_goes_back():
    assert [window_length(rounds) for rounds in (1, 3, 12, 13, 16, 17, 400)] == [3, 3, 3, 4, 4, 5, 100]
    starts = [rounds - window_length(rounds) for rounds in range(1, 500)]
    assert all(later >= earlier for earlier, later in zip(starts, starts[1:], strict=False))


def test_difficulty_of_three_sequences_worked_by_hand():
    """Tokens 1, 1, 2 and losses 1, 2, 4: D = 11/4; V = 7/3 around 7/3; M = D + sqrt(V)/2.

    omega (l - D) = (-7/16, -3/16, 10/16), whose squares sum to 158/256; times 3/2, times 1 - 3/6.
    """
    got = measure_difficulty(panel([0, 1, 2], [1, 2, 4], [1, 1, 2], population=6), kappa=0.5)
    assert got.difficulty == 11 / 4
    assert got.variance == pytest.approx(7 / 3, rel=1e-14)
    assert got.metric == pytest.approx(11 / 4 + math.sqrt(7 / 3) / 2, rel=1e-14)
    assert got.difficulty_se == pytest.approx(math.sqrt(158 / 256 * 1.5 * 0.5), rel=1e-14)


def test_with_equal_lengths_the_error_of_difficulty_is_the_textbook_one():
    losses = np.random.default_rng(0).normal(3, 0.4, 100)
    got = measure_difficulty(panel(range(100), losses, population=400), kappa=0)
    assert got.difficulty_se == pytest.approx(np.std(losses, ddof=1) / 10 * math.sqrt(0.75), rel=1e-12)
    whole = measure_difficulty(panel(range(100), losses, population=100), kappa=0)
    assert whole.difficulty_se == 0
    assert measure_difficulty(panel([0], [2.0]), kappa=1) == (2, math.inf, 0, 2)


def test_progress_of_three_rounds_worked_by_hand():
    """Two items fall by (3, 1), then by (1, 1): the series is 0, -2, -3 and its slope -3/2.

    Residuals (-1/6, 2/6, -1/6): SE^2 = (1/6) / (3 - 2) / 2. The effects a are (-1/2, -1/2); only the first difference
    disagrees between items, by -+1 around its mean: y = -+(1/2 * 1/2), so the paired variance is 2/1 * 2/16.
    """
    got = measure_progress([panel([0, 1], [5, 5]), panel([0, 1], [2, 4]), panel([0, 1], [1, 3])], kappa=0)
    assert got == pytest.approx((1.5, math.sqrt(1 / 12), 0.5), rel=1e-14)


def test_the_larger_of_the_two_errors_counts():
    """The three rounds above: 1/2 by pairs, sqrt(1/12) by residuals; with both items alike the residuals are all."""
    for losses, error in (([[5, 5], [2, 4], [1, 3]], 0.5), ([[5, 5], [3, 3], [2, 2]], math.sqrt(1 / 12))):
        estimator = ProgressEstimator(1, kappa=0)
        seen = [estimator.observe([panel([0, 1], row)]).progress_se[0] for row in losses]
        assert seen[2] == pytest.approx(error, rel=1e-14)


def test_differences_weigh_common_items_by_their_own_tokens():
    """Item i has 1, 1, 3, 7 or 9 tokens.  Items 1 and 2 fall by 1 and 4, so D by (1 + 3 * 4) / 4; 2 and 3 then rest.

    The series is 0, -13/4, -13/4, and its slope half of that.
    """
    tokens = np.array([1, 1, 3, 7, 9])
    rounds = [([0, 1, 2], [9, 4, 8]), ([1, 2, 3], [3, 4, 6]), ([2, 3, 4], [4, 6, 2])]
    got = measure_progress([panel(items, losses, tokens[items]) for items, losses in rounds], kappa=0)
    assert got.progress == pytest.approx(13 / 8, rel=1e-14)


def test_progress_is_the_slope_of_polyfit_with_its_standard_error():
    """On a panel that stays, the chained series is the series itself."""
    losses = np.random.default_rng(1).normal(2, 0.3, (9, 40)) - 0.05 * np.arange(9)[:, None]
    tokens = np.random.default_rng(2).integers(1, 60, 40)
    got = measure_progress([panel(range(40), row, tokens) for row in losses], kappa=0)
    (slope, _), covariance = np.polyfit(np.arange(9), losses @ tokens / tokens.sum(), 1, cov=True)
    assert got.progress == pytest.approx(-slope, rel=1e-10)
    assert got.residual_se == pytest.approx(math.sqrt(covariance[0, 0]), rel=1e-10)


def test_a_change_of_panel_is_not_progress():
    """Items differ by up to 10 nats and none is learnt: differences over common items see exactly nothing."""
    losses = np.tile(np.linspace(10, 0, 60), (8, 1))
    assert measure_progress(rotating_panels(losses, size=20), kappa=0) == (0, 0, 0)


def test_a_constant_on_all_losses_of_a_source_changes_no_progress():
    losses = np.random.default_rng(3).normal(2, 0.5, (6, 50))
    for kappa in (0, 0.5):
        before = measure_progress(rotating_panels(losses, 20), kappa)
        after = measure_progress(rotating_panels(losses + 7, 20), kappa)
        assert after == pytest.approx(before, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kappa", [0.0, 0.5])
def test_paired_error_is_the_spread_of_progress_over_simulated_panels(kappa):
    """Items with a level, a speed of their own and fresh noise, and unequal lengths; 600 draws of 6 rounds of 60 items.

    The root mean square of the claimed errors is the spread of the estimates within 10 % (the spread itself is known to
    3 %), and +-1 and +-2 errors cover the truth in 68 and 95 % of the draws, each within 5 points.
    """
    rng = np.random.default_rng(4)
    tokens, errors, claimed = rng.integers(20, 120, 100), [], []
    for _ in range(600):
        level, speed = rng.normal(3, 0.5, 100), rng.normal(0.04, 0.03, 100)
        losses = level - speed * np.arange(6)[:, None] + rng.normal(0, 0.05, (6, 100))
        got = measure_progress(rotating_panels(losses, 60, tokens), kappa)
        errors.append(got.progress - 0.04 + kappa * spread_growth())
        claimed.append(got.paired_se)
    distance = np.abs(errors) / np.array(claimed)
    assert math.sqrt(np.mean(np.square(claimed))) == pytest.approx(np.std(errors), rel=0.10)
    assert np.mean(distance < 1) == pytest.approx(0.683, abs=0.05)
    assert np.mean(distance < 2) == pytest.approx(0.954, abs=0.05)


def spread_growth() -> float:
    """Slope over six rounds of the true sqrt(V_t), V_t = .5^2 + .03^2 t^2 + .05^2 (level and speed are independent)."""
    return np.polyfit(np.arange(6), np.sqrt(0.5**2 + 0.03**2 * np.arange(6) ** 2 + 0.05**2), 1)[0]


def test_an_unpaired_error_would_be_several_times_larger():
    """Levels spread by .5, differences by about .03: pairing is what makes a small progress visible."""
    rng = np.random.default_rng(5)
    losses = rng.normal(3, 0.5, 100) - 0.02 * np.arange(3)[:, None] + rng.normal(0, 0.02, (3, 100))
    got = measure_progress(rotating_panels(losses, 100), kappa=0)
    unpaired = 0.5 / math.sqrt(100) * math.sqrt(0.5)
    assert got.paired_se < unpaired / 10


def test_noise_common_to_a_panel_shows_in_the_residual_error():
    """Each round all items jump together: pairing sees nothing of it, the residuals do, and the larger one counts."""
    rng = np.random.default_rng(6)
    losses = rng.normal(3, 0.5, 30) + rng.normal(0, 0.1, (3, 1)) * np.ones((3, 30))
    estimator = ProgressEstimator(1, kappa=0)
    estimates = [estimator.observe([p]) for p in rotating_panels(losses, 30)][-1]
    got = measure_progress(rotating_panels(losses, 30), kappa=0)
    assert got.paired_se < 1e-12 < got.residual_se
    assert estimates.progress_se[0] == got.residual_se


def test_nothing_is_known_before_three_rounds_nor_over_too_few_common_items():
    estimator = ProgressEstimator(2, kappa=0)
    steady = panel([0, 1, 2], [3, 2, 1])
    for round_index in range(3):
        jumping = panel([round_index, round_index + 1], [3, 3])
        got = estimator.observe([steady, jumping])
        assert got.round_index == round_index
        known = round_index == 2
        assert got.progress.tolist() == [0, 0]
        assert got.progress_se.tolist() == [0 if known else math.inf, math.inf]


def test_a_loss_that_is_not_finite_silences_its_source_only_while_the_window_holds_it():
    estimator = ProgressEstimator(2, kappa=0.5)
    unknown = []
    for round_index in range(8):
        sick = [math.nan, math.inf, 1] if round_index == 3 else [3 - 0.1 * round_index, 2, 1]
        got = estimator.observe([panel([0, 1, 2], sick), panel([0, 1, 2], [3 - 0.1 * round_index, 2, 1])])
        assert math.isnan(got.difficulty[0]) == (round_index == 3)
        assert np.isfinite(got.difficulty[1])
        unknown.append((got.progress[0], got.progress_se[0]) == UNKNOWN[::2])
    assert unknown == [True, True, False, True, True, True, False, False]


def test_kappa_adds_the_fall_of_the_spread_to_progress():
    """Two items at 2 +- s with s = 3, 2, 1: D stays, sqrt(V) = sqrt(2) s falls by sqrt(2) a round."""
    panels = [panel([0, 1], [2 - s, 2 + s]) for s in (3, 2, 1)]
    level, both = measure_progress(panels, kappa=0), measure_progress(panels, kappa=0.5)
    assert level.progress == 0
    assert both.progress == pytest.approx(math.sqrt(2) / 2, rel=1e-14)
    # Both items are equally far from their mean, so neither pulls the spread more than the other.
    assert both.paired_se == pytest.approx(level.paired_se, rel=1e-12)
    equal = [panel([0, 1], [2.0, 2.0])] * 3
    assert measure_progress(equal, kappa=0.5) == (0, 0, 0)


def test_state_goes_through_json_bit_for_bit_in_the_middle_of_a_run():
    losses = np.random.default_rng(7).normal(2, 0.3, (40, 2, 50))
    first = ProgressEstimator(2, kappa=0.5)
    rounds = list(zip(rotating_panels(losses[:, 0], 20), rotating_panels(losses[:, 1], 20), strict=True))
    for panels in rounds[:25]:
        first.observe(panels)
    second = ProgressEstimator(2, kappa=0.5)
    second.load_state_dict(json.loads(json.dumps(first.state_dict())), places=[0, 1])
    for r in range(25, 40):
        mine, theirs = (estimator.observe(rounds[r]) for estimator in (first, second))
        assert mine.round_index == theirs.round_index == r
        assert mine.progress.tobytes() == theirs.progress.tobytes()
        assert mine.progress_se.tobytes() == theirs.progress_se.tobytes()
    assert first.state_dict() == second.state_dict()
    assert len(first.state_dict()["window"]) == 10


def test_a_state_is_taken_over_source_by_source_and_a_new_one_begins_with_its_third_round():
    """The second source comes first, a new one stands beside it, the first is gone."""
    losses = np.random.default_rng(8).normal(2, 0.3, (9, 3, 30))
    panels = [rotating_panels(losses[:, k], 20) for k in range(3)]
    before, alone, after = ProgressEstimator(2, 0.5), ProgressEstimator(1, 0.5), ProgressEstimator(2, 0.5)
    for r in range(5):
        before.observe([panels[0][r], panels[1][r]])
        alone.observe([panels[1][r]])
    after.load_state_dict(json.loads(json.dumps(before.state_dict())), places=[1, None])
    errors = []
    for r in range(5, 9):
        want, got = alone.observe([panels[1][r]]), after.observe([panels[1][r], panels[2][r]])
        for name in ("difficulty", "difficulty_se", "variance", "metric", "progress", "progress_se"):
            assert getattr(got, name)[0] == getattr(want, name)[0]
        errors.append(float(got.progress_se[1]))
    assert errors[:2] == [math.inf, math.inf] and max(errors[2:]) < math.inf


def test_losses_relative_to_the_first_round_scale_every_figure_alike():
    """The first metrics are 4 and 2: progress and errors are a quarter and a half, variances their squares."""
    rng = np.random.default_rng(9)
    plain, relative = ProgressEstimator(2, kappa=0), ProgressEstimator(2, kappa=0, relative=True)
    first = [panel([0, 1, 2], [3, 4, 5]), panel([0, 1, 2], [1, 2, 3])]
    rounds = [first, *([panel([0, 1, 2], rng.normal(2, 1, 3)) for _ in range(2)] for _ in range(3))]
    scale = np.array([4.0, 2.0])
    for panels in rounds:
        want, got = plain.observe(panels), relative.observe(panels)
        for name in ("difficulty", "difficulty_se", "metric", "progress", "progress_se"):
            np.testing.assert_allclose(getattr(got, name), getattr(want, name) / scale, rtol=1e-14)
        np.testing.assert_allclose(got.variance, want.variance / scale**2, rtol=1e-14)
        resumed = ProgressEstimator(2, kappa=0, relative=True)
        resumed.load_state_dict(json.loads(json.dumps(relative.state_dict())), places=[0, 1])
        relative = resumed


def test_arrays_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match=r"metric is \(3,\); difficulty has \(2,\)"):
        LossEstimates(0, np.zeros(2), np.zeros(2), np.zeros(2), np.zeros(3), np.zeros(2), np.zeros(2))
    with pytest.raises(ValueError, match=r"Estimates.tokens is \(3,\); difficulty has \(2,\)"):
        estimates_of(2, tokens=np.zeros(3))
    with pytest.raises(ValueError, match="1 panels for 2 sources"):
        ProgressEstimator(2, kappa=0).observe([panel([0], [1.0])])
