"""The head module in a small tied language model: names, checkpoints, gradients."""

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from destruct.ops.dispatch import implementation
from destruct.ops.head import FusedHead
from destruct.ops.rows import KeepStates, LossCoefficients, LossRows, PolicyLoss, ScoreRows
from tests.ops.problems import FULL, f32, problem

PLAIN = LossCoefficients(clip_low=0.2, clip_high=0.2, kl_coef=0.0, kl="none", entropy_coef=0.0)
VOCAB, WIDTH, ROWS = 53, 8, 10


class TinyModel(nn.Module):
    """Embedding, one layer, head."""

    def __init__(self, tied):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCAB, WIDTH)
        self.layer = nn.Linear(WIDTH, WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, tokens, request=None):
        return self.lm_head(self.layer(self.embed_tokens(tokens)).tanh(), *([request] if request else []))


def make(tied, name="chunked"):
    """(model with a plain head, model with the fused head) of equal weights in float64."""
    torch.manual_seed(0)
    plain = TinyModel(tied).double()
    fused = TinyModel(tied).double()
    fused.lm_head = FusedHead(fused.lm_head.weight, name)
    fused.load_state_dict(plain.state_dict())
    return plain, fused


def batch(count=ROWS):
    """(tokens, cross-entropy request): PTX rows only, so that F.cross_entropy is the whole truth."""
    generator = torch.Generator().manual_seed(1)
    tokens, targets = torch.randint(VOCAB, (2, count), generator=generator)
    zeros = torch.zeros(count, dtype=torch.float64)
    return tokens, PolicyLoss(
        LossRows(targets, zeros + 1, zeros, zeros, zeros, zeros, zeros + 1 / max(count, 1)), PLAIN
    )


@pytest.mark.parametrize("name", ["reference", "chunked"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_head_keeps_the_parameter_its_names_and_its_gradients(tied, name):
    plain, fused = make(tied, name)
    assert (fused.lm_head.weight is fused.embed_tokens.weight) == tied
    assert [n for n, _ in fused.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert list(fused.state_dict()) == list(plain.state_dict())
    tokens, request = batch()
    want = F.cross_entropy(plain(tokens), request.rows.targets)
    got = fused(tokens, request).loss
    torch.testing.assert_close(got, want)
    want.backward(), got.backward()
    for (parameter_name, right), ours in zip(plain.named_parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, right.grad, rtol=1e-12, atol=1e-14, msg=parameter_name)


@pytest.mark.parametrize("name", ["reference", "chunked"])
def test_logits_and_scores_are_those_of_the_plain_head(name):
    plain, fused = make(tied=True, name=name)
    tokens, request = batch()
    torch.testing.assert_close(fused(tokens[:, None]), plain(tokens[:, None]))
    rows = ScoreRows(request.rows.targets, torch.full((ROWS,), 0.5))
    scored = fused(tokens, rows)
    right = torch.distributions.Categorical(logits=plain(tokens) / 0.5)
    torch.testing.assert_close(scored.logprobs, right.log_prob(request.rows.targets))
    torch.testing.assert_close(scored.entropy, right.entropy())
    with torch.no_grad():
        kept = fused(tokens, KeepStates(rows))
        assert torch.equal(kept.hidden, fused.layer(fused.embed_tokens(tokens)).tanh())
    assert torch.equal(kept.scores.logprobs, scored.logprobs) and not kept.scores.logprobs.requires_grad


@pytest.mark.parametrize("name", ["reference", "chunked"])
def test_a_rank_without_rows_gets_a_connected_zero(name):
    _, fused = make(tied=False, name=name)
    tokens, request = batch(count=0)
    out = fused(tokens, request)
    out.loss.backward()
    assert out.loss == 0 and not out.sums.any() and out.logprobs.shape == (0,)
    for parameter in fused.parameters():
        assert parameter.grad.shape == parameter.shape and not parameter.grad.any()


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_two_calls_in_one_forward_and_checkpointed_layers_change_no_gradient(use_reentrant):
    plain, fused = make(tied=True)
    tokens, request = batch()
    F.cross_entropy(plain(tokens), request.rows.targets).backward()
    hidden = checkpoint(lambda x: fused.layer(x).tanh(), fused.embed_tokens(tokens), use_reentrant=use_reentrant)
    halves = [(hidden[:4], request.rows.part(0, 4)), (hidden[4:], request.rows.part(4, ROWS))]
    sum(fused.lm_head(rows_hidden, PolicyLoss(rows, PLAIN)).loss for rows_hidden, rows in halves).backward()
    for right, ours in zip(plain.parameters(), fused.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, right.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_head_inside_a_checkpointed_segment_is_still_right(use_reentrant):
    plain, fused = make(tied=False)
    tokens, request = batch()
    F.cross_entropy(plain(tokens), request.rows.targets).backward()
    hidden = fused.layer(fused.embed_tokens(tokens)).tanh()
    checkpoint(lambda x: fused.lm_head(x, request).loss, hidden, use_reentrant=use_reentrant).backward()
    torch.testing.assert_close(fused.lm_head.weight.grad, plain.lm_head.weight.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["reference", "chunked"])
def test_autocast_does_not_reach_into_the_fused_loss(name):
    """Idle rows too, beside which the gradient is put together from parts; and scores, which multiply again."""
    ops, given = implementation(name), problem(40, 123, 31, f32)
    answers = []
    for inside in (True, False):
        hidden, weight = given.hidden.clone().requires_grad_(), given.weight.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=inside):
            out = ops.policy_loss(hidden, weight, given.rows, FULL["exact, entropy"], given.states)
            scores = ops.score(hidden, weight, given.rows.score_rows())
        # The definition's backward is torch's own, and obeys.
        with torch.autocast("cpu", torch.bfloat16, enabled=inside and name != "reference"):
            (out.loss + sum(score[:25].sum() for score in scores)).backward()
        answers.append([*out, *scores, hidden.grad, weight.grad])
    assert all(torch.equal(a, b) for a, b in zip(*answers, strict=True))


def test_mistakes_are_named_with_their_values():
    _, fused = make(tied=True)
    tokens, request = batch()
    with pytest.raises(ValueError, match="implementation is 'triton2'; expected one of"):
        FusedHead(fused.lm_head.weight, "triton2")
    with pytest.raises(ValueError, match=r"hidden is \(10, 7\), weight is \(53, 8\)"):
        fused.lm_head(torch.zeros(ROWS, 7, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"LossRows.advantages is \(9,\); targets is \(10,\)"):
        dataclasses.replace(request.rows, advantages=torch.zeros(9))
    with pytest.raises(ValueError, match=r"ScoreRows.targets is \(10,\) torch.int32"):
        ScoreRows(request.rows.targets.int(), torch.ones(ROWS))
    # What a mixed-precision wrapper does when it casts the arguments of a forward.
    with pytest.raises(ValueError, match=r"LossRows.old_logprobs is torch.bfloat16"):
        dataclasses.replace(request.rows, old_logprobs=torch.zeros(ROWS, dtype=torch.bfloat16))
