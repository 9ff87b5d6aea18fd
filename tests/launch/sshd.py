"""A real sshd of one's own on two addresses of this machine, which stand for two hosts; no file outside its folder."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from destruct.launching.surroundings import free_port

HOSTS = ("127.0.0.1", "127.0.0.2")
SEPARATION = Path("/run/sshd")
"""A folder without which sshd does not start; packages make it where an init system runs."""

CONFIG = """Port {port}
ListenAddress 127.0.0.1
ListenAddress 127.0.0.2
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/user_key.pub
PasswordAuthentication no
StrictModes no
UsePAM no
PidFile none
"""


def program() -> str | None:
    """sshd wants to be called by its whole path."""
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def why_not() -> str:
    """What keeps it from starting here; empty where nothing does."""
    missing = [name for name in ("ssh", "ssh-keygen") if not shutil.which(name)] + ([] if program() else ["sshd"])
    if missing:
        return f"{', '.join(missing)} not installed: apt-get install openssh-server"
    return "" if SEPARATION.exists() or os.geteuid() == 0 else f"{SEPARATION} is missing"


@contextmanager
def two_hosts(folder: Path) -> Iterator[dict[str, str]]:
    """Within the block both hosts can be reached: the variable that says how, as people set it for pdsh."""
    SEPARATION.mkdir(exist_ok=True)
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    port = free_port()
    (folder / "config").write_text(CONFIG.format(port=port, folder=folder))
    with (folder / "log").open("w") as log:
        server = subprocess.Popen([str(program()), "-D", "-e", "-f", str(folder / "config")], stderr=log)
    try:
        for host in HOSTS:
            _await(host, port, folder / "log")
        ours = {"IdentityFile": folder / "user_key", "UserKnownHostsFile": folder / "known", "Port": port}
        words = [f"-o {name}={value}" for name, value in ours.items()]
        alone = "-F none -o StrictHostKeyChecking=no -o IdentitiesOnly=yes -o LogLevel=ERROR"
        yield {"PDSH_SSH_ARGS_APPEND": " ".join([alone, *words])}
    finally:
        server.terminate()
        server.wait(timeout=30)


def _await(host: str, port: int, log: Path) -> None:
    until = time.monotonic() + 30
    while True:
        try:
            socket.create_connection((host, port), timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
