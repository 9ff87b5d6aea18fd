"""Jobs that the tests of the plan work on."""

from pathlib import Path

from destruct.config.settings import load
from destruct.planning.hardware import HARDWARE
from destruct.planning.job import Job, job_of

ROOT = Path(__file__).resolve().parents[2]


def job(*overrides: str, ranks: int = 8, hardware: str = "h100", config: str = "local", per_node: int = 8) -> Job:
    """A shipped config on so many devices."""
    settings = load(ROOT / "configs" / f"{config}.yaml", list(overrides), ranks)
    return job_of(settings, HARDWARE[hardware], per_node)
