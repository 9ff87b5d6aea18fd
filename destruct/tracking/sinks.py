"""Where figures and samples go: metrics.jsonl, samples.jsonl and TensorBoard, written by the first rank alone."""

import json
import logging
import math
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

import transformers
from torch.utils.tensorboard import SummaryWriter

from destruct.durable import writing_to
from destruct.last_words import log_is_at
from destruct.secrets import WARNINGS, Masking, masked
from destruct.streams import LINE, OURS, flow_into
from destruct.tracking.metrics import check_name

WARMUP_PHASES = ("before", "warmup", "after_warmup", "value_warmup")
"""Their steps count warm-up steps; those of `ppo` count updates."""


class Sinks:
    """All outputs of a run that grow with it.

    Args:
        folder: the run's folder.
        done: first step to come of each phase; what was written of it, and of later ones, before a resume is dropped.

    Raises:
        DestructError: the folder cannot be written, here or in what is called later.
    """

    def __init__(self, folder: Path, done: dict[str, int]):
        self._folder = folder
        with writing_to(folder):
            self._metrics = _reopen(folder / "metrics.jsonl", "step", done)
            self._samples = _reopen(folder / "samples.jsonl", "update", done)
            self._board = SummaryWriter(str(folder / "logs"), purge_step=done.get("ppo") or None)
            # The purge takes all steps from there on; those of the warm-up count something else and lie apart.
            self._warmup_board = SummaryWriter(str(folder / "logs" / "warmup"))

    def scalars(self, phase: str, step: int, values: dict[str, float]) -> None:
        """Log one line of figures; every name must stand in METRICS.

        Args:
            phase: one of WARMUP_PHASES, or "ppo".
            step: number of the warm-up step or of the update.
        """
        board = self._warmup_board if phase in WARMUP_PHASES else self._board
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        with writing_to(self._folder):
            for name, value in values.items():
                check_name(name)
                board.add_scalar(name, value, step)
            self._metrics.write(json.dumps({"phase": phase, "step": step, **finite}) + "\n")
            self._metrics.flush()

    def text(self, name: str, markdown: str, step: int) -> None:
        """Show a text of an update in TensorBoard."""
        with writing_to(self._folder):
            self._board.add_text(name, masked(markdown), step)

    def sample(self, update: int, fields: dict[str, Any]) -> None:
        """Log one rollout."""
        text = f"**{fields['source']}** reward {fields['reward']:.3f}\n\n{fields['prompt']} **→** {fields['response']}"
        with writing_to(self._folder):
            self._samples.write(masked(json.dumps({"update": update, **fields}, ensure_ascii=False)) + "\n")
            self._board.add_text(f"samples/{fields['source']}", masked(text), update)
            self._samples.flush()

    def prompt(self, phase: str, step: int, topic: str, prompt: str, response: str) -> None:
        """Log the continuation of one of the user's prompts.

        Args:
            phase, step: as in `scalars`.
        """
        fields = {"phase": phase, "update": step, "topic": topic, "prompt": prompt, "response": response}
        board = self._warmup_board if phase in WARMUP_PHASES else self._board
        with writing_to(self._folder):
            self._samples.write(json.dumps(fields, ensure_ascii=False) + "\n")
            self._samples.flush()
            board.add_text(f"prompts/{topic}/{prompt[:40]}", f"{prompt} **→** {response}", step)

    def close(self) -> None:
        """Flush and close everything; on a full disk the newest of the curves are lost, and no line."""
        for output in (self._metrics, self._samples, self._board, self._warmup_board):
            with suppress(OSError):
                output.close()


def _reopen(path: Path, counter: str, done: dict[str, int]) -> TextIO:
    """Append to a file of JSON lines, without those of steps that are to come again (or its broken last line).

    Args:
        counter: the key of a line that counts the steps of its phase.
    """
    kept = []
    # Bytes: text would also be split at the U+2028 of a sample, and a line may have broken off inside a character.
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry[counter] < done.get(entry.get("phase", "ppo"), 0):
            kept.append(line + b"\n")
    staged = path.with_suffix(".staged")
    staged.write_bytes(b"".join(kept))
    os.replace(staged, path)
    return path.open("a", encoding="utf-8")


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
