"""Verify that resume is exact: `destruct verify_resume --config FILE [key.sub=value ...] [-- LAUNCHER ...]`.

A run of N updates is made twice, on the real ranks: once in one life that saves after update k, and once more from that
checkpoint on.  Then every tensor, moment, cursor and figure of both is compared by its name, bit for bit.

LAUNCHER is what stands before `-m destruct.train`: `deepspeed --num_gpus N` with all GPUs of this machine, or with two
ranks on the CPU where there is none; else e.g. -- torchrun --nproc-per-node 8, or -- srun --ntasks=16 python.
"""

import argparse
import contextlib
import glob
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from destruct.checkpoint import finding, manifest
from destruct.checkpoint.state import step_name
from destruct.config.base import validate
from destruct.config.reading import apply_overrides, read_yaml
from destruct.config.settings import Config
from destruct.doors import Parser, told
from destruct.errors import DestructError
from destruct.exits import Exit, leave
from destruct.progress import progress
from destruct.signals import ASKING

if TYPE_CHECKING:
    from destruct.checkpoint.comparing import Comparison

WHOLE, RESUMED = "whole", "resumed"
OURS = (
    "run.name",
    "run.resume",
    "run.num_epochs",
    "run.updates_per_epoch",
    "run.checkpoint_every",
    "run.keep_checkpoints",
)
"""Keys that make the two lives what they are."""
LOOK_S = 1.0
MOST_WARMUP = {"lm_updates": 2, "value_updates": 1}
LAST_LINES, MOST_NAMES = 40, 20

EPILOG = """\
Unless they are given on the command line, frozen.refresh_every is 1 and run.evaluate_every is k, so that rounds and
validations stand on both sides of the resume, and a warm-up is cut: warmup.lm_updates to 2, warmup.value_updates to 1.
Both runs lie in a folder of their own below run.folder, with up to N/k + 1 checkpoints each; it is removed where all is
equal, and kept and named where it is not, or where a run failed.
On CUDA some reductions are in no fixed order: there two whole runs may differ, too.
Exit codes: 0 all is equal, 77 the lives diverged, 2 configuration, 3 environment; a failed run's own, or 76."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; DestructError where it cannot be read, or has no update on one side of the resume."""
    cut = arguments.index("--") if "--" in arguments else len(arguments)
    parser = Parser(
        "write: --config FILE [--updates N] [--after k] [key.sub=value ...] [-- LAUNCHER ...]; --help says more",
        prog="destruct verify_resume",
        usage="%(prog)s --config FILE [--updates N] [--after k] [--json] [key.sub=value ...] [-- LAUNCHER ...]",
        description=__doc__,
        epilog=EPILOG,
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the run, e.g. configs/base.yaml")
    parser.add_argument("--updates", type=int, default=4, metavar="N", help="PPO updates in all (default 4)")
    parser.add_argument("--after", type=int, default=2, metavar="k", help="updates before the resume (default 2)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="overrides, as for destruct train")
    options = parser.parse_intermixed_args(arguments[:cut])
    options.launcher = arguments[cut + 1 :] or default_launcher()
    if not 0 < options.after < options.updates:
        raise DestructError(
            f"--after {options.after} of --updates {options.updates} leaves no update on one side of the resume",
            "let k be at least 1 and less than N",
        )
    return options


def default_launcher() -> list[str]:
    """DeepSpeed's, with a rank for each GPU of this machine; two ranks where there is none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = glob.glob("/dev/nvidia[0-9]*") if visible is None else visible.split(",")
    return ["deepspeed", "--num_gpus", str(len(gpus) or 2)]


def read_config(path: Path, overrides: list[str]) -> Config:
    """The YAML with a person's overrides; the ranks check what depends on their number, before they import torch.

    Raises:
        DestructError: it is refused, or an override is of a key that makes the lives what they are.
    """
    for override in overrides:
        if (key := override.partition("=")[0]) in OURS:
            raise DestructError(f"override {override!r}: verify_resume sets {key} itself", "leave it out")
    values, provenance = read_yaml(path)
    apply_overrides(values, provenance, overrides)
    return validate(Config, values, str(path), provenance)


def lives(options: argparse.Namespace, config: Config, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Name and command of each life.

    Args:
        folder: of both runs, absolute.
    """
    n, k = options.updates, options.after
    warmup = config.warmup.model_dump()
    defaults = [f"warmup.{key}={min(most, warmup[key])}" for key, most in MOST_WARMUP.items()]
    defaults += ["frozen.refresh_every=1", f"run.evaluate_every={k}"]
    ours = ["run.num_epochs=1", f"run.updates_per_epoch={n}", f"run.checkpoint_every={k}"]
    ours += [f"run.keep_checkpoints={-(-n // k)}", f"run.folder={json.dumps(str(folder))}"]
    saved = folder / WHOLE / "checkpoints" / step_name(k)
    # DeepSpeed's own launcher knows --module alone, and launch/bin/deepspeed both.
    module = "--module" if Path(options.launcher[0]).name == "deepspeed" else "-m"
    command = [*options.launcher, module, "destruct.train", "--config", str(options.config)]
    for name, resume in ((WHOLE, "never"), (RESUMED, str(saved))):
        identity = [f"run.name={name}", f"run.resume={json.dumps(resume)}"]
        yield name, [*command, *defaults, *options.overrides, *ours, *identity]


def live(command: list[str], run: Path, updates: int) -> None:
    """Make one of the runs; what it says goes to a file beside its folder.

    Args:
        updates: its last one.

    Raises:
        DestructError: it failed, after its last lines were printed, or it ended before its last update.
    """
    log = run.with_suffix(".log")
    print(f"{run.name}: what it says goes to {log}", file=sys.stderr, flush=True)
    with log.open("wb") as said, _signals_passed_on() as begun:
        process = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
        begun(process)
        code = watched(process, run, updates)
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
        print(*lines[-LAST_LINES:], sep="\n", file=sys.stderr)
        known = Exit(code) if code in set(Exit) else Exit.RANK_FAILED
        raise DestructError(
            f"the run {run.name} ended with {code}; its last lines stand above, all of them in {log}",
            f"put right what they say, then delete {run.parent}",
            known,
        )
    if not (run / "checkpoints" / step_name(updates)).is_dir():
        made = ", ".join(path.name for path in finding.checkpoints(run / "checkpoints")) or "nothing"
        raise DestructError(
            f"the run {run.name} ended without a checkpoint after update {updates}; it has saved {made}, and said why "
            f"in {log}",
            f"where its sources were exhausted, ask for fewer --updates; then delete {run.parent}",
        )


def watched(process: "subprocess.Popen[bytes]", run: Path, updates: int) -> int:
    """The exit code of a run, whose updates are shown as they are logged."""
    seen = 0
    with progress(run.name, updates, "updates") as advance:
        while True:
            try:
                return process.wait(LOOK_S)
            except subprocess.TimeoutExpired:
                made = updates_in(run / "metrics.jsonl")
                advance(made - seen)
                seen = made


def updates_in(log: Path) -> int:
    """How many PPO updates a log tells of."""
    try:
        return log.read_bytes().count(b'"ppo/steps"')
    except OSError:
        return 0


@contextmanager
def _signals_passed_on() -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """Within the block signals go to the launcher, which has a session of its own and ends its ranks.

    Yields:
        What is told of the launcher, once it has been started: it gets those that came before that, too.
    """
    asked: list[int] = []
    launchers: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, _: object) -> None:
        asked.append(number)
        for process in launchers:
            process.send_signal(number)  # none, where it has ended and been waited for

    def begun(process: subprocess.Popen[bytes]) -> None:
        launchers.append(process)
        for number in asked:
            process.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in (*ASKING, signal.SIGHUP)}
    try:
        yield begun
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def compare(folder: Path, updates: int, after: int) -> "Comparison":
    """Both lives after their last update, and what they logged after the resume.

    Raises:
        DestructError: a checkpoint is not what was saved.
    """
    from destruct.checkpoint.comparing import Comparison  # torch, of which bad input needs none

    comparison = Comparison()
    last = Path("checkpoints") / step_name(updates)
    try:
        comparison.checkpoints(folder / WHOLE / last, folder / RESUMED / last)
    except manifest.Damaged as damage:
        raise DestructError(str(damage), "have the disk looked after", Exit.ENVIRONMENT) from None
    comparison.figures(folder / WHOLE / "metrics.jsonl", folder / RESUMED / "metrics.jsonl", after)
    return comparison


def show(comparison: "Comparison", verdict: str) -> None:
    """The table, the names that differ, and the verdict."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("part", "tensors", "other entries", ""):
        table.add_column(heading, justify="right" if heading in ("tensors", "other entries") else "left")
    for name, part in comparison.parts.items():
        if part.tensors or part.others:
            state = f"{part.different:,} differ" if part.different else "equal"
            table.add_row(name, f"{part.tensors:,}", f"{part.others:,}", state)
    console = Console(width=None if Console().is_terminal else 200, highlight=False, markup=False, soft_wrap=True)
    console.print(table)
    differences = comparison.differences
    for difference in differences[:MOST_NAMES]:
        console.print(f"{difference.name}: {difference.what}")
    if len(differences) > MOST_NAMES:
        console.print(f"and {len(differences) - MOST_NAMES:,} more; --json names them all")
    console.print(verdict)


def run(options: argparse.Namespace) -> int:
    """Make both lives, compare and tell; DestructError where that cannot be done."""
    config = read_config(options.config, options.overrides)
    if shutil.which(options.launcher[0]) is None:
        raise DestructError(
            f"the launcher {options.launcher[0]!r} is not on PATH",
            "source launch/env.sh, or name another one behind --, e.g. -- torchrun --nproc-per-node 8",
            Exit.ENVIRONMENT,
        )
    runs = Path(config.run.folder).absolute()
    runs.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="verify-resume-", dir=runs))  # of its owner alone, and seen by all machines
    for name, command in lives(options, config, folder):
        live(command, folder / name, options.updates)
    with contextlib.redirect_stdout(sys.stderr):  # where DeepSpeed is imported, it speaks
        comparison = compare(folder, options.updates, options.after)
    n, k, different = options.updates, options.after, len(comparison.differences)
    if different:
        verdict = f"resume is not exact: {different:,} entries differ; the runs are kept in {folder}"
    else:
        verdict = f"resume is exact: {n} updates = {k} + resume + {n - k}, {comparison.tensors:,} tensors compared"
        shutil.rmtree(folder)
    if options.json:
        facts = {"exact": not different, "updates": n, "after": k, "kept": str(folder) if different else None}
        parts = {name: asdict(part) for name, part in comparison.parts.items()}
        found = [asdict(difference) for difference in comparison.differences]
        print(json.dumps({**facts, "parts": parts, "differences": found}, indent=1, allow_nan=False))
    else:
        show(comparison, verdict)
    return Exit.DIVERGED if different else Exit.DONE


def main(arguments: list[str] | None = None) -> int:
    """Verify; returns the exit code, 77 where the two lives differ."""
    return told(lambda: run(parse(sys.argv[1:] if arguments is None else arguments)))


if __name__ == "__main__":
    leave(main())
