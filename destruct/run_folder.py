"""A run's folder: made or continued, with what was asked for and what it runs on written down first."""

import json
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from destruct import events, last_words
from destruct.claim import Claim
from destruct.config.base import COMMAND_LINE, dump_with_provenance, leaves, scalar
from destruct.config.settings import Settings
from destruct.data.tokenizing import Tokenizer
from destruct.engine.topology import Topology
from destruct.errors import DestructError
from destruct.exits import Exit
from destruct.models.kept import keep
from destruct.secrets import masked
from destruct.tracking.console import Screen
from destruct.tracking.sinks import log_to_file
from destruct.user_function import place_of

PACKAGES = ("torch", "deepspeed", "transformers", "datasets", "tokenizers", "numpy", "pydantic", "safetensors")


def path(settings: Settings) -> Path:
    """`run.folder/run.name`."""
    return Path(settings.config.run.folder) / settings.config.run.name


def claim(settings: Settings, topology: Topology, screen: Screen) -> Claim:
    """Claim the run's folder before anything in it is looked at; all ranks call it.

    Raises:
        DestructError: another run is at work in it, or it cannot be written.
    """
    claimed = Claim(path(settings))
    with _writing_to(path(settings)):
        topology.first_rank_makes(lambda: claimed.take(screen.say))
    return claimed


LINK = Path("logs")
"""In the working folder, so that `tensorboard --logdir=./logs` shows all runs."""


def prepare(
    settings: Settings,
    topology: Topology,
    screen: Screen,
    tokenizer: Tokenizer,
    policy: PreTrainedConfig,
    checkpoint: Path | None,
    derived: dict[str, str],
    claimed: Claim,
) -> Path:
    """Make the run's folder, write down what was asked for and what it runs on, and log there from now on.

    Args:
        policy: config of its network; of a pretrained one it is kept.
        checkpoint: where the run starts from; None for the beginning.  Where it is one of the run's own folder, that is
            continued; else an older one is put aside.
        derived: what follows from the settings and decides a digit of the run, in words, by the key it belongs to.
        claimed: what `claim` gave.

    Raises:
        DestructError: it cannot be written.
    """
    folder = path(settings)
    going_on = checkpoint is not None and checkpoint.parent == folder / "checkpoints"
    for name, place in topology.together(lambda: _user_functions(settings)).items():
        screen.say(f"{name} is {place}")
    if checkpoint is None and settings.config.run.resume == "auto":
        screen.say(f"no checkpoint in {folder}: this run starts from the beginning")

    def make() -> Path | None:
        folder.parent.mkdir(parents=True, exist_ok=True)
        claimed.take(screen.say, patience_s=0.0)  # not before, where there was nothing at all
        aside = None if going_on else _put_aside(folder)
        folder.mkdir(mode=0o700, exist_ok=True)  # samples and settings are for the person who runs it
        environment = _write_facts(folder, settings, topology, tokenizer, derived)
        if (shape := settings.config.model.policy).path is not None:
            keep(folder, policy, shape.path, shape.revision)
        began = events.RESUMED if going_on else events.STARTED
        facts = {name: environment[name] for name in ("commit", "world_size", "device")}
        events.record(folder, began, checkpoint=checkpoint and str(checkpoint), overrides=_overrides(settings), **facts)
        return aside

    with _writing_to(folder):
        aside = topology.first_rank_makes(make)
    if aside is not None:
        screen.say(f"{folder} was there already; it is now {aside}")
    obstacle = topology.first_rank_makes(lambda: _link_logs(Path(settings.config.run.folder)))
    if obstacle is not None:
        screen.say(f"no link from ./{LINK} to {settings.config.run.folder}: {obstacle}")
    log_to_file(folder, topology.rank)
    return folder


@contextmanager
def _writing_to(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DestructError(
            f"{folder} cannot be written: {error.strerror or error}",
            "set run.folder to a place to write to",
            Exit.ENVIRONMENT,
        ) from None


def _user_functions(settings: Settings) -> dict[str, str]:
    """The functions that the config names, and nothing else can: by their names their places."""
    config = settings.config
    named = {name: "reward term" for name in config.reward.terms if ":" in name}
    named |= {source.format: "format" for source in config.data.sources.values() if ":" in source.format}
    return {name: place_of(role, name) for name, role in named.items()}


def _link_logs(runs: Path) -> str | None:
    """Let LINK lead to a relative `run.folder`; returns why not, where something else is there."""
    if runs.is_absolute() or os.path.realpath(LINK) == os.path.realpath(runs):
        return None
    if LINK.exists() and not LINK.is_symlink():
        return "a file or folder of that name is there"
    if LINK.is_symlink() and os.path.isabs(os.readlink(LINK)):  # ours are relative
        return f"a link to {os.readlink(LINK)} is there"
    aside = Path(f".{LINK}.{os.getpid()}")  # renamed, so that two runs may start at once
    try:
        aside.symlink_to(runs, target_is_directory=True)
        os.replace(aside, LINK)
    except OSError as error:
        return error.strerror
    return None


def _put_aside(folder: Path) -> Path | None:
    """Rename an older folder to the first free `name.N`; nothing that was made is ever overwritten."""
    if not folder.exists():
        return None
    number = 1
    while (aside := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    os.rename(folder, aside)
    return aside


def _write_facts(
    folder: Path, settings: Settings, topology: Topology, tokenizer: Tokenizer, derived: dict[str, str]
) -> dict[str, Any]:
    tokenizer.save(folder / "tokenizer")
    resolved = dump_with_provenance(settings.config, settings.provenance) + "# derived from it:\n"
    resolved += "".join(f"#   {key}: {words}\n" for key, words in derived.items())
    (folder / "resolved.yaml").write_text(masked(resolved), encoding="utf-8")
    _write_json(folder / "deepspeed.json", settings.deepspeed())
    environment = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in PACKAGES},
        "commit": _commit(),
        "job": last_words.job(),
        "world_size": topology.world_size,
        "device": torch.cuda.get_device_name() if topology.device.type == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "functions": _user_functions(settings),
    }
    _write_json(folder / "environment.json", environment)
    return environment


def _overrides(settings: Settings) -> list[str]:
    """What the command line said of the config, as it could be written there again."""
    values = leaves(settings.config.model_dump(mode="json"))
    given = [key for key, origin in settings.provenance.items() if origin == COMMAND_LINE and key in values]
    return [masked(f"{key}={scalar(values[key])}") for key in given]


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(masked(json.dumps(content, indent=1)) + "\n", encoding="utf-8")


def _commit() -> str | None:
    """The commit of the code that runs, with "+" when the tree has changes; None outside a checkout."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=True)
        changes = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if changes.stdout.strip() else "")
