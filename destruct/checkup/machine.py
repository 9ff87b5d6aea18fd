"""Memory, shared memory, limits, name, ports, variables and clock of this machine."""

import os
import resource
import shutil
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from destruct.checkup.finding import Finding, fail, ok, warn

GIB, MIB = 2**30, 2**20
SHM = Path("/dev/shm")
GROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
FILES_OPEN = 4096
"""Of a process: loaders, sockets to each rank, caches of kernels."""

SKEW_S = 30.0
"""Certificates and credentials of Slurm stand a few minutes; logs are hard to compare long before that."""

OF_A_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def memory() -> Iterator[Finding]:
    """Main memory, and what a control group leaves of it."""
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    allowed = min([whole, *_group_limits()])
    words = f"{allowed / GIB:.1f} GiB" + (f" of {whole / GIB:.1f}, by a control group" if allowed < whole else "")
    yield ok("memory", words)


def _group_limits() -> Iterator[int]:
    """Bytes by the groups around this process, from its own to the root; of the first kind of groups by the root."""
    try:
        own = next((line[4:] for line in OWN_GROUPS.read_text("ascii").splitlines() if line.startswith("0::/")), "")
    except OSError:
        own = ""
    folders = [folder for folder in (GROUPS / own, *(GROUPS / own).parents) if folder.is_relative_to(GROUPS)]
    for path in (*(folder / "memory.max" for folder in folders), GROUPS / "memory/memory.limit_in_bytes"):
        try:
            text = path.read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdecimal():
            yield int(text)


def shared_memory(ranks: int) -> Iterator[Finding]:
    """Room in /dev/shm, through which the ranks of one machine exchange tensors."""
    if not SHM.is_dir():
        yield fail("shared memory", f"{SHM} is missing", "mount a tmpfs there; in a container: --shm-size=8g")
        return
    room = shutil.disk_usage(SHM)
    words = f"{SHM} has {room.free / MIB:,.0f} of {room.total / MIB:,.0f} MiB free"
    remedy = f"in a container: --shm-size=8g, or --ipc=host; else mount -o remount,size=8G {SHM}"
    if room.free < 64 * MIB * ranks:
        yield fail("shared memory", f"{words}, and {ranks} rank(s) take up to {64 * ranks}", remedy)
    elif room.free < GIB:
        yield warn("shared memory", words, remedy)
    else:
        yield ok("shared memory", words)


def limits() -> Iterator[Finding]:
    """What the shell allows a process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    words = f"a process may open {_count(soft)} files"
    if soft != resource.RLIM_INFINITY and soft < FILES_OPEN:
        room = f"ulimit -n {min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536}"
        yield (fail if soft < 256 else warn)("limits", f"{words}; {FILES_OPEN} are usual", f"{room} before the start")
    else:
        yield ok("limits", words)
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if Path("/dev/infiniband").exists() and locked != resource.RLIM_INFINITY:
        words = f"a process may lock {locked / MIB:,.0f} MiB, and this machine has InfiniBand"
        yield warn("locked memory", words, "ulimit -l unlimited, in a container --ulimit memlock=-1")


def _count(limit: int) -> str:
    return "any number of" if limit == resource.RLIM_INFINITY else f"{limit:,}"


def name(of_torchrun: bool) -> Iterator[Finding]:
    """Whether this machine's name leads to it, as other machines' ranks, gloo and torchrun --standalone look it up.

    Args:
        of_torchrun: that is what starts the run; DeepSpeed's launcher does without the name on one machine.
    """
    host, worse = socket.gethostname(), fail if of_torchrun else warn
    cost = "torchrun --standalone does not start so" if of_torchrun else "ranks of several machines would not meet"
    try:
        address = socket.getaddrinfo(host, None, socket.AF_INET)[0][4][0]
    except OSError as error:
        yield worse("name", f"{host} leads to no address ({error.strerror or error}): {cost}", "add it to /etc/hosts")
        return
    with socket.socket() as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            words = f"{host} leads to {address}, which is no address of this machine: {cost}"
            yield worse("name", words, "correct /etc/hosts or the name server")
            return
    yield ok("name", f"{host} is {address}")


def port(alone: bool) -> Iterator[Finding]:
    """Whether the first rank could listen: at MASTER_PORT where that is set, else where torchrun does by default.

    Args:
        alone: one process that no launcher starts; launchers choose a port themselves.
    """
    given = os.environ.get("MASTER_PORT")
    worse = fail if alone and given is not None else warn
    if given is not None and not (given.isascii() and given.isdecimal() and 0 < int(given) < 65536):
        yield worse("port", f"MASTER_PORT={given} is no port", "unset it, or give a number below 65536")
        return
    number = int(given or 29500)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", number))
        except OSError as error:
            what = f"port {number}, torchrun's default," if given is None else f"MASTER_PORT={number}"
            remedy = "torchrun: add --standalone; launch/bin/deepspeed takes a free port by itself"
            yield worse(
                "port",
                f"{what} cannot be taken: {error.strerror}",
                remedy if given is None else "unset it, or give another",
            )
            return
    yield ok("port", f"port {number} is free")


def variables(ranks: int) -> Iterator[Finding]:
    """What the shell hands on to a run without being asked."""
    left = " ".join(name for name in OF_A_LAUNCHER if name in os.environ)
    if left:
        yield warn("variables", f"{left}: set, as a launcher sets them for its ranks", f"unset {left}")
    else:
        yield ok("variables", "none of a launcher is left over")
    threads = os.environ.get("OMP_NUM_THREADS")
    if threads is None and ranks > 1:
        words = f"OMP_NUM_THREADS is not set: each of {ranks} ranks takes all {os.cpu_count()} cores"
        yield warn("threads", words, "source launch/env.sh, or export OMP_NUM_THREADS=1")
    else:
        yield ok("threads", "torch's own choice for one rank" if threads is None else f"OMP_NUM_THREADS={threads}")


def clock(skew: tuple[str, float] | None) -> Iterator[Finding]:
    """Whether this machine's clock is right.

    Args:
        skew: a server, and the seconds that this clock is ahead of its; None where none has answered.
    """
    if skew is None:
        yield ok("clock", f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, held against no other")
        return
    host, ahead = skew
    if abs(ahead) > SKEW_S:
        words = f"this clock is {abs(ahead):,.0f} s {'fast' if ahead > 0 else 'slow'} of {host}'s"
        yield warn("clock", words, "let chrony or ntpd set it, where it is not that server's that is wrong")
    else:
        yield ok("clock", f"within {max(1.0, abs(ahead)):.0f} s of {host}'s")
