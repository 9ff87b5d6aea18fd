"""TensorBoard: scalars, the charts that show several of them at once, histograms, texts, and a line among the runs."""

import math
import time
from contextlib import suppress
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from destruct.durable import writing_to
from destruct.ppo.histograms import Histogram
from destruct.tracking import html
from destruct.tracking.board_protos import BANDED, EDGES, edges, end_of_session, layout, start_of_session
from destruct.tracking.facts import Facts
from destruct.tracking.sinks import WARMUP_PHASES, Continuation, Sample, Sink

FINALS = "at_the_end"
"""The group of the figures of a run as a whole: HPARAMS shows the first five by the alphabet, and these are they."""


class TensorBoard(Sink):
    """Event files in `logs/`, those of the warm-up apart, as their steps count something else.

    Beside what is logged the board has the edges of error bands and the bound on the KL, in a group of their own, as
    its charts draw nothing but scalars; metrics.jsonl has neither.

    Args:
        folder: the run's folder.
        done: first step to come of each phase; what was written of later ones before a resume is not shown any more.
        facts: of the run.

    Raises:
        DestructError: the folder cannot be written, here or in what is called later.
    """

    def __init__(self, folder: Path, done: dict[str, int], facts: Facts):
        self._folder, self._facts = folder, facts
        with writing_to(folder):
            # The purge takes all steps from there on; those of the warm-up must not be among them.  A run that begins
            # says so too: TensorBoard purges nothing at the first purge that it finds.
            self._board = SummaryWriter(str(folder / "logs"), purge_step=done.get("ppo", 0))
            self._warmup = SummaryWriter(str(folder / "logs" / "warmup"))
            self._file = self._board._get_file_writer()
            self._file.add_summary(layout(facts.sources))
            self._file.add_summary(start_of_session(facts.hyper_parameters, time.time()))

    def scalars(self, phase: str, step: int, values: dict[str, float]) -> None:
        """Points of the curves, and of what is drawn around them."""
        shown = values if phase in WARMUP_PHASES else values | self._around(values)
        with writing_to(self._folder):
            for name, value in shown.items():
                self._of(phase).add_scalar(name, value, step)

    def text(self, name: str, markdown: str, step: int) -> None:
        """A text among those of the run."""
        with writing_to(self._folder):
            self._board.add_text(name, markdown, step)

    def samples(self, step: int, samples: list[Sample]) -> None:
        """One text for each source."""
        with writing_to(self._folder):
            for source in dict.fromkeys(sample.source for sample in samples):
                of_it = [sample for sample in samples if sample.source == source]
                self._board.add_text(f"samples/{source}", html.of_samples(of_it), step)

    def continuation(self, phase: str, step: int, said: Continuation) -> None:
        """One text for each prompt."""
        with writing_to(self._folder):
            name = f"prompts/{said.topic}/{said.prompt[:40]}"
            self._of(phase).add_text(name, html.of_continuation(said), step)

    def histogram(self, name: str, step: int, histogram: Histogram) -> None:
        """The bins between the first and the last that hold anything; moments are those of the bins' middles."""
        filled = [place for place, count in enumerate(histogram.counts) if count]
        if not filled:
            return
        bins = range(filled[0], filled[-1] + 1)
        lows, highs = ([histogram.edges[place + end] for place in bins] for end in (0, 1))
        counts = [histogram.counts[place] for place in bins]
        middles = [(low + high) / 2 for low, high in zip(lows, highs, strict=True)]
        with writing_to(self._folder):
            self._board.add_histogram_raw(
                name,
                min=lows[0],
                max=highs[-1],
                num=sum(counts),
                sum=sum(n * x for n, x in zip(counts, middles, strict=True)),
                sum_squares=sum(n * x**2 for n, x in zip(counts, middles, strict=True)),
                bucket_limits=[lows[0], *highs],  # an upper limit each; the first bucket is empty, so that it begins
                bucket_counts=[0, *counts],
                global_step=step,
            )

    def finish(self, step: int, finals: dict[str, float]) -> None:
        """The run's line among the runs."""
        with writing_to(self._folder):
            for name, value in finals.items():
                self._board.add_scalar(f"{FINALS}/{name}", value, step)
            self._file.add_summary(end_of_session(time.time()))

    def close(self) -> None:
        """Write what is buffered; on a full disk the newest of the curves are lost."""
        for board in (self._board, self._warmup):
            with suppress(OSError):
                board.close()

    def _of(self, phase: str) -> SummaryWriter:
        return self._warmup if phase in WARMUP_PHASES else self._board

    def _around(self, values: dict[str, float]) -> dict[str, float]:
        """The edges of the error bands and the bound on the KL; one that is not known is not a number."""
        around = {f"{EDGES}/kl_bound": self._facts.kl_bound} if "kl/to_reference" in values else {}
        for figure in BANDED:
            for source in self._facts.sources:
                middle = values.get(f"curriculum/{figure}/{source}")
                if middle is not None:
                    error = values[f"curriculum/{figure}_se/{source}"]
                    lower, upper = edges(figure, source)
                    around |= {lower: middle - error, upper: middle + error}
        return {name: x if math.isfinite(x) else math.nan for name, x in around.items()}
