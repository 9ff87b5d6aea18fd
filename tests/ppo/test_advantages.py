"""Generalized advantage estimates and their whitening."""

import pytest
import torch

from destruct.ppo.advantages import compute_gae, masked_moments, whiten


def random_rollouts(rollouts=5, tokens=9, seed=0):
    """(rewards, old_values, mask) in float64; masks are prefixes, one full and one empty among them."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, rollouts, tokens, generator=generator, dtype=torch.float64)
    lengths = torch.tensor([tokens, 0, 1, 4, 7])[:rollouts]
    return rewards, values, torch.arange(tokens) < lengths[:, None]


def test_gae_on_three_tokens_worked_by_hand():
    """Reward only at the end and V = 1/2 throughout, so delta = (0, 0, 1/2)."""
    returns, got = compute_gae(
        torch.tensor([[0.0, 0.0, 1.0, 9.0]]),
        torch.tensor([[0.5, 0.5, 0.5, 9.0]]),
        torch.tensor([[True, True, True, False]]),
        gamma=1.0,
        lam=0.5,
    )
    torch.testing.assert_close(got, torch.tensor([[0.125, 0.25, 0.5, 0.0]]))
    torch.testing.assert_close(returns, torch.tensor([[0.625, 0.75, 1.0, 0.0]]))


def test_gae_with_a_discount_worked_by_hand():
    """gamma = 1/2, lam = 1/2: delta = (1 + 2 - 2, 0 + 4 - 4, 3 - 8) = (1, 0, -5), each step back times 1/4."""
    rewards, values = torch.tensor([[1.0, 0.0, 3.0]]), torch.tensor([[2.0, 4.0, 8.0]])
    _, got = compute_gae(rewards, values, torch.ones(1, 3, dtype=torch.bool), gamma=0.5, lam=0.5)
    torch.testing.assert_close(got, torch.tensor([[1 - 5 / 16, -5 / 4, -5.0]]))


@pytest.mark.parametrize("gamma, lam", [(1.0, 0.95), (0.9, 0.5), (0.99, 0.0), (0.0, 0.95)])
def test_gae_equals_the_double_sum_of_the_paper(gamma, lam):
    """Eq. 16: A_t = sum over l of (gamma lam)^l delta_{t+l}, each term written out."""
    rewards, values, mask = random_rollouts()
    returns, advantages = compute_gae(rewards, values, mask, gamma, lam)
    for b, length in enumerate(mask.sum(1).tolist()):
        v = [*values[b, :length].tolist(), 0.0]
        delta = [rewards[b, t].item() + gamma * v[t + 1] - v[t] for t in range(length)]
        want = [sum((gamma * lam) ** (s - t) * delta[s] for s in range(t, length)) for t in range(length)]
        torch.testing.assert_close(advantages[b, :length], torch.tensor(want, dtype=torch.float64))
    assert not advantages[~mask].any() and not returns[~mask].any()


def test_with_gamma_and_lam_one_advantages_are_reward_to_go_minus_value():
    rewards, values, mask = random_rollouts()
    returns, advantages = compute_gae(rewards, values, mask, gamma=1.0, lam=1.0)
    to_go = (rewards * mask).flip(1).cumsum(1).flip(1)
    torch.testing.assert_close(advantages, (to_go - values) * mask)
    torch.testing.assert_close(returns, to_go * mask)


def test_with_gamma_zero_advantages_are_reward_minus_value():
    rewards, values, mask = random_rollouts()
    returns, advantages = compute_gae(rewards, values, mask, gamma=0.0, lam=0.95)
    torch.testing.assert_close(advantages, (rewards - values) * mask)
    torch.testing.assert_close(returns, rewards * mask)


def test_padding_changes_nothing_even_when_it_holds_nan():
    rewards, values, mask = random_rollouts()
    want = compute_gae(rewards, values, mask, 0.9, 0.8)
    junk = torch.full((5, 6), torch.nan, dtype=torch.float64)
    rewards, values = (torch.where(mask, tensor, torch.nan) for tensor in (rewards, values))
    wider = [
        torch.cat(pair, dim=1) for pair in ((rewards, junk), (values, junk), (mask, torch.zeros_like(junk).bool()))
    ]
    for got, right in zip(compute_gae(*wider, 0.9, 0.8), want, strict=True):
        assert torch.equal(got[:, :9], right) and not got[:, 9:].any()


def test_a_hole_in_the_mask_is_carried_over():
    """Token 1 is not the policy's: the row must give what (token 0, token 2) give side by side."""
    rewards, values = torch.tensor([[1.0, 7.0, 2.0]]), torch.tensor([[3.0, 7.0, 5.0]])
    returns, advantages = compute_gae(rewards, values, torch.tensor([[True, False, True]]), 0.9, 0.8)
    kept = compute_gae(rewards[:, ::2], values[:, ::2], torch.ones(1, 2, dtype=torch.bool), 0.9, 0.8)
    assert torch.equal(returns[:, ::2], kept[0]) and torch.equal(advantages[:, ::2], kept[1])
    assert returns[0, 1] == advantages[0, 1] == 0


def test_permuting_rollouts_permutes_results_and_nobody_is_no_trouble():
    rewards, values, mask = random_rollouts()
    order = torch.tensor([3, 0, 4, 1, 2])
    straight = compute_gae(rewards, values, mask, 1.0, 0.95)
    for got, want in zip(compute_gae(rewards[order], values[order], mask[order], 1.0, 0.95), straight, strict=True):
        assert torch.equal(got, want[order])
    assert compute_gae(rewards[:0], values[:0], mask[:0], 1.0, 0.95)[0].shape == (0, 9)
    assert compute_gae(rewards[:, :0], values[:, :0], mask[:, :0], 1.0, 0.95)[1].shape == (5, 0)


def test_float32_results_for_low_precision_rewards_and_an_error_with_the_shapes():
    rewards, values, mask = random_rollouts()
    got = compute_gae(rewards.bfloat16(), values.float(), mask, 1.0, 0.95)
    assert [tensor.dtype for tensor in got] == [torch.float32, torch.float32]
    with pytest.raises(ValueError, match=r"\[\(5, 9\), \(5, 9\), \(5, 8\)\]"):
        compute_gae(rewards, values, mask[:, :8], 1.0, 0.95)


def test_whitening_over_ranks_equals_whitening_of_all_values_at_once():
    """Three ranks of unequal size, one of them empty; the truth is torch's own mean and variance."""
    generator = torch.Generator().manual_seed(2)
    ranks = [1000 + torch.randn(rows, 7, generator=generator) for rows in (4, 0, 1)]
    masks = [torch.rand(x.shape, generator=generator) < 0.6 for x in ranks]
    moments = sum(masked_moments(x, mask) for x, mask in zip(ranks, masks, strict=True))
    real = torch.cat([x[mask] for x, mask in zip(ranks, masks, strict=True)]).double()
    assert moments[0] == real.numel()
    for x, mask in zip(ranks, masks, strict=True):
        got = whiten(x, mask, moments)
        want = (x[mask].double() - real.mean()) / (real.var() + 1e-8).sqrt()
        torch.testing.assert_close(got[mask].double(), want, rtol=1e-5, atol=1e-6)
        assert got.dtype == x.dtype and not got[~mask].any()


def test_whitening_of_minus_one_and_one_worked_by_hand():
    """Mean 0, variance 2 / (2 - 1)."""
    x, mask = torch.tensor([-1.0, 1.0, torch.nan]), torch.tensor([True, True, False])
    assert masked_moments(x, mask).tolist() == [2.0, 0.0, 2.0]
    torch.testing.assert_close(whiten(x, mask, masked_moments(x, mask)), torch.tensor([-(0.5**0.5), 0.5**0.5, 0.0]))


@pytest.mark.parametrize("mask", [[False, False, False], [True, False, False], [True, True, True]])
def test_values_without_spread_whiten_to_zero(mask):
    x, mask = torch.full((3,), 1e3), torch.tensor(mask)
    assert whiten(x, mask, masked_moments(x, mask)).tolist() == [0.0, 0.0, 0.0]
