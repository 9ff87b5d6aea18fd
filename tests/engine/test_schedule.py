"""Learning rates: step by step those of DeepSpeed's own schedulers, and a cosine by hand."""

import math

import pytest
import torch
from deepspeed.runtime.lr_schedules import WarmupCosineLR, WarmupDecayLR, WarmupLR

from destruct.config.deepspeed import Scheduler, SchedulerParams
from destruct.engine.schedule import Schedule, cosine_to_tenth

THEIRS = {"WarmupLR": WarmupLR, "WarmupDecayLR": WarmupDecayLR, "WarmupCosineLR": WarmupCosineLR}
PEAK = 3e-3
KINDS = pytest.mark.parametrize("kind", ["linear", "log"])


def deepspeeds(name: str, steps: int, **params) -> list[float]:
    """Rates of a torch optimizer under DeepSpeed's scheduler, whose first step() makes `last_batch_iteration` 0."""
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=PEAK)
    scheduler = THEIRS[name](optimizer, **params)
    rates = []
    for _ in range(steps):
        scheduler.step()
        rates.append(optimizer.param_groups[0]["lr"])
    return rates


def ours(name: str, steps: int, total: int, **params) -> list[float]:
    schedule = Schedule(PEAK, Scheduler(type=name, params=SchedulerParams(**params)), total)
    return [schedule(step) for step in range(steps)]


def same(rates: list[float]) -> object:
    """Equal but for the order of a multiplication."""
    return pytest.approx(rates, rel=1e-13, abs=0)


@KINDS
@pytest.mark.parametrize("warmup", [1, 2, 7])
def test_warm_up_to_a_constant_is_deepspeeds(kind, warmup):
    params = {"warmup_num_steps": warmup, "warmup_type": kind, "warmup_min_lr": 1e-4, "warmup_max_lr": 2e-3}
    got = ours("WarmupLR", 25, 20, **params)
    assert got == same(deepspeeds("WarmupLR", 25, **params))
    assert got[0] == 1e-4 and got[-1] == 2e-3


@KINDS
@pytest.mark.parametrize(("warmup", "total"), [(1, 20), (7, 20), (7, 8), (7, 7), (7, 4)])
def test_linear_decay_is_deepspeeds_five_steps_beyond_its_end_too(kind, warmup, total):
    params = {"warmup_num_steps": warmup, "warmup_type": kind, "warmup_min_lr": 1e-4, "warmup_max_lr": 2e-3}
    got = ours("WarmupDecayLR", total + 6, total, total_num_steps=total, **params)
    assert got == same(deepspeeds("WarmupDecayLR", total + 6, total_num_steps=total, **params))
    assert got[-1] == 1e-4, "the floor is the least rate, not 0"


@KINDS
@pytest.mark.parametrize(("warmup", "total"), [(1, 20), (7, 20), (7, 8), (7, 7), (7, 4)])
def test_the_cosine_is_deepspeeds_five_steps_beyond_its_end_too(kind, warmup, total):
    params = {"warmup_num_steps": warmup, "warmup_type": kind, "warmup_min_ratio": 0.1, "cos_min_ratio": 0.05}
    got = ours("WarmupCosineLR", total + 6, total, total_num_steps=total, **params)
    assert got == same(deepspeeds("WarmupCosineLR", total + 6, total_num_steps=total, **params))
    assert got[-1] == pytest.approx(0.05 * PEAK, rel=1e-13)


@pytest.mark.parametrize("name", ["WarmupLR", "WarmupDecayLR", "WarmupCosineLR"])
def test_what_is_left_out_or_auto_is_the_runs_peak_and_plan_and_deepspeeds_own_defaults(name):
    """Auto stands for the rate of the YAML and for the planned steps; the other defaults are DeepSpeed's."""
    known = {} if name == "WarmupLR" else {"total_num_steps": 20}
    if name == "WarmupDecayLR":
        known["warmup_max_lr"] = PEAK
    theirs = deepspeeds(name, 26, warmup_num_steps=6, **known)
    assert ours(name, 26, 20, warmup_num_steps=6) == same(theirs)
    assert ours(name, 26, 20) == same(deepspeeds(name, 26, **known))
    auto = {} if name == "WarmupLR" else {"total_num_steps": "auto"}
    auto |= {} if name == "WarmupCosineLR" else {"warmup_max_lr": "auto"}
    assert ours(name, 26, 20, warmup_num_steps=6, **auto) == same(theirs)
    assert theirs != same(deepspeeds(name, 26, warmup_num_steps=6, **known, warmup_type="linear")), "log by default"


def test_a_total_in_the_file_wins_over_the_plan():
    assert ours("WarmupDecayLR", 9, 100, warmup_num_steps=2, total_num_steps=8)[7:] == same([PEAK / 6, 0.0])


def test_without_a_scheduler_the_rate_is_constant():
    schedule = Schedule(PEAK, None, 10)
    assert {schedule(step) for step in (0, 5, 9, 1000)} == {PEAK}


def test_cosine_to_a_tenth_by_hand():
    """Five steps: progress 0, 1/4, 1/2, 3/4, 1, so (1 + cos) / 2 is 1, (2 + sqrt 2)/4, 1/2, (2 - sqrt 2)/4, 0."""
    root = math.sqrt(2)
    shares = [1.0, 0.1 + 0.9 * (2 + root) / 4, 0.55, 0.1 + 0.9 * (2 - root) / 4, 0.1]
    got = [cosine_to_tenth(2.0, step, 5) for step in range(5)]
    assert got == pytest.approx([2.0 * share for share in shares], rel=1e-14)
    assert cosine_to_tenth(2.0, 0, 1) == 2.0, "a single step is made at the peak"
