"""A whole round on tiny networks: what it refreshes, measures and moves, and that it goes on after a resume."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from destruct.batch import TokenWindows
from destruct.config.deepspeed import Optimizer
from destruct.config.model import PolicyShape
from destruct.curriculum.estimates import Estimates, ProgressEstimator
from destruct.curriculum.panels import panel_items
from destruct.curriculum.round import Curriculum, measure_panels
from destruct.curriculum.strategies import DynamicsSettings, make_strategy
from destruct.engine.single import SingleEngine, SingleFrozen
from destruct.engine.topology import Topology
from destruct.errors import DestructError
from destruct.models.policy import build_policy, llama_config
from destruct.warmup import cross_entropy_step

V, T, PANEL = 24, 8, 10
PRIOR = np.array([0.5, 0.25, 0.25])
ALONE = Topology(0, 1, torch.device("cpu"))
SHAPE = PolicyShape(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
DIALS = DynamicsSettings(eta=0.5, mu=0.5, lam=1.0, floor=0.05, z=1.0, signal="metric", projection="euclidean")


def source(kind: int, count: int) -> Tensor:
    """Runs of consecutive tokens (learnt within steps), or noise for the kinds 1 and 2."""
    g = torch.Generator().manual_seed(kind)
    if kind == 0:
        return (torch.randint(0, V, (count, 1), generator=g) + torch.arange(T)) % V
    return torch.randint(0, V, (count, T), generator=g)


HELD_OUT = [source(0, 30), source(1, 14), source(2, 6)]


def whole(held_out: list[Tensor]) -> list[TokenWindows]:
    """Windows of one document each."""
    return [TokenWindows.full(windows) for windows in held_out]


def engines() -> tuple[SingleEngine, SingleFrozen]:
    policy = SingleEngine(build_policy(SHAPE, V, torch.float32, 1, "chunked"), Optimizer(), 1, 1.0)
    return policy, SingleFrozen(build_policy(SHAPE, V, torch.float32, 0, "chunked"))


def curriculum(strategy: str = "second_order", sources: int = 3) -> Curriculum:
    rule = make_strategy(strategy, PRIOR[:sources] / PRIOR[:sources].sum(), DIALS)
    return Curriculum(ProgressEstimator(sources, kappa=0.5), rule, whole(HELD_OUT[:sources]), PANEL)


def one_round(rounds: Curriculum, policy: SingleEngine, frozen: SingleFrozen) -> Estimates:
    """As the loop makes it."""
    frozen.refresh(policy)
    return rounds.round(frozen, ALONE)


def learn(policy: SingleEngine) -> None:
    """Steps on the first source alone."""
    for _ in range(3):
        cross_entropy_step(policy, TokenWindows.full(source(0, 30)), 1e-2, ALONE)


def plain_losses(policy: SingleEngine, windows: Tensor) -> np.ndarray:
    """Nats per token of each window, by transformers and F.cross_entropy in float64."""
    plain = LlamaForCausalLM._from_config(llama_config(SHAPE, V), dtype=torch.float32)
    plain.load_state_dict({n.removeprefix("lm."): p for n, p in policy.tensors_in_full()}, strict=False)
    with torch.no_grad():
        logits = plain.double()(windows).logits[:, :-1]
    return F.cross_entropy(logits.transpose(1, 2), windows[:, 1:], reduction="none").mean(1).numpy()


def test_each_round_measures_the_policys_own_losses_on_that_rounds_panel():
    """The policy moves in between and is renewed each time.

    Panels of 10 move on by two windows a round; the source with 6 windows is measured whole.
    """
    (policy, frozen), rounds = engines(), curriculum()
    seen = []
    for r in range(4):
        estimates = one_round(rounds, policy, frozen)
        for k, windows in enumerate(HELD_OUT):
            items = panel_items(r, PANEL, len(windows))
            losses = plain_losses(policy, windows[torch.from_numpy(items)])
            assert estimates.difficulty[k] == pytest.approx(losses.mean(), rel=1e-6)
            assert estimates.variance[k] == pytest.approx(losses.var(ddof=1), rel=1e-4)
        seen.append(estimates.difficulty[0])
        learn(policy)
    assert seen == sorted(seen, reverse=True) and seen[0] - seen[3] > 0.5, "the first source is being learnt"
    assert rounds.rounds == 4


def test_a_panel_names_its_windows_counts_their_tokens_and_knows_the_population():
    policy, frozen = engines()
    frozen.refresh(policy)
    panels = measure_panels(frozen, whole(HELD_OUT), round_index=11, panel_size=PANEL, topology=ALONE)
    assert panels[0].items.tolist() == [22, 23, 24, 25, 26, 27, 28, 29, 0, 1]
    assert panels[2].items.tolist() == [0, 1, 2, 3, 4, 5]
    assert [panel.population for panel in panels] == [30, 14, 6]
    assert all(panel.tokens.tolist() == [T - 1] * len(panel.items) for panel in panels)
    expected = plain_losses(policy, HELD_OUT[0][torch.from_numpy(panels[0].items)])
    np.testing.assert_allclose(panels[0].losses, expected, rtol=1e-6)


def test_a_panels_losses_are_per_token_that_is_predicted():
    """Windows of 8 tokens, the second of documents of 3 and 5, against each document alone."""
    policy, frozen = engines()
    frozen.refresh(policy)
    tokens = HELD_OUT[2][:2]
    positions = torch.tensor([[*range(8)], [*range(3), *range(5)]])
    (panel,) = measure_panels(frozen, [TokenWindows(tokens, positions)], 0, PANEL, ALONE)
    assert panel.tokens.tolist() == [7, 6]
    parts = [plain_losses(policy, part)[0] for part in (tokens[:1], tokens[1:, :3], tokens[1:, 3:])]
    np.testing.assert_allclose(panel.losses, [parts[0], (2 * parts[1] + 4 * parts[2]) / 6], rtol=1e-6)


def test_a_held_out_window_in_which_nothing_is_predicted_is_refused():
    windows = TokenWindows(HELD_OUT[1], torch.arange(T).repeat(14, 1))
    windows.positions[3] = 0
    _, frozen = engines()
    with pytest.raises(ValueError, match="every sequence has at least 1 token"):
        measure_panels(frozen, [windows], 0, len(windows), ALONE)


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


@pytest.mark.parametrize("strategy", ["second_order", "literal", "static"])
@pytest.mark.parametrize("rounds_before", [1, 2, 4])
def test_a_state_taken_in_mid_run_continues_bit_for_bit(strategy, rounds_before):
    """Through JSON into a curriculum that has already seen something else."""
    (policy, frozen), whole = engines(), curriculum(strategy)
    for _ in range(rounds_before):
        one_round(whole, policy, frozen)
        learn(policy)
    resumed = curriculum(strategy)
    one_round(resumed, policy, frozen)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    assert resumed.weights.tolist() == whole.weights.tolist()
    for _ in range(3):
        learn(policy)
        a, b = (one_round(each, policy, frozen) for each in (whole, resumed))
        assert a.round_index == b.round_index
        for name in ("difficulty", "difficulty_se", "variance", "metric", "progress", "progress_se"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        assert resumed.weights.tolist() == whole.weights.tolist()
    assert json.dumps(resumed.state_dict()) == json.dumps(whole.state_dict())
    assert resumed.rounds == rounds_before + 3


def test_the_state_of_other_sources_is_refused():
    (policy, frozen), two = engines(), curriculum(sources=2)
    one_round(two, policy, frozen)
    with pytest.raises(DestructError, match="2 sources; this run has 3"):
        curriculum().load_state_dict(two.state_dict())
