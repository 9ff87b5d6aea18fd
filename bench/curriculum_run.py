"""One run of the curriculum benchmark: a Llama of 0.9M parameters on bytes of several sources, by one strategy.

    python -m bench.curriculum_run '{"mixture": "waste", "strategy": "second_order", "seed": 0, "budget": 1000000, ...}'

The windows are drawn, trained on and scored by the parts that a training run has; there is no PPO.  Scoring panels is
charged as a third of training on them (a forward is a third of a forward and a backward), so that a run ends when

    budget_used = trained tokens + probe tokens / 3  >=  budget

A run is a function of its settings: the initial weights, the windows of a source and their order depend on the seed and
on names alone, so runs of one seed are pairs.  It prints a JSON line now and then, and the result in the last one.
"""

import argparse
import contextlib
import importlib
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.curriculum_settings import FIXED, Settings
from destruct.batch import TokenWindows
from destruct.build import make_curriculum
from destruct.config.deepspeed import Optimizer
from destruct.config.model import PolicyShape
from destruct.data.mixture import Mixture
from destruct.data.order import Shuffled
from destruct.engine.single import SingleEngine, SingleFrozen
from destruct.engine.topology import Topology
from destruct.evaluation import window_nats
from destruct.models.policy import build_copy, build_policy
from destruct.seeding import derive
from destruct.warmup import cross_entropy_step

Floats = NDArray[np.float64]

BYTES = 256
"""Entries of the vocabulary."""
FORWARD_COST = 1 / 3
"""Of a token that is scored, in tokens that are trained on."""
TEXT_NATS = 1.5
"""Nats per byte of the text that a reference model is taken to have: about what uniform sampling comes to."""
WEIGHT_DIGITS = 12
"""To which weights are rounded before windows are drawn: sums over sources in another order differ after the 15th."""
TELL_EVERY = 10
"""Steps between two signs of life."""


class Pool:
    """Windows of one source, as the curriculum asks for them.

    Args:
        tokens: (n, T) uint8.
        true_nats: (n, T) float64, cost of each byte under the source itself; 0 where nobody knows it.
    """

    def __init__(self, tokens: NDArray[np.uint8], true_nats: Floats):
        self.tokens = tokens
        self.entropy = float(true_nats[:, 1:].sum())  # nats of all bytes but the first ones, which nothing predicts

    def __len__(self) -> int:
        return len(self.tokens)

    def select(self, rows: Tensor) -> TokenWindows:
        """The windows at `rows` (m,) int64, one document each."""
        return TokenWindows.full(torch.from_numpy(self.tokens[rows.numpy()].astype(np.int64)))

    @property
    def predicted(self) -> int:
        """Bytes that stand behind another one of their window."""
        return self.tokens.size - len(self.tokens)


class Training:
    """A run while it goes on.  Arrays (S,) are in the order of `settings.sources`, S of them."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.topology = Topology(0, 1, torch.device("cpu"))
        names = settings.sources
        self.test = make_pools(settings, "test", settings.test_windows)
        self.window = window = self.test[0].tokens.shape[1]  # T
        train = make_pools(settings, "train", max(1, int(settings.pool_share * settings.budget / window)))
        self.train, panel = train, make_pools(settings, "panel", settings.panel_windows)
        shape = PolicyShape(
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size,
            num_hidden_layers=settings.num_layers,
            max_position_embeddings=window,
        )
        network = build_policy(shape, BYTES, torch.float32, derive(settings.seed, "weights", "policy") >> 1, "chunked")
        self.policy = SingleEngine(network, Optimizer(), accumulation=1, max_grad_norm=1.0)
        self.frozen = SingleFrozen(build_copy(shape, BYTES, torch.float32, "chunked"))
        sizes = [len(pool) for pool in train]
        prior = dict.fromkeys(names, 1 / len(names))
        config = settings.config()
        if config.strategy == "doremi":
            # Its reference model is the best there is, but for the text, which has none.
            costs = {name: pool.entropy / pool.predicted or TEXT_NATS for name, pool in zip(names, panel, strict=True)}
            config = config.model_copy(update={"reference_loss": costs})
        tokens = np.array(sizes, dtype=np.float64) * window
        self.curriculum = make_curriculum(config, prior, panel, train, np.ones(BYTES), tokens)
        # Sources are drawn in the order of their names, whatever the order in which the curriculum has them.
        self.by_name = sorted(range(len(names)), key=names.__getitem__)
        self.mixture = Mixture([Shuffled(names[k], sizes[k], settings.seed) for k in self.by_name])
        self.drawn = np.zeros(len(names))  # (S,) tokens
        self.steps = self.skipped = self.rounds = 0

    @property
    def trained(self) -> int:
        """Tokens trained on."""
        return int(self.drawn.sum())

    @property
    def budget_used(self) -> float:
        """Tokens trained on, and a third of those scored in rounds."""
        return self.trained + FORWARD_COST * self.curriculum.prober.tokens

    @property
    def round_due(self) -> bool:
        """Whether a round comes before the next step."""
        s = self.settings
        return s.strategy not in FIXED and self.trained >= s.warmup_tokens + self.rounds * s.round_tokens

    def in_order(self, by_name: Sequence[float] | Floats) -> Floats:
        """(S,) in the order of the settings, of what is in the order of the names."""
        ordered = np.empty(len(self.by_name))
        ordered[self.by_name] = by_name
        return ordered

    def step(self) -> None:
        """Draw B windows by the weights, train on them, let the curriculum count them."""
        s = self.settings
        draw = self.mixture.draw(s.batch, np.round(self.curriculum.weights, WEIGHT_DIGITS)[self.by_name])
        pools = [self.train[k].tokens for k in self.by_name]
        rows = [pools[source][index] for source, index in zip(draw.source, draw.index, strict=True)]
        windows = TokenWindows.full(torch.from_numpy(np.stack(rows).astype(np.int64)))
        rate = s.learning_rate * min(1.0, (self.steps + 1) / s.rising_steps)
        _, stepped = cross_entropy_step(self.policy, windows, rate, self.topology)
        tokens = self.window * self.in_order(np.bincount(draw.source, minlength=len(self.by_name)))
        self.curriculum.count(tokens, passes=1.0)
        self.drawn += tokens
        self.steps += 1
        self.skipped += not stepped

    def round(self) -> dict[str, Any]:
        """Score the panels, let the strategy move the weights; returns a row of the result's `rounds`."""
        self.frozen.refresh(self.policy)
        epochs = self.in_order(self.mixture.epochs)
        exhausted = np.isin(self.settings.sources, self.mixture.exhausted).astype(np.float64)
        estimates = self.curriculum.round(self.frozen, self.topology, epochs, exhausted)
        self.rounds += 1
        measured = ("difficulty", "difficulty_se", "progress", "progress_se")
        return {
            "budget_used": self.budget_used,
            "weights": self.curriculum.weights.tolist(),
            "target": self.curriculum.strategy.target.tolist(),
            "reasons": list(self.curriculum.strategy.reasons()),
            **{name: [short(x) for x in getattr(estimates, name)] for name in measured},
        }

    def evaluate(self) -> dict[str, Any]:
        """Nats per byte beyond what the source itself costs, on the test windows; a row of the result's `curve`."""
        excess = []
        for pool in self.test:
            nats = window_nats(self.policy, pool.select(torch.arange(len(pool))), self.topology).sum().item()
            excess.append(short((nats - pool.entropy) / pool.predicted))
        return {
            "budget_used": self.budget_used,
            "trained": self.trained,
            "excess": excess,
            "drawn": self.drawn.astype(int).tolist(),
        }


def make_pools(settings: Settings, split: str, count: int) -> list[Pool]:
    """The windows of each source, in the order of the settings.

    Args:
        split: `train`, `panel` or `test`.
        count: windows of each, where it has as many.
    """
    catalogue = importlib.import_module(settings.catalogue).SOURCES
    made = [catalogue[name].make(split, count, settings.seed) for name in settings.sources]
    return [Pool(windows.tokens, windows.nats) for windows in made]


def short(number: float) -> float | None:
    """To seven digits, as the results are a tracked file; None where it is not finite."""
    return float(f"{number:.7g}") if math.isfinite(number) else None


def run(settings: Settings, tell: Callable[[dict[str, Any]], None] = lambda progress: None) -> dict[str, Any]:
    """Make the run.

    Args:
        tell: is called with `budget_used` and, after an evaluation, `excess` (S,) nats per byte.

    Returns:
        settings, and in JSON's types, None for what is not finite:
        curve: columns `budget_used`, `trained` (E,), `excess`, `drawn` (E, S): each evaluation, one before step 0.
        rounds: columns `budget_used` (R,), `weights`, `target`, `reasons`, `difficulty`, `difficulty_se`, `progress`,
            `progress_se` (R, S): each round, after it.
        start_weights (S,), epochs (S,), probe_tokens, trained_tokens, skipped_steps, seconds.
    """
    began = time.perf_counter()
    training = Training(settings)
    start_weights = training.curriculum.weights.tolist()
    curve, rounds = [training.evaluate()], []
    while training.budget_used < settings.budget:
        if training.round_due:
            rounds.append(training.round())
        training.step()
        due = settings.evaluate_tokens * len(curve)
        if training.budget_used >= min(due, settings.budget):
            curve.append(training.evaluate())
            tell({"budget_used": training.budget_used, "excess": curve[-1]["excess"]})
        elif training.steps % TELL_EVERY == 0:
            tell({"budget_used": training.budget_used})
    return {
        "settings": asdict(settings),
        "curve": columns(curve),
        "start_weights": start_weights,
        "rounds": columns(rounds),
        "epochs": training.in_order(training.mixture.epochs).tolist(),
        "probe_tokens": int(training.curriculum.prober.tokens),
        "trained_tokens": training.trained,
        "skipped_steps": training.skipped,
        "seconds": round(time.perf_counter() - began, 1),
    }


def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Name -> values of all rows; {} of none."""
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", help="fields of Settings, as JSON")
    settings = Settings(**json.loads(parser.parse_args().settings))
    torch.set_num_threads(1)  # the order of sums depends on the number of threads
    lines = sys.stdout

    def tell(told: dict[str, Any]) -> None:
        print(json.dumps(told), file=lines, flush=True)

    with contextlib.redirect_stdout(sys.stderr):
        tell({"result": run(settings, tell)})


if __name__ == "__main__":
    main()
