"""When a run started, went on, was stopped and was done: a line each in its folder's `events.jsonl`."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

FILE = "events.jsonl"

STARTED, RESUMED, STOPPED, FINISHED = "started", "resumed", "stopped", "finished"


def record(folder: Path, what: str, **facts: Any) -> None:
    """Add a line with the time.

    Args:
        facts: whatever else is known, as JSON has it.

    Raises:
        OSError: it cannot be written.
    """
    line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="seconds"), "event": what, **facts})
    with (folder / FILE).open("a", encoding="utf-8") as file:
        file.write("\n" + line + "\n")  # a line of a life that was killed may have no end
