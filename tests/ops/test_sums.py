"""Running sums over parts of a vocabulary merge into those of the whole, in any order."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from destruct.ops.sums import LogitSums, PairSums, merged, pair_sums_of, sums_of

f64 = torch.float64
ROWS = 4


def logits_of(vocab: int, seed: int, offset: float, spread: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(ROWS, vocab, generator=generator, dtype=f64) * spread + offset


def parts_of(vocab: int, cuts: list[int]) -> list[tuple[int, int]]:
    edges = sorted({0, vocab, *(cut % vocab for cut in cuts)})
    return list(zip(edges[:-1], edges[1:], strict=True))


def targets_of(vocab: int, seed: int) -> torch.Tensor:
    return torch.randint(vocab, (ROWS,), generator=torch.Generator().manual_seed(seed))


problems = {
    "vocab": st.integers(1, 60),
    "seed": st.integers(0, 10**6),
    "cuts": st.lists(st.integers(1, 59), max_size=5),
    "offset": st.sampled_from([0.0, 1e4, -1e4]),
    "spread": st.sampled_from([0.0, 1.0, 30.0]),
}


@settings(max_examples=60)
@given(**problems)
def test_parts_in_any_order_give_the_scores_of_the_whole(vocab, seed, cuts, offset, spread):
    """Of a head that is split over blocks, programs or ranks: torch's own log_softmax of everything is the truth."""
    logits, targets = logits_of(vocab, seed, offset, spread), targets_of(vocab, seed)
    parts = [sums_of(logits[:, a:b], targets, first=a) for a, b in parts_of(vocab, cuts)]
    log_p = logits.log_softmax(1)
    for order in (parts, parts[::-1]):
        scores = merged(order).scores()
        torch.testing.assert_close(scores.logprobs, log_p.gather(1, targets[:, None])[:, 0], rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(scores.entropy, -(log_p.exp() * log_p).sum(1), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(scores.log_sum_exp, logits.logsumexp(1), rtol=1e-14, atol=1e-11)


@settings(max_examples=60)
@given(**problems)
def test_the_kl_of_parts_is_the_kl_of_the_whole_both_ways(vocab, seed, cuts, offset, spread):
    z, y = logits_of(vocab, seed, offset, spread), logits_of(vocab, seed + 1, -offset, spread)
    targets = targets_of(vocab, seed)
    whole = None
    for a, b in parts_of(vocab, cuts):
        part = pair_sums_of(z[:, a:b], y[:, a:b], targets, first=a)
        whole = part if whole is None else whole.merge(part)
    log_p, log_q = z.log_softmax(1), y.log_softmax(1)
    want = (log_p.exp() * (log_p - log_q)).sum(1), (log_q.exp() * (log_q - log_p)).sum(1)
    for got, right in zip((whole.exact_kl(), whole.exact_forward_kl()), want, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-10, atol=1e-9)


def close(left, right):
    flat_left, flat_right = torch.utils._pytree.tree_leaves(left), torch.utils._pytree.tree_leaves(right)
    torch.testing.assert_close(flat_left, flat_right, rtol=1e-12, atol=1e-12)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([1.0, 30.0]))
def test_merging_is_associative_and_commutative(seed, spread):
    z, y, targets = logits_of(30, seed, 0.0, spread), logits_of(30, seed + 1, 0.0, spread), targets_of(30, seed)
    a, b, c = (pair_sums_of(z[:, i : i + 10], y[:, i : i + 10], targets, first=i) for i in (0, 10, 20))
    close(a.merge(b).merge(c), a.merge(b.merge(c)))
    close(a.merge(b), b.merge(a))


@pytest.mark.parametrize("columns", [1, 3])
def test_columns_of_minus_infinity_add_nothing(columns):
    """Also where they come first, so that the largest logit so far is -inf, and where the target lies among them."""
    logits = torch.tensor([[0.0, 1.0, 2.0], [3.0, -1.0, 0.5]], dtype=f64)
    nothing = torch.full((2, columns), -torch.inf, dtype=f64)
    targets = torch.tensor([columns, columns + 2])
    parts = [sums_of(nothing, targets), sums_of(logits, targets, first=columns)]
    whole = sums_of(torch.cat([nothing, logits], 1), targets)
    for got in (merged(parts), merged(parts[::-1]), whole):
        assert torch.equal(got.target, torch.tensor([0.0, 0.5], dtype=f64))
        close(got.scores(), sums_of(logits, targets - columns).scores())
    lost = merged([sums_of(nothing, torch.zeros(2, dtype=torch.int64)), sums_of(logits, targets * 0 - 1)])
    assert torch.isneginf(lost.scores().logprobs).all()


def test_sums_of_two_logits_worked_by_hand():
    """Logits 0 and log 3: total 1 + 1/3 above the largest, entropy log 4 - 3/4 log 3."""
    three = torch.tensor(3.0, dtype=f64)
    logits = torch.stack([three * 0, three.log()])[None]
    sums = sums_of(logits, torch.tensor([0]))
    assert isinstance(sums, LogitSums)
    assert sums.total.item() == pytest.approx(4 / 3) and sums.weighted.item() == pytest.approx(-three.log() / 3)
    scores = sums.scores()
    assert scores.logprobs.item() == pytest.approx(-1.3862943611198906)  # log 1/4
    assert scores.entropy.item() == pytest.approx(1.3862943611198906 - 0.75 * three.log())
    pair = pair_sums_of(logits, logits * 0, torch.tensor([0]))
    assert isinstance(pair, PairSums)
    # KL to a fair coin is log 2 less the entropy; the other way round log 2 / sqrt 3.
    assert pair.exact_kl().item() == pytest.approx(0.6931471805599453 - scores.entropy.item())
    assert pair.exact_forward_kl().item() == pytest.approx((2 / three.sqrt()).log())
