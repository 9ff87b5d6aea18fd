"""Real runs of a tiny config: started, watched from outside, struck, and looked at afterwards."""

import contextlib
import re
import signal
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

from destruct.checkpoint import finding
from tests.distributed.launching import ROOT, environment, torchrun
from tests.faults import digests
from tests.processes import runs, variables, words
from tests.tiny import CONFIG, write_config

PATIENCE_S = 180.0
LM, VALUE = CONFIG["warmup"]["lm_updates"], CONFIG["warmup"]["value_updates"]
UPDATES = 12
SAVING = [f"run.num_epochs={UPDATES // 3}", "run.checkpoint_every=1", "run.keep_checkpoints=3"]
"""A run that saves after every step, of the warm-up too."""

MARK = "FAULTS_LIFE"
"""Variable by which the processes of a life are found, whatever became of their parents."""


def command(folder: Path, *overrides: str, ranks: int = 2, backend: str = "zero3") -> list[str]:
    """The line that starts the run `tiny` below `folder`; FSDP has no use for DeepSpeed's launcher."""
    arguments = ["-m", "destruct.train", "--config", str(write_config(folder)), *overrides]
    if backend == "fsdp":
        return torchrun(ranks, *arguments, "engine.backend=fsdp")
    return ["deepspeed", "--num_gpus", str(ranks), *arguments]


class Life:
    """A run's processes, from their start to their end.

    Args:
        started: the command.
        outputs: folder for what they say.
        variables: of their environment, besides this process's.
    """

    def __init__(self, started: list[str], outputs: Path, **variables: str):
        self.mark, self.begun = uuid.uuid4().hex, time.monotonic()
        self._paths = [outputs / f"{self.mark}.{stream}" for stream in ("out", "err")]
        with self._paths[0].open("wb") as out, self._paths[1].open("wb") as err:
            self.process = subprocess.Popen(
                started,
                cwd=ROOT,
                env={**environment(), "TMPDIR": str(outputs), MARK: self.mark, **variables},
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # as on a terminal
            )

    @property
    def out(self) -> str:
        """What it has said on stdout."""
        return self._paths[0].read_text(encoding="utf-8", errors="replace")

    @property
    def err(self) -> str:
        """And on stderr."""
        return self._paths[1].read_text(encoding="utf-8", errors="replace")

    @property
    def is_over(self) -> bool:
        """Whether the launcher has ended."""
        return self.process.poll() is not None

    def processes(self) -> list[psutil.Process]:
        """All that run, the launcher first."""
        ours = (each for each in psutil.process_iter() if runs(each) and variables(each).get(MARK) == self.mark)
        return sorted(ours, key=lambda each: each.pid)

    def ranks(self) -> dict[int, psutil.Process]:
        """Those of them that are ranks; what a rank starts is none."""
        found: dict[int, psutil.Process] = {}
        for each in self.processes():
            rank = variables(each).get("RANK")
            if rank is not None and "destruct.train" in words(each):
                found.setdefault(int(rank), each)
        return found

    def target(self, name: str) -> list[psutil.Process]:
        """What runs of `rank N`, `all ranks`, `launcher` (DeepSpeed's launch.py), `wrapper` (ours) or `everything`."""
        if name == "everything":
            return self.processes()
        if name == "wrapper":
            return [] if self.is_over else [psutil.Process(self.process.pid)]
        if name == "launcher":
            ranks = {each.pid for each in self.ranks().values()}
            return [each for each in self.processes() if each.pid not in ranks and "launcher.launch" in words(each)]
        ranks = self.ranks()
        return list(ranks.values()) if name == "all ranks" else [ranks[n] for n in (int(name[5:]),) if n in ranks]

    def wait_for(self, condition: Callable[[], object], every_s: float = 0.01) -> bool:
        """Until it holds; False where the run ended before that, or patience did."""
        until = time.monotonic() + PATIENCE_S
        while not condition():
            if self.is_over or time.monotonic() > until:
                return False
            time.sleep(every_s)
        return True

    def end(self) -> int | None:
        """Wait; returns the exit code, None where it had to be killed."""
        try:
            return self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.sweep()
            return None

    def outlive(self, patience_s: float) -> int:
        """Let what runs still end by itself; returns how many processes had to be killed after so many seconds."""
        until = time.monotonic() + patience_s
        while self.processes() and time.monotonic() < until:
            time.sleep(0.2)
        return self.sweep()

    def sweep(self) -> int:
        """Kill all that runs still; returns how many processes that were."""
        number = 0
        while left := self.processes():
            number = max(number, len(left))
            strike(left, signal.SIGKILL)
            time.sleep(0.05)
        self.process.wait()
        return number

    def resumed_from(self) -> str | None:
        """The checkpoint's name; None where it began anew, or did not come so far."""
        found = re.search(r"resumed after update \d+ from (\S+)", self.out)
        return found and Path(found[1]).name

    def began_anew(self) -> bool:
        """Whether it started from the beginning."""
        return "this run starts from the beginning" in self.out


def strike(processes: list[psutil.Process], number: signal.Signals) -> int:
    """Send a signal to each; returns how many ran still."""
    hit = 0
    for each in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            hit += each.status() != psutil.STATUS_ZOMBIE
            each.send_signal(number)
    return hit


def steps_in(folder: Path) -> int:
    """Steps that a run's folder tells of, those of the warm-up and updates of PPO."""
    path = folder / "metrics.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return sum(text.count(f'"{name}"') for name in ("warmup/lm_loss", "warmup/value_loss", "ppo/steps"))


def newest(folder: Path) -> str | None:
    """Name of a run's newest published checkpoint."""
    found = finding.checkpoints(folder / "checkpoints")
    return found[0].name if found else None


def steps_of(checkpoint: str | None) -> int:
    """Steps that lie in a checkpoint of this name."""
    if checkpoint is None:
        return 0
    kind, _, number = checkpoint.partition("-")
    return int(number) + (LM + VALUE if kind == "step" else 0)


def final_digest(folder: Path) -> str:
    """What a run ended with."""
    return digests.of_run(folder, folder / "checkpoints" / str(newest(folder)))
