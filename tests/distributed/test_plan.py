"""The plan against real runs on two ranks: bytes of every kind of collective, bytes of a checkpoint."""

import json

import pytest

from bench.plan_accuracy import CONFIG, Row, kinds_of, planned
from destruct.config.settings import load
from destruct.planning.disk import plan_disk
from destruct.planning.hardware import HARDWARE
from destruct.planning.job import job_of
from tests.forked import run_ranks

pytestmark = pytest.mark.distributed
SMALL = {
    "model.policy.hidden_size": 256,
    "model.policy.intermediate_size": 512,
    "model.policy.num_attention_heads": 4,
    "model.value.hidden_size": 128,
    "model.value.intermediate_size": 256,
    "model.value.num_attention_heads": 4,
    "data.tokenizer.vocab_size": 1024,
    "data.sources": "{markov: {embedded: markov}, noise: {embedded: noise}}",
    "rollout.prompt_tokens": 16,
    "rollout.response_tokens": 16,
    "ppo.epochs": 2,
    "ppo.early_stop_kl": 100,
}
ROWS = [
    Row("zero1", 2, 2, stage=1, changes=SMALL),
    Row("zero2", 2, 2, stage=2, changes=SMALL),
    Row("zero3", 2, 2, changes=SMALL | {"model.activation_checkpointing": "true"}),
    Row("fsdp", 2, 2, "fsdp", changes=SMALL),
    Row("fsdp untied", 2, 2, "fsdp", changes=SMALL | {"model.policy.tie_word_embeddings": "false"}),
    Row("zero3 exact KL", 2, 2, changes=SMALL | {"kl.in_loss": "exact", "kl.in_reward": "false"}),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_collectives_and_checkpoints_take_what_was_planned(tmp_path, row):
    _, plan = planned(row, tmp_path)
    done = run_ranks(2, "bench.watched_rank", "bytes", str(CONFIG), *row.overrides(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    run = kinds_of(json.loads(done.stdout.splitlines()[-1]))
    assert plan, "several ranks exchange something"
    for kind, size in plan.items():
        assert size == pytest.approx(run[kind], rel=0.05), kind
    unplanned = sum(size for kind, size in run.items() if kind not in plan)
    assert unplanned < 0.01 * sum(plan.values()), "sums of figures"
    disk = plan_disk(job_of(load(CONFIG, row.overrides(tmp_path), 2), HARDWARE["cpu"], 8), 1.0)
    checkpoint = max((tmp_path / "local" / "checkpoints").glob("step-*"))
    on_disk = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    assert disk.checkpoint == pytest.approx(on_disk, rel=0.05)
