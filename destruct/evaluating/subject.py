"""What is asked for: the models, the config whose data and settings are used, and how much of them."""

from dataclasses import dataclass
from pathlib import Path

from destruct.config.prompts import Prompt
from destruct.config.settings import Config
from destruct.exporting.source import RESOLVED, TRAINING, Source


@dataclass(frozen=True, slots=True)
class Subject:
    """A model: a run's checkpoint, or what transformers reads."""

    key: str  # the option that names it
    name: str  # as a person may write it: a checkpoint's path, a folder, or an id on the hub
    source: Source | None  # of the checkpoint, verified; None for what transformers reads

    @property
    def config(self) -> Path | None:
        """The YAML that it was trained by, where that is known; from the working folder, if it lies below."""
        path = (Path(self.name) / TRAINING if self.source is None else self.source.run) / RESOLVED
        if not path.is_file():
            return None
        return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


@dataclass(frozen=True, slots=True)
class Job:
    """How to measure them."""

    subjects: tuple[Subject, ...]  # one, or two to compare
    config: Config
    path: Path  # of the config
    prompts: tuple[Prompt, ...]  # the person's own
    windows: int  # most held-out ones of each source
    samples: int  # most held-out prompts of each source that are continued
    seed: int  # of what is sampled
    float32: bool  # whatever the models' own dtype
