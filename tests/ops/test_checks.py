"""Inputs that do not fit are refused with the argument's name and both values."""

import dataclasses

import pytest
import torch

from destruct.ops import chunked, reference
from destruct.ops.rows import LogitMap, LossCoefficients, LossRows, ReferenceStates, ScoreRows
from tests.ops.problems import FULL, PLAIN, problem

both = pytest.mark.parametrize("implementation", [reference, chunked])


@both
def test_hidden_states_head_and_targets(implementation):
    hidden, weight, rows, _ = problem(6, 123, 31)
    cases = [
        (hidden[:, :30], weight, rows, r"hidden is \(6, 30\), weight is \(123, 31\)"),
        (hidden.float(), weight, rows, r"hidden is torch.float32, weight is torch.float64"),
        (hidden[:5], weight, rows, r"hidden is \(5, 31\); targets is \(6,\)"),
        (hidden.half(), weight.half(), rows, r"hidden is torch.float16"),
        (hidden, weight.to("meta"), rows, r"hidden is on cpu, weight is on meta"),
        (hidden.to("meta"), weight.to("meta"), rows, r"targets is on cpu; hidden is on meta"),
        (hidden, weight, dataclasses.replace(rows, targets=rows.targets * 0 + 123), r"targets lie in \[123, 123\]"),
        (hidden, weight, dataclasses.replace(rows, targets=rows.targets * 0 - 1), r"targets lie in \[-1, -1\]"),
    ]
    for bad_hidden, bad_weight, bad_rows, message in cases:
        with pytest.raises(ValueError, match=message):
            implementation.policy_loss(bad_hidden, bad_weight, bad_rows, PLAIN)
        with pytest.raises(ValueError, match=message):
            implementation.score(bad_hidden, bad_weight, bad_rows.score_rows())


@both
def test_the_reference_of_an_exact_kl(implementation):
    hidden, weight, rows, (states, head) = (*problem(6, 123, 31)[:3], dataclasses.astuple(problem(6, 123, 31).states))
    exact = FULL["exact"]
    cases = [
        (None, exact, r"reference is not given, kl is 'exact'"),
        (ReferenceStates(states, head), FULL["k2"], r"reference is given, kl is 'k2'"),
        (
            ReferenceStates(states[:, :9], head),
            exact,
            r"reference.hidden is \(\d, 9\), reference.weight is \(123, 34\)",
        ),
        (ReferenceStates(states, head[:99]), exact, r"reference.weight is \(99, 34\); weight is \(123, 31\)"),
        (ReferenceStates(states.float(), head.float()), exact, r"reference.hidden has dtype torch.float32; hidden has"),
        (
            ReferenceStates(states.to("meta"), head.to("meta")),
            exact,
            r"reference.hidden has device meta; hidden has cpu",
        ),
        (ReferenceStates(states.repeat(2, 1), head), exact, r"reference.hidden is \(1\d, 34\); hidden is \(6, 31\)"),
        (ReferenceStates(states[:2], head), exact, r"reference.hidden has 2 rows; row 5 is a response row"),
    ]
    for given, coefficients, message in cases:
        with pytest.raises(ValueError, match=message):
            implementation.policy_loss(hidden, weight, rows, coefficients, given)


def test_rows_that_do_not_fit_together():
    targets, ones = torch.zeros(6, dtype=torch.int64), torch.ones(6)
    with pytest.raises(ValueError, match=r"ScoreRows.temperature is \(5,\); targets is \(6,\)"):
        ScoreRows(targets, ones[:5])
    with pytest.raises(ValueError, match=r"ScoreRows.temperature is on meta; targets is on cpu"):
        ScoreRows(targets, ones.to("meta"))
    with pytest.raises(ValueError, match=r"LossRows.advantages is torch.int64; expected one of"):
        LossRows(targets, ones, ones, ones, targets, ones, ones)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: LossCoefficients(-0.1, 0.2, 0.0, "none", 0.0), "LossCoefficients.clip_low is -0.1"),
        (lambda: LossCoefficients(0.2, 0.2, 0.0, "k4", 0.0), "LossCoefficients.kl is 'k4'"),
        (lambda: LogitMap(scale=0.0), "LogitMap.scale is 0.0"),
        (lambda: LogitMap(scale=float("nan")), "LogitMap.scale is nan"),
        (lambda: LogitMap(soft_cap=-30.0), "LogitMap.soft_cap is -30.0"),
    ],
)
def test_settings_out_of_bounds(make, message):
    with pytest.raises(ValueError, match=message):
        make()
