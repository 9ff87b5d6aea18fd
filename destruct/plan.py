"""Plan a run before it starts: `destruct plan --config FILE [--gpus N] [key.sub=value ...]`.

Memory, collectives, time and disk of a run on N devices, from the YAML and its JSON files alone; no model is made.
With --gpus 8..1024 (doubling) or 8,12,16 the rollouts grow with the devices, from those of the first number.
"""

import argparse
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

from destruct.config.settings import load
from destruct.doors import Parser, told
from destruct.errors import DestructError
from destruct.exits import Exit, leave
from destruct.planning import report, sweep
from destruct.planning.fitting import check_fits
from destruct.planning.hardware import GIB, HARDWARE
from destruct.planning.job import Job, job_of

MOST_DEVICES = 2**20


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; DestructError where it cannot be read."""
    parser = Parser(
        "write: --config FILE [--gpus N] [key.sub=value ...]; --help says more",
        prog="destruct plan",
        description=__doc__,
        epilog="Exit codes: 0 it fits, on some of the numbers at least; 2 it does not, or the config is refused.",
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the run, e.g. configs/base.yaml")
    parser.add_argument("--gpus", default="8", metavar="N|N..M|N,M", help="devices, one rank each (default 8)")
    parser.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="of one machine (default 8)")
    parser.add_argument("--hardware", choices=HARDWARE, default="h100", help="kind of device (default h100)")
    parser.add_argument("--memory-gib", type=float, metavar="GIB", help="of a device, in place of the table's")
    parser.add_argument("--host-gib", type=float, metavar="GIB", help="of a machine's host, in place of the table's")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of tables")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw memory and time over the numbers of devices")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="overrides, as for destruct train")
    return parser.parse_intermixed_args(arguments)


def device_counts(text: str) -> list[int]:
    """The numbers of devices that --gpus asks for, in ascending order.

    Raises:
        DestructError: it asks for none, or for what is no number.
    """
    remedy = "write --gpus 8, --gpus 8..1024 or --gpus 8,16,64"
    parts = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if parts is not None:
        first, last = int(parts[1]), int(parts[2])
        counts = [first << i for i in range(21) if 0 < first << i <= last]
    elif re.fullmatch(r"\d+(,\d+)*", text):
        counts = sorted({int(part) for part in text.split(",")})
    else:
        raise DestructError(f"--gpus {text} is no number of devices", remedy)
    if not counts or counts[0] < 1 or counts[-1] > MOST_DEVICES:
        raise DestructError(f"--gpus {text} names no number from 1 to {MOST_DEVICES}", remedy)
    return counts


def jobs(options: argparse.Namespace) -> list[Job]:
    """One for each number of devices.

    Raises:
        DestructError: as `load` and `job_of` do, and for options out of range.
    """
    hardware, counts = HARDWARE[options.hardware], device_counts(options.gpus)
    if options.gpus_per_node < 1:
        raise DestructError(f"--gpus-per-node {options.gpus_per_node} is no number of devices", "write 1 or more")
    for name in ("memory_gib", "host_gib"):
        size = getattr(options, name)
        if size is not None and not 0 < size < 1e9:
            raise DestructError(f"--{name.replace('_', '-')} {size} is no size", "write a positive number of GiB")
    if options.memory_gib is not None and hardware.is_cpu:
        raise DestructError("--memory-gib is of a device, and a CPU has its host's", "write --host-gib")
    if options.memory_gib is not None:
        hardware = replace(hardware, memory=options.memory_gib * GIB)
    if options.host_gib is not None:
        ranks = min(counts[0], options.gpus_per_node) if hardware.is_cpu else options.gpus_per_node
        hardware = replace(hardware, host_memory=options.host_gib * GIB / ranks)
    first = job_of(load(options.config, options.overrides, counts[0]), hardware, options.gpus_per_node)
    each = first.settings.config.rollout.batch_size // counts[0]  # whole, as the first number has been accepted
    others = [
        load(options.config, [*options.overrides, f"rollout.batch_size={each * count}"], count) for count in counts[1:]
    ]
    return [first, *(replace(first, settings=settings) for settings in others)]


def answer(options: argparse.Namespace) -> int:
    """Print a plan; DestructError where there can be none, or nothing fits."""
    if options.png is not None:
        sweep.check_drawing(options.png)
    plans = [report.plan(job) for job in jobs(options)]
    if options.json:
        content = report.as_json(plans[0]) if len(plans) == 1 else {"sweep": sweep.rows(plans)}
        print(json.dumps(content, indent=1, allow_nan=False))
    elif len(plans) == 1:
        report.show(plans[0])
    else:
        sweep.show(plans)
    if options.png is not None:
        sweep.draw(plans, options.png)
    if not any(plan.fits for plan in plans):
        check_fits(plans[-1].job)
    return Exit.DONE


def main(arguments: list[str] | None = None) -> int:
    """Print a plan; returns the exit code."""
    return told(lambda: answer(parse(sys.argv[1:] if arguments is None else arguments)))


if __name__ == "__main__":
    leave(main())
