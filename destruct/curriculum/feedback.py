"""What PPO says of each source: how large its advantages are and how much its rewards vary.

Legend: S sources, n rollouts of one of them since the last round.
"""

from typing import NamedTuple

import numpy as np

from destruct.curriculum.estimates import Floats

COLUMNS = ("score", "rollouts", "score^2", "score^3", "score^4", "|A|", "|A|^2")
"""Of the table (S, 7) that is summed over rollouts: a score in reward units, |A| the mean absolute whitened advantage
of a rollout's tokens.  Sums of float64 lose a digit or two of the variance where the mean is ten times the spread."""


class Feedback(NamedTuple):
    """The fields of `Estimates` of the same names, (S,) each."""

    advantage: Floats
    advantage_se: Floats
    reward_variance: Floats
    reward_variance_se: Floats


def summarize_feedback(table: Floats) -> Feedback:
    """Mean |A| and the variance of the scores of each source, with standard errors.

        SE(mean |A|)^2 = sum (|A|_i - mean)^2 / (n (n-1))
        V = sum (s_i - mean)^2 / (n-1),    SE(V)^2 = (m4 - V^2 (n-3)/(n-1)) / n,    m4 = mean (s_i - mean)^4

    Args:
        table: (S, 7) float64, the sums of COLUMNS.

    Source: of SE(V), A. M. Mood, F. A. Graybill, D. C. Boes, Introduction to the Theory of Statistics (1974), VI.2.
    """
    s1, n, s2, s3, s4, a1, a2 = table.T
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, size = s1 / n, a1 / n
        m2 = np.maximum(s2 / n - mean**2, 0)
        m4 = np.maximum(s4 / n - 4 * mean * s3 / n + 6 * mean**2 * s2 / n - 3 * mean**4, 0)
        variance = m2 * n / (n - 1)
        variance_se = np.sqrt(np.maximum(m4 - variance**2 * (n - 3) / (n - 1), 0) / n)
        size_se = np.sqrt(np.maximum(a2 / n - size**2, 0) / (n - 1))
    return Feedback(
        advantage=np.where(n >= 1, size, np.nan),
        advantage_se=np.where(n >= 2, size_se, np.inf),
        reward_variance=np.where(n >= 2, variance, np.nan),
        reward_variance_se=np.where(n >= 4, variance_se, np.inf),
    )
