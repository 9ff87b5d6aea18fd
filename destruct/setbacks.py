"""Where training diverged: kept in the run's folder, so that the next life goes back and leaves those draws out.

Source: PaLM (arXiv:2204.02311, section 5.1) was restarted from a checkpoint before a spike of the loss, without the
batches around it.
"""

import json
from pathlib import Path
from typing import Any

from destruct.durable import sync

FILE = "setbacks.jsonl"


def record(folder: Path, update: int, why: str, mixture: dict[str, Any]) -> int:
    """Note that a run diverged; returns how often it has by now.

    Args:
        folder: the run's.
        update: updates finished.
        mixture: `Mixture.state_dict()` after the last draw.
    """
    path = folder / FILE
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({"update": update, "why": why, "mixture": mixture}) + "\n")
    sync(path)
    return len(_entries(folder))


def beyond(folder: Path, mixture: dict[str, Any]) -> dict[str, Any]:
    """The state from which a mixture draws on, past everything that was drawn up to a divergence.

    Args:
        mixture: its state at the checkpoint that the run goes back to.
    """
    states = [mixture, *(entry["mixture"] for entry in _entries(folder))]
    return max(states, key=lambda state: state["draws"])


def _entries(folder: Path) -> list[dict[str, Any]]:
    path = folder / FILE
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
