"""Where training diverged: kept in the run's folder, so that the next life goes back and leaves those draws out.

Source: PaLM (arXiv:2204.02311, section 5.1) was restarted from a checkpoint before a spike of the loss, without the
batches around it.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from destruct.durable import sync

FILE = "setbacks.jsonl"


@dataclass(frozen=True, slots=True)
class Setback:
    """That a run diverged, and where it goes on."""

    update: int  # updates finished
    to: str  # name of the checkpoint that it goes back to
    why: str
    mixture: dict[str, Any]  # Mixture.state_dict() after the last draw


def record(folder: Path, setback: Setback) -> int:
    """Note it in a run's folder; returns how often the run has been set back to that checkpoint by now."""
    path = folder / FILE
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(asdict(setback)) + "\n")  # a line of a life that was killed may have no end
    sync(path)
    sync(folder)
    return sum(entry.to == setback.to for entry in known(folder))


def beyond(folder: Path, checkpoint: str, mixture: dict[str, Any]) -> dict[str, Any]:
    """The state from which a mixture draws on, past everything that was drawn from there up to a divergence.

    Args:
        checkpoint: name of that which the run goes on from.
        mixture: its state there.
    """
    states = [mixture, *(entry.mixture for entry in known(folder) if entry.to == checkpoint)]
    return max(states, key=lambda state: state["draws"])


def known(folder: Path) -> list[Setback]:
    """Those of a run so far."""
    path, found = folder / FILE, []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            found.append(Setback(**json.loads(line)))
        except ValueError:
            continue
    return found
