"""The whole config: the shipped run, the batch algebra by counting, the files against each other, and origins."""

import itertools
import json
import re
from pathlib import Path

import pytest
import yaml

from destruct.config.base import dump_with_provenance, sections_in, walk
from destruct.config.settings import Config, load, micro_batch_size

ROOT = Path(__file__).resolve().parents[2]

# Every key is something to learn, to test and to keep.  Raising this figure is a decision, taken in review: the last
# ten are the curriculum's, so that each rule of its target can be switched off by itself and left out of comparisons,
# `rollout.gather`, without which a rank must hold a whole copy of the policy, and five of Weights & Biases, which say
# whether and as whose run it is shown there.
MOST_KEYS = 135


def test_the_number_of_keys_stays_under_its_ceiling():
    leaves = [path for path, field in walk(Config) if not list(sections_in(field.annotation))]
    assert len(leaves) <= MOST_KEYS


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 16), (2, 8), (4, 4)])
def test_the_local_run_loads_on_one_two_and_four_ranks(world_size, micro_batch):
    """64 rollouts over 2 minibatches, 2 micro-batches of each rank in a step."""
    settings = load(ROOT / "configs" / "local.yaml", [], world_size)
    assert (settings.micro_batch, settings.world_size) == (micro_batch, world_size)
    assert settings.training.gradient_accumulation_steps == 2


RANKS = {"local": 2, "per_position": 2, "five_sources": 2, "base": 8, "llama3_8b_multinode": 16, "finetune": 1}
"""Shipped run -> the ranks it is meant for."""


def test_every_shipped_run_is_tried():
    assert {path.stem for path in (ROOT / "configs").glob("*.yaml")} == {*RANKS, "prompts"}


@pytest.mark.parametrize("name", RANKS)
def test_a_shipped_run_states_its_kl_bound_and_trains_what_the_curriculum_measures(name):
    """As it is, at its own number of ranks, without a GPU, a download or torch."""
    settings = load(ROOT / "configs" / f"{name}.yaml", [], RANKS[name])
    assert settings.provenance["kl.bound"].startswith(f"{name}.yaml:")
    assert settings.config.ppo.ptx_coef > 0


def test_a_batch_that_does_not_divide_names_the_json_and_the_values_that_do(files, refusal):
    """24 rollouts over 3 minibatches, 4 ranks and 2 micro-batches each is exactly 1; 25 is one too many."""
    assert files.load(world_size=4).micro_batch == 1
    problem, remedy = refusal(lambda: files.load("rollout.batch_size=25", world_size=4))
    assert problem == (
        "rollout.batch_size=25 does not divide into gradient_accumulation_steps=2 (train.json) x 4 ranks"
        " x ppo.minibatches=3 = 24 micro-batches"
    )
    assert remedy.startswith("set rollout.batch_size to 24 or 48, or change ")


def test_single_with_two_ranks_is_refused(files, refusal):
    assert files.load("engine.backend=single").config.engine.backend == "single"
    problem, _ = refusal(lambda: files.load("engine.backend=single", world_size=2))
    assert problem == "engine.backend=single runs in one process, but 2 ranks were started"


@pytest.mark.parametrize("role", ["policy", "value"])
def test_a_window_as_long_as_the_context_fits_and_one_token_more_does_not(files, refusal, role):
    context = f"model.{role}.max_position_embeddings"
    assert files.load(f"{context}=24").config.window_tokens == 24
    problem, _ = refusal(files.load, f"{context}=24", "rollout.prompt_tokens=17")
    assert f"rollout.prompt_tokens=17 + rollout.response_tokens=8 = 25 tokens do not fit {context}=24" in problem


def test_an_override_may_not_replace_a_whole_section_but_a_key_or_a_dictionary(files, refusal):
    """`ppo={epochs: 1}` would reset every other key of the section silently."""
    for override in ("ppo={epochs: 1}", "model.policy={hidden_size: 32}"):
        problem, remedy = refusal(files.load, override)
        assert "replaces a whole section" in problem
        assert remedy.endswith(".sub=value")
    assert files.load("reward.terms={eos: 1.0}").config.reward.terms == {"eos": 1.0}


def test_a_floor_above_the_smallest_prior_is_refused_by_the_sources_name(files, refusal):
    """Shares 1, 1 and 0.2 of 2.2: the smallest prior is 0.0909, which is 0.2727 of an equal third."""
    sources = "data.sources={a: {embedded: noise}, b: {embedded: code}, small: {embedded: prose, prior: 0.2}}"
    assert files.load(sources, "curriculum.floor=0.27").config.curriculum.floor == 0.27
    problem, remedy = refusal(files.load, sources, "curriculum.floor=0.28")
    assert "source 'small'" in problem and remedy == "set it to at most 0.2727"
    thirds = "data.sources={a: {embedded: noise, prior: 1.0}, b: {embedded: code, prior: 2.0}}"
    assert refusal(files.load, thirds, "curriculum.floor=0.9")[1] == "set it to at most 0.6666", "rounded down"
    assert files.load(thirds, "curriculum.floor=0.6666").config.curriculum.floor == 0.6666


def test_a_coefficient_that_acts_nowhere_is_refused(files, refusal):
    problem, _ = refusal(files.load, "kl.in_reward=false", "kl.in_loss=none")
    assert "acts nowhere" in problem
    assert files.load("kl.in_reward=false", "kl.in_loss=none", "kl.coef=0.0").config.kl.coef == 0


@pytest.mark.parametrize(
    ("overrides", "problem", "remedy"),
    [
        (["kl.horizon=500"], "horizon=500 is read only with a target", "set target, or leave horizon out"),
        (["kl.target=0.05", "kl.coef=0.0"], "target=0.05 cannot move coef=0.0", "set coef above 0"),
        (["kl.target=0.11"], "target=0.11 lies above bound=0.1", "set it to at most the bound"),
    ],
)
def test_a_kl_target_that_cannot_be_followed_and_a_horizon_without_one_are_refused(
    files, refusal, overrides, problem, remedy
):
    found = refusal(files.load, *overrides)
    assert f"kl: {problem}" in found[0] and found[1] == remedy


def test_a_kl_target_may_lie_on_the_bound_and_a_horizon_needs_no_more_than_its_default(files):
    assert files.load("kl.target=0.1").config.kl.horizon == 10_000
    assert files.load("kl.target=0.1", "kl.horizon=7").config.kl.target == 0.1
    assert files.load("kl.horizon=10000").config.kl.target is None, "as resolved.yaml has it"
    assert files.load("rollout.batch_size=60000").config.kl.target is None, "no target, so no horizon to be too short"


@pytest.mark.parametrize(("batch_size", "shortest"), [(24, 5), (30, 7), (48, 10)])
def test_a_horizon_in_which_one_update_would_take_all_of_beta_is_refused(files, refusal, batch_size, shortest):
    """One update takes 0.2 B / horizon at most: 24/25, 30/35 and 48/50 of beta, and with one rollout less all of it."""
    target = ["kl.target=0.05", f"rollout.batch_size={batch_size}"]
    assert files.load(*target, f"kl.horizon={shortest}").config.kl.horizon == shortest
    problem, remedy = refusal(files.load, *target, f"kl.horizon={shortest - 1}")
    assert f"kl.horizon={shortest - 1} lets one update of rollout.batch_size={batch_size} rollouts" in problem
    assert remedy == f"set kl.horizon to {shortest} or more"


@pytest.mark.parametrize(
    ("json_key", "number", "in_json", "yaml_key", "in_yaml"),
    [
        ("train_micro_batch_size_per_gpu", 5, "5", "rollout.batch_size", "4"),
        ("train_batch_size", 24, "24", "rollout.batch_size / ppo.minibatches", "8"),
        ("gradient_clipping", 0.5, "0.5", "ppo.max_grad_norm", "1.0"),
        ("optimizer.params.lr", 1e-3, "0.001", "ppo.policy_lr", "1e-06"),
        ("optimizer.params.lr", 1e-6, "1e-06", "ppo.value_lr", "5e-06"),
        ("scheduler.params.warmup_max_lr", 1e-3, "0.001", "ppo.policy_lr", "1e-06"),
        ("scheduler.params.warmup_max_lr", 1e-6, "1e-06", "ppo.value_lr", "5e-06"),
    ],
)
def test_a_number_in_the_json_that_contradicts_the_yaml_names_both_files_and_both_values(
    files, refusal, json_key, number, in_json, yaml_key, in_yaml
):
    """24 rollouts, 3 minibatches, 2 micro-batches: 8 in a step, 4 in a micro-batch."""
    block = {"scheduler.type": "WarmupLR"} if json_key.startswith("scheduler") else {}
    files.change_train({json_key: number, **block})
    problem, remedy = refusal(files.load)
    assert problem == f"{files.train}: {json_key} = {in_json} contradicts {files.yaml}: {yaml_key} gives {in_yaml}"
    assert remedy == f'write "auto" for {json_key} in train.json'


def test_numbers_in_the_json_that_say_what_the_yaml_says_are_accepted(files):
    files.change_train(
        {
            "train_micro_batch_size_per_gpu": 2,
            "train_batch_size": 8,
            "gradient_clipping": 2,
            "optimizer.params.lr": 1e-4,
            "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 1e-4}},
        }
    )
    rates = ["ppo.max_grad_norm=2.0", "ppo.policy_lr=1e-4", "ppo.value_lr=1e-4"]
    assert files.load(*rates, world_size=2).micro_batch == 2


@pytest.mark.parametrize("bf16", [True, False])
def test_every_auto_is_filled_from_the_yaml_and_the_number_of_ranks(files, bf16):
    """24 rollouts, 3 minibatches, 2 micro-batches, 2 ranks: 8 in a step, 2 in a micro-batch; one rate a network."""
    files.change_train({"bf16.enabled": bf16, "scheduler.type": "WarmupLR"})
    numbers = ["ppo.max_grad_norm=0.7", "ppo.policy_lr=2e-4", "ppo.value_lr=3e-4"]
    filled = files.load(*numbers, world_size=2).deepspeed()
    for role, rate in (("policy", 2e-4), ("value", 3e-4)):
        json_ = filled[role]
        assert (json_["train_batch_size"], json_["train_micro_batch_size_per_gpu"]) == (8, 2)
        assert (json_["gradient_clipping"], json_["optimizer"]["params"]["lr"]) == (0.7, rate)
        assert json_["gradient_accumulation_steps"] == 2
        assert "scheduler" not in json_, "the rate is given to each step"
    assert [filled[role]["bf16"]["enabled"] for role in ("policy", "value", "frozen")] == [bf16] * 3
    assert "auto" not in json.dumps(filled)


def test_a_json_is_found_from_the_working_folder_then_beside_the_yaml_then_above_it(files, tmp_path, monkeypatch):
    """The three copies differ in their accumulation, which tells them apart."""
    work, configs = tmp_path / "work", tmp_path / "project" / "configs"
    for folder in (work, configs):
        folder.mkdir(parents=True)
    files.yaml.rename(configs / "run.yaml")
    (configs / "frozen.json").write_text(files.frozen.read_text())
    monkeypatch.chdir(work)
    for steps, folder in ((1, configs.parent), (2, configs), (4, work)):
        files.change_train({"gradient_accumulation_steps": steps})
        (folder / "train.json").write_text(files.train.read_text())
        assert load(configs / "run.yaml", [], 1).training.gradient_accumulation_steps == steps


def test_a_json_that_is_nowhere_is_refused_with_its_key(files, refusal):
    problem, remedy = refusal(files.load, "engine.frozen=absent.json")
    assert problem.startswith("engine.frozen: absent.json exists neither in ")
    assert remedy == "give engine.frozen the path of a file"


@pytest.mark.parametrize("name", ["..", ".", ".hidden", "a/b", "../up", "-x", "", "a b", "a\n"])
def test_a_run_name_that_could_leave_its_folder_is_refused(files, refusal, name):
    """An older run of the same name is renamed: with `..` that would be the working folder."""
    problem, _ = refusal(files.load, f"run.name={name!r}" if name != "a\n" else 'run.name="a\\n"')
    assert problem.startswith("command line: run.name = ")


@pytest.mark.parametrize("name", ["a", "2024-01-01", "a.b-1_C", "_", "0x"])
def test_a_plain_run_name_is_accepted(files, name):
    assert files.load(f"run.name={name}").config.run.name == name


def test_the_seed_fits_the_generators_that_take_it(files, refusal):
    """torch.manual_seed takes 64 bits, and the value network is seeded with one more than the policy."""
    assert files.load(f"run.seed={2**63 - 1}").config.run.seed == 2**63 - 1
    refusal(files.load, f"run.seed={2**63}")
    refusal(files.load, "run.seed=-1")


def test_resolved_yaml_tells_file_line_command_line_and_default_and_loads_back(files):
    settings = files.load("ppo.epochs=5", "data.sources.extra={embedded: noise}", "reward.terms={eos: 2.0}")
    text = dump_with_provenance(settings.config, settings.provenance)
    assert Config(**yaml.safe_load(text)) == settings.config
    lines = [line.strip() for line in text.splitlines()]
    for expected in (
        "minibatches: 3  # run.yaml:7",
        "epochs: 5  # command line",
        "clip_range: 0.2  # default",
        "embedded: prose  # run.yaml:5",
        "embedded: noise  # command line",
        "eos: 2.0  # command line",
        "max_position_embeddings: 64  # run.yaml:2",
        "max_position_embeddings: 512  # default",
    ):
        assert lines.count(expected) == 1, expected
    assert lines.count("learnable: true  # default") == 2


def nearest(batch: int, divides) -> list[int]:
    """The nearest positive number on either side that divides, found by walking."""
    below = next((b for b in range(batch, 0, -1) if divides(b)), None)
    above = next(b for b in itertools.count(batch) if divides(b))
    return [above] if below is None else sorted({below, above})


def test_the_batch_divides_exactly_or_the_error_names_the_nearest_batches_that_do(refusal):
    """By counting: each of the accumulation x world x minibatches micro-batches gets the same whole number."""
    seen = {True: 0, False: 0}
    for batch, accumulation, world, minibatches in itertools.product(range(1, 41), (1, 2, 3, 5), (1, 2, 4), (1, 3, 4)):

        def divides(b: int, sizes: tuple[int, int, int] = (accumulation, world, minibatches)) -> bool:
            for size in sizes:
                if b % size:
                    return False
                b //= size
            return True

        arguments = (batch, accumulation, world, minibatches, "zero3.json")
        seen[divides(batch)] += 1
        if divides(batch):
            each = micro_batch_size(*arguments)
            assert sum(each for _ in range(accumulation) for _ in range(world) for _ in range(minibatches)) == batch
            continue
        problem, remedy = refusal(micro_batch_size, *arguments)
        assert [int(n) for n in re.findall(r"\d+", remedy)] == nearest(batch, divides)
        assert [int(n) for n in re.findall(r"\d+", problem.replace("zero3", ""))] == [
            batch, accumulation, world, minibatches, accumulation * world * minibatches
        ]  # fmt: skip
    assert min(seen.values()) > 100
