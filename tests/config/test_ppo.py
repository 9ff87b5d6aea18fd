"""Bounds of PPO that contradict each other, reward terms by name, and names that agree with the tables."""

import typing

import pytest

from destruct.config.curriculum import CurriculumConfig
from destruct.config.engine import EngineConfig
from destruct.config.ppo import KLConfig
from destruct.config.rollout import REWARD_TERMS, TOKEN_TERMS


@pytest.mark.parametrize(
    "name", ["repetitions", "Length", "", ":score", "module:", "module:a.b", ".module:score", "a..b:score", "a b:score"]
)
def test_a_reward_term_that_is_neither_known_nor_a_function_is_refused(files, refusal, name):
    problem, remedy = refusal(files.load, f"reward.terms={{'{name}': 1.0}}")
    assert problem == f"command line: reward.terms: no reward term {name!r}"
    assert remedy == (
        "take one of repetition, continuation_overlap, length, eos, reward_model, match, frozen_likelihood "
        "or module:function"
    )


@pytest.mark.parametrize("name", ["module:score", "my.rewards.v2:score_1", "_a:_b"])
def test_a_function_by_its_module_is_accepted(files, name):
    assert files.load(f"reward.terms={{'{name}': -1}}").config.reward.terms == {name: -1.0}


def test_a_reward_needs_a_term(files, refusal):
    assert refusal(files.load, "reward.terms={}")[0] == "command line: reward.terms: no reward term is given"


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["ppo.dual_clip=1.2"], "ppo: dual_clip=1.2 does not lie above 1 + clip_range = 1.2"),
        (
            ["ppo.clip_range_high=1.5", "ppo.dual_clip=2.5"],
            "ppo: dual_clip=2.5 does not lie above 1 + clip_range_high = 2.5",
        ),
    ],
)
def test_a_dual_clip_inside_the_clip_is_refused(files, refusal, overrides, problem):
    found, remedy = refusal(files.load, *overrides)
    assert found == f"{files.yaml}: {problem}"
    assert remedy.startswith("raise it") and remedy.endswith("set it to null to turn it off")
    assert files.load(*overrides[:-1], "ppo.dual_clip=2.51").config.ppo.dual_clip == 2.51


def test_a_dual_clip_of_one_and_an_upper_range_of_zero_are_out_of_bounds(files, refusal):
    assert "ppo.dual_clip = 1 should be greater than 1" in refusal(files.load, "ppo.dual_clip=1")[0]
    assert "ppo.clip_range_high = 0 should be greater than 0" in refusal(files.load, "ppo.clip_range_high=0")[0]


def choices(section, field) -> set[str]:
    """The words that a field takes, besides null."""
    taken = typing.get_args(section.model_fields[field].annotation)
    return set(typing.get_args(taken[0]) if type(None) in taken else taken)


def test_the_names_in_the_config_are_the_keys_of_the_tables():
    from destruct.build import MODEL_TERMS
    from destruct.curriculum.dynamics import PROJECTIONS
    from destruct.curriculum.strategies import SIGNALS, STRATEGIES
    from destruct.rollout.rewards import REWARDS

    assert set(REWARD_TERMS) == {*REWARDS, *MODEL_TERMS}
    assert {name for name, term in REWARDS.items() if term.per_token} == set(TOKEN_TERMS) - {*MODEL_TERMS}
    assert choices(CurriculumConfig, "strategy") == set(STRATEGIES)
    assert choices(CurriculumConfig, "projection") == set(PROJECTIONS)
    assert choices(CurriculumConfig, "signal") == set(SIGNALS)


def test_every_loss_and_every_kl_of_the_config_is_one_of_the_fused_op():
    from destruct.ops.dispatch import IMPLEMENTATIONS
    from destruct.ops.rows import KL_NAMES

    assert choices(EngineConfig, "loss") == {*IMPLEMENTATIONS, "auto"}
    # k1 has no gradient on average: it stands in the reward alone.
    assert choices(KLConfig, "in_loss") == set(KL_NAMES) - {"k1"}
