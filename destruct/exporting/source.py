"""What is exported: a checkpoint that was verified, and the run that it is of."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from destruct.checkpoint import finding, manifest
from destruct.checkpoint.state import TrainState
from destruct.config.base import validate
from destruct.config.reading import read_yaml
from destruct.config.settings import Config
from destruct.errors import DestructError
from destruct.exits import Exit
from destruct.progress import Tell, tell_nobody

POLICY, FROZEN, INITIAL = ROLES = ("policy", "frozen", "initial")
"""What can be exported of a checkpoint: the policy, and its copies; all are one network with other weights."""

TOKENIZER = "tokenizer.json"
STATE = "state.json"
RESOLVED = "resolved.yaml"
TRAINING = "training"
"""Folder, in an exported one, of what the run was made with."""
_ABOVE = 3  # a run's folder is the second above a checkpoint, and the third above one in given-up/


@dataclass(frozen=True, slots=True)
class Source:
    """One copy of the policy in a checkpoint."""

    checkpoint: Path
    role: str
    run: Path  # the run's folder
    facts: dict[str, Any]  # of the manifest
    config: Config
    state: TrainState

    @property
    def backend(self) -> str:
        """What wrote it."""
        return self.facts["engine.backend"]

    @property
    def dtype(self) -> str:
        """That the run computed with, and validated: of rounded weights, where it is bfloat16."""
        return "bfloat16" if self.facts["bf16"] else "float32"


@contextmanager
def reading(what: Path) -> Iterator[None]:
    """Within the block something is read; DestructError where the disk refuses it."""
    try:
        yield
    except OSError as error:
        raise DestructError(
            f"{what} cannot be read: {error.strerror or error}", "have the right to read it", Exit.ENVIRONMENT
        ) from None


def open_source(path: Path, role: str = POLICY, tell: Tell = tell_nobody) -> Source:
    """Find the checkpoint that is meant, the newest of a run's folder, and hold what is read of it against its digests.

    Args:
        tell: is told of the bytes that are verified.

    Raises:
        DestructError: there is none, it is damaged, it does not hold this role, or its run is not there.
    """
    checkpoint = newest(path)
    try:
        facts = manifest.read(checkpoint)
        names = [name for name in facts[manifest.FILES] if name.startswith(f"{role}/")]
        every = [*names, STATE, TOKENIZER]
        tell(0, sum(facts[manifest.FILES][name]["size"] for name in every if name in facts[manifest.FILES]))
        manifest.check(checkpoint, facts, every, tell=tell)
    except manifest.Damaged as damage:
        older = [other.name for other in finding.older_than(checkpoint)]
        remedy = f"name an older one: {', '.join(older)}" if older else "have the disk looked after"
        raise DestructError(str(damage), remedy, Exit.ENVIRONMENT) from None
    if not names:
        raise DestructError(
            f"{checkpoint} holds no {role} model: its run measured the KL to the {FROZEN} one",
            f"write --role {POLICY} or --role {FROZEN}",
        )
    run = _run_of(checkpoint)
    values, provenance = read_yaml(run / RESOLVED)
    config = validate(Config, values, str(run / RESOLVED), provenance)
    _check_same(checkpoint, run, facts, config)
    with reading(checkpoint / STATE):
        state = TrainState.load(checkpoint / STATE)
    return Source(checkpoint, role, run, facts, config, state)


def newest(path: Path) -> Path:
    """The checkpoint that a person means by a path; of a run's folder the newest one.

    Raises:
        DestructError: there is none.
    """
    try:
        return finding.named(path)[0]
    except DestructError as error:
        raise DestructError(error.problem.removeprefix("run.resume: "), error.remedy) from None


def _run_of(checkpoint: Path) -> Path:
    """The folder of the run that wrote a checkpoint, which may lie on another disk, behind a link in that folder."""
    named, lies = Path(os.path.abspath(checkpoint)), checkpoint.resolve()
    for folder in (*named.parents[:_ABOVE], *lies.parents[:_ABOVE]):
        if (folder / RESOLVED).is_file():
            return folder
    raise DestructError(
        f"{checkpoint} lies in no run's folder, which tells the shape of the model: no {RESOLVED} above it",
        "put it back into the checkpoints/ folder of its run",
    )


def _check_same(checkpoint: Path, run: Path, facts: dict[str, Any], config: Config) -> None:
    """Refuse a run's folder of another model or tokenizer.

    Raises:
        DestructError: naming what differs.
    """
    for key, value in config.model.policy.model_dump(mode="json").items():
        if facts.get(f"model.policy.{key}") != value:
            raise DestructError(
                f"{checkpoint} was written with model.policy.{key} = {facts.get(f'model.policy.{key}')}; "
                f"{run / RESOLVED} has {value}",
                "put it back into the folder of its own run",
            )
    theirs = run / "tokenizer" / TOKENIZER
    if not theirs.is_file():
        raise DestructError(
            f"{theirs} is missing: the tokenizer that {checkpoint} was written with",
            "put back the folder tokenizer/ of that run",
        )
    with reading(theirs):
        same = theirs.read_bytes() == (checkpoint / TOKENIZER).read_bytes()
    if not same:
        raise DestructError(
            f"{theirs} is not the tokenizer that {checkpoint} was written with",
            "put the checkpoint back into the folder of its own run",
        )
