"""What the judge of the curriculum benchmark makes of curves, by hand, and what is kept of these curves."""

import importlib.util
import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from bench import curriculum_judge
from bench.curriculum_curves import curves, write
from bench.curriculum_settings import Settings


def made(
    excess, *, sources=("copy", "noise"), strategy="second_order", mixture="waste", seed=0, weights=(), drawn=None
):
    """A result by hand: evaluations at 0, 1, 2, ... million tokens, excess of each source at each of them."""
    budget = [1e6 * at for at in range(len(excess))]
    settings = Settings(mixture, list(sources), strategy, seed, budget=int(budget[-1]))
    return {
        "settings": asdict(settings),
        "curve": {
            "budget_used": budget,
            "excess": [list(row) for row in excess],
            "drawn": drawn or [[used / len(sources)] * len(sources) for used in budget],
        },
        "start_weights": [1 / len(sources)] * len(sources),
        "rounds": {"weights": [list(row) for row in weights], "budget_used": [1e6 + at for at in range(len(weights))]}
        if weights
        else {},
        "probe_tokens": 300_000,
        "trained_tokens": 4_000_000,
        "seconds": 1.0,
    }


def test_a_curve_reaches_a_level_between_two_of_its_corners():
    """From 8 at 0 to 4 at 10: 5 is reached after three quarters of the way; 1 is never reached."""
    budget, excess = np.array([0.0, 10.0, 20.0]), np.array([8.0, 4.0, 2.0])
    assert curriculum_judge.first_reach(budget, excess, 5.0) == pytest.approx(7.5)
    assert curriculum_judge.first_reach(budget, excess, 4.0) == pytest.approx(10.0)
    assert curriculum_judge.first_reach(budget, excess, 9.0) == 0.0
    assert curriculum_judge.first_reach(budget, excess, 1.0) is None


def test_speedup_worked_by_hand():
    """Uniform ends with 2 and 1, so its final average is 1.5, reached at 3.5 million tokens; the noise does not count.
    The other has 2 at a million and 1 at two: it is there after 1.5 million."""
    uniform = made([(8, 0), (6, 9), (4, 0), (2, 0), (1, 9)])
    other = made([(8, 5), (2, 5), (1, 5), (1, 5), (1, 5)])
    assert curriculum_judge.speedup(other, uniform) == pytest.approx(3.5 / 1.5)
    assert curriculum_judge.speedup(uniform, uniform) == 1.0
    assert curriculum_judge.speedup(made([(8, 0), (7, 0), (6, 0), (5, 0), (4, 0)]), uniform) == 0.0


def test_interval_of_three_ratios_by_hand():
    """Logarithms 0.1, 0.2 and 0.3: mean 0.2, standard deviation 0.1, t of two degrees of freedom 4.303."""
    half = 4.303 * 0.1 / math.sqrt(3)
    mean, low, high = curriculum_judge.interval_of_ratios([math.exp(0.2), math.exp(0.1), math.exp(0.3)])
    assert [math.log(mean), math.log(low), math.log(high)] == pytest.approx([0.2, 0.2 - half, 0.2 + half])
    assert curriculum_judge.interval_of_ratios([1.5]) == [pytest.approx(1.5), None, None]
    assert curriculum_judge.interval_of_ratios([1.5, 0.0]) == [0.0, 0.0, None]
    assert curriculum_judge.interval_of_ratios([]) is None


def test_quantiles_hold_what_they_say():
    """97.5% of Student's t below each, by integrating its density."""
    for freedom, quantile in enumerate(curriculum_judge.T_QUANTILES, 1):
        t = np.linspace(0, quantile, 200_001)
        norm = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
        assert np.trapezoid(norm * (1 + t**2 / freedom) ** (-(freedom + 1) / 2), t) == pytest.approx(0.475, abs=2e-5)


def test_noise_share_counts_what_is_drawn_after_a_fifth():
    """A fifth of 5 million is 1 million.  After it 4 million are drawn, 0.4 million of them noise."""
    drawn = [[0, 0], [5e5, 5e5], [1.5e6, 5e5], [2.5e6, 5e5], [3.5e6, 5e5], [4.1e6, 9e5]]
    result = made([(1, 0)] * 6, drawn=drawn)
    assert curriculum_judge.noise_share(result) == pytest.approx(0.1)


def test_weights_are_followed_from_those_of_the_start():
    """From (1/2, 1/2) to (.7, .3) and (.6, .4): 0.4 and 0.2 of way in all, never below 0.3."""
    result = made([(1, 0)] * 2, weights=[(0.7, 0.3), (0.6, 0.4)])
    assert curriculum_judge.churn(result) == pytest.approx(0.6)
    assert curriculum_judge.min_share(result) == pytest.approx(0.3)
    assert curriculum_judge.probe_overhead(result) == pytest.approx(0.025)
    turned = made([(0, 1)] * 2, sources=("noise", "copy"), weights=[(0.3, 0.7), (0.45, 0.55)])
    assert curriculum_judge.permutation_error(result, turned) == pytest.approx(0.05)


def test_the_line_of_two_strategies_on_two_mixtures_by_hand():
    """Two seeds; on the clean mixture second_order ends 10% above uniform and 30% above it: 20% on average."""
    names = ("easy", "copy", "noise")
    waste = [
        made([(9, 9, 9), (2, 4, 9), (0, 2, 9)], sources=names, strategy=strategy, seed=seed)
        for seed in (0, 1)
        for strategy in ("uniform", "second_order")
    ]
    clean = [
        made([(4, 4), (end, end), (end, end)], sources=("easy", "copy"), strategy=strategy, seed=seed, mixture="clean")
        for seed, strategy, end in (
            (0, "uniform", 1),
            (0, "second_order", 1.1),
            (1, "uniform", 2),
            (1, "second_order", 2.6),
        )
    ]
    line = curriculum_judge.judge(waste + clean, "waste")
    found = line["strategies"]["second_order"]
    assert (found["final_average_excess"], found["worst_excess"], found["worst_source"]) == (2.0, 3.0, "copy")
    assert found["speedup_to_uniform"] == [1.0, 1.0, 1.0] and found["hard_gap"] == 0.0
    assert line["clean_mixture_gap"] == pytest.approx(0.2)
    assert line["mixtures"]["clean"]["second_order"]["gaps"] == pytest.approx([0.1, 0.3])
    assert line["mixtures"]["clean"]["second_order"]["noise_share"] is None
    assert line["permutation_error"] is None


def test_curves_hold_the_mean_and_the_band_of_the_seeds(tmp_path):
    """Excess 2 and 1 at a million tokens in two seeds; weights of noise 0.2 and 0.4."""
    runs = [made([(4, 0), (end, 0)], seed=seed, weights=[(1 - w, w)]) for seed, end, w in ((0, 2, 0.2), (1, 1, 0.4))]
    found = curves(runs)
    assert found["waste"]["second_order"] == {
        "budget": [0, 1_000_000],
        "excess": [[4.0, 1.5], [4.0, 1.0], [4.0, 2.0]],
        "round_budget": [0, 1_000_000],
        "weights": {"copy": [0.5, 0.7], "noise": [0.5, 0.3]},
    }
    drawn = write(found, tmp_path / "new" / "curves")
    assert json.loads((tmp_path / "new" / "curves.json").read_text()) == found
    assert drawn == (importlib.util.find_spec("matplotlib") is not None)
    assert not drawn or (tmp_path / "new" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_texts_loss_counts_in_the_average_and_in_nothing_that_is_of_known_sources():
    """Copy 4% worse, the text's loss as it is: 0.2% in the average, 4% of what is known; copy is the worst."""
    rows = {"uniform": (0.1, 1.9, 7), "second_order": (0.104, 1.9, 7)}
    runs = [
        made([(8, 8, 8), row, row], sources=("copy", "text", "noise"), strategy=name, mixture="clean")
        for name, row in rows.items()
    ]
    figures = curriculum_judge.judge(runs, "clean")["strategies"]["second_order"]
    assert figures["gaps"] == [pytest.approx(0.002)]
    assert figures["known_gaps"] == [pytest.approx(0.04)]
    assert (figures["worst_source"], figures["worst_excess"]) == ("copy", pytest.approx(0.104))
    assert figures["known_average_excess"] == pytest.approx(0.104)
