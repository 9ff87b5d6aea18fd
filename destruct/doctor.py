"""Look at a machine before a run does: `destruct doctor [--config FILE] [--ranks N] [key.sub=value ...]`.

Packages, compiler, GPUs, memory, limits, ports, disk, an all-reduce between ranks, the hub, Slurm, the clock and, with
--config, the config itself.  Each finding is ok, warn or fail, and says what to do.  On a cluster, run it on a node:
srun --pty destruct doctor.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.text import Text

from destruct.checkup.finding import Finding, State, of_error, warn
from destruct.doors import Parser, told
from destruct.errors import DestructError
from destruct.exits import Exit, leave

COLOURS = {State.OK: "green", State.WARN: "yellow", State.FAIL: "red"}
RUNS = Path("runs")


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; DestructError where it cannot be read."""
    parser = Parser(
        "write: [--config FILE] [--ranks N] [key.sub=value ...]; --help says more",
        prog="destruct doctor",
        description=__doc__,
        epilog="Exit codes: 0 a run can start here, though something may be worth a look; 3 it cannot.",
    )
    parser.add_argument("--config", type=Path, help="YAML file of a run, which is looked at too")
    parser.add_argument("--ranks", type=int, metavar="N", help="ranks of this machine: one a GPU, or 2 without")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of the table")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="overrides, as for destruct train")
    options = parser.parse_intermixed_args(arguments)
    if options.ranks is not None and not 1 <= options.ranks <= 1024:
        raise DestructError(f"--ranks {options.ranks} is no number of ranks of one machine", "write 1 to 1024")
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
    yield from software.torch_build()
    yield from software.gpus()
    yield from software.launcher()
    ranks = options.ranks or _ranks_here()
    yield from machine.memory()
    yield from machine.shared_memory(ranks)
    yield from machine.limits()
    named = list(machine.name())
    yield from named
    yield from machine.port()
    yield from machine.variables(ranks)
    yield from _of_the_config(options, ranks, meet=all(finding.state is not State.FAIL for finding in named))


def _ranks_here() -> int:
    import torch

    return torch.cuda.device_count() or 2


def _of_the_config(options: argparse.Namespace, ranks: int, meet: bool) -> Iterator[Finding]:
    """What depends on what the run is.

    Args:
        meet: ranks could find each other; else they would try for minutes.
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
            yield from run.fits(settings, ranks)
    yield from software.compiler(run.needs_a_compiler(settings))
    runs = RUNS if settings is None else Path(settings.config.run.folder)
    yield from disk.disk(runs, run.disk_needed(settings, ranks), "run.folder")
    if meet:
        yield from together(ranks)
    else:
        yield warn(
            "all-reduce", "was not tried, as ranks would look for each other elsewhere", "correct the name first"
        )
    hub = Hub(run.taken_from_the_hub(settings))
    yield from hub.reach()
    yield from machine.clock(hub.date, machine.now())
    yield from slurm()


def show(finding: Finding, console: Console) -> None:
    """A line, and one of remedy."""
    state = (f"{finding.state.value:<5}", COLOURS[finding.state])
    console.print(Text.assemble(state, f"{finding.name:<18} {finding.what}"), soft_wrap=True)
    if finding.remedy is not None:
        console.print(f"{'':<24}remedy: {finding.remedy}", soft_wrap=True)


def answer(options: argparse.Namespace) -> int:
    """Print the findings as they come; the exit code."""
    console = Console(highlight=False, markup=False)
    findings = []
    for finding in examine(options):
        findings.append(finding)
        if not options.json:
            show(finding, console)
    states = [finding.state for finding in findings]
    failed = State.FAIL in states
    if options.json:
        print(json.dumps({"ok": not failed, "findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        console.print(", ".join(f"{states.count(state)} {state.value}" for state in State))
    return Exit.ENVIRONMENT if failed else Exit.DONE


def main(arguments: list[str] | None = None) -> int:
    """Examine this machine; returns the exit code."""
    return told(lambda: answer(parse(sys.argv[1:] if arguments is None else arguments)))


if __name__ == "__main__":
    leave(main())
