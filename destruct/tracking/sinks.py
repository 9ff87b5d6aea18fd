"""Where figures and samples go: metrics.jsonl, samples.jsonl and TensorBoard, written by the first rank alone."""

import json
import logging
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from destruct.tracking.metrics import check_name


class Sinks:
    """All outputs of a run that grow with it.

    Args:
        folder: the run's folder.
        resumed_update: updates that the checkpoint holds; what an earlier life wrote after them is dropped.
    """

    def __init__(self, folder: Path, resumed_update: int):
        self._metrics = _reopen(folder / "metrics.jsonl", resumed_update)
        self._samples = _reopen(folder / "samples.jsonl", resumed_update)
        (folder / "logs").mkdir(exist_ok=True)
        self._board = SummaryWriter(str(folder / "logs"), purge_step=resumed_update or None)

    def scalars(self, phase: str, step: int, values: dict[str, float]) -> None:
        """Log one line of figures; every name must stand in METRICS.

        Args:
            phase: "warmup", "value_warmup" or "ppo".
            step: number of the warm-up step or of the update.
        """
        for name, value in values.items():
            check_name(name)
            self._board.add_scalar(name, value, step)
        finite = {name: value if value == value else None for name, value in values.items()}
        self._metrics.write(json.dumps({"phase": phase, "update": step, **finite}) + "\n")
        self._metrics.flush()

    def sample(self, update: int, fields: dict[str, Any]) -> None:
        """Log one rollout."""
        self._samples.write(json.dumps({"update": update, **fields}, ensure_ascii=False) + "\n")
        text = f"**{fields['source']}** reward {fields['reward']:.3f}\n\n{fields['prompt']} **→** {fields['response']}"
        self._board.add_text(f"samples/{fields['source']}", text, update)
        self._samples.flush()

    def close(self) -> None:
        """Flush and close everything."""
        self._metrics.close()
        self._samples.close()
        self._board.close()


def _reopen(path: Path, resumed_update: int) -> Any:
    """Append to a file of JSON lines, without the PPO lines from `resumed_update` on (or its broken last line)."""
    kept: list[str] = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            if entry.get("phase", "ppo") != "ppo" or entry["update"] < resumed_update:
                kept.append(line)
    path.write_text("".join(kept), encoding="utf-8")
    return path.open("a", encoding="utf-8")


def log_to_file(folder: Path, rank: int) -> None:
    """Send this rank's Python logging and warnings to logs/rank-N.log instead of the screen."""
    (folder / "logs").mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "logs" / f"rank-{rank}.log", encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.captureWarnings(True)
    for name in (None, "DeepSpeed", "transformers", "torch", "datasets"):
        logger = logging.getLogger(name)
        logger.handlers = [handler] if name is None else []
        logger.propagate = True
