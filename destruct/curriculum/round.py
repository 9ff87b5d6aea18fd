"""A round after the frozen model was renewed: estimate difficulty with it, let the strategy move the weights."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from destruct.curriculum.estimates import Estimates, Floats, LossEstimates, relative_to
from destruct.curriculum.feedback import COLUMNS, summarize_feedback
from destruct.curriculum.panels import affordable_size, next_start
from destruct.curriculum.probing import Prober, Windows, per_item_tokens
from destruct.curriculum.progress import ProgressEstimator, window_length
from destruct.curriculum.states import laid_out_anew
from destruct.curriculum.strategies import Strategy
from destruct.engine.base import FrozenEngine
from destruct.engine.topology import Topology
from destruct.heartbeat import HEART

GAP_PANEL = 4
"""A panel of training windows is this many times smaller than one of held-out windows."""


@dataclass(frozen=True, slots=True)
class Panels:
    """What a round scores of the sources, in their order."""

    held_out: Sequence[Windows]
    training: Sequence[Windows]  # of what is trained on; scored where all of it has been drawn once
    size: int  # held-out windows per source that are asked for
    budget: float  # tokens scored per token trained on
    compress: bool  # compare difficulties with what a compressor takes
    relative: bool  # losses as shares of the metric that a source had in its first round


class Curriculum:
    """The rolling estimate of each source's difficulty and the strategy that reads it.

    Args:
        names: of the sources.
        progress: of the held-out panels.
        strategy: over the same sources, as it is before any round.
        prober: scores windows.
    """

    def __init__(
        self, names: Sequence[str], progress: ProgressEstimator, strategy: Strategy, panels: Panels, prober: Prober
    ):
        sources = len(names)
        self.names = list(names)
        self.strategy = strategy
        self.panels = panels
        self.prober = prober
        self.significant = np.zeros(sources, dtype=np.int64)  # rounds with progress beyond two standard errors
        self.panel_size = panels.size  # of the last round
        self.trained_tokens = 0.0  # in rounds that have ended, every pass counted
        self._progress = progress
        self._training_progress = ProgressEstimator(sources, progress.kappa)
        self._fresh = strategy.state_dict()
        # A panel of training windows turns by a fifth of its own size, or too little of it would stay to be compared.
        self._start, self._training_start = 0, 0
        self._per_item = per_item_tokens(panels.held_out)
        compressed = [prober.compressed(windows) if panels.compress else np.nan for windows in panels.held_out]
        self.compressed = np.array(compressed)  # (S,) what LZMA takes for held-out windows, in the unit of the losses
        self._spans: list[Floats] = []  # tokens drawn between the rounds that LP spans; NaN of a source not yet there
        self._begin_span()

    @property
    def rounds(self) -> int:
        """Rounds made so far."""
        return self._progress.rounds

    @property
    def weights(self) -> Floats:
        """Sampling weights (S,) float64, on the simplex."""
        return self.strategy.weights()

    @property
    def probe_share(self) -> float:
        """Tokens scored by rounds so far, per token trained on; 0 before any was."""
        return self.prober.tokens / self.trained_tokens if self.trained_tokens else 0.0

    def count(self, tokens: Floats, passes: float, feedback: Floats | None = None) -> None:
        """Take in a batch that was trained on.

        Args:
            tokens: (S,) drawn of each source.
            passes: how many times it was trained on.
            feedback: (S, 7) sums over its rollouts, see `feedback.COLUMNS`; equal on every rank.
        """
        self._tokens += tokens
        self._trained += passes * float(np.sum(tokens))
        self._batches += 1
        if feedback is not None:
            self._feedback += feedback

    def round(self, frozen: FrozenEngine, topology: Topology, epochs: Floats, exhausted: Floats) -> Estimates:
        """Estimate, reweigh.  All ranks call it and end with the same weights.

        Args:
            frozen: refreshed from the policy just now.
            epochs: (S,) gone through so far.
            exhausted: (S,) 1 where nothing more can be drawn, else 0.
        """
        p = self.panels
        gone_through = epochs >= 1
        per_item = self._per_item + per_item_tokens(list(itertools.compress(p.training, gone_through))) / GAP_PANEL
        self.panel_size = affordable_size(p.size, p.budget, self._trained, per_item)
        HEART.expect(sum(min(self.panel_size, len(windows)) for windows in p.held_out))
        held_out = [self.prober.measure(frozen, w, self._start, self.panel_size, topology) for w in p.held_out]
        few = max(2, self.panel_size // GAP_PANEL)
        training = [
            self.prober.measure(frozen, windows, self._training_start, few, topology) if repeated else None
            for windows, repeated in zip(p.training, gone_through, strict=True)
        ]
        self._start = next_start(self._start, self.panel_size)
        self._training_start = next_start(self._training_start, few)
        self.trained_tokens += self._trained
        losses, on_training = self._progress.observe(held_out), self._training_progress.observe(training)
        estimates = self._estimates(losses, on_training, epochs, exhausted)
        self._begin_span()
        self.strategy.observe(estimates)
        self.significant += estimates.progress > 2 * estimates.progress_se
        return estimates

    def _estimates(
        self, losses: LossEstimates, on_training: LossEstimates, epochs: Floats, exhausted: Floats
    ) -> Estimates:
        span = np.where(self._is_new, np.nan, self._tokens)
        self._spans = [*self._spans, span][1 - window_length(self.rounds) :]
        known = np.isfinite(on_training.progress_se) & np.isfinite(losses.progress_se)
        growth = np.where(known, on_training.progress - losses.progress, np.nan)
        error = np.where(known, np.hypot(on_training.progress_se, losses.progress_se), np.inf)
        repeated = epochs >= 1
        estimates = Estimates(
            **{field.name: getattr(losses, field.name) for field in dataclasses.fields(losses)},
            batches=self._batches,
            compressed=self.compressed.copy(),
            gap_growth=np.where(repeated, growth, 0.0),
            gap_growth_se=np.where(repeated, error, 0.0),
            tokens=self._tokens,
            share=_shares(np.array(self._spans)),
            epochs=np.array(epochs, dtype=np.float64),
            exhausted=np.array(exhausted, dtype=np.float64),
            **summarize_feedback(self._feedback)._asdict(),
        )
        return relative_to(estimates, self._progress.first_metric) if self.panels.relative else estimates

    def _begin_span(self) -> None:
        """Forget what was counted since the round before."""
        self._tokens = np.zeros(len(self.names))
        self._feedback = np.zeros((len(self.names), len(COLUMNS)))
        self._trained, self._batches = 0.0, 0
        self._is_new = np.zeros(len(self.names), dtype=np.bool_)  # sources that came in the middle of the span

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, as JSON."""
        return {
            "sources": self.names,
            "significant": self.significant.tolist(),
            "progress": self._progress.state_dict(),
            "training_progress": self._training_progress.state_dict(),
            "strategy": self.strategy.state_dict(),
            "start": self._start,
            "training_start": self._training_start,
            "panel_size": self.panel_size,
            "trained_tokens": self.trained_tokens,
            "probe_tokens": self.prober.tokens,
            "spans": [[None if np.isnan(x) else x for x in span.tolist()] for span in self._spans],
            "compressed": self.compressed.tolist() if self.panels.compress else None,
            "since_the_round": {
                "tokens": self._tokens.tolist(),
                "feedback": self._feedback.tolist(),
                "trained": self._trained,
                "batches": self._batches,
                "is_new": self._is_new.tolist(),
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.  Where it is of other sources, those that both have go on, a new one starts
        at its prior share and is not known before its third round, and the share of one that is gone falls to the rest.
        """
        before, since = state["sources"], state["since_the_round"]
        places = [before.index(name) if name in before else None for name in self.names]

        def rows(table: list) -> Floats:
            empty = np.zeros_like(np.array(table, dtype=np.float64)[0])
            return np.array([empty if place is None else table[place] for place in places], dtype=np.float64)

        self.significant = rows(state["significant"]).astype(np.int64)
        self._progress.load_state_dict(state["progress"], places)
        self._training_progress.load_state_dict(state["training_progress"], places)
        same = before == self.names
        strategy = state["strategy"] if same else laid_out_anew(state["strategy"], self._fresh, places)
        self.strategy.load_state_dict(strategy)
        self._start, self._training_start = int(state["start"]), int(state["training_start"])
        self.panel_size = int(state["panel_size"])
        self.trained_tokens, self.prober.tokens = state["trained_tokens"], int(state["probe_tokens"])
        absent = np.array([place is None for place in places])
        self._is_new = absent | (rows(since["is_new"]) > 0)
        spans = [rows([np.nan if x is None else x for x in span]) for span in state["spans"]]
        self._spans = [np.where(absent, np.nan, span) for span in spans]
        if self.panels.compress and state["compressed"] is not None:  # by the LZMA of that time
            self.compressed = np.where(absent, self.compressed, rows(state["compressed"]))
        self._tokens, self._feedback = rows(since["tokens"]), rows(since["feedback"])
        self._trained, self._batches = since["trained"], int(since["batches"])


def _shares(spans: Floats) -> Floats:
    """(S,) of the tokens that were drawn while a source was there, from spans (n, S) with NaN before; 0 without any."""
    totals = np.nansum(spans, axis=1, keepdims=True)
    present = ~np.isnan(spans)
    return np.nansum(spans, axis=0) / np.maximum(np.sum(totals * present, axis=0), 1.0)
