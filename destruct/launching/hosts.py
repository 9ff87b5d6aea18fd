"""What would start where: the commands of a run on several hosts without Slurm, one host after the other.

Nothing is started.  What is printed can be typed, or given to a shell, on the host that its comment names.
"""

import argparse
import os
import shlex
from pathlib import Path

from destruct.doors import Parser, told
from destruct.errors import DestructError
from destruct.launching.hostfile import Place, meeting_host, places, read_hostfile, read_hosts
from destruct.secrets import NAMES

DESCRIPTION = """Print what would start on which host of a run without Slurm; nothing is started.

The config is checked for that number of ranks.  docs/launching.md says what hosts need."""

ROOT = Path(__file__).resolve().parents[2]
PORT = 29500
"""That of torch and of DeepSpeed; one that is free on the first host, and open to the others."""

LAUNCHERS = {"deepspeed": "deepspeed", "fsdp": "torchrun"}
"""By engine.backend; `single` has no ranks to launch."""

EXPORTED = ("NCCL_", "GLOO_", "OMP_NUM_THREADS", "DS_ACCELERATOR", "GRACE_S", "PYTHONPATH")
"""Beginnings of the variables of this shell that ranks elsewhere want to have, too."""

SHUTDOWN_S = 600
"""Seconds that torchrun gives ranks to save when it is asked to stop, as many as our launcher; by itself 30."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `destruct launch hosts`."""
    parser.add_argument("--config", type=Path, required=True, help="YAML file of the run, e.g. configs/base.yaml")
    hosts = parser.add_mutually_exclusive_group(required=True)
    hosts.add_argument("--hostfile", type=Path, metavar="FILE", help="one host a line: n1 slots=8")
    hosts.add_argument("--hosts", metavar="n1:8,n2:8", help="hosts and their ranks, in place of a hostfile")
    parser.add_argument(
        "--launcher", choices=sorted(LAUNCHERS.values()), help="default: that of the config's engine.backend"
    )
    parser.add_argument(
        "--port", type=int, default=PORT, metavar="N", help=f"where the ranks meet on the first host (default {PORT})"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="overrides, as for destruct train")


def answer(options: argparse.Namespace) -> int:
    """Print the commands; the exit code.

    Raises:
        DestructError: the hosts, the port or the config for so many ranks are refused.
    """
    from destruct.config.settings import load  # not for --help

    if not 0 < options.port < 65536:
        raise DestructError(f"--port {options.port} is no port", f"take one from 1024 to 32767, such as {PORT}")
    slots = read_hosts(options.hosts) if options.hosts is not None else read_hostfile(options.hostfile)
    world_size = sum(slots.values())
    config = load(options.config, options.overrides, world_size).config
    backend = config.engine.backend
    if backend not in LAUNCHERS:
        raise DestructError(
            f"engine.backend={backend} is one process, which no launcher starts",
            "set engine.backend to deepspeed or fsdp, or write: python -m destruct.train --config FILE",
        )
    launcher = options.launcher or LAUNCHERS[backend]
    address = meeting_host(list(slots))
    run = ["-m", "destruct.train", "--config", str(options.config), *options.overrides]
    print(f"# {_count(len(slots), 'host')}, {_count(world_size, 'rank')}, by {launcher}; ", end="")
    print(f"they meet at {address}:{options.port}.  Nothing is started.")
    if launcher == "torchrun":
        lines = _by_torchrun(slots, address, options.port, config.run.name, run)
    else:
        lines = _by_deepspeed(slots, options.hostfile, address, options.port, run)
    print("\n".join(lines))
    print(f"\n# The same on all hosts: this checkout with its .venv, {options.config} and what it names.")
    print(f"# On a disk that they share: {config.run.folder}, where the run writes.")
    return 0


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + ("" if number == 1 else "s")


def _by_torchrun(slots: dict[str, int], address: str, port: int, name: str, run: list[str]) -> list[str]:
    """One command for each host."""
    lines = []
    for place in places(slots):
        # With c10d in the place of static, ranks would be given to hosts as they come.
        command = ["torchrun", "--nnodes", str(len(slots)), "--node-rank", str(place.node)]
        command += ["--nproc-per-node", str(place.slots), "--rdzv-backend", "static"]
        command += ["--rdzv-endpoint", f"{address}:{port}", "--rdzv-id", name]
        lines += _on(place, [*command, "--shutdown-timeout", str(SHUTDOWN_S), *run])
    return lines


def _by_deepspeed(slots: dict[str, int], hostfile: Path | None, address: str, port: int, run: list[str]) -> list[str]:
    """The one command that reaches the others over ssh, and what it starts, which can be typed there as well."""
    lines, name = [], str(hostfile)
    if hostfile is None:
        name = "hostfile"
        written = shlex.join(f"{host} slots={number}" for host, number in slots.items())
        lines += ["", "# once, in the working folder, which all hosts see", f"printf '%s\\n' {written} > {name}"]
    meet = ["--master_addr", address, "--master_port", str(port)]
    if len(slots) > 1:
        first = "# from one host: it reaches all of them by ssh, and starts on each what is written for it below"
        lines += ["", first, *_here(), shlex.join(["deepspeed", "--hostfile", name, *meet, *run])]
        lines += ["", "# or without ssh, by hand"]
    for place in places(slots):
        command = ["deepspeed", "--no_ssh", "--node_rank", str(place.node), "--hostfile", name, *meet, *run]
        lines += _on(place, command)
    return lines


def _on(place: Place, command: list[str]) -> list[str]:
    return ["", f"# on {place.host}: {place.ranks}", *_here(), shlex.join(command)]


def _here() -> list[str]:
    """How a shell on another host becomes like this one."""
    script = ROOT / "launch" / "env.sh"
    found = {name: value for name, value in os.environ.items() if name.startswith(EXPORTED) and not NAMES.search(name)}
    exports = [f"export {name}={shlex.quote(value)}" for name, value in sorted(found.items())]
    begin = [f"source {shlex.quote(str(script))}"] if script.exists() else []
    return [f"cd {shlex.quote(os.getcwd())}", *exports, *begin]


def main(arguments: list[str] | None = None) -> int:
    """Read a command line and answer it; the exit code."""

    def read_and_answer() -> int:
        remedy = "write: --config FILE (--hostfile FILE | --hosts n1:8,n2:8); --help says more"
        parser = Parser(remedy, prog="destruct launch hosts", description=DESCRIPTION)
        add_arguments(parser)
        return answer(parser.parse_intermixed_args(arguments))

    return told(read_and_answer)


if __name__ == "__main__":
    raise SystemExit(main())
