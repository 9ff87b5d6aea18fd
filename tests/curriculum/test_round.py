"""A whole round on tiny networks: what it refreshes, measures and moves, what it counts and what it costs."""

import json

import numpy as np
import pytest
import torch

from destruct.batch import TokenWindows
from destruct.curriculum.panels import PanelLosses, next_start, panel_items
from destruct.curriculum.progress import ProgressEstimator
from destruct.curriculum.round import Curriculum
from destruct.warmup import cross_entropy_step
from tests.curriculum.networks import ALONE, T, engines, learn, plain_nats, source
from tests.curriculum.rounds_of import HELD_OUT, PANEL, SHARES, curriculum, one_round

PRIOR = np.array(list(SHARES.values()))


def test_each_round_measures_the_policys_own_losses_on_that_rounds_panel():
    """The policy moves in between and is renewed each time.

    Panels of 10 move on by two windows a round; the source with 6 windows is measured whole.
    """
    (policy, frozen), rounds = engines(), curriculum()
    seen = []
    for r in range(4):
        estimates = one_round(rounds, policy, frozen)
        for k, windows in enumerate(HELD_OUT.values()):
            items = panel_items(2 * r, PANEL, len(windows))
            losses = plain_nats(policy, windows[torch.from_numpy(items)]).mean(1)
            assert estimates.difficulty[k] == pytest.approx(losses.mean(), rel=1e-6)
            assert estimates.variance[k] == pytest.approx(losses.var(ddof=1), rel=1e-4)
        seen.append(estimates.difficulty[0])
        learn(policy)
    assert seen == sorted(seen, reverse=True) and seen[0] - seen[3] > 0.5, "the first source is being learnt"
    assert rounds.rounds == 4


def test_weights_stay_at_the_prior_for_two_rounds_and_then_follow_progress():
    """Three rounds are the fewest with a slope; from then on the learnt source gains, the noise keeps its floor."""
    (policy, frozen), rounds = engines(), curriculum()
    weights = []
    for _ in range(5):
        one_round(rounds, policy, frozen)
        weights.append(rounds.weights)
        learn(policy)
    assert weights[0].tolist() == weights[1].tolist() == PRIOR.tolist()
    assert weights[2][0] > PRIOR[0]
    assert weights[4][0] > weights[2][0]
    for w in weights:
        assert w.sum() == pytest.approx(1, abs=1e-12)
        assert w.min() >= 0.05
    assert rounds.significant[0] == 3, "rounds 3, 4 and 5"
    assert not rounds.significant[1:].any(), "noise is not learnt"


def test_the_literal_rule_waits_for_the_third_round_too_and_then_makes_its_three_lines():
    """w + eta * (M - mean M), clipped at 0, divided by the sum, with the M that the round returned."""
    (policy, frozen), rounds = engines(), curriculum("literal")
    for _ in range(2):
        one_round(rounds, policy, frozen)
        learn(policy)
        assert rounds.weights.tolist() == PRIOR.tolist()
    metric = one_round(rounds, policy, frozen).metric
    moved = np.clip(PRIOR + 0.5 * (metric - metric.mean()), 0, None)
    np.testing.assert_allclose(rounds.weights, moved / moved.sum(), rtol=1e-12)
    assert np.abs(rounds.weights - PRIOR).max() > 0.1


def test_a_round_is_significant_for_a_source_beyond_two_standard_errors():
    """Weights shaken at random: losses rise and fall within their errors, and a fall is not yet progress."""
    (policy, frozen), rounds = engines(), curriculum()
    shaken, counts = torch.Generator().manual_seed(0), [0, 0, 0]
    doubtful = 0
    for _ in range(8):
        estimates = one_round(rounds, policy, frozen)
        for k in range(3):
            progress, error = float(estimates.progress[k]), float(estimates.progress_se[k])
            counts[k] += progress / error > 2
            doubtful += 0 < progress / error <= 2
        with torch.no_grad():
            for p in policy.parameters:
                p.add_(0.02 * torch.randn(p.shape, generator=shaken))
    assert rounds.significant.tolist() == counts
    assert doubtful > 3


def test_without_learning_nothing_moves_and_nothing_is_significant():
    """The same weights are measured on moving panels: differences over common windows are exactly 0."""
    (policy, frozen), rounds = engines(), curriculum()
    for _ in range(5):
        estimates = one_round(rounds, policy, frozen)
    assert np.abs(estimates.progress).max() < 1e-12
    assert rounds.significant.tolist() == [0, 0, 0]
    np.testing.assert_allclose(rounds.weights, PRIOR, atol=1e-6)


def test_a_round_leaves_the_policy_as_it_is():
    policy, frozen = engines()
    before = [p.detach().clone() for p in policy.parameters]
    one_round(curriculum(), policy, frozen)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters, strict=True))
    assert all(p.grad is None for p in policy.parameters)


def counted(rounds: Curriculum) -> dict:
    """What a checkpoint keeps of the time since the round before."""
    return json.loads(json.dumps(rounds.state_dict()))["since_the_round"]


def test_batches_add_up_until_the_round_that_reports_them():
    """Two batches of 40 tokens, trained on twice and once and a half."""
    (policy, frozen), rounds = engines(), curriculum()
    assert one_round(rounds, policy, frozen).batches == 0
    feedback = np.arange(21.0).reshape(3, 7)
    rounds.count(np.array([10, 10, 20]), 2.0, feedback)
    rounds.count(np.array([30, 0, 10]), 1.5, 2 * feedback)
    since = counted(rounds)
    assert (since["tokens"], since["trained"], since["batches"]) == ([40.0, 10.0, 30.0], 140.0, 2)
    assert since["feedback"] == (3 * feedback).tolist()
    estimates = one_round(rounds, policy, frozen)
    assert (estimates.tokens.tolist(), estimates.batches) == ([40.0, 10.0, 30.0], 2)
    assert estimates.share.tolist() == [0.5, 0.125, 0.375]
    assert rounds.trained_tokens == 140
    assert (counted(rounds)["tokens"], counted(rounds)["trained"], counted(rounds)["batches"]) == ([0.0] * 3, 0.0, 0)


def test_the_share_is_that_of_the_tokens_between_the_rounds_of_the_slope():
    """A slope over three rounds spans two intervals: after the fourth round the first interval is forgotten."""
    (policy, frozen), rounds = engines(), curriculum("static")
    seen = []
    for tokens in ([0, 0, 0], [100, 0, 0], [0, 60, 40], [0, 0, 100], [20, 80, 0]):
        rounds.count(np.array(tokens), 1.0)
        seen.append(one_round(rounds, policy, frozen).share.tolist())
    assert seen == [[0, 0, 0], [1, 0, 0], [0.5, 0.3, 0.2], [0, 0.3, 0.7], [0.1, 0.4, 0.5]]


def test_a_budget_shrinks_the_panels_which_still_share_their_windows():
    """A window of each source has 3 x 8 = 24 tokens, and half a token may be scored per token trained on.

    Nothing is trained at first: 20 windows. 768 tokens allow .5 * 768 / 24 = 16, 96 would allow 2 and get 12, a million
    the 20 that are asked for. Panels start a fifth of the last one's size further on: at 0, 4, 4 + 3 and 7 + 2.
    """
    held_out = {name: source(kind, 30) for kind, name in enumerate(SHARES)}
    (policy, frozen), rounds = engines(), curriculum(held_out=held_out, size=20, budget=0.5)
    sizes, panels, shares = [], [], [rounds.probe_share]
    for tokens, passes in (([0, 0, 0], 1.0), ([300, 84, 0], 2.0), ([32, 32, 32], 1.0), ([10**6, 0, 0], 1.0)):
        rounds.count(np.array(tokens), passes)
        one_round(rounds, policy, frozen)
        sizes.append(rounds.panel_size)
        panels.append(rounds.state_dict()["progress"]["window"][-1][0]["items"])
        shares.append(rounds.probe_share)
    assert sizes == [20, 16, 12, 20]
    assert [(items[0], items[-1]) for items in panels] == [(0, 19), (4, 19), (7, 18), (9, 28)]
    assert [len({*a} & {*b}) for a, b in zip(panels, panels[1:], strict=False)] == [16, 12, 10]
    # 24 tokens for each window of a panel, over what was trained on until then.
    costs = [0, 0, 24 * 36 / 768, 24 * 48 / 864, 24 * 68 / 1_000_864]
    assert shares == pytest.approx(costs, rel=1e-14)


def test_training_windows_are_scored_after_a_first_epoch_and_their_tokens_counted_too():
    """A quarter of the 20 held-out windows, of the one source that was gone through: 5 windows of 8 tokens more."""
    held_out = {name: source(kind, 30) for kind, name in enumerate(SHARES)}
    (policy, frozen), rounds = engines(), curriculum(held_out=held_out, size=20)
    spent = []
    for epochs in ([0.9, 0.0, 0.5], [1.0, 0.0, 0.99]):
        one_round(rounds, policy, frozen, np.array(epochs))
        spent.append(rounds.prober.tokens)
    assert spent == [60 * T, 120 * T + 5 * T]


def test_gap_growth_is_the_progress_on_training_windows_less_that_on_held_out_ones():
    """The run of tokens is overfitted on twelve windows, gone through after two rounds: three rounds on their losses
    make it known.  By transformers' losses on the panels that the ring gives, 20 of 30 and 5 of 12 windows, the latter
    moving by a fifth of 5.
    """
    held_out, seen = {"runs": source(1, 30), "noise": source(2, 30)}, source(3, 12)
    (policy, frozen) = engines()
    rounds = curriculum(shares={"runs": 0.5, "noise": 0.5}, held_out=held_out, training=[seen, source(4, 12)], size=20)
    whole, trained = ProgressEstimator(1, kappa=0.5), ProgressEstimator(1, kappa=0.5)

    def losses(windows: torch.Tensor, start: int, size: int) -> PanelLosses:
        items = panel_items(start, size, len(windows))
        nats = plain_nats(policy, windows[torch.from_numpy(items)]).mean(1)
        return PanelLosses(items, nats, np.full(items.size, T - 1), len(windows))

    start, training_start = 0, 0
    for r in range(6):
        got = one_round(rounds, policy, frozen, np.array([r / 2, 0.0]))
        old = whole.observe([losses(held_out["runs"], start, 20)])
        new = trained.observe([losses(seen, training_start, 5) if r >= 2 else None])
        start, training_start = next_start(start, 20), next_start(training_start, 5)
        assert (got.gap_growth[1], got.gap_growth_se[1]) == (0, 0), "never seen twice"
        if r < 2:
            assert (got.gap_growth[0], got.gap_growth_se[0]) == (0, 0)
        elif r < 4:
            assert np.isnan(got.gap_growth[0]) and np.isinf(got.gap_growth_se[0])
        else:
            growth = float(new.progress[0] - old.progress[0])
            assert growth > 0.1, "what is learnt by heart"
            assert got.gap_growth[0] == pytest.approx(growth, rel=1e-4)
            error = np.hypot(new.progress_se[0], old.progress_se[0])
            assert got.gap_growth_se[0] == pytest.approx(error, rel=1e-3)
        for _ in range(3):
            cross_entropy_step(policy, TokenWindows.full(seen), 1e-2, ALONE)
