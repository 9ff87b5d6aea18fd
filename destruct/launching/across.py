"""A run on the hosts of a hostfile: one ssh to each, and there `deepspeed --no_ssh`, which looks after its ranks.

DeepSpeed's own way, which `--launcher pdsh` still is, writes the environment on command lines, lets its shell take
arguments apart, and at a signal calls `pkill` for every run of this Python there, gives ranks 30 s, and does not wait.
Here signals, the environment and the arguments go through the connection's stdin, and its end is a SIGTERM over there.
Standard library only: `launch/bin/deepspeed` is.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import IO, Any

from destruct.errors import DestructError
from destruct.exits import Exit
from destruct.launching import far
from destruct.launching.hostfile import carried, meeting_host, read_hostfile
from destruct.launching.supervisor import grace

COMMON = "/job/hostfile"
"""Where DeepSpeed looks for a hostfile that nobody names."""

THEIRS = ("launcher", "launcher_args", "venv_script", "autotuning")
"""Options that mean something in DeepSpeed's own way alone."""

ECHO_S = 30  # from a host's failure to the end of the others, as DeepSpeed has it among the ranks of one
ENDING_S = 60  # for a host to end after its launcher's patience
LOOK_S = 0.1


def chosen(own: list[str]) -> argparse.Namespace | None:
    """What the launcher's options say of hosts, or None where they start ranks here, or in a way of DeepSpeed's."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for names in (["-H", "--hostfile"], ["-i", "--include"], ["-e", "--exclude"], ["--num_nodes"], ["--ssh_port"]):
        parser.add_argument(*names)
    for name in ("master_addr", "master_port", *THEIRS):
        parser.add_argument(f"--{name}")
    parser.add_argument("--no_ssh", action="store_true")
    parser.add_argument("--force_multi", action="store_true")
    options, _ = parser.parse_known_args(own)
    if options.hostfile is None and not os.path.isfile(COMMON):
        return None
    options.hostfile = options.hostfile or COMMON
    options.slots = read_hostfile(options.hostfile)  # where it is missing DeepSpeed would go on, on this host alone
    if options.no_ssh or any(getattr(options, name) is not None for name in THEIRS):
        return None
    options.hosts = active(options)
    return options if len(options.hosts) > 1 or options.force_multi else None


def active(options: argparse.Namespace) -> list[str]:
    """The hosts that are left by --include, --exclude and --num_nodes, in the file's order.

    Raises:
        DestructError: none is, or one that is named is none of the hostfile.
    """
    names = list(options.slots)
    for text, keep in ((options.include, True), (options.exclude, False)):
        if text:
            named = _devices(text)
            for unknown in [name for name in named if name not in names]:
                raise DestructError(f"{text} names {unknown}, which is not in {options.hostfile}", "name one of it")
            whole = {name for name, few in named.items() if keep or not few or len(few) >= options.slots[name]}
            names = [name for name in names if (name in whole) == keep]
    if (options.num_nodes or "").isdecimal():
        names = names[: int(options.num_nodes)]
    if not names:
        remedy = "let --include, --exclude and --num_nodes leave one"
        raise DestructError(f"no host of {options.hostfile} is left to run on", remedy)
    return names


def _devices(text: str) -> dict[str, set[str]]:
    """By host the devices that `n1@n2:0,2` names; none where it names all."""
    found: dict[str, set[str]] = {}
    for part in text.split("@"):
        host, _, devices = part.partition(":")
        found.setdefault(host, set()).update(filter(None, devices.split(",")))
    return found


def run(
    options: argparse.Namespace, command: list[str], own: list[str], rest: list[str], asked: list[int], patience: float
) -> int:
    """The exit code of a run on several hosts, none of which has a process of it left then, where it can be reached.

    Args:
        options: of `chosen`.
        command: of the launcher, the same on each host.
        own, rest: arguments, of the launcher and after them.
        asked: signals that came, a list that grows.
        patience: seconds from a signal to the end of the ranks, by their launchers.
    """
    folder, variables = os.getcwd(), carried(os.getcwd(), os.environ)
    common = [f"--master_addr={meeting_address(options)}", f"--master_port={options.master_port}", "--no_ssh"]
    hostfile = "".join(f"{host} slots={number}\n" for host, number in options.slots.items())
    connections = []
    for node, host in enumerate(options.hosts):
        # In the place of None comes the name of the hostfile, which is written over there.
        arguments = [*own, *common, f"--node_rank={node}", "--hostfile", None, *rest]
        order = {"folder": folder, "environment": variables, "hostfile": hostfile, "command": [*command, *arguments]}
        connections.append(Connection(host, options.ssh_port, order, named=node > 0))
    watch(connections, asked, patience)
    return verdict(connections)


def meeting_address(options: argparse.Namespace) -> str:
    """Where the ranks meet."""
    if options.master_addr:
        return str(options.master_addr)
    host = meeting_host(options.hosts)
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:  # known by ssh alone
        remedy = "name hosts by their addresses, or give --master_addr"
        raise DestructError(f"the ranks are to meet at {host}: {error.strerror}", remedy) from None
    return host


class Connection:
    """One host, and what it says.

    Args:
        order: for `far.py`.
        named: its lines begin with the host's name; those of the first host, which has the screen, do not.

    Raises:
        DestructError: there is no ssh on this machine.
    """

    def __init__(self, host: str, port: str | None, order: dict[str, Any], named: bool):
        self.host, self.named = host, named
        self.login = [*ssh(port), host]
        self.ready, self.told_to_end_at = False, 0.0
        try:
            self.process = subprocess.Popen(
                [*self.login, remote_command()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # a terminal's Ctrl-C is for us
            )
        except OSError as error:
            remedy = "install it: apt-get install openssh-client; `destruct launch hosts` says how to do without"
            raise DestructError(f"ssh does not start: {error.strerror}", remedy, Exit.ENVIRONMENT) from None
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.orders = self.process.stdin
        streams = ((self.process.stdout, sys.stdout.buffer), (self.process.stderr, sys.stderr.buffer))
        self.readers = [threading.Thread(target=self._pass_on, args=pair, daemon=True) for pair in streams]
        for reader in self.readers:
            reader.start()
        self.tell(json.dumps(order))

    def tell(self, line: str | int) -> None:
        """Send a line; lost where the connection is."""
        with contextlib.suppress(OSError, ValueError):
            self.orders.write(f"{line}\n".encode())
            self.orders.flush()

    def end(self) -> None:
        """Kill all that runs there."""
        if not self.told_to_end_at:
            self.told_to_end_at = time.monotonic()
            self.tell(far.END)
        elif time.monotonic() > self.told_to_end_at + ENDING_S:
            self.process.kill()

    def code(self) -> int | None:
        """The exit code of its launcher, or ours for what became of the connection; None while it lasts."""
        code = self.process.poll()
        if code is None:
            return None
        for reader in self.readers:
            reader.join(timeout=5)
        with contextlib.suppress(OSError):  # of what was not read; from 3.13 on Python would print it, uncaught
            self.orders.close()
        if code >= 0 and not self.ready:  # of ssh, or of what took the launcher's place: no login, no Python
            return Exit.ENVIRONMENT
        return Exit.RANK_FAILED if code < 0 or code == 255 else code

    def _pass_on(self, source: IO[bytes], sink: IO[bytes]) -> None:
        start = f"{self.host}: ".encode() if self.named else b""
        for line in source:
            if line.rstrip().endswith(far.READY.encode()):  # a greeting may be without an end
                self.ready = True
                continue
            with contextlib.suppress(OSError, ValueError):
                sink.write(start + line)
                sink.flush()


def ssh(port: str | None) -> list[str]:
    """The command that connects, with what pdsh's users have set for it.

    Raises:
        DestructError: a quote in that has no end.
    """
    text = os.environ.get("PDSH_SSH_ARGS_APPEND", "")
    try:
        theirs = shlex.split(text)
    except ValueError as error:
        remedy = "write it as you would write options of ssh in a shell"
        raise DestructError(f"PDSH_SSH_ARGS_APPEND is {text!r}: {error}", remedy) from None
    settings = ("BatchMode=yes", "ConnectTimeout=30", "ServerAliveInterval=15", "ServerAliveCountMax=8")
    ours = ["-T", *(word for setting in settings for word in ("-o", setting))]
    return ["ssh", *theirs, *([] if port is None else ["-p", port]), *ours]  # of an option ssh takes the first


def remote_command() -> str:
    """What is typed on the other host: no variable of the environment, no argument of the run."""
    python, program = shlex.quote(sys.executable), shlex.quote(os.path.abspath(far.__file__))
    lost = shlex.quote(f"deepspeed: {sys.executable} or {os.path.abspath(far.__file__)} is not on this host")
    remedy = "'  remedy: have the same checkout, with its .venv, at the same path on all hosts'"
    script = f"[ -x {python} ] && [ -r {program} ] || {{ printf '%s\\n' {lost} {remedy} >&2; exit 3; }}; "
    return f"exec sh -c {shlex.quote(f'{script}exec {python} -I {program}')}"  # whichever shell reads it


def watch(connections: list[Connection], asked: list[int], patience: float) -> None:
    """Until all hosts have ended: pass signals on, end the others some time after one failed; they are sorted by it."""
    told, order = 0, list[Connection]()
    deadline: float | None = None
    while open_ones := [each for each in connections if each not in order]:
        for number in asked[told:]:
            for each in open_ones:
                each.tell(int(number))
            told += 1
            deadline = deadline or time.monotonic() + patience + ENDING_S
        for each in open_ones:
            code = each.code()
            if code is not None:
                order.append(each)
            if code not in (None, Exit.DONE, Exit.PREEMPTED):
                deadline = min(deadline or float("inf"), time.monotonic() + ECHO_S)
        if deadline is not None and time.monotonic() > deadline:
            for each in open_ones:
                each.end()
        time.sleep(LOOK_S)
    connections[:] = order


def verdict(connections: list[Connection]) -> int:
    """The exit code of the run: of the host that failed first, but rather of one that knows why; says what was lost.

    Args:
        connections: in the order of their ends.
    """
    codes = [(each, code) for each in connections if (code := each.code()) is not None]
    for each in connections:
        if how := _broken(each):
            remedy = f"see what it said; try: {shlex.join([*each.login, 'true'])}"
            print(f"deepspeed: {how}\n  remedy: {remedy}", file=sys.stderr)
    failed = [code for each, code in codes if code not in (Exit.DONE, Exit.PREEMPTED) and not each.told_to_end_at]
    failed = failed or [code for _, code in codes if code not in (Exit.DONE, Exit.PREEMPTED)]
    if failed:
        return int(next((code for code in failed if code != Exit.RANK_FAILED), failed[0]))
    return int(max(code for _, code in codes))


def _broken(ended: Connection) -> str:
    """What became of a connection that broke, or of a host on which no launcher began; nothing where neither is so."""
    code = ended.process.returncode
    if code == 255:
        return f"the ssh to {ended.host} " + ("was lost" if ended.ready else "does not come about")
    return "" if code < 0 or ended.ready else f"no launcher began on {ended.host}: the ssh to it ended with {code}"


def main(own: list[str], rest: list[str], port: Callable[[], int], command: list[str], asked: list[int]) -> int | None:
    """The exit code of a run on several hosts, or None where there is one, or DeepSpeed is asked to do it.

    Args:
        own, rest: arguments, of the launcher and after them.
        port: makes the number of one, where none is given.
        command: of the launcher, the same on each host.
        asked: signals that came, a list that grows.
    """
    try:
        options = chosen(own)
        if options is None:
            return None
        try:
            patience = grace()
        except ValueError:
            return None  # the supervisor says what is wrong with it
        options.master_port = options.master_port or port()
        return run(options, command, own, rest, asked, patience)
    except DestructError as error:
        print(f"deepspeed: {error}", file=sys.stderr)
        return int(error.exit_code)
