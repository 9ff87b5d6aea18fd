"""The whole run through its doors: the literal `deepspeed -m` line, torchrun, plain Python, and resume."""

import json
import re
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.distributed.differences import differences
from tests.distributed.launching import Life, begin, end, ranks_of, run, updates_in, wait_for_updates
from tests.forked import train_ranks
from tests.tiny import write_config

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

LITERAL = ["deepspeed", "--num_gpus", "2", "-m", "destruct.train", "--config"]


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """Six updates at two ranks, checkpoints after the third and the sixth: the run's folder."""
    folder = tmp_path_factory.mktemp("whole")
    done = run([*LITERAL, str(write_config(folder))])
    assert done.returncode == 0, done.stderr[-4000:]
    assert "validation loss, nats per token" in done.stdout
    assert done.stdout.count("ppo        6/6") == 1, "one rank speaks"
    return folder / "tiny"


@pytest.fixture(scope="module")
def lives(tmp_path_factory) -> tuple[Path, list[Life]]:
    """The same run in three lives: one that is asked to stop, one of which a rank is killed, one that ends it."""
    folder = tmp_path_factory.mktemp("lives")
    command = [*LITERAL, str(write_config(folder)), "run.resume=auto"]
    asked = begin(command)
    wait_for_updates(folder / "tiny", 1, asked)
    asked.send_signal(signal.SIGUSR1)
    ended = [end(asked)]
    struck = begin(command)
    wait_for_updates(folder / "tiny", updates_in(folder / "tiny") + 1, struck)
    ranks_of(struck)[1].kill()
    return folder / "tiny", [*ended, end(struck), end(begin(command))]


@pytest.fixture(scope="module")
def resumed(lives) -> Path:
    """What they left: the run's folder."""
    return lives[0]


def test_a_run_that_is_stopped_saves_and_one_whose_rank_is_killed_names_it_and_none_leaves_a_process(lives):
    folder, (asked, struck, last) = lives
    assert [life.code for life in (asked, struck, last)] == [75, 76, 0]
    assert re.fullmatch(r"destruct: stopped by SIGUSR1: \S*/step-0000000\d is saved, and .*\n", asked.err)
    assert "\ndeepspeed: rank 1 was killed by SIGKILL, the first to end so\n" in struck.err, struck.err
    assert str(folder / "logs" / "rank-1.log") in struck.err
    assert not (left := [process for life in (asked, struck, last) for process in life.left]), left
    assert "resumed after update" in struck.out and "resumed after update" in last.out


def test_six_updates_equal_three_and_resume_and_three_in_every_tensor_and_moment(whole, resumed):
    a, b = whole / "checkpoints" / "step-00000006", resumed / "checkpoints" / "step-00000006"
    names = sorted(p.relative_to(a).as_posix() for p in a.rglob("*.pt"))
    assert names == sorted(p.relative_to(b).as_posix() for p in b.rglob("*.pt"))
    assert sum("optim_states" in name for name in names) == 4, "two networks on two ranks"
    moments = 0
    for name in names:
        left, right = (torch.load(root / name, weights_only=False) for root in (a, b))
        assert not differences(left, right)
        moments += str(left).count("exp_avg_sq")
    assert moments, "the comparison must have seen Adam's second moments"
    assert not differences(load_file(a / "frozen/model.safetensors"), load_file(b / "frozen/model.safetensors"))


def figures(folder: Path) -> list[dict]:
    return [
        {name: x for name, x in line.items() if not name.startswith(("time/", "memory/"))}
        for line in lines(folder / "metrics.jsonl")
    ]


def test_resume_continues_counters_curriculum_mixture_and_figures(whole, resumed):
    states = [json.loads((f / "checkpoints/step-00000006/state.json").read_text()) for f in (whole, resumed)]
    for state in states:
        state.pop("seconds")
    assert states[0] == states[1]
    assert states[0]["curriculum"]["progress"]["rounds"] == 6

    assert figures(whole) == figures(resumed)
    assert lines(whole / "samples.jsonl") == lines(resumed / "samples.jsonl")
    summaries = [json.loads((f / "summary.json").read_text()) for f in (whole, resumed)]
    for name in (
        "validation_loss_after",
        "best_update",
        "reward_before",
        "reward_after",
        "kl_max",
        "tokens",
        "weights",
    ):
        assert summaries[0][name] == summaries[1][name], name


def test_from_another_runs_checkpoint_two_ranks_go_on_in_a_folder_of_their_own(whole, tmp_path):
    checkpoints = whole / "checkpoints"
    done = train_ranks(2, write_config(tmp_path, "fork"), "--resume", str(checkpoints / "step-00000003"))
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"resumed after update 3 from {checkpoints / 'step-00000003'}" in done.stdout
    fork = tmp_path / "fork"
    assert figures(fork) == [line for line in figures(whole) if line["phase"] == "ppo" and line["step"] >= 3]
    a, b = (load_file(f / "checkpoints/step-00000006/frozen/model.safetensors") for f in (whole, fork))
    assert not differences(a, b)
    kept = {path.name for path in (fork / "checkpoints").iterdir()}
    assert kept - {"best"} == {"latest", "step-00000006"}


def test_the_first_ratio_of_every_update_is_exactly_one(whole):
    errors = [line["ppo/first_ratio_error"] for line in lines(whole / "metrics.jsonl") if "ppo/steps" in line]
    assert errors == [0.0] * 6


def test_the_summary_holds_what_it_promises(whole):
    summary = json.loads((whole / "summary.json").read_text())
    for when in ("before", "after_warmup", "after"):
        losses = summary[f"validation_loss_{when}"]
        assert losses["mean"] == losses["arithmetic"], "noise is not learnable, so it is left out of the mean"
        assert losses.keys() == {"arithmetic", "noise", "mean"}
    assert summary["updates"] == 6
    assert summary["rounds"] == 6
    assert summary["world_size"] == 2
    assert summary["kl_bound"] == 1.0
    logged = [line for line in lines(whole / "metrics.jsonl") if line["phase"] == "ppo"]
    ends = {line["step"] + 1: line["validation/mean"] for line in logged if "validation/mean" in line}
    assert ends.keys() == {3, 6}
    assert summary["best_validation_loss"] == min(ends.values()) == ends[summary["best_update"]]
    assert (whole / "checkpoints/best").read_text() == f"step-0000000{summary['best_update']}\n"
    updates = [line for line in logged if "ppo/steps" in line]
    assert summary["kl_max"] == max(line["kl/to_reference"] for line in updates)
    first = updates[0]
    mean = (first["rollout/reward/arithmetic"] + first["rollout/reward/noise"]) / 2
    assert summary["reward_before"] == pytest.approx(mean, rel=1e-12)
    # 4 warm-up draws, 1 of the value network and 6 of PPO, 16 windows of 16 tokens each; then the sampled tokens.
    assert summary["tokens"] >= 11 * 16 * 16


def test_the_folder_holds_its_files_and_tensorboard_reads_them(whole):
    resolved = (whole / "resolved.yaml").read_text()
    assert "num_epochs: 2  # tiny.yaml:" in resolved
    assert re.search(r"^#   engine.loss: chunked, 1024 rows of \d+ logits at a time, bfloat16$", resolved, re.M)
    assert json.loads((whole / "environment.json").read_text())["world_size"] == 2
    assert {p.name for p in (whole / "logs").glob("rank-*.log")} == {"rank-0.log", "rank-1.log"}
    board = EventAccumulator(str(whole / "logs"), size_guidance={"histograms": 0})
    board.Reload()
    assert len(board.Scalars("curriculum/weight/noise")) == 6
    assert len(board.Scalars("kl/to_reference")) == 6
    updates = [line for line in lines(whole / "metrics.jsonl") if "ppo/steps" in line]
    tokens = [round(16 * line["rollout/response_tokens"]) for line in updates]
    assert [event.histogram_value.num for event in board.Histograms("ppo/advantage")] == tokens, "of both ranks"
    passes = [count * line["ppo/epochs"] for count, line in zip(tokens, updates, strict=True)]
    assert [event.histogram_value.num for event in board.Histograms("ppo/ratio")] == passes
    manifest = json.loads((whole / "checkpoints/step-00000006/manifest.json").read_text())
    assert "frozen/model.safetensors" in manifest["files"]


def test_a_reward_that_raises_on_one_rank_alone_ends_all_and_is_named(tmp_path):
    (tmp_path / "moody.py").write_text(
        "import os\n"
        "calls = []\n"
        "def f(prompts, responses, continuations):\n"
        "    calls.append(1)\n"
        "    if os.environ['RANK'] == '1' and len(calls) > 2:\n"
        "        raise ValueError('not today')\n"
        "    return [0.0] * len(responses)\n"
    )
    config = str(write_config(tmp_path))
    done = run([*LITERAL, config, "reward.terms={'moody:f': 1.0}"], module_path=tmp_path)
    assert done.returncode == 2
    assert re.search(
        r"rank 1: reward term 'moody:f' raised ValueError: not today \(.*moody.py:6\) on sample \d+\n", done.stderr
    )
    assert "Traceback" not in done.stderr
    board = EventAccumulator(str(tmp_path / "tiny/logs/warmup"))
    board.Reload()
    assert len(board.Scalars("warmup/lm_loss")) == 4, "what was logged before the error is on the disk"


def test_a_module_that_is_missing_on_one_rank_alone_is_named_before_a_model_is_built(tmp_path):
    (tmp_path / "local.py").write_text(
        "import os\nassert os.environ['RANK'] == '0', 'not on this node'\ndef f(a, b, c):\n    return [0.0] * len(a)\n"
    )
    config = str(write_config(tmp_path))
    done = run([*LITERAL, config, "reward.terms={'local:f': 1.0}"], module_path=tmp_path)
    assert done.returncode == 2
    assert "rank 1: reward term 'local:f': AssertionError: not on this node" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "tiny").exists()


def test_a_mistake_ends_every_launcher_with_its_code_and_two_lines_from_one_rank(tmp_path):
    config = str(write_config(tmp_path))
    done = run([*LITERAL, config, "ppo.clip_rnage=0.1"])
    said = [line for line in done.stderr.splitlines() if "Setting accelerator" not in line and line.strip()]
    assert done.returncode == 2
    assert len(said) == 2, done.stderr
    assert re.search(r"unknown key 'ppo.clip_rnage'", said[0])
    assert "clip_range" in said[1]
    assert not (tmp_path / "tiny").exists()


def test_a_checkpoint_of_two_ranks_goes_on_at_one_with_the_same_data_and_like_losses(whole, tmp_path):
    """bfloat16: two decimal digits."""
    shutil.copytree(whole, tmp_path / "tiny")
    config, third = str(write_config(tmp_path)), tmp_path / "tiny/checkpoints/step-00000003"
    done = run([sys.executable, "-m", "destruct.train", "--config", config, "--resume", str(third)])
    assert done.returncode == 0, done.stderr[-4000:]
    assert "resumed after update 3" in done.stdout
    folders = whole, tmp_path / "tiny"
    ends = [json.loads((folder / "checkpoints/step-00000006/state.json").read_text()) for folder in folders]
    assert ends[0]["mixture"]["cursors"] == ends[1]["mixture"]["cursors"]
    two, one = (lines(folder / "metrics.jsonl")[-1] for folder in folders)
    losses = [name for name in two if name.startswith("validation/")]
    assert len(losses) > 2 and [one[name] for name in losses] == pytest.approx([two[name] for name in losses], rel=2e-2)
    assert not list((tmp_path / "tiny/checkpoints").glob(".stage*"))


def test_a_damaged_checkpoint_is_named_before_it_is_unpickled_and_the_one_before_it_taken(whole, tmp_path):
    """One bit of what the second rank wrote; the run then repeats itself."""
    shutil.copytree(whole, tmp_path / "tiny")
    victim = next((tmp_path / "tiny/checkpoints/step-00000006/value").glob("*rank_1*optim_states.pt"))
    data = bytearray(victim.read_bytes())
    data[len(data) // 2] ^= 1
    victim.write_bytes(data)
    done = train_ranks(2, write_config(tmp_path), "run.resume=auto")
    assert done.returncode == 0, done.stderr[-4000:]
    said = " ".join(done.stdout.split())
    assert f"warning: {victim} is not the file that was saved: its digest is another one" in said
    assert "resumed after update 3" in said
    assert figures(tmp_path / "tiny") == figures(whole)
    assert (tmp_path / "tiny/checkpoints/given-up/step-00000006/manifest.json").is_file()
