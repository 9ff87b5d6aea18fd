"""The composition root on tiny runs: which value of the config reaches which part."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from destruct.data.sources import open_sources
from destruct.data.tokenizing import train_tokenizer
from destruct.errors import DestructError
from destruct.evaluation import validate
from destruct.loop import one_update
from destruct.steps import loss_coefficients, score_settings
from tests.curriculum.rounds import estimates_for
from tests.tiny import ROOT, tiny_run


@pytest.mark.parametrize(
    ("in_reward", "in_loss", "reward", "loss"),
    [("true", "none", 0.3, 0.0), ("false", "k2", 0.0, 0.3), ("true", "k3", 0.3, 0.3)],
)
def test_beta_as_it_stands_now_goes_where_the_config_says(tmp_path, in_reward, in_loss, reward, loss):
    """A breach has raised it from 0.05 to 0.3."""
    with tiny_run(tmp_path, f"kl.in_reward={in_reward}", f"kl.in_loss={in_loss}") as run:
        run.state.kl_coef = 0.3
        assert score_settings(run).kl_coef == reward
        assert (loss_coefficients(run).kl_coef, loss_coefficients(run).kl) == (loss, in_loss)


@pytest.mark.parametrize(("mib", "rows"), [("null", "1024"), ("1", "640")])
def test_the_budget_of_the_fused_loss_gives_its_rows_and_resolved_yaml_says_them(tmp_path, mib, rows):
    """1 MiB holds 655 rows of 800 bfloat16 logits, and 640 are a multiple of 16."""
    with tiny_run(tmp_path, f"engine.loss_chunk_mib={mib}", "data.tokenizer.vocab_size=800") as run:
        network = run.networks.policy.module
        assert (len(network.head.weight), next(network.parameters()).dtype) == (800, torch.bfloat16)
        said = (run.folder / "resolved.yaml").read_text().splitlines()[-1]
        assert said == f"#   engine.loss: chunked, {rows} rows of 800 logits at a time, bfloat16"
        assert network.head.chunk_rows == run.replica.head.chunk_rows == int(rows)


def test_triton_without_a_gpu_is_refused_before_the_sources_are_read(tmp_path):
    """They come before the reward's terms, one of which is not there either."""
    overrides = ["engine.loss=triton", 'reward.terms={"no_such_module:term": 1.0}']
    refused = pytest.raises(DestructError, match="engine.loss=triton runs on a GPU, and this is cpu")
    with refused as error, tiny_run(tmp_path, *overrides):
        pass
    assert error.value.remedy == "set engine.loss: auto"


def test_the_numbers_of_the_update_and_of_scoring_are_the_configs(tmp_path):
    """Six updates of three epochs of two minibatches are 36 steps."""
    numbers = {"clip_range": 0.1, "entropy_coef": 0.03, "epochs": 3, "early_stop_kl": 0.02, "ptx_coef": 0.7}
    numbers |= {"policy_lr": 2e-4, "value_lr": 3e-4, "value_clip_range": 0.4}
    overrides = [f"ppo.{name}={value}" for name, value in numbers.items()]
    with tiny_run(tmp_path, *overrides, "rollout.temperature=0.8") as run:
        update, loss, scoring = run.update_settings, loss_coefficients(run), score_settings(run)
    assert (update.epochs, update.early_stop_kl, update.ptx_coef, update.value_clip_range) == (3, 0.02, 0.7, 0.4)
    assert (update.policy_lr(0), update.value_lr(0)) == (2e-4, 3e-4)
    assert (update.policy_lr.total_steps, update.value_lr.total_steps) == (36, 36)
    assert (loss.clip_low, loss.clip_high, loss.entropy_coef) == (0.1, 0.1, 0.03)
    assert (update.temperature, scoring.temperature) == (0.8, 0.8)
    assert scoring.ptx, "the rows of training"


@pytest.mark.parametrize(
    ("overrides", "bounds"),
    [
        (["ppo.clip_range=0.1"], (0.1, 0.1, None)),
        (["ppo.clip_range=0.1", "ppo.clip_range_high=0.28", "ppo.dual_clip=3"], (0.1, 0.28, 3.0)),
        (["ppo.clip_range_high=0.15"], (0.2, 0.15, None)),
    ],
)
def test_the_bounds_of_the_ratio_are_the_configs_and_the_upper_one_is_the_lower_one_unless_given(
    tmp_path, overrides, bounds
):
    with tiny_run(tmp_path, *overrides) as run:
        loss = loss_coefficients(run)
    assert (loss.clip_low, loss.clip_high, loss.dual_clip) == bounds


def test_the_scheduler_of_the_json_shapes_the_rates_of_the_config(tmp_path):
    """Two linear steps of warm-up: 0, half, then all of it."""
    block = {"type": "WarmupLR", "params": {"warmup_num_steps": 2, "warmup_type": "linear"}}
    zero3 = json.loads((ROOT / "ds_configs" / "zero3.json").read_text())
    (tmp_path / "warm.json").write_text(json.dumps(zero3 | {"scheduler": block}))
    rates = ["ppo.policy_lr=2e-4", "ppo.value_lr=3e-4"]
    with tiny_run(tmp_path, f"engine.deepspeed={tmp_path / 'warm.json'}", *rates) as run:
        update = run.update_settings
    assert [update.policy_lr(step) for step in range(4)] == [0.0, 1e-4, 2e-4, 2e-4]
    assert [update.value_lr(step) for step in range(4)] == [0.0, 1.5e-4, 3e-4, 3e-4]


def test_every_part_gets_its_own_number_of_the_config(tmp_path):
    numbers = [
        "reward.ngram=2",
        "ppo.max_grad_norm=0.7",
        "run.keep_checkpoints=5",
        "curriculum.difficulty_sample_size=9",
    ]
    with tiny_run(tmp_path, *numbers, "kl.coef=0.2") as run:
        assert run.reward.context.ngram == 2
        assert (run.policy.max_grad_norm, run.value.max_grad_norm) == (0.7, 0.7)
        assert (run.policy.accumulation, run.value.accumulation) == (2, 2), "of zero3.json"
        assert (run.store.keep, run.curriculum.panel_size) == (5, 9)
        assert run.state.kl_coef == 0.2
        assert [(source.name, source.learnable) for source in run.inputs.validation] == [
            ("arithmetic", True),
            ("noise", False),
        ]


def test_an_epoch_is_the_pieces_of_all_sources_over_those_of_an_update(tmp_path):
    """16 pieces in an update, two epochs."""
    with tiny_run(tmp_path, "run.updates_per_epoch=null") as run:
        assert run.updates == 2 * (sum(map(len, run.inputs.train)) // 16) > 20


def test_held_out_windows_are_shuffled_and_their_bytes_are_those_of_what_is_scored(tmp_path):
    """Both sources are ASCII: a window's bytes are the characters of what is predicted, ends of documents aside."""
    with tiny_run(tmp_path) as run:
        sources = open_sources(run.config.data, run.config.run.seed)
        for source, panel, held_out in zip(sources, run.curriculum.panels.held_out, run.inputs.validation, strict=True):
            texts = [document.text for document in source.documents() if document.held_out]
            stream = [token for ids in run.tokenizer.encode(texts) for token in [*ids.tolist(), run.tokenizer.eos_id]]
            in_order = [stream[start : start + 16] for start in range(0, len(stream) - 15, 15)]
            windows = panel.select(torch.arange(len(panel))).tokens.tolist()
            assert windows != in_order and sorted(windows) == sorted(in_order)
            assert held_out.windows.tokens.tolist() == windows[:4]
            predicted = held_out.windows.targets.tolist()
            assert held_out.bytes == sum(len(run.tokenizer.decode([token])) for token in predicted)


def test_the_tokenizer_has_seen_no_held_out_text(tmp_path):
    with tiny_run(tmp_path, "data.tokenizer.vocab_size=400") as run:
        sources = open_sources(run.config.data, run.config.run.seed)
        documents = [document for source in sources for document in source.documents()]
        training = [document.text for document in documents if not document.held_out]
        held_out = [document.text for document in documents if document.held_out]
        assert run.tokenizer.text == train_tokenizer(training, 400) != train_tokenizer(training + held_out, 400)


def test_the_floor_is_a_share_of_the_equal_weight_and_kappa_weighs_the_spread(tmp_path):
    """Two sources and a floor of 1/5 of 1/2; the second is not learnt and sinks to it, its target being 0.1."""
    with tiny_run(tmp_path, "curriculum.floor=0.4", "curriculum.kappa=0.5") as run:
        for _ in range(40):
            run.curriculum.strategy.observe(estimates_for(2, progress=[0.1, 0.0], progress_se=0.0))
        assert run.curriculum.weights.tolist() == pytest.approx([0.8, 0.2])
        run.frozen.refresh(run.policy)
        estimates = run.curriculum.round(run.frozen, run.topology, np.zeros(2), np.zeros(2))
    spread = estimates.metric - estimates.difficulty
    assert spread.tolist() == pytest.approx((0.5 * np.sqrt(estimates.variance)).tolist(), rel=1e-12)


def test_the_unit_of_the_estimates_is_the_configs(tmp_path):
    """Relative to the first round every difficulty is 1; bits per byte are those of a validation on the same windows.

    kappa is 0, and the 8 windows of a panel are the first ones, of which the validation has as many.
    """
    found = {}
    for unit in ("nats", "bits_per_byte", "relative"):
        with tiny_run(tmp_path, f"curriculum.unit={unit}", "run.validation_windows=8") as run:
            nothing = np.zeros(2)
            run.frozen.refresh(run.policy)
            found[unit] = run.curriculum.round(run.frozen, run.topology, nothing, nothing).difficulty
            loss = validate(run.frozen, run.inputs.validation, run.topology)
    assert found["nats"] == pytest.approx(list(loss.nats_per_token.values()), rel=1e-12)
    assert found["bits_per_byte"] == pytest.approx(list(loss.bits_per_byte.values()), rel=1e-12)
    assert found["relative"].tolist() == [1.0, 1.0]


def test_options_of_single_strategies_reach_them(tmp_path):
    """`temperature` weighs by the windows that the sources have; `doremi` raises what lies above its reference loss."""
    with tiny_run(tmp_path, "curriculum.strategy=temperature", "curriculum.temperature=3.0") as run:
        roots = np.array([len(windows) for windows in run.inputs.language]) ** (1 / 3)
        np.testing.assert_allclose(run.curriculum.weights, roots / roots.sum(), rtol=1e-12)
        assert roots[0] != roots[1]
    losses = "curriculum.reference_loss={noise: 2.0, arithmetic: 2.5}"
    with tiny_run(tmp_path, "curriculum.strategy=doremi", losses) as run:
        run.curriculum.strategy.observe(estimates_for(2, difficulty=3.0))
        raised = 0.9999 * 1 / (1 + np.exp(0.5)) + 0.0001 / 2
        np.testing.assert_allclose(run.curriculum.strategy.target, [raised, 1 - raised], rtol=1e-12)


def test_a_resumed_run_stands_where_its_checkpoint_was_taken(tmp_path):
    """After one update; the seconds of the first life are told with those of the second."""
    target = ["kl.target=0.5", "kl.horizon=80"]
    with tiny_run(tmp_path, "run.checkpoint_every=1", *target) as first:
        one_update(first)
    with tiny_run(tmp_path, "run.resume=auto", *target) as again:
        assert score_settings(again).kl_coef == first.state.kl_coef != 0.05, "beta where the target had led it"
        assert dataclasses.asdict(again.state) == dataclasses.asdict(first.state)
        assert again.seconds_before == first.state.seconds > 0
        assert again.mixture.state_dict() == first.mixture.state_dict()
        assert again.curriculum.state_dict() == first.curriculum.state_dict()
        assert again.seconds > first.state.seconds
