"""What is wrong with a data set of the hub, in two lines, from what `datasets` says of it in many ways."""

import re
from urllib.parse import quote

from destruct.config.data import SourceConfig
from destruct.errors import DestructError
from destruct.exits import Exit

PARQUET_EXPORT = "refs/convert/parquet"
"""The branch where the hub keeps its own conversion of a data set: a folder a configuration, and no README."""


def hub_origin(source: SourceConfig) -> str:
    """What errors call a data set of the hub."""
    parts = [f"the hub's data set {source.hub}"]
    parts += [] if source.config is None else [f"configuration {source.config}"]
    return ", ".join(parts)


def hub_fault(name: str, source: SourceConfig, error: Exception) -> DestructError:
    """The error of `datasets`, `huggingface_hub` or their network client as one that a person can act on.

    Args:
        name: key of the source in `data.sources`.
        source: its section.
        error: what one of them raised.
    """
    words = {"name": name, "hub": source.hub, "config": source.config, "revision": source.revision}
    words["tree"] = quote(source.revision or "main", safe="")
    for pattern, problem, remedy, exit_code in HUB_FAULTS:
        if found := re.search(pattern, str(error)):
            there = found.group(1).replace("'", "") if found.groups() else ""
            said = [sentence.format(there=there, **words) for sentence in (problem, remedy)]
            return DestructError(f"source {name!r}: the hub's data set {source.hub} {said[0]}", said[1], exit_code)
    return DestructError(
        f"source {name!r}: {hub_origin(source)} cannot be loaded: {type(error).__name__}: {first_line(error)}",
        f"compare data.sources.{name} with https://huggingface.co/datasets/{source.hub}, or give data.root a folder "
        f"with {name}/train.*",
        Exit.ENVIRONMENT if is_network_fault(error) else Exit.CONFIG,
    )


def is_network_fault(error: Exception) -> bool:
    """Whether the hub, or the way to it, is at fault and not the data."""
    return isinstance(error, OSError) or type(error).__module__.startswith("httpx")


def stream_fault(name: str, source: SourceConfig, rows: int, error: Exception) -> DestructError:
    """A network fault in the middle of a stream, which `datasets` has tried to get over for minutes.

    Args:
        rows: that came before it.
        error: what it raised in the end; the other arguments are those of `hub_fault`.
    """
    return DestructError(
        f"source {name!r}: {hub_origin(source)} could not be read on behind row {rows:,} of its stream: "
        f"{type(error).__name__}: {first_line(error)}",
        "go on from the last checkpoint (--resume auto) when the hub answers again, or give data.root a folder with "
        f"{name}/train.*",
        Exit.ENVIRONMENT,
    )


def first_line(error: BaseException) -> str:
    """What an error says first; its type where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


_LOG_IN = "`hf auth login` (or set HF_TOKEN)"

HUB_FAULTS = [
    (
        r"scripts are no longer supported",
        "is a loading script, which `datasets` no longer runs",
        f"set data.sources.{{name}}.revision: {PARQUET_EXPORT}, the hub's own conversion",
        Exit.CONFIG,
    ),
    (
        r"is a gated dataset|gated repo",
        "is gated: its owner gives access to accounts",
        f"accept the terms on https://huggingface.co/datasets/{{hub}}, then {_LOG_IN} on this machine",
        Exit.ENVIRONMENT,
    ),
    (
        r"Dataset '.*' doesn't exist on the Hub",
        "does not exist, or is private",
        f"correct data.sources.{{name}}.hub; a private one needs {_LOG_IN}",
        Exit.CONFIG,
    ),
    (
        r"Revision '.*' doesn't exist",
        "has no revision {revision!r}",
        "set data.sources.{name}.revision to a branch, tag or commit of it, or leave it out",
        Exit.CONFIG,
    ),
    (
        r"BuilderConfig '.*' not found. Available: \[(.*)\]",
        "has no configuration {config!r}; it has {there}",
        "set data.sources.{name}.config to one of them",
        Exit.CONFIG,
    ),
    (
        r"Config name is missing.\s+Please pick one among the available configs: \[(.*)\]",
        "has several configurations: {there}",
        "set data.sources.{name}.config to one of them",
        Exit.CONFIG,
    ),
    (
        r"doesn't contain any data files|No \(supported\) data files",
        "holds no data files in this configuration and revision",
        "compare data.sources.{name} (config, revision) with https://huggingface.co/datasets/{hub}/tree/{tree}",
        Exit.CONFIG,
    ),
    (
        r"Couldn't reach|Couldn't find cache|locate the file on the Hub",
        "cannot be reached on the hub, and the cache below HF_HOME does not hold it",
        "load it once where there is a network, or give data.root a folder with {name}/train.*",
        Exit.ENVIRONMENT,
    ),
]
"""What `datasets` says -> problem and remedy in words of ours; {there} is the list in its message."""
