"""Per-token losses and KL estimators."""

import math

import pytest
import torch

from destruct.ppo.kl import LOG_RATIO_CLAMP, controlled_coef, k1, k2, k3, next_coef
from destruct.ppo.loss import clipped_policy_loss, clipped_value_loss


@pytest.mark.parametrize(
    "ratio, advantage, loss, slope",
    [
        (1.0, 2.0, -2.0, -2.0),  # inside: -A rho, slope -A rho in the log ratio
        (1.1, 2.0, -2.2, -2.2),
        (1.5, 2.0, -2.6, 0.0),  # already 30% likelier than before: no more to gain
        (0.5, 2.0, -1.0, -1.0),  # made less likely although good: never cut
        (1.1, -2.0, 2.2, 2.2),
        (0.5, -2.0, 1.6, 0.0),  # already 20% less likely: no more to gain
        (1.5, -2.0, 3.0, 3.0),  # made likelier although bad: never cut
        (1.5, 0.0, 0.0, 0.0),
    ],
)
def test_policy_loss_worked_by_hand(ratio, advantage, loss, slope):
    """clip(rho, 0.8, 1.3) by eq. 7, on either side of either bound and for both signs of A."""
    log_ratio = torch.tensor(math.log(ratio), dtype=torch.float64, requires_grad=True)
    got = clipped_policy_loss(log_ratio, torch.tensor(advantage, dtype=torch.float64), clip_low=0.2, clip_high=0.3)
    got.backward()
    assert got.item() == pytest.approx(loss) and log_ratio.grad.item() == pytest.approx(slope)


@pytest.mark.parametrize(
    "ratio, advantage, loss, slope",
    [
        (2.9, -2.0, 5.8, 5.8),  # bad and likelier: pays in full up to 3
        (3.1, -2.0, 6.0, 0.0),  # and no more beyond
        (0.5, -2.0, 1.6, 0.0),  # the lower bound is where it was
        (3.1, 2.0, -2.6, 0.0),  # a good token meets the upper bound alone
        (0.5, 2.0, -1.0, -1.0),
        (3.1, 0.0, 0.0, 0.0),
    ],
)
def test_the_dual_clip_bounds_the_loss_of_bad_tokens_alone(ratio, advantage, loss, slope):
    """min(max(-A rho, -A clip(rho, 0.8, 1.3)), -3 A) for A < 0 by eq. 5."""
    log_ratio = torch.tensor(math.log(ratio), dtype=torch.float64, requires_grad=True)
    got = clipped_policy_loss(log_ratio, torch.tensor(advantage, dtype=torch.float64), 0.2, 0.3, dual_clip=3.0)
    got.backward()
    assert got.item() == pytest.approx(loss) and log_ratio.grad.item() == pytest.approx(slope)


def test_policy_loss_stays_finite_and_flat_beyond_the_clamp():
    log_ratio = torch.tensor([200.0, -200.0], requires_grad=True)
    loss = clipped_policy_loss(log_ratio, torch.tensor([-1.0, 1.0]), 0.2, 0.2)
    loss.sum().backward()
    torch.testing.assert_close(loss.detach(), torch.tensor([math.exp(20.0), -math.exp(-20.0)]))
    assert log_ratio.grad.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    "value, old_value, target, loss, slope",
    [
        (1.1, 1.0, 2.0, 0.405, -0.9),  # within 0.2 of the old value: plain 1/2 (V - R)^2
        (1.5, 1.0, 2.0, 0.32, 0.0),  # towards R and past the clip: (1.2 - 2)^2 / 2, flat
        (0.5, 1.0, 2.0, 1.125, -1.5),  # away from R: (0.5 - 2)^2 / 2, never flat
        (0.5, 1.0, 0.0, 0.32, 0.0),  # towards R from above: (0.8 - 0)^2 / 2, flat
        (1.5, 1.0, 0.0, 1.125, 1.5),
    ],
)
def test_value_loss_worked_by_hand(value, old_value, target, loss, slope):
    values = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    old, returns = (torch.tensor(x, dtype=torch.float64) for x in (old_value, target))
    got = clipped_value_loss(values, old, returns, clip_range=0.2)
    got.backward()
    assert got.item() == pytest.approx(loss) and values.grad.item() == pytest.approx(slope, abs=1e-12)


def test_estimators_worked_by_hand_at_the_logarithm_of_two():
    """p = 1/4, q = 1/2: r = log 2."""
    r = torch.tensor(math.log(2.0), dtype=torch.float64)
    assert k1(r).item() == pytest.approx(-math.log(2.0))
    assert k2(r).item() == pytest.approx(math.log(2.0) ** 2 / 2)
    assert k3(r).item() == pytest.approx(2.0 - 1.0 - math.log(2.0))


def test_k2_and_k3_are_never_negative_and_keep_their_digits_near_zero():
    r = torch.cat([torch.linspace(-30, 30, 100_001), torch.logspace(-8, 0, 100_001), -torch.logspace(-8, 0, 100_001)])
    assert k2(r).min() >= 0 and k3(r).min() >= 0
    # r^2 / 2 + r^3 / 6 to first order: e^r - 1 - r in float32 would give 0 or 1.2e-7 here.
    assert k3(torch.tensor(1e-3)).item() == pytest.approx(5.0017e-7, rel=1e-3)


@pytest.mark.parametrize("estimator", [k1, k2, k3])
def test_estimators_stand_still_beyond_the_clamp(estimator):
    r = torch.tensor([25.0, -25.0, math.inf, -math.inf], requires_grad=True)
    got = estimator(r)
    got.sum().backward()
    edge = torch.tensor([LOG_RATIO_CLAMP, -LOG_RATIO_CLAMP] * 2)
    torch.testing.assert_close(got.detach(), estimator(edge))
    assert r.grad.tolist() == [0.0] * 4


@pytest.fixture
def categoricals():
    """Log probabilities of p, as a leaf's log_softmax, and of q, over 5 outcomes, and KL(p || q)."""
    logits = torch.tensor([0.3, -0.5, 1.2, 0.0, -1.0], dtype=torch.float64, requires_grad=True)
    log_q = torch.tensor([-0.2, 0.4, 0.6, 0.1, -0.4], dtype=torch.float64).log_softmax(0)
    return logits, logits.log_softmax(0), log_q


def test_sampled_means_of_k1_and_k3_approach_the_exact_divergence(categoricals):
    """200,000 draws: the standard error is sigma / sqrt(n), and the mean must lie within five of them."""
    _, log_p, log_q = (tensor.detach() for tensor in categoricals)
    exact = torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="sum")
    draws = torch.multinomial(log_p.exp(), 200_000, True, generator=torch.Generator().manual_seed(0))
    for estimator in (k1, k3):
        samples = estimator((log_q - log_p)[draws])
        assert abs(samples.mean() - exact) < 5 * samples.std() / len(draws) ** 0.5
    assert k3((log_q - log_p)[draws]).std() < k1((log_q - log_p)[draws]).std()


def test_expected_gradients_are_what_the_table_says(categoricals):
    """The expectation over tokens is a sum over 5 outcomes with p held fixed, so no sampling error stands between."""
    logits, log_p, log_q = categoricals
    reverse = torch.autograd.grad((log_p.exp() * (log_p - log_q)).sum(), logits, retain_graph=True)[0]
    forward = torch.autograd.grad((log_q.exp() * (log_q - log_p)).sum(), logits, retain_graph=True)[0]
    wanted = {k1: torch.zeros_like(reverse), k2: reverse, k3: forward}
    for estimator, want in wanted.items():
        expected_loss = (log_p.detach().exp() * estimator(log_q - log_p)).sum()
        got = torch.autograd.grad(expected_loss, logits, retain_graph=True)[0]
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("kl", "expected"), [(0.0, 0.4), (0.1, 0.4), (0.1001, 0.6), (float("nan"), 0.6)])
def test_the_coefficient_grows_by_the_factor_only_beyond_the_bound(kl, expected):
    assert next_coef(0.4, kl, bound=0.1, breach_factor=1.5) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("kl", "expected"),
    [
        (0.05, 0.4),  # on the target
        (0.055, 0.404),  # a tenth above: 0.1 * 64 / 640 = 1%
        (0.045, 0.396),
        (0.06, 0.408),  # a fifth above: 2%, and no more
        (5.0, 0.408),
        (math.inf, 0.408),
        (math.nan, 0.408),
        (0.04, 0.392),
        (0.0, 0.392),
    ],
)
def test_the_controller_moves_beta_by_a_fifth_of_its_gain_at_most(kl, expected):
    """Target 0.05, 64 rollouts of a horizon of 640, beta 0.4."""
    assert controlled_coef(0.4, kl, target=0.05, rollouts=64, horizon=640) == pytest.approx(expected, rel=1e-12)
