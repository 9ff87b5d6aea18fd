"""Look at a machine before a run does: `destruct doctor [--config FILE] [--ranks N] [key.sub=value ...]`.

Packages, compiler, GPUs, memory, limits, ports, disk, an all-reduce between ranks, the hub, Slurm, the clock and, with
--config, the config itself.  Each finding is ok, warn or fail, and says what to do.  On a cluster, run it on a node:
srun --pty destruct doctor.
"""

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import NoReturn

from destruct.checkup.finding import Finding, State, of_error, warn
from destruct.doors import Parser, told
from destruct.errors import DestructError
from destruct.exits import Exit, leave
from destruct.launching.surroundings import MOST_RANKS

COLOURS = {State.OK: "green", State.WARN: "yellow", State.FAIL: "red"}
RUNS = Path("runs")
ENDING = (signal.SIGTERM, signal.SIGHUP)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; DestructError where it cannot be read."""
    parser = Parser(
        "write: [--config FILE] [--ranks N] [key.sub=value ...]; --help says more",
        prog="destruct doctor",
        description=__doc__,
        epilog="Exit codes: 0 a run can start here, though something may be worth a look; 3 it cannot.",
    )
    parser.add_argument("--config", type=Path, help="YAML file of a run, which is looked at too")
    parser.add_argument("--ranks", type=int, metavar="N", help="one a GPU, or 2 without (1 for engine.backend=single)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="overrides, as for destruct train")
    options = parser.parse_intermixed_args(arguments)
    if options.ranks is not None and not 1 <= options.ranks <= MOST_RANKS:
        problem = f"--ranks {options.ranks} is no number of ranks of one machine"
        raise DestructError(problem, f"write 1 to {MOST_RANKS}")
    if options.overrides and options.config is None:
        raise DestructError(f"{options.overrides[0]} overrides no config", "add --config FILE")
    return options


def examine(options: argparse.Namespace) -> Iterator[Finding]:
    """Every finding, the quick ones first."""
    from destruct.checkup import machine, software

    yield from software.interpreter()
    packages = list(software.packages())
    yield from packages
    if any(finding.state is State.FAIL for finding in packages):
        yield warn("the rest", "was not looked at, as the packages are not what they should be", software.SETUP)
        return
    from destruct.checkup import gpus, run  # they import pydantic and torch

    yield from gpus.torch_build()
    found = gpus.ask()
    yield from gpus.judge(found)
    yield from software.launcher()
    backend = run.backend_of(options.config, options.overrides)
    ranks = options.ranks or (1 if backend == "single" else len(found) or 2)
    yield from machine.memory()
    yield from machine.shared_memory(ranks)
    yield from machine.limits()
    yield from machine.name(of_torchrun=backend == "fsdp")
    yield from machine.port(alone=backend == "single")
    yield from machine.variables(ranks)
    sizes = [(gpu["name"], gpu["total"]) for gpu in found if "error" not in gpu]
    yield from _of_the_config(options, ranks, next(iter(sizes), None))


def _of_the_config(options: argparse.Namespace, ranks: int, device: tuple[str, int] | None) -> Iterator[Finding]:
    """What depends on what the run is.

    Args:
        device: name and bytes of a rank's GPU; None where there is none.
    """
    from destruct.checkup import disk, machine, run, software
    from destruct.checkup.hub import Hub
    from destruct.checkup.ranks import together
    from destruct.checkup.slurm import slurm

    settings = None
    if options.config is not None:
        try:
            settings = run.read(options.config, options.overrides, ranks)
        except DestructError as error:
            yield of_error("config", error)
        else:
            yield from run.fits(settings, ranks, device)
    yield from run.weights_and_biases(settings)
    yield from software.compiler(run.needs_a_compiler(settings))
    if run.needs_triton(settings):
        yield from software.triton_compiler()
    runs = RUNS if settings is None else Path(settings.config.run.folder)
    yield from disk.disk(runs, run.disk_needed(settings, ranks), "run.folder")
    yield from together(ranks)
    hub = Hub(run.taken_from_the_hub(settings))
    yield from hub.reach()
    yield from machine.clock(hub.skew)
    yield from slurm()


def show(finding: Finding) -> None:
    """A line, and one of remedy; without colours where rich is among what is missing."""
    state, rest = f"{finding.state.value:<5}", f"{finding.name:<18} {finding.what}"
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:
        print(state + rest)
    else:
        Console().print(Text.assemble((state, COLOURS[finding.state]), rest), soft_wrap=True)
    if finding.remedy is not None:
        print(f"{'':<24}remedy: {finding.remedy}")


def answer(options: argparse.Namespace) -> int:
    """Print the findings as they come; the exit code."""
    findings = []
    for finding in examine(options):
        findings.append(finding)
        if not options.json:
            show(finding)
    states = [finding.state for finding in findings]
    failed = State.FAIL in states
    if options.json:
        print(json.dumps({"ok": not failed, "findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        print(", ".join(f"{states.count(state)} {state.value}" for state in State))
    return Exit.ENVIRONMENT if failed else Exit.DONE


def _end(number: int, _: FrameType | None) -> NoReturn:
    for each in ENDING:  # `timeout` sends it twice; the second one would cut the tidying short
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


def main(arguments: list[str] | None = None) -> int:
    """Examine this machine; returns the exit code.

    Raises:
        SystemExit: a signal asks to end, so that ranks are ended and files deleted on the way out.
    """
    heeded = [number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN]  # nohup ignores one
    before = {number: signal.signal(number, _end) for number in heeded}
    try:
        return told(lambda: answer(parse(sys.argv[1:] if arguments is None else arguments)))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


if __name__ == "__main__":
    leave(main())
