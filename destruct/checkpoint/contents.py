"""What lies in a checkpoint: both training engines, the policy's copies as whole tensors, the state, the tokenizer."""

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from destruct.checkpoint.identity import written_by_ranks
from destruct.checkpoint.shelf import STATE
from destruct.checkpoint.state import TrainState
from destruct.checkpoint.store import CheckpointStore
from destruct.engine.base import FrozenEngine, TrainEngine
from destruct.heartbeat import HEART

FROZEN = Path("frozen") / "model.safetensors"
INITIAL = Path("initial") / "model.safetensors"
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True, slots=True)
class Networks:
    """The engines that a checkpoint holds."""

    policy: TrainEngine
    value: TrainEngine
    frozen: FrozenEngine
    initial: FrozenEngine | None  # where the KL is measured to it

    @property
    def reference(self) -> FrozenEngine:
        """What the KL is measured to."""
        return self.initial or self.frozen

    @property
    def copies(self) -> dict[Path, FrozenEngine]:
        """The copies of the policy, by the file that holds each."""
        return {FROZEN: self.frozen} | ({} if self.initial is None else {INITIAL: self.initial})


def save(
    store: CheckpointStore,
    networks: Networks,
    state: TrainState,
    tokenizer: str,
    facts: dict[str, object],
    best: bool = False,
) -> None:
    """Write a checkpoint, which `store.settle` tells the end of; all ranks call it.

    Args:
        tokenizer: text of the tokenizer.json.
        facts: what the checkpoint belongs to, for its manifest.
        best: the pointer `best` is to name it, too.
    """
    copies = {file: _whole(engine, store.topology.is_first) for file, engine in networks.copies.items()}

    def write_policy(stage: Path) -> None:
        networks.policy.save(stage, "policy")

    def write_value(stage: Path) -> None:
        networks.value.save(stage, "value")

    def write_the_rest(stage: Path) -> None:
        if store.topology.is_first:
            for file, tensors in copies.items():
                (stage / file).parent.mkdir()
                save_file(tensors, stage / file)
            state.save(stage / STATE)
            (stage / TOKENIZER).write_text(tokenizer, encoding="utf-8")

    writers = [write_policy, write_value, write_the_rest]
    with HEART.during("checkpoint"):
        store.save(state.name, writers, {"update": state.update, **facts}, best, state.skipped_in_a_row == 0)


def _whole(engine: FrozenEngine, keep: bool) -> dict[str, Tensor]:
    """Every tensor of a copy, gathered one at a time and kept on the first rank.

    An inference engine cannot save itself, and shards of one number of ranks do not fit another.
    """
    return {name: whole.cpu().clone() for name, whole in engine.tensors_in_full() if keep}


def load(checkpoint: Path, networks: Networks, store: CheckpointStore) -> TrainState:
    """Read a verified checkpoint into the engines; all ranks call it.

    Args:
        store: where a checkpoint of another number of ranks is made readable.

    Raises:
        DestructError: an engine finds nothing that it can load.
    """
    written_by = written_by_ranks(checkpoint)
    with HEART.during("reading the checkpoint"), store.scratch() as scratch:
        networks.policy.load(checkpoint, "policy", written_by, scratch)
        networks.value.load(checkpoint, "value", written_by, scratch)
        for file, engine in networks.copies.items():
            engine.load_tensors(load_file(checkpoint / file))
    return TrainState.load(checkpoint / STATE)
