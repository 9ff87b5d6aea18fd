"""The target mixture by hand, rule by rule, each one also switched off."""

import math

import numpy as np
import pytest

from destruct.curriculum.target import credit, exploration_shares, next_idle
from destruct.curriculum.weight_dynamics import WeightDynamics
from tests.curriculum.rounds import dials_of, estimates_of, target

HALVES, QUARTERS = np.array([0.5, 0.5]), np.full(4, 0.25)


def test_target_worked_by_hand():
    """LP (.3, .1, -.5), SE .1 each, z 1: u = (.2, 0, 0), conf = .8 * .2 / (.2 + .3) = .32."""
    prior = np.array([0.25, 0.25, 0.5])
    got = target(prior, np.array([0.3, 0.1, -0.5]), 0.1, rules={"z": 1.0})
    np.testing.assert_allclose(got.evidence, [0.2, 0, 0], atol=1e-16)
    assert got.confidence == pytest.approx(0.32, rel=1e-14)
    np.testing.assert_allclose(got.weights, [0.32 + 0.68 / 4, 0.68 / 4, 0.68 / 2], rtol=1e-14)


def test_without_z_every_progress_counts():
    """u = (.3, .1), conf = .8 * .4 / (.4 + .2) = 8/15, q = 8/15 (3/4, 1/4) + 7/15 (1/2, 1/2)."""
    got = target(progress=np.array([0.3, 0.1]), progress_se=0.1)
    np.testing.assert_allclose(got.evidence, [0.3, 0.1], rtol=1e-15)
    np.testing.assert_allclose(got.weights, [0.4 + 7 / 30, 2 / 15 + 7 / 30], rtol=1e-14)


def test_all_rules_together_worked_by_hand():
    """Four sources of prior 1/4: one drawn four times as much, one forgotten, one repeated, one exhausted.

    p = LP / (share/w0)^.5: shares (1, .25, .25, 0)/1.5 of w0 1/3, among three, are (2, .5, .5, .05 at least).
    """
    share = np.array([1.0, 0.25, 0.25, 0.0]) / 1.5
    drawn = np.sqrt([2, 0.5, 0.5, 0.05])
    progress, se = np.array([0.4, -0.2, 0.1, 0.3]), 0.02
    p, e = progress / drawn, se / drawn
    u = np.array([p[0] - e[0], 0.5 * (-p[1] - 2 * e[1]), (p[2] - e[2]) * math.exp(-2 / 15.4), 0.0])
    explored = np.array([1, 0.5, 1]) / 2.5
    conf = 0.8 * u.sum() / (u.sum() + e[:3].sum())
    got = target(
        QUARTERS,
        progress,
        se,
        idle=np.array([1.0, 6.0, 1.0, 1.0]),
        rules={"z": 1.0, "credit": 0.5, "rescue": 0.5, "repetition_epochs": 15.4, "exploration_rounds": 5.0},
        share=share,
        epochs=[0.4, 0.9, 3.0, 1.0],
        exhausted=[0, 0, 0, 1],
    )
    np.testing.assert_allclose(got.evidence, u, rtol=1e-13)
    np.testing.assert_allclose(got.rescued, [0, u[1], 0, 0], rtol=1e-13)
    live = conf * u[:3] / u.sum() + (1 - conf) * explored
    np.testing.assert_allclose(got.weights, [*(0.75 * live), 0.25], rtol=1e-13)


@pytest.mark.parametrize(
    ("power", "want"),
    [(0.0, [0.3, 0.3, 0.3]), (0.5, [0.15, 0.3, 0.3 / math.sqrt(0.05)]), (1.0, [0.075, 0.3, 6.0])],
)
def test_credit_divides_by_the_share_over_the_prior_and_never_by_less_than_a_twentieth(power, want):
    """Shares (.8, .2, .001) of priors .2: 4, 1 and .005, which counts as .05."""
    share, prior = np.array([0.8, 0.2, 0.001]), np.array([0.2, 0.2, 0.2])
    p, se = credit(np.full(3, 0.3), np.full(3, 0.03), share, prior, power)
    np.testing.assert_allclose(p, want, rtol=1e-14)
    np.testing.assert_allclose(se, np.array(want) / 10, rtol=1e-14)


def test_nothing_is_credited_while_nothing_was_drawn():
    p, se = credit(np.array([0.3, 0.1]), np.array([0.1, 0.2]), np.zeros(2), HALVES, power=1.0)
    assert p.tolist() == [0.3, 0.1] and se.tolist() == [0.1, 0.2]


def test_credit_moves_no_progress_over_its_error():
    """p / se is what significance looks at; only the worth of what is significant is weighed."""
    share = np.array([0.7, 0.3])
    p, se = credit(np.array([0.3, 0.1]), np.array([0.1, 0.2]), share, HALVES, power=0.5)
    np.testing.assert_allclose(p / se, [3.0, 0.5], rtol=1e-14)


@pytest.mark.parametrize(
    ("share", "progress", "growth", "growth_se", "rescued"),
    [
        (0.4, -0.30, 0.0, 0.0, 0.05),  # .5 * (.3 - 2 * .1)
        (0.5, -0.30, 0.0, 0.0, 0.0),  # drawn as the prior asks: it gets worse without being starved
        (0.6, -0.30, 0.0, 0.0, 0.0),
        (0.4, -0.20, 0.0, 0.0, 0.0),  # not beyond two standard errors
        (0.4, -0.19, 0.0, 0.0, 0.0),
        (0.4, -0.30, 0.15, 0.1, 0.05),  # of what is lost held out, half is lost of the training text too: forgotten
        (0.4, -0.30, 0.16, 0.01, 0.0),  # less than half: learnt by heart
        (0.4, -0.30, 0.16, 0.9, 0.0),  # whatever the error of the gap
        (0.4, -0.30, math.nan, math.inf, 0.0),  # whether it grows is not known
        (0.4, -0.30, -0.5, 0.1, 0.05),  # it shrinks
    ],
)
def test_rescue_is_for_what_is_drawn_too_little_and_forgotten(share, progress, growth, growth_se, rescued):
    figures = {"share": [share, 1 - share], "gap_growth": [growth, 0.0], "gap_growth_se": [growth_se, 0.0]}
    for phi in (0.5, 0.0):
        got = target(progress=np.array([progress, 0.0]), progress_se=0.1, rules={"rescue": phi}, **figures)
        np.testing.assert_allclose(got.rescued, [rescued * phi / 0.5, 0], atol=1e-15)
        assert got.evidence.tolist() == got.rescued.tolist()


def test_rescue_counts_where_nothing_was_drawn_at_all():
    """A share of 0 is below any prior."""
    got = target(progress=np.array([-0.5, 0.1]), progress_se=0.1, rules={"rescue": 0.5}, share=[0.0, 1.0])
    np.testing.assert_allclose(got.rescued, [0.15, 0], rtol=1e-14)


def test_repetition_discounts_after_the_first_epoch():
    """Epochs 0, 1, 3 and 11 of R* = 10: 1, 1, e^-.2 and 1/e of the worth; rescue is discounted alike."""
    epochs, want = [0.0, 1.0, 3.0, 11.0], np.array([1, 1, math.exp(-0.2), math.exp(-1)])
    got = target(QUARTERS, np.full(4, 0.1), epochs=epochs, rules={"repetition_epochs": 10.0})
    np.testing.assert_allclose(got.evidence, 0.1 * want, rtol=1e-14)
    assert target(QUARTERS, np.full(4, 0.1), epochs=epochs).evidence.tolist() == [0.1] * 4
    share = [0.1, 0.1, 0.1, 0.7]
    lost = target(QUARTERS, -0.12, epochs=epochs, share=share, rules={"repetition_epochs": 10.0, "rescue": 1.0})
    np.testing.assert_allclose(lost.rescued, 0.1 * want * [1, 1, 1, 0], rtol=1e-13)


def test_what_is_exhausted_keeps_its_prior_and_earns_nothing_neither_by_progress_nor_by_rescue():
    """Of .5 that are left to the other two, with u = (.1, 0) and errors .03: conf = .8 * .1 / .16."""
    figures = {"exhausted": [1, 0, 1, 0], "share": [0.1, 0.6, 0.1, 0.2], "rules": {"rescue": 1.0}}
    got = target(QUARTERS, np.array([0.5, 0.1, -0.5, 0.0]), 0.03, **figures)
    assert got.evidence.tolist() == [0, 0.1, 0, 0] and got.rescued.tolist() == [0, 0, 0, 0]
    np.testing.assert_allclose(got.weights, [0.25, 0.25 + 0.5 * 0.25, 0.25, 0.25 - 0.5 * 0.25], rtol=1e-14)
    after = next_idle(np.array([3.0, 0, 0.5, 0]), got, estimates_of(tokens=[0.0] * 4), QUARTERS)
    assert after.tolist() == [3.0, 0, 0.5, 0]


def test_the_others_share_as_though_what_is_exhausted_had_never_been():
    """Priors .3, .2 and .1 by themselves, and beside one of .4 that is exhausted, whatever is measured of it, through
    50 rounds of idleness, credit, rescue and plateaus."""
    rng, rules = np.random.default_rng(0), {"z": 0.7, "credit": 0.5, "rescue": 0.5, "exploration_rounds": 3.0}
    prior, idle, moved, rescued = np.array([0.4, 0.3, 0.2, 0.1]), np.array([2.0, 3, 1, 0]), 0, 0
    for _ in range(50):
        progress, tokens = rng.normal(0, 0.02, 4), rng.uniform(0, 1, 4) * [0, 1, 1, 1]
        figures = {"compressed": rng.uniform(2.9, 3.1, 4), "share": tokens / tokens.sum(), "tokens": tokens}
        now = figures | {"exhausted": [1, 0, 0, 0]}
        theirs = {name: x[1:] for name, x in figures.items()}
        beside = target(prior, progress, 0.01, idle, rules=rules, **now)
        alone = target(prior[1:] / 0.6, progress[1:], 0.01, idle[1:], rules=rules, **theirs)
        assert beside.weights[0] == 0.4
        np.testing.assert_allclose(beside.weights[1:] / 0.6, alone.weights, rtol=1e-12)
        after = next_idle(idle[1:], alone, estimates_of(**theirs), prior[1:] / 0.6)
        idle = next_idle(idle, beside, estimates_of(**now), prior)
        np.testing.assert_allclose(idle, [2, *after], rtol=1e-12)
        moved, rescued = moved + (beside.confidence > 0.1), rescued + beside.rescued.any()
    assert moved > 20 and rescued > 5


def test_perfect_evidence_leaves_a_fifth_to_exploration():
    got = target(progress=np.array([0.1, 0.0]), progress_se=0.0, rules={"z": 1.0})
    assert got.confidence == pytest.approx(0.8, rel=1e-15)
    np.testing.assert_allclose(got.weights, [0.9, 0.1], rtol=1e-15)


def test_exploration_halves_every_so_many_idle_rounds():
    """Idle 10, 0 and 5 rounds, H = 5: priors times 1/4, 1 and 1/2, in all .55."""
    prior = np.array([0.4, 0.3, 0.3])
    want = np.array([0.1, 0.3, 0.15]) / 0.55
    for at in (0, 7, 1e6):
        np.testing.assert_allclose(exploration_shares(prior, at + np.array([10.0, 0, 5]), 5.0), want, rtol=1e-9)
    np.testing.assert_allclose(exploration_shares(prior, np.array([10.0, 0, 5]), math.inf), prior, rtol=1e-15)
    got = target(prior, idle=np.array([10.0, 0, 5]), rules={"exploration_rounds": 5.0})
    np.testing.assert_allclose(got.weights, want, rtol=1e-14)


def test_idle_rounds_are_counted_in_prior_shares_by_evidence_and_halved_by_certain_progress():
    """Tokens (40, 30, 30) of priors (.4, .2, .4): 1, 1.5 and .75 rounds; of three idle ones 2.7 are left. The third
    one's progress is 2.1 errors: 7/17 of what may be claimed at most is claimed; with 2 errors .4, with none nothing.
    """
    prior, idle, drawn = np.array([0.4, 0.2, 0.4]), np.array([3.0, 3.0, 3.0]), [40.0, 30.0, 30.0]
    for progress, want in ((0.021, [2.7 + 7 / 17, 2.7 + 21 / 34, 1.5]), (0.02, [3.1, 3.3, 3]), (-0.02, [2.7] * 3)):
        got = target(prior, np.array([0.0, -9.0, progress]), 0.01)
        np.testing.assert_allclose(next_idle(idle, got, estimates_of(tokens=drawn), prior), want, rtol=1e-14)
    undrawn = next_idle(np.array([3.0, 1, 2]), target(prior, 0.01), estimates_of(tokens=[0.0] * 3), prior)
    np.testing.assert_allclose(undrawn, [2.7, 0.9, 1.8], rtol=1e-14)


@pytest.mark.parametrize("unknown", [(math.nan, 0.01), (0.0, math.inf)])
def test_a_source_that_is_not_known_is_not_counted_idle(unknown):
    """Of the two known ones one makes progress of one error: a third of what may be claimed at most."""
    prior, idle = np.full(3, 1 / 3), np.array([0.0, 3.0, 3.0])
    got = target(prior, np.array([0.0, unknown[0], 0.01]), np.array([0.01, unknown[1], 0.01]))
    after = next_idle(idle, got, estimates_of(tokens=[1.0, 1.0, 1.0]), prior)
    np.testing.assert_allclose(after, [1 / 3, 3, 2.7 + 1 / 3], rtol=1e-14)


@pytest.mark.parametrize("z", [0.0, 1.0])
def test_without_evidence_the_target_is_the_prior_where_all_were_idle_alike(z):
    prior = np.array([0.5, 0.25, 0.25])
    se = np.full(3, 0.01)
    for progress, error in (
        (np.array([-0.2, -0.1, -0.3]), se),
        (np.zeros(3), np.full(3, math.inf)),
        (np.full(3, math.nan), se),
        (np.full(3, 1e308), se),
    ):
        with np.errstate(over="ignore"):
            got = target(prior, progress, error, idle=4.0, rules={"z": z, "exploration_rounds": 5.0})
        assert got.confidence == 0 and got.weights.tolist() == prior.tolist()


@pytest.mark.parametrize(("progress", "error"), [(math.nan, 0.01), (math.inf, 0.01), (0.2, math.inf), (0.2, math.nan)])
def test_what_is_not_known_keeps_its_prior_and_the_rest_is_shared(progress, error):
    """Source 1 is not known: 7/10 are left; among .6 and .1 with u = (.2, 0): conf = .8 * .2 / (.2 + .2)."""
    prior = np.array([0.6, 0.3, 0.1])
    got = target(prior, np.array([0.2, progress, 0.0]), np.array([0.1, error, 0.1]), idle=np.array([0.0, 99, 0]))
    assert got.weights[1] == 0.3 and got.confidence == pytest.approx(0.4, rel=1e-14)
    np.testing.assert_allclose(got.weights, [0.7 * (0.4 + 0.6 * 6 / 7), 0.3, 0.7 * 0.6 / 7], rtol=1e-14)
    assert got.evidence[1] == got.rescued[1] == 0


def test_a_source_known_alone_is_left_with_what_the_others_leave():
    """However long it was idle, and however short exploration is meant to be."""
    prior = np.array([0.6, 0.3, 0.1])
    unknown = np.array([0.01, math.inf, math.inf])
    got = target(prior, 0.0, unknown, idle=np.array([9999.0, 0, 0]), rules={"exploration_rounds": 0.1})
    np.testing.assert_allclose(got.weights, prior, rtol=1e-15)


def observed(strategy: WeightDynamics, prior, rounds: int, start: int = 0, **figures) -> None:
    """Rounds in which the strategy's own weights are drawn."""
    for round_index in range(start, start + rounds):
        w = strategy.weights()
        figures = {"progress": np.zeros_like(prior)} | figures
        strategy.observe(estimates_of(round_index, tokens=1000 * w, share=w, **figures))


def test_without_evidence_the_mixture_does_not_drift_from_an_uneven_prior():
    prior = np.array([0.6, 0.3, 0.1])
    strategy = WeightDynamics(prior, dials_of(3), towards_target=True)
    observed(strategy, prior, 200)
    np.testing.assert_allclose(strategy.target, prior, atol=1e-12)
    np.testing.assert_allclose(strategy.weights(), prior, atol=1e-12)


@pytest.mark.parametrize("learnt", [25, 100])
@pytest.mark.parametrize("prior", [[0.5, 0.3, 0.2], [1 / 8] * 8, [1 / 30] * 30])
def test_when_nothing_is_learnt_any_more_the_mixture_returns_to_the_prior(prior, learnt):
    """Source 0 alone is learnt, however long. Within 40 rounds after that all weights are the priors within a tenth,
    and its own never falls below: it is not made to pay."""
    prior = np.array(prior)
    strategy = WeightDynamics(prior, dials_of(prior.size), towards_target=True)
    observed(strategy, prior, learnt, progress=[0.1] + [0.0] * (prior.size - 1))
    assert strategy.weights()[0] > 1.5 * prior[0]
    for start in range(learnt, learnt + 40):
        observed(strategy, prior, 1, start=start)
        assert strategy.weights()[0] > 0.999 * prior[0]
    np.testing.assert_allclose(strategy.weights(), prior, rtol=0.1)


def test_what_chance_moves_comes_back():
    """Progress of one error, by chance: over 200 rounds the weights of eight sources are their priors in the mean."""
    prior, rng, seen = np.full(8, 1 / 8), np.random.default_rng(0), []
    strategy = WeightDynamics(prior, dials_of(8), towards_target=True)
    for start in range(200):
        observed(strategy, prior, 1, start=start, progress=0.01 * rng.standard_normal(8))
        seen.append(strategy.weights())
    np.testing.assert_allclose(np.mean(seen, axis=0), prior, atol=0.02)
    assert np.std(seen, axis=0).max() < 0.05


def test_a_late_bloomer_comes_back_to_its_share_of_exploration():
    """Source 1 is idle for 30 rounds while 0 is learnt, and loses two thirds; with five of certain progress it is
    explored almost like 0, of the same prior. Without those rounds it is explored less than half as much.
    """
    prior = np.array([0.4, 0.4, 0.2])
    blooming, idle = (WeightDynamics(prior, dials_of(3), towards_target=True) for _ in range(2))
    for strategy, progress in ((blooming, 0.03), (idle, 0.0)):
        observed(strategy, prior, 32, progress=[0.1, 0.0, 0.0])
        assert strategy.weights()[1] < 0.4 / 3
        observed(strategy, prior, 5, start=32, progress=[0.1, progress, 0.0])
        observed(strategy, prior, 1, start=37)
    assert 0.8 * blooming.target[0] < blooming.target[1] < blooming.target[0]
    assert idle.target[1] < 0.5 * idle.target[0]
    assert blooming.target[2] < 0.2 and idle.target[2] < 0.2
