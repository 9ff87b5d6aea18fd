"""From measured progress to the mixture that it argues for: pure functions of arrays (S,).

Legend: S sources; w weights, w0 prior, q target, e exploration shares, all shares of drawn tokens that sum to 1; LP
progress and SE its standard error, nats per token and round; p and se the same after credit.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from destruct.curriculum.estimates import Estimates, Floats

# What the evidence may claim at most: a fifth of every target is exploration.
MAX_CONFIDENCE = 0.8
# Share over prior below which progress is credited no further: a source that was hardly drawn has learnt from others.
LEAST_CREDITED = 0.05
# Standard errors by which a source must get worse to be rescued, or better to be explored afresh.
CERTAIN = 2.0
# What is left of idle rounds a round later: in the end only what is found out again and again counts.
REMEMBERED = 0.9


@dataclass(frozen=True, slots=True)
class TargetRules:
    """How evidence is weighed; each rule has a value that switches it off."""

    z: float  # standard errors that do not count, >= 0; 0: every progress counts
    credit: float  # s in [0, 1]; 0: progress per token of the mixture, 1: per token of the source itself
    rescue: float  # phi >= 0, weight of getting worse; 0: none
    repetition_epochs: float  # R* > 0, epochs after which a repeated token's worth has fallen to 1/e; inf: never
    exploration_rounds: float  # H > 0, idle rounds that halve a source's exploration share; inf: never
    plateaus: bool  # whether it counts what a compressor says of a source; False: nothing does


class Target(NamedTuple):
    """Where the evidence points."""

    eligible: NDArray[np.bool_]  # (S,) whether signal and error are finite, and more can be drawn
    progress: Floats  # (S,) p, credited progress, nats per token and round
    progress_se: Floats  # (S,) its standard error
    evidence: Floats  # (S,) u, progress beyond its error, and rescue
    rescued: Floats  # (S,) the part of u that is rescue
    unfinished: NDArray[np.bool_]  # (S,) has more to teach by what a compressor says
    held: NDArray[np.bool_]  # (S,) on a plateau, and kept at the prior for that
    confidence: float  # conf, share of the target that follows the evidence, in [0, MAX_CONFIDENCE]
    weights: Floats  # (S,) q, sums to 1


def credit(progress: Floats, progress_se: Floats, share: Floats, prior: Floats, power: float) -> tuple[Floats, Floats]:
    """Progress in relation to how much a source was drawn: p = LP / max(share/w0, 0.05)^s, and SE alike.

    Args:
        share: (S,) of the tokens drawn while the progress was made; of all zeros nothing is credited.
        power: s. With 0 a source that is hardly drawn earns little, with 1 it is paid for what it learnt from others.
    """
    drawn = np.ones_like(prior)
    if power and np.sum(share) > 0:
        drawn[prior > 0] = np.maximum(share[prior > 0] / prior[prior > 0], LEAST_CREDITED) ** power
    return progress / drawn, progress_se / drawn


def exploration_shares(prior: Floats, idle: Floats, rounds: float) -> Floats:
    """e_k proportional to w0_k 2^(-idle_k / H): the prior, less of what was idle.

    Args:
        idle: (S,) idle rounds, as `next_idle` counts them.
        rounds: H, inf for the prior.
    """
    # Only differences count, and with the least one subtracted not all shares can underflow.
    shares = prior * np.exp2(-(idle - np.min(idle)) / rounds)
    return shares / np.sum(shares)


def choose_target(
    estimates: Estimates, signal: Floats, signal_se: Floats, prior: Floats, idle: Floats, rules: TargetRules
) -> Target:
    """The mixture that the significant progress argues for, mixed with exploration by how much evidence there is.

        p, se = credit(LP, SE)
        u_k   = (max(p_k - z se_k, 0) + phi max(-p_k - 2 se_k, 0) [share_k < w0_k, forgotten])
                * exp(-max(epochs_k - 1, 0) / R*)
        conf  = 0.8 * sum(u) / (sum(u) + sum(se))
        q     = conf * u / sum(u) + (1 - conf) * e;   q = e where sum(u) = 0
        q_k   = w0_k at least on a plateau, and what lies above the least shrinks alike

    Sources whose signal or error is not finite, or that are exhausted, keep their priors, and the rest is shared by
    this rule among the others; w0 is in relation to what is not exhausted.  A plateau is where `more_to_come` and
    p_k <= 2 se_k.  Forgotten is what gets worse on the training text too: of a text learnt by heart that gets better,
    and the gap grows by more than what is lost.

    Args:
        signal, signal_se: (S,) LP and SE, or another figure of the estimates that counts in their place.
        idle: (S,) as in `exploration_shares`.

    Source: exp(-(epochs - 1) / R*) is what a repeated token adds to the effective data of arXiv:2305.16264, section 3,
    where R* = 15.4 is fitted.
    """
    known = np.isfinite(signal) & np.isfinite(signal_se)
    eligible = known & (estimates.exhausted == 0)
    of_live = _of_the_live(prior, estimates)
    # Nothing is computed with what is not known: with z = 0 an infinite error would make 0 * inf = NaN.
    p, se = credit(
        np.where(known, signal, 0.0), np.where(known, signal_se, 0.0), estimates.share, of_live, rules.credit
    )
    worth = np.exp(-np.maximum(estimates.epochs - 1, 0) / rules.repetition_epochs)
    gained = np.maximum(p - rules.z * se, 0)
    # Written so that a gap which is not known yet rescues none.
    may_rescue = (estimates.share < of_live) & (estimates.gap_growth <= -estimates.progress / 2)
    rescued = np.where(may_rescue, rules.rescue * np.maximum(-p - CERTAIN * se, 0), 0.0) * worth
    evidence = gained * worth + rescued
    evidence[~eligible] = rescued[~eligible] = 0.0
    unfinished = more_to_come(estimates) if rules.plateaus else np.zeros_like(known)
    q, held, confidence = prior.copy(), np.zeros_like(known), 0.0
    if eligible.any():
        shares = exploration_shares(prior[eligible], idle[eligible], rules.exploration_rounds)
        total, noise = float(np.sum(evidence)), float(np.sum(se[eligible]))
        if total > 0 and np.isfinite(total + noise):
            confidence = MAX_CONFIDENCE * total / (total + noise)
            shares = confidence * (evidence[eligible] / total) + (1 - confidence) * shares
        q[eligible] = shares * (1.0 if eligible.all() else 1 - np.sum(prior[~eligible]))
        on_plateau = unfinished & eligible & (p <= CERTAIN * se)
        held = on_plateau & (q < prior)
        if held.any():
            q = _at_least(q, np.where(on_plateau | ~eligible, prior, 0.0))
    return Target(eligible, p, se, evidence, rescued, unfinished, held, confidence, q)


def next_idle(idle: Floats, target: Target, estimates: Estimates, prior: Floats) -> Floats:
    """Idle rounds after this one: less where there is certainly something to learn, else more by what was drawn.

        idle_k <- 0 where a compressor shows that there is more to come, else idle_k where k is not eligible,
                  else idle_k / 2 if p_k > 2 se_k, else 0.9 idle_k + conf / 0.8 * tokens_k / (sum(tokens) w0_k)

    Progress counts however small it is: it tells a source that is learnt almost to its end from noise, and what noise
    loses goes there.  It halves, as it may be chance once.  A round counts by what was drawn, in shares of the prior,
    and by how much evidence it had: where none learns beyond the errors, to be idle tells a source from no other.  And
    it is forgotten, so that the mixture returns to the prior when nothing is learnt any more.
    """
    total, of_live = float(np.sum(estimates.tokens)), _of_the_live(prior, estimates)
    drawn = np.zeros_like(prior)
    if total > 0:
        drawn[prior > 0] = estimates.tokens[prior > 0] / (total * of_live[prior > 0])
    learns = target.eligible & (target.progress > CERTAIN * target.progress_se)
    longer = REMEMBERED * idle + target.confidence / MAX_CONFIDENCE * drawn
    counted = np.where(learns, idle / 2, np.where(target.eligible, longer, idle))
    return np.where(target.unfinished, 0.0, counted)


def _of_the_live(prior: Floats, estimates: Estimates) -> Floats:
    """(S,) the prior in relation to the sources that are not exhausted, who share all that is drawn."""
    live = estimates.exhausted == 0
    return prior if live.all() or not live.any() else prior / np.sum(prior[live])


def more_to_come(estimates: Estimates) -> NDArray[np.bool_]:
    """(S,) whether a compressor shows that a source has more to teach: D > C + 2 SE(D), and the gap is not growing.

    C is what the compressor takes: a source that costs the model more, and is not overfitted, is not at its end like
    noise.  False where one of the figures is not known.
    """
    above = estimates.difficulty > estimates.compressed + CERTAIN * estimates.difficulty_se
    may_come = estimates.gap_growth <= CERTAIN * estimates.gap_growth_se
    return above & may_come & (estimates.exhausted == 0)


def _at_least(shares: Floats, least: Floats) -> Floats:
    """The mixture with at least so much of each source; what lies above that shrinks alike."""
    above = np.maximum(shares - least, 0)
    total = float(np.sum(above))
    # Where all are at their least there is nobody to give; 1 - sum may be a rounding below 0 then.
    return least + above * (max(1 - float(np.sum(least)), 0.0) / total) if total > 0 else shares
