"""Which sinks a run has."""

from collections.abc import Callable
from pathlib import Path

from destruct.config.settings import Settings
from destruct.tracking.board import TensorBoard
from destruct.tracking.facts import facts_of
from destruct.tracking.json_lines import JsonLines
from destruct.tracking.sinks import Sink, Sinks
from destruct.tracking.weights_and_biases import WeightsAndBiases, mode_of


def open_sinks(settings: Settings, folder: Path, done: dict[str, int], say: Callable[[str], None]) -> Sinks:
    """The files of the run's folder, and Weights & Biases where the config asks for it.

    Args:
        folder: the run's folder.
        done: first step to come of each phase; what was written of it, and of later ones, before a resume is dropped.
        say: tells the person a line.

    Raises:
        DestructError: the folder cannot be written.
    """
    facts, wandb = facts_of(settings), settings.config.wandb
    sinks: list[Sink] = [JsonLines(folder, done), TensorBoard(folder, done, facts)]
    if (mode := mode_of(wandb)) != "disabled":
        sinks.append(WeightsAndBiases(folder, wandb, mode, facts, say))
    return Sinks(*sinks)
