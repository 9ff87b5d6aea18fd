"""Start a run on this machine: `destruct launch local --config FILE [--ranks N] [key.sub=value ...]`.

By DeepSpeed's launcher, by torchrun for engine.backend=fsdp, or as one process.  The config is read before any rank
starts.  Of several ranks each line is shown under its rank's name, and kept in a file for each.
"""

import argparse
import os
import shlex
import sys
from pathlib import Path

from destruct.config.settings import Settings, read_config
from destruct.doors import Parser, told
from destruct.errors import DestructError
from destruct.exits import Exit
from destruct.launching.outputs import NoOutputs, Outputs
from destruct.launching.supervisor import Supervisor
from destruct.launching.surroundings import DEVICES, MOST_RANKS, free_port, gpus, with_accelerator
from destruct.train import add_run, read

LAUNCHERS = {"deepspeed": "deepspeed", "fsdp": "torchrun", "single": "python"}
"""By engine.backend."""

EPILOG = """SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 reach every rank: it saves after the step under way.  Ranks that
have not ended after GRACE_S seconds (600) are killed.
Exit codes: 0 done, 2 configuration, 3 environment, 75 stopped and saved, 76 a rank failed, 77 it diverged too often."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; DestructError where it cannot be read."""
    parser = Parser(
        "write: --config FILE [--ranks N] [key.sub=value ...]; --help says more",
        prog="destruct launch local",
        description=__doc__,
        epilog=EPILOG,
    )
    add_run(parser)
    parser.add_argument("--ranks", type=int, metavar="N", help="one a GPU, or 2 without (1 for engine.backend=single)")
    parser.add_argument("--launcher", choices=sorted(LAUNCHERS.values()), help="in place of the one for engine.backend")
    parser.add_argument("--logs", type=Path, metavar="FOLDER", help="for what several ranks say (default: RUN.output)")
    parser.add_argument("--dry-run", action="store_true", help="print the command, and start nothing")
    options = parser.parse_intermixed_args(arguments)
    if options.ranks is not None and not 1 <= options.ranks <= MOST_RANKS:
        raise DestructError(
            f"--ranks {options.ranks} is not from 1 to {MOST_RANKS}", "write how many this machine runs"
        )
    return options


def decide(options: argparse.Namespace) -> tuple[Settings, str, int]:
    """The settings, the launcher and how many ranks.

    Raises:
        DestructError: the config cannot be run by so many, or this machine has fewer GPUs.
    """
    here = gpus()
    backend = read_config(options.config, options.overrides)[0].engine.backend
    launcher = options.launcher or LAUNCHERS[backend]
    ranks = options.ranks or (1 if "python" in (launcher, LAUNCHERS[backend]) else here or 2)
    if options.launcher == "python" and ranks > 1:
        raise DestructError(
            f"--launcher python starts one rank, not {ranks}", "leave --launcher out, or write --ranks 1"
        )
    if here and ranks > here:
        raise DestructError(f"--ranks {ranks} is more than the {here} GPUs here", f"write --ranks {here}")
    return read(options, ranks), launcher, ranks


def command(launcher: str, ranks: int, logs: Path, words: list[str]) -> list[str]:
    """What is started.

    Args:
        words: what follows `python -m destruct.train`.
    """
    module = ["destruct.launching.rank", str(logs), "destruct.train", *words]
    if launcher == "deepspeed":
        # A hostfile at DeepSpeed's own place would take the run to other hosts.
        own = ["--log_level=critical", "--hostfile=/dev/null", f"--master_port={free_port()}"]
        own += [f"--num_gpus={ranks}", "--module"]
        return [sys.executable, "-m", "deepspeed.launcher.runner", *own, *module]
    if launcher == "torchrun":
        return [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={ranks}",
            "-m",
            *module,
        ]
    return [sys.executable, "-m", "destruct.train", *words]


def start(options: argparse.Namespace) -> int:
    """Run it to its end; the exit code."""
    settings, launcher, ranks = decide(options)
    run = settings.config.run
    logs = options.logs or Path(run.folder) / f"{run.name}.output"
    words = ["--config", str(options.config), *([] if options.resume is None else ["--resume", options.resume])]
    words += ["--quiet"] if options.quiet else []
    line = command(launcher, ranks, logs, [*words, *options.overrides])
    added = {"OMP_NUM_THREADS": "1", "THP_MEM_ALLOC_ENABLE": "1", "PYTHONUNBUFFERED": "1"}
    environment = with_accelerator({**added, **os.environ})
    if "CUDA_VISIBLE_DEVICES" in environment:
        environment[DEVICES] = environment["CUDA_VISIBLE_DEVICES"]
    alone = launcher == "python"
    if options.dry_run:
        given = [f"{name}={value}" for name, value in environment.items() if os.environ.get(name) != value]
        print(f"{ranks} rank{'s' if ranks > 1 else ''}" + ("" if alone else f"; what they say: {logs}/rank-N.log"))
        print(shlex.join(["env", *given, *line] if given else line))
        return Exit.DONE
    outputs = NoOutputs() if alone else Outputs(str(logs))
    return Supervisor("destruct", alone, outputs).run(line, environment)


def main(arguments: list[str] | None = None) -> int:
    """Start a run on this machine; returns the exit code."""
    return told(lambda: start(parse(sys.argv[1:] if arguments is None else arguments)))
