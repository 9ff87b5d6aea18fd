"""Checkpoints: published whole or not at all, and refused by name once a single bit of them has changed."""

import dataclasses
import errno
import json
import math
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from destruct.checkpoint import contents, manifest
from destruct.checkpoint.state import TrainState, step_name
from destruct.checkpoint.store import CheckpointStore
from destruct.config.deepspeed import Optimizer
from destruct.engine.single import SingleEngine, SingleFrozen
from destruct.engine.topology import Topology

ALONE = Topology(0, 1, torch.device("cpu"))
FACTS = {"ranks": 1, "backend": "single"}
FILES = {"policy/state.pt": b"weights \x00\xff", "frozen/model.safetensors": b"frozen", "state.json": b'{"update": 3}'}
SEALED = [*FILES, "manifest.json"]


def write(stage: Path) -> None:
    for name, content in FILES.items():
        (stage / name).parent.mkdir(exist_ok=True)
        (stage / name).write_bytes(content)


def publish(store: CheckpointStore, update: int, writers, facts, best=False) -> Path | None:
    """Save and wait for the end of it."""
    store.save(step_name(update), writers, {"update": update, **facts}, best)
    return store.settle()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", ALONE, keep=2)


@pytest.fixture
def saved(store) -> Path:
    path = publish(store, 3, [write], FACTS)
    assert path is not None
    return path


def test_a_save_publishes_all_files_with_their_digests_and_points_to_them(store):
    assert store.latest() is None, "nothing is there before the first save"
    path = publish(store, 3, [write], FACTS)
    assert store.settle() is None, "it is told once"
    assert path == store.folder / "step-00000003"
    facts = store.latest().facts
    assert store.latest().folder == path and not store.latest().passed_over
    assert {name: (path / name).read_bytes() for name in FILES} == FILES
    assert names(store.folder) == ["latest", "step-00000003"]
    assert (store.folder / "latest").read_text() == "step-00000003\n"
    assert {name: facts[name] for name in ("update", *FACTS)} == {"update": 3, **FACTS}
    assert facts["files"].keys() == FILES.keys()


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum on this machine")
def test_the_digests_are_those_of_sha256sum(saved):
    """The shell's own tool, so that a person can check a checkpoint without destruct."""
    listed = json.loads((saved / "manifest.json").read_text())["files"]
    lines = "".join(f"{facts['sha256']}  {name}\n" for name, facts in listed.items())
    done = subprocess.run(["sha256sum", "--check", "--strict", "-"], cwd=saved, input=lines, text=True, timeout=20)
    assert done.returncode == 0
    done = subprocess.run(["sha256sum", "--check", "--strict", manifest.CHECK], cwd=saved, timeout=20)
    assert done.returncode == 0


def test_only_the_newest_checkpoints_stay(store):
    for update in (1, 2, 9, 10, 100):
        publish(store, update, [write], FACTS)
    assert names(store.folder) == ["latest", "step-00000010", "step-00000100"]


def test_a_copy_that_a_person_made_is_never_deleted(store, saved):
    saved.with_name("step-00000003-best").mkdir()
    for update in (4, 5, 6):
        publish(store, update, [write], FACTS)
    assert names(store.folder) == ["latest", "step-00000003-best", "step-00000005", "step-00000006"]


def test_a_stage_that_a_killed_run_left_behind_goes_with_the_next_save(tmp_path):
    (tmp_path / ".stage-00000007" / "policy").mkdir(parents=True)
    publish(CheckpointStore(tmp_path, ALONE, keep=1), 9, [write], FACTS)
    assert names(tmp_path) == ["latest", "step-00000009"]


@contextmanager
def disk_full_after(size: int) -> Iterator[None]:
    """The kernel refuses every write beyond `size` bytes of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def raise_no_space(stage: Path) -> None:
    (stage / "half").write_text("written")
    raise OSError(errno.ENOSPC, "No space left on device")


WRITERS: dict[str, Callable[[Path], None]] = {
    "os error": raise_no_space,
    "plain file": lambda stage: (stage / "state.json").write_bytes(bytes(10_000)) and None,
    "torch, while writing": lambda stage: torch.save({"masters": torch.zeros(10_000)}, stage / "state.pt"),
    "torch, while closing": lambda stage: torch.save({"masters": torch.zeros(700)}, stage / "state.pt"),
    "safetensors": lambda stage: save_file({"weight": torch.zeros(10_000)}, stage / "model.safetensors"),
    "manifest": lambda stage: [(stage / f"{i:04d}").touch() for i in range(100)] and None,
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_leaves_no_trace_and_the_checkpoint_before_stays_the_latest(store, saved, writer):
    """Every way in which a write fails, with the errors that torch and safetensors make of it; none comes after it."""

    def never(stage: Path) -> None:
        assert writer == "manifest", "a writer after the failed one"

    with disk_full_after(4096):
        assert publish(store, 6, [write, WRITERS[writer], never], FACTS) is None
    assert names(store.folder) == ["latest", "step-00000003"]
    assert store.latest().folder == saved
    assert publish(store, 6, [write], FACTS).name == "step-00000006", "the next one succeeds"


def test_a_run_that_ends_before_a_failed_save_is_settled_leaves_no_stage(store, saved):
    """Its bytes would be what fills the disk."""
    with disk_full_after(4096):
        store.save(step_name(6), [write, WRITERS["manifest"]], FACTS)
        store.close()
    assert names(store.folder) == ["latest", "step-00000003"]


def test_a_mistake_of_the_program_is_not_taken_for_a_full_disk(store):
    def broken(stage: Path) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        publish(store, 3, [broken], FACTS)
    assert store.latest() is None


def engine(module: nn.Module) -> SingleEngine:
    return SingleEngine(module, Optimizer(), 1, 1.0)


def networks(seed: int) -> contents.Networks:
    torch.manual_seed(seed)
    return contents.Networks(engine(nn.Linear(3, 2)), engine(nn.Linear(3, 1)), SingleFrozen(nn.Linear(3, 2)), None)


def tensors(held: contents.Networks) -> list[torch.Tensor]:
    return [t.clone() for each in (held.policy, held.value, held.frozen) for _, t in each.tensors_in_full()]


def test_what_a_checkpoint_holds_comes_back_bit_for_bit_and_each_network_as_itself(store):
    """Policy and frozen model have one shape and other weights; the tokenizer lies beside them as text."""
    held, other = networks(1), networks(2)
    contents.save(store, held, TrainState(kl_coef=1 / 3, update=5), '{"ü": 1}', FACTS)
    path = store.settle()
    assert path == store.path(5) == store.latest().folder
    state = contents.load(path, other, store)
    assert (state.kl_coef, state.update) == (1 / 3, 5)
    assert all(torch.equal(a, b) for a, b in zip(tensors(other), tensors(held), strict=True))
    assert not torch.equal(tensors(held)[0], tensors(held)[4]), "policy and frozen weight"
    assert (path / contents.TOKENIZER).read_text(encoding="utf-8") == '{"ü": 1}'
    with disk_full_after(64):
        contents.save(store, held, state, "", FACTS)
        assert store.settle() is None


def test_a_state_survives_json_bit_for_bit(tmp_path):
    """Sums that are no decimal, a denormal, pi, the largest float and a negative zero."""
    awkward = [0.1 + 0.2, 1e-310, math.pi, 1.7976931348623157e308, -0.0, 5e-324, 1 / 3]
    state = TrainState(
        kl_coef=0.1 + 0.2,
        update=7,
        tokens=2**60 + 1,
        seconds=1e-310,
        kl_max=math.pi,
        best_loss=1 / 3,
        best_update=6,
        rewards=[[[x, 1.0] for x in awkward]],
        validation={"before": {"a source": awkward[3], "mean": 1 / 3}},
        mixture={"cursors": [3, 4]},
        curriculum={"weights": awkward},
    )
    state.save(tmp_path / "state.json")
    loaded = TrainState.load(tmp_path / "state.json")
    assert dataclasses.asdict(loaded) == dataclasses.asdict(state)
    exact = [x.hex() for x in loaded.curriculum["weights"]]
    assert exact == [x.hex() for x in awkward], "0 == -0, so equality alone is not enough"
    assert (loaded.kl_coef.hex(), loaded.seconds.hex()) == ((0.1 + 0.2).hex(), (1e-310).hex())
