"""Where figures, texts and histograms go, written by the first rank alone; the files of this folder say how."""

import dataclasses
import logging
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import transformers

from destruct.durable import writing_to
from destruct.last_words import log_is_at
from destruct.ppo.histograms import Histogram
from destruct.secrets import WARNINGS, Masking, masked
from destruct.streams import LINE, OURS, flow_into
from destruct.tracking.metrics import check_name

WARMUP_PHASES = ("before", "warmup", "after_warmup", "value_warmup")
"""Their steps count warm-up steps; those of `ppo` count updates."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One rollout, as text."""

    source: str
    prompt: str
    response: str
    continuation: str  # what the data has in the place of the response
    stopped: bool  # ended by itself
    reward: float  # reward units, without the KL penalty
    kl: float  # k1(policy that sampled || reference), mean over its tokens, nats per token
    terms: dict[str, float]  # the reward's, each before its weight


@dataclass(frozen=True, slots=True)
class Continuation:
    """What the model said after one of the user's prompts."""

    topic: str
    prompt: str
    response: str


TextT = TypeVar("TextT", Sample, Continuation)


class Sink:
    """One place where it all goes.  What a sink does not show it passes over, which is what is written here.

    Args:
        phase: one of WARMUP_PHASES, or "ppo".
        step: number of the warm-up step or of the update.
    """

    def scalars(self, phase: str, step: int, values: dict[str, float]) -> None:
        """Figures by their names in METRICS; not a number and the infinities are among them."""

    def text(self, name: str, markdown: str, step: int) -> None:
        """A text of ours about an update."""

    def samples(self, step: int, samples: list[Sample]) -> None:
        """Some rollouts of an update."""

    def continuation(self, phase: str, step: int, said: Continuation) -> None:
        """A continuation of one of the user's prompts."""

    def histogram(self, name: str, step: int, histogram: Histogram) -> None:
        """How something of an update is spread."""

    def finish(self, step: int, finals: dict[str, float]) -> None:
        """The run has made all its updates, and these are its figures as a whole."""

    def close(self) -> None:
        """Flush and let go of everything; raises nothing."""


class Sinks:
    """All outputs of a run that grow with it: what is told here goes to each of them, without secrets.

    Raises:
        DestructError: in any call, where the run's folder cannot be written.
    """

    def __init__(self, *sinks: Sink):
        self._sinks = sinks

    def scalars(self, phase: str, step: int, values: dict[str, float]) -> None:
        """Log one line of figures.

        Args:
            phase: one of WARMUP_PHASES, or "ppo".
            step: number of the warm-up step or of the update.
            values: by names that METRICS lists.

        Raises:
            KeyError: it does not list one; nothing is logged then.
        """
        for name in values:
            check_name(name)
        for sink in self._sinks:
            sink.scalars(phase, step, values)

    def text(self, name: str, markdown: str, step: int) -> None:
        """Show a text of ours about an update."""
        for sink in self._sinks:
            sink.text(name, masked(markdown), step)

    def samples(self, step: int, samples: list[Sample]) -> None:
        """Log some rollouts of an update."""
        safe = [_masked(sample) for sample in samples]
        for sink in self._sinks:
            sink.samples(step, safe)

    def continuation(self, phase: str, step: int, said: Continuation) -> None:
        """Log the continuation of one of the user's prompts; phase and step as in `scalars`."""
        safe = _masked(said)
        for sink in self._sinks:
            sink.continuation(phase, step, safe)

    def histogram(self, name: str, step: int, histogram: Histogram) -> None:
        """Show how something of an update is spread."""
        for sink in self._sinks:
            sink.histogram(name, step, histogram)

    def finish(self, step: int, finals: dict[str, float]) -> None:
        """Show the figures of the run as a whole, after `step` updates, which are all."""
        for sink in self._sinks:
            sink.finish(step, finals)

    def close(self) -> None:
        """Flush and close everything."""
        for sink in self._sinks:
            sink.close()


def _masked(told: TextT) -> TextT:
    """The same, without the secrets of the environment in its texts."""
    values = {field.name: getattr(told, field.name) for field in dataclasses.fields(told)}
    safe: dict[str, Any] = {name: masked(value) for name, value in values.items() if isinstance(value, str)}
    return dataclasses.replace(told, **safe)


def log_to_file(folder: Path, rank: int) -> None:
    """Send this rank's logging, warnings, failed threads and all that is printed to logs/rank-N.log; no bars there."""
    transformers.utils.logging.disable_progress_bar()
    logging.raiseExceptions = False  # a warning that does not fit on the disk is no traceback on the screen
    file = folder / "logs" / f"rank-{rank}.log"
    with writing_to(folder):
        file.parent.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(file, encoding="utf-8")
        flow_into(file)
    log_is_at(file, rank)
    handler.setFormatter(Masking(LINE))
    logging.captureWarnings(True)
    threading.excepthook = _log_end_of_thread
    for name in (None, OURS, WARNINGS, "DeepSpeed", "transformers", "torch", "datasets"):
        logger = logging.getLogger(name)
        logger.handlers = [handler] if name is None else []
        logger.propagate = True
    # steps_per_print and wall_clock_breakdown of the JSON speak at this level.
    logging.getLogger("DeepSpeed").setLevel(logging.INFO)
    logging.getLogger(OURS).setLevel(logging.INFO)


def _log_end_of_thread(failed: threading.ExceptHookArgs) -> None:
    logging.getLogger(__name__).error("a thread failed", exc_info=failed.exc_value)
