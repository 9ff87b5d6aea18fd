"""Figures of a round as shares of another one."""

import math

import numpy as np

from destruct.curriculum.estimates import as_columns, relative_to
from tests.curriculum.rounds import estimates_of


def test_shares_of_a_first_metric_scale_what_is_a_loss_and_nothing_else():
    """Of 4, and of a source that has not been measured yet, whose error stays infinite."""
    now = estimates_of(
        difficulty=[3.0, math.nan], variance=[0.8, math.nan], progress=[0.2, 0.0], progress_se=[0.1, math.inf],
        compressed=[5.0, 5.0], gap_growth=0.4, tokens=100.0, advantage=0.7,
    )  # fmt: skip
    got = as_columns(relative_to(now, np.array([4.0, math.nan])))
    want = as_columns(now) | {
        "difficulty": [0.75, math.nan],
        "difficulty_se": [0.0025, 0.01],
        "variance": [0.05, math.nan],
        "metric": [0.75, 3.0],
        "progress": [0.05, 0.0],
        "progress_se": [0.025, math.inf],
        "compressed": [1.25, 5.0],
        "gap_growth": [0.1, 0.4],
    }
    for name, values in want.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-15, err_msg=name)
