"""The figures of a run as JSON."""

import dataclasses
import json
import math

from destruct.tracking.summary import null_unless_finite
from tests.tracking.test_console import SUMMARY


def test_the_file_holds_every_figure_and_null_for_what_json_cannot_hold(tmp_path):
    odd = dataclasses.replace(
        SUMMARY,
        kl_max=math.inf,
        best_update=None,
        best_validation_loss=math.inf,
        validation_loss_after={"prose": math.nan, "mean": 1.5},
    )
    odd.save(tmp_path / "summary.json")
    got = json.loads((tmp_path / "summary.json").read_text(), parse_constant=lambda name: 1 / 0)
    nulls = {"kl_max": None, "best_validation_loss": None, "validation_loss_after": {"prose": None, "mean": 1.5}}
    assert got == dataclasses.asdict(odd) | nulls


def test_a_figure_that_json_cannot_hold_becomes_null_and_nothing_else_changes():
    summary = {"losses": {"a": math.nan, "mean": 1.5}, "kl_max": math.inf, "updates": 3, "files": {"x": "nan"}}
    assert null_unless_finite(summary) == {
        "losses": {"a": None, "mean": 1.5},
        "kl_max": None,
        "updates": 3,
        "files": {"x": "nan"},
    }
