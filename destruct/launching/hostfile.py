"""Which hosts a run is spread over, and which ranks each of them has: a hostfile, or `n1:8,n2:8`.

Standard library only: `launch/bin/deepspeed` reads hostfiles, too.
"""

from __future__ import annotations  # for a python3 before 3.10

import os
import re
from collections.abc import Mapping

from destruct.errors import DestructError

HOST = r"(?:\w[\w.-]*@)?\w[\w.-]*"
LINE = re.compile(rf"({HOST})\s+slots=(\d+)(?:\s.*)?")
"""What comes after the number, such as max_slots=8, is ignored, as DeepSpeed does."""

WRITE = "write one host a line: n1 slots=8"


class Place:
    """A host's place among the others.

    Args:
        host: its name, or its address.
        node: its number, from 0, which launchers call its rank.
        slots: ranks that are started there.
        first: the lowest of these ranks.
    """

    def __init__(self, host: str, node: int, slots: int, first: int):
        self.host, self.node, self.slots, self.first = host, node, slots, first

    @property
    def ranks(self) -> str:
        """Its ranks, for people."""
        last = self.first + self.slots - 1
        return f"rank {self.first}" if last == self.first else f"ranks {self.first}-{last}"


def read_hostfile(path: str | os.PathLike[str]) -> dict[str, int]:
    """Slots by host, in the file's order.

    Raises:
        DestructError: there is no such file, a line is none of a hostfile, a host comes twice or has no slots.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError as error:
        # DeepSpeed would go on with this machine alone.
        raise DestructError(f"the hostfile {path} cannot be read: {error.strerror}", "name one that is there") from None
    named = [(number, line.strip()) for number, line in enumerate(lines, 1) if re.match(r"\s*[^#\s]", line)]
    found: dict[str, int] = {}
    for number, line in named:
        match = LINE.fullmatch(line)
        if not match:
            raise DestructError(f"line {number} of {path} is {line!r}, which names no host and its slots", WRITE)
        _add(found, match[1], match[2], f"line {number} of {path}")
    if not found:
        raise DestructError(f"{path} names no host", WRITE)
    return found


def read_hosts(text: str) -> dict[str, int]:
    """Slots by host, of `n1:8,n2:8`.

    Raises:
        DestructError: it is not written so, a host comes twice or has no slots.
    """
    found: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(rf"({HOST}):(\d+)", part.strip())
        if not match:
            raise DestructError(f"{part.strip()!r} is not a host and its ranks", "write --hosts n1:8,n2:8")
        _add(found, match[1], match[2], f"--hosts {text}")
    return found


def _add(found: dict[str, int], host: str, slots: str, where: str) -> None:
    if host in found:
        raise DestructError(f"{where} names {host} a second time", "name each host once, with all of its slots")
    if int(slots) == 0:
        raise DestructError(f"{where} gives {host} no slots", f"leave {host} out, or write how many ranks it takes")
    found[host] = int(slots)


def places(slots: dict[str, int]) -> list[Place]:
    """The places of hosts, in their order: ranks are counted through them.

    Args:
        slots: by host.
    """
    found, first = [], 0
    for node, (host, number) in enumerate(slots.items()):
        found.append(Place(host, node, number, first))
        first += number
    return found


def meeting_host(hosts: list[str]) -> str:
    """The host at which the ranks meet: the first one.

    Raises:
        DestructError: its name leads each host to itself.
    """
    first, *others = [host.rpartition("@")[2] for host in hosts]
    if _is_local(first) and not all(map(_is_local, others)):
        problem = f"the ranks meet at {first}, and by that name {others[0]} does not find the first host"
        raise DestructError(problem, "name it as the others know it")
    return first


def _is_local(host: str) -> bool:
    return host == "localhost" or host.startswith("127.")


def carried(folder: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that ranks on other hosts get from this one: what differs between hosts stays out.

    Args:
        folder: in which they run, that of this process.
        environment: of this process.

    Raises:
        DestructError: a file that names more of them cannot be read.
    """
    found = {name: value for name, value in environment.items() if name.startswith(PREFIXES) and name not in LOCAL}
    found["PYTHONPATH"] = os.pathsep.join(filter(None, (folder, environment.get("PYTHONPATH"))))  # as DeepSpeed has it
    for place in (os.path.expanduser("~"), folder):
        path = os.path.join(place, environment.get("DS_ENV_FILE", ".deepspeed_env"))
        if os.path.isfile(path):
            pairs = [line.partition("=") for line in _lines(path) if "=" in line and not line.startswith("#")]
            found.update({name.strip(): value for name, _, value in pairs})
    return found


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8") as file:
            return [line.rstrip() for line in file]
    except (OSError, UnicodeDecodeError) as error:
        problem = f"{path}, whose variables ranks get, cannot be read: {getattr(error, 'strerror', None) or error}"
        raise DestructError(problem, "write it as UTF-8, one NAME=value a line, or move it away") from None


PREFIXES = (
    *("MLFLOW", "PYTHON", "MV2", "UCX", "NCCL"),  # what DeepSpeed takes along
    *("GLOO_", "TORCH", "TRITON_", "CUDA_", "DS_", "OMP_", "MKL_", "THP_MEM_ALLOC_ENABLE", "LD_LIBRARY_PATH", "PATH"),
    *("HF_", "HUGGING_FACE_", "TRANSFORMERS_", "TOKENIZERS_", "DESTRUCT_CACHE", "GRACE_S"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),  # programs differ in the case
    *("SSL_CERT_", "REQUESTS_CA_BUNDLE"),  # of a proxy that signs by itself
)

LOCAL = {"CUDA_VISIBLE_DEVICES", "DS_ENV_FILE", "PYTHONSTARTUP"}
