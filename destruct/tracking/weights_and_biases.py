"""Weights & Biases: the near end of the pipe to `uploader.py`, which never waits and raises nothing.

The package is imported by that process alone.  It changes how a program ends, makes threads, and talks to a server: a
training process should have none of this.
"""

import importlib.util
import json
import logging
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from destruct.config.wandb import WandbConfig
from destruct.errors import DestructError
from destruct.exits import Exit
from destruct.ppo.histograms import Histogram
from destruct.secrets import masked
from destruct.tracking import html
from destruct.tracking.facts import Facts
from destruct.tracking.sinks import WARMUP_PHASES, Continuation, Sample, Sink

MODES = {"online": "online", "run": "online", "offline": "offline", "dryrun": "offline", "disabled": "disabled"}
"""What WANDB_MODE may say -> what it means."""

MOST_WAITING = 64 * 2**20
"""Bytes that may wait for the uploader; what comes beyond is lost."""

PATIENCE_S = 30.0
"""At the end of a run, for the uploader to hand over what it has."""

CHECKING_S = 60.0

OF_A_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "ROLE_RANK", "DESTRUCT_REPORTS")
"""Variables by which a launcher knows a rank."""

UPLOADER = Path(__file__).with_name("uploader.py")
COMMAND = [sys.executable, "-P", str(UPLOADER)]


def mode_of(config: WandbConfig) -> str:
    """`disabled`, `offline` or `online`.

    Raises:
        DestructError: WANDB_MODE is none of the words that it may be.
    """
    told = os.environ.get("WANDB_MODE")
    if config.mode == "disabled" or not told:
        return config.mode
    if told not in MODES:
        problem = f"WANDB_MODE={told!r} is no mode of Weights & Biases"
        raise DestructError(problem, "set it to online, offline or disabled", Exit.ENVIRONMENT)
    return MODES[told]


def check(config: WandbConfig) -> str:
    """The mode of a run, which can start; no server is asked.

    Raises:
        DestructError: the package is not there, or a run that goes online has no key.
    """
    mode = mode_of(config)
    if mode != "disabled" and importlib.util.find_spec("wandb") is None:
        problem = f"wandb.mode={mode}, and the package wandb is not installed"
        remedy = "pip install -e '.[wandb]' in the checkout, or wandb.mode=disabled"
        raise DestructError(problem, remedy, Exit.ENVIRONMENT)
    if mode != "online":
        return mode
    try:
        done = subprocess.run([*COMMAND, "check"], capture_output=True, text=True, timeout=CHECKING_S)
    except subprocess.TimeoutExpired:
        return mode  # the run will find out, and go on without
    if done.returncode != 0:
        said = [json.loads(line)["say"] for line in done.stdout.splitlines()] or done.stderr.splitlines()[-1:]
        problem = f"wandb.mode=online, and Weights & Biases cannot be logged in to: {masked(' '.join(said))}"
        raise DestructError(problem, "`wandb login`, or set WANDB_API_KEY, or wandb.mode=offline", Exit.ENVIRONMENT)
    return mode


class WeightsAndBiases(Sink):
    """Figures, texts and histograms on W&B; a failure of W&B costs no more than what it would have shown.

    Args:
        folder: the run's folder; W&B's own files are in `wandb/`, what its package says in `logs/wandb.log`.
        config: of the run.
        mode: what `check` gave.
        facts: of the run.
        say: tells the person a line.
    """

    def __init__(self, folder: Path, config: WandbConfig, mode: str, facts: Facts, say: Callable[[str], None]):
        self._say = say
        self._waiting, self._heard = bytearray(), b""
        self._lost = 0
        self._done = False
        self._child: subprocess.Popen[bytes] | None = None
        environment = {name: value for name, value in os.environ.items() if name not in OF_A_RANK}
        pipe = subprocess.PIPE
        try:
            with (folder / "logs" / "wandb.log").open("ab") as log:
                # A session of its own: a Ctrl-C is the run's alone, which then has figures left to hand over.
                self._child = subprocess.Popen(
                    COMMAND, stdin=pipe, stdout=pipe, stderr=log, env=environment, start_new_session=True, bufsize=0
                )
            for end in (self._child.stdin, self._child.stdout):
                assert end is not None
                os.set_blocking(end.fileno(), False)
        except OSError as error:
            self._give_up(f"it cannot be started: {error.strerror}")
        environment_json = folder / "environment.json"
        known = json.loads(environment_json.read_text(encoding="utf-8")) if environment_json.exists() else {}
        asked: dict[str, Any] = {
            "project": config.project or os.environ.get("WANDB_PROJECT", "destruct"),
            "entity": config.entity,
        }
        asked |= {"group": config.group, "tags": list(config.tags), "name": os.environ.get("WANDB_NAME", facts.name)}
        config_and_place = facts.config | {"environment": known}
        self._send(
            {"kind": "open", "folder": str(folder.absolute()), "mode": mode, "config": config_and_place, **asked}
        )

    def scalars(self, phase: str, step: int, values: dict[str, float]) -> None:
        """A row of figures; those of the warm-up are named `warmup/...`, as their steps count something else."""
        if phase in WARMUP_PHASES:
            values = {name if name.startswith("warmup/") else f"warmup/{name}": x for name, x in values.items()}
        self._send({"kind": "figures", **_place(phase, step), "figures": values})

    def text(self, name: str, markdown: str, step: int) -> None:
        """A text as it is."""
        self._send(_page(name, "ppo", step, f"<pre>{html.safe(markdown)}</pre>"))

    def samples(self, step: int, samples: list[Sample]) -> None:
        """A page for each source."""
        for source in dict.fromkeys(sample.source for sample in samples):
            of_it = [sample for sample in samples if sample.source == source]
            self._send(_page(f"samples/{source}", "ppo", step, html.of_samples(of_it)))

    def continuation(self, phase: str, step: int, said: Continuation) -> None:
        """A page for each prompt."""
        # It is part of a file's name there, and so are no slashes and line breaks.
        topic, prompt = (re.sub(r"[^\w .,-]+", "_", words) for words in (said.topic, said.prompt[:40]))
        name = f"{'warmup/' if phase in WARMUP_PHASES else ''}prompts/{topic}/{prompt}"
        self._send(_page(name, phase, step, html.of_continuation(said)))

    def histogram(self, name: str, step: int, histogram: Histogram) -> None:
        """Its bins."""
        bins = {"edges": list(histogram.edges), "counts": list(histogram.counts)}
        self._send({"kind": "histogram", **_place("ppo", step), "name": name, **bins})

    def finish(self, step: int, finals: dict[str, float]) -> None:
        """The summary of the run."""
        self._send({"kind": "finals", "figures": {f"at_the_end/{name}": value for name, value in finals.items()}})

    def close(self) -> None:
        """Let the uploader hand over what it has, for PATIENCE_S at most."""
        deadline = time.monotonic() + PATIENCE_S
        while self._child is not None and not self._done and (left := deadline - time.monotonic()) > 0:
            self._wait(left)
        if self._child is not None and not self._done:
            self._give_up(f"it has not taken everything {PATIENCE_S:.0f} s after the end")
        if self._child is not None:
            self._end_child()
        if self._lost:
            logging.getLogger(__name__).warning(
                "W&B lacks at least %d messages; metrics.jsonl lacks nothing", self._lost
            )

    def _wait(self, left: float) -> None:
        """Until the uploader has something to say, or takes more; its stdin ends behind the last byte."""
        assert self._child is not None and self._child.stdin is not None and self._child.stdout is not None
        if not self._waiting and not self._child.stdin.closed:
            self._child.stdin.close()
        takes = [self._child.stdin] if self._waiting else []
        select.select([self._child.stdout], takes, [], min(left, 1.0))
        self._exchange()

    def _send(self, message: dict[str, Any]) -> None:
        line = json.dumps(message).encode() + b"\n"
        if self._child is None or len(self._waiting) + len(line) > MOST_WAITING:
            self._lost += 1
            if self._child is not None and self._lost == 1:
                self._tell("W&B takes nothing any more, so that figures are lost there (metrics.jsonl has all)")
            return
        self._waiting += line
        self._exchange()

    def _exchange(self) -> None:
        """Give and take what is possible without waiting."""
        if self._child is None:
            return
        assert self._child.stdin is not None and self._child.stdout is not None
        try:
            while self._waiting and (taken := self._child.stdin.write(self._waiting[:65536])):
                del self._waiting[:taken]
            while heard := self._child.stdout.read(65536):
                self._heard += heard
            *lines, self._heard = self._heard.split(b"\n")
            for line in lines:
                self._hear(json.loads(line))
            if heard == b"" and not self._done:  # and not None, which is for nothing yet
                self._give_up("it has ended")
        except (OSError, ValueError):
            self._give_up("it has ended")

    def _hear(self, answer: dict[str, Any]) -> None:
        if "say" in answer:
            self._say(masked(answer["say"]))
        self._done = self._done or "done" in answer

    def _give_up(self, why: str) -> None:
        self._lost += self._waiting.count(b"\n")
        self._waiting.clear()
        self._tell(f"W&B gets no more of this run, as its process is gone: {why}; see logs/wandb.log")
        self._end_child()

    def _tell(self, line: str) -> None:
        logging.getLogger(__name__).warning("%s", line)
        self._say(line)

    def _end_child(self) -> None:
        """It has said that it is done, or will never be."""
        child, self._child = self._child, None
        if child is None:
            return
        for end in (child.stdin, child.stdout):
            if end is not None:
                with suppress(OSError):
                    end.close()
        with suppress(OSError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _place(phase: str, step: int) -> dict[str, Any]:
    return {"axis": "warmup_step" if phase in WARMUP_PHASES else "update", "step": step}


def _page(name: str, phase: str, step: int, content: str) -> dict[str, Any]:
    return {"kind": "html", **_place(phase, step), "name": name, "html": content}
