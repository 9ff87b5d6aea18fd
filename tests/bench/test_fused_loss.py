"""The benchmark of the fused loss: what it computes, not how long that takes."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.fused_loss import append
from bench.fused_loss_case import COEFFICIENTS, exact_logprobs, gradient_errors, make_case, plain_logprobs
from bench.fused_loss_contenders import FullLogits
from bench.fused_loss_peers import PEERS
from destruct.ops import reference

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (37, 24, 301)
PEER_NAMES = ("liger", "trl", "verl")
FIGURES = (
    "fused_s",
    "three_gemms_s",
    "full_logits_s",
    "linear_cross_entropy_s",
    "ratio_to_gemms",
    "speedup_vs_full_logits",
    "speedup_vs_linear_cross_entropy",
    "extra_bytes",
    "weight_gradient_bytes",
    "hidden_gradient_bytes",
    "peak_rss_bytes",
    "allocator_peak_bytes",
    "full_logits_bytes",
    "logprob_error",
    "full_logits_logprob_error",
    "grad_error",
    "full_logits_grad_error",
    "threads",
    "chunk_rows",
)


def exact_case(shape=SHAPE):
    """The same numbers in float64, in which the definition and any other way must agree to the last digits."""
    return make_case("cpu", torch.float64, shape)


def defined(case):
    loss = reference.policy_loss(case.hidden, case.weight, case.rows, COEFFICIENTS).loss
    return loss, torch.autograd.grad(loss, (case.hidden, case.weight))


def test_the_full_logits_loop_gives_the_definitions_loss_and_gradients():
    case = exact_case()
    full = FullLogits(case, torch.float64)
    loss, (d_hidden, d_weight) = defined(case)
    torch.testing.assert_close(full.step(), loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(full.d_hidden, d_hidden, rtol=1e-9, atol=1e-15)
    torch.testing.assert_close(full.d_weight, d_weight, rtol=1e-9, atol=1e-15)


def test_the_full_logits_loop_can_be_run_again_in_the_same_memory():
    full = FullLogits(exact_case(), torch.float64)
    first = full.step(), full.d_weight.clone()
    assert torch.equal(full.step(), first[0]) and torch.equal(full.d_weight, first[1])


def test_some_rows_are_held_by_the_clip_and_none_is_idle():
    case = exact_case((512, 8, 40))
    ratio = (case.exact_logprobs - case.rows.old_logprobs).exp()
    held = ((case.rows.advantages > 0) & (ratio > 1.2)) | ((case.rows.advantages < 0) & (ratio < 0.8))
    assert 0 < held.sum() < 64
    assert (defined(case)[1][0].abs().amax(1) > 0).all()


def test_the_float64_figures_are_those_of_the_definition():
    """Gradients 1 % too long are 1e-2 wrong; the definition's own are right to float64."""
    case = exact_case()
    _, (d_hidden, d_weight) = defined(case)
    right, long = gradient_errors(case, [(d_hidden, d_weight), (d_hidden, d_weight * 1.01)])
    assert right < 1e-13 and long == pytest.approx(1e-2)
    scores = reference.score(case.hidden, case.weight, case.rows.score_rows())
    torch.testing.assert_close(case.exact_logprobs, scores.logprobs.detach(), rtol=1e-13, atol=0)


def test_many_blocks_of_the_float64_figures_give_what_one_gives(monkeypatch):
    case = exact_case()
    whole = exact_logprobs(case.hidden, case.weight, case.rows.targets)
    _, gradients = defined(case)
    monkeypatch.setattr("bench.fused_loss_case._BLOCK_BYTES", 5 * 301 * 8)
    monkeypatch.setattr("bench.fused_loss_case.CHECKED_ROWS", 16)
    torch.testing.assert_close(exact_logprobs(case.hidden, case.weight, case.rows.targets), whole, rtol=1e-13, atol=0)
    assert gradient_errors(case, [gradients])[0] < 1e-13
    torch.testing.assert_close(plain_logprobs(case).double(), whole, rtol=1e-5, atol=0)


def test_the_first_rows_are_a_loss_of_their_own():
    part = exact_case().first(8)
    assert len(part.hidden) == len(part.rows.targets) == 8
    assert float(part.rows.policy_weight.sum()) == pytest.approx(1)


@pytest.mark.parametrize("name", [name for name in PEER_NAMES if name != "trl"])
def test_an_installed_peer_computes_what_its_note_says(name, monkeypatch):
    """float32 against float64; TRL is left out, for its entropy has no gradient."""
    case = make_case("cpu", torch.float32, SHAPE)
    try:
        step, _ = PEERS[name](case)
    except ImportError as error:
        pytest.skip(str(error))
    step()
    if name == "liger":
        without = type(COEFFICIENTS)(0.2, 0.2, COEFFICIENTS.kl_coef, "k3", 0.0)
        monkeypatch.setattr("bench.fused_loss_case.COEFFICIENTS", without)
    assert gradient_errors(case, [(case.hidden.grad, case.weight.grad)])[0] < 1e-5


def test_appended_figures_have_the_columns_of_the_results(tmp_path):
    conditions = dict.fromkeys(
        ("device", "device_name", "dtype", "rows", "hidden", "vocab", "threads", "torch", "implementation"), "x"
    )
    report = {**conditions, "chunk_rows": 16, "huge_pages": True, "fused_s": 0.5, "liger_s": None, "extra_bytes": 2**21}
    samples = {"fused_s": [0.4, 0.5, 0.6]}
    append(report, samples, tmp_path / "results.csv")
    append(report, samples, tmp_path / "results.csv")
    lines = list(csv.reader((tmp_path / "results.csv").open()))
    assert lines[0] == next(csv.reader((ROOT / "bench" / "results.csv").open()))
    assert [line[1:7] for line in lines[1:]] == [
        ["fused_loss", "fused", "0.44", "0.5", "0.56", "s"],
        ["fused_loss", "extra memory", "", "2", "", "MiB"],
    ] * 2


@pytest.mark.slow
def test_one_line_of_json_holds_every_figure():
    """Every contender but the peers, which an installation may lack; errors within what bfloat16 allows."""
    sizes = ["--rows", "32", "--hidden", "16", "--vocab", "200", "--repeats", "1", "--threads", "1"]
    command = [sys.executable, "-m", "bench.fused_loss", *sizes, "--without", *PEER_NAMES]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=True)
    (line,) = done.stdout.splitlines()
    report = json.loads(line)
    assert not [name for name in FIGURES if not isinstance(report[name], float | int)]
    assert [report[f"{name}_s"] for name in PEER_NAMES] == [None] * 3
    assert all(report[f"{name}_note"] for name in PEER_NAMES)
    assert (report["rows"], report["hidden"], report["vocab"], report["dtype"]) == (32, 16, 200, "bf16")
    assert report["full_logits_bytes"] == 32 * 200 * 4
    assert report["hidden_gradient_bytes"] == 32 * 16 * 2
    assert max(report["logprob_error"], report["full_logits_logprob_error"]) < 2e-2
    assert max(report["grad_error"], report["full_logits_grad_error"]) < 5e-2
