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
from destruct.checkpoint.state import TrainState
from destruct.checkpoint.store import CheckpointStore
from destruct.config.deepspeed import Optimizer
from destruct.engine.single import SingleEngine, SingleFrozen
from destruct.engine.topology import Topology
from destruct.errors import DestructError

ALONE = Topology(0, 1, torch.device("cpu"))
FACTS = {"world_size": 1, "backend": "single"}
FILES = {"policy/state.pt": b"weights \x00\xff", "frozen/model.safetensors": b"frozen", "state.json": b'{"update": 3}'}
SEALED = [*FILES, "manifest.json"]


def write(stage: Path) -> None:
    for name, content in FILES.items():
        (stage / name).parent.mkdir(exist_ok=True)
        (stage / name).write_bytes(content)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", ALONE, keep=2)


@pytest.fixture
def saved(store) -> Path:
    path = store.save(3, [write], FACTS)
    assert path is not None
    return path


def test_a_save_publishes_all_files_with_their_digests_and_points_to_them(store):
    assert store.latest() is None, "nothing is there before the first save"
    path = store.save(3, [write], FACTS)
    assert path == store.folder / "step-00000003"
    found, facts = store.latest()
    assert found == path
    assert {name: (path / name).read_bytes() for name in FILES} == FILES
    assert names(store.folder) == ["latest", "step-00000003"]
    assert (store.folder / "latest").read_text() == "step-00000003\n"
    assert {name: facts[name] for name in ("update", "world_size", "backend")} == {"update": 3, **FACTS}
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
        store.save(update, [write], FACTS)
    assert names(store.folder) == ["latest", "step-00000010", "step-00000100"]


def test_a_copy_that_a_person_made_is_never_deleted(store, saved):
    saved.with_name("step-00000003-best").mkdir()
    for update in (4, 5, 6):
        store.save(update, [write], FACTS)
    assert names(store.folder) == ["latest", "step-00000003-best", "step-00000005", "step-00000006"]


def test_a_stage_that_a_killed_run_left_behind_goes_with_the_next_save(tmp_path):
    (tmp_path / ".stage-00000007" / "policy").mkdir(parents=True)
    CheckpointStore(tmp_path, ALONE, keep=1).save(9, [write], FACTS)
    assert names(tmp_path) == ["latest", "step-00000009"]


@pytest.mark.parametrize(("keep", "kept"), [(1, ["step-00000004"]), (2, ["step-00000003", "step-00000004"])])
def test_a_run_set_back_to_an_older_checkpoint_keeps_what_it_saves_from_there(tmp_path, keep, kept):
    """Steps 8 and 9 were given up and stay; counted among the newest, step 4 would be deleted as it is published."""
    store = CheckpointStore(tmp_path, ALONE, keep=3)
    for update in (3, 8, 9):
        store.save(update, [write], FACTS)
    (tmp_path / "latest").write_text("step-00000003\n")
    store = CheckpointStore(tmp_path, ALONE, keep)
    store.save(4, [write], FACTS)
    assert store.latest()[0].name == "step-00000004"
    assert names(tmp_path) == ["latest", *kept, "step-00000008", "step-00000009"]


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
        assert store.save(6, [write, WRITERS[writer], never], FACTS) is None
    assert names(store.folder) == ["latest", "step-00000003"]
    assert store.latest()[0] == saved
    assert store.save(6, [write], FACTS).name == "step-00000006", "the next one succeeds"


def test_a_mistake_of_the_program_is_not_taken_for_a_full_disk(store):
    def broken(stage: Path) -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        store.save(3, [broken], FACTS)
    assert store.latest() is None


def refused(store: CheckpointStore, path: Path) -> None:
    with pytest.raises(DestructError) as caught:
        store.latest()
    assert caught.value.problem.startswith(f"{path} is not the file that was saved")
    assert caught.value.remedy == "start the run anew with run.resume=never", "there is no older one"


def test_a_folder_in_the_place_of_the_pointer_is_refused(store, saved):
    (store.folder / "latest").unlink()
    (store.folder / "latest").mkdir()
    with pytest.raises(DestructError, match="latest names '', which is no checkpoint here"):
        store.latest()


def test_the_remedy_for_a_damaged_checkpoint_names_the_one_before_it(store, saved):
    newer = store.save(6, [write], FACTS)
    (newer / "policy" / "state.pt").write_bytes(b"")
    with pytest.raises(DestructError) as caught:
        store.latest()
    assert caught.value.remedy.startswith(f"set run.resume to {saved}, or ")


@pytest.mark.parametrize("name", SEALED)
def test_any_flipped_bit_of_any_file_is_refused_by_the_files_name(store, saved, name):
    """Two bits of every byte: the lowest, which keeps much of the manifest readable, and the highest, never UTF-8."""
    path = saved / name
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in (0x01, 0x80):
            damaged = bytearray(whole)
            damaged[position] ^= bit
            path.write_bytes(damaged)
            refused(store, path)
    path.write_bytes(whole)
    assert store.latest()[0] == saved


@pytest.mark.parametrize("name", SEALED)
def test_a_file_cut_short_made_longer_or_gone_is_refused_by_name(store, saved, name):
    path = saved / name
    whole = path.read_bytes()
    for damaged in (whole[:-1], b"", whole + b"\n"):
        path.write_bytes(damaged)
        refused(store, path)
    path.unlink()
    refused(store, path)
    path.mkdir()
    refused(store, path)


def test_a_manifest_without_its_digest_is_refused(store, saved):
    (saved / manifest.CHECK).unlink()
    refused(store, saved / "manifest.json")


ELSEWHERE = ["../elsewhere", "step-00000003/../../elsewhere", "elsewhere", "step-00000009", "step-\ufffd", "", "."]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_pointer_to_anything_but_a_checkpoint_of_this_folder_is_refused(store, saved, name):
    """The folder `elsewhere` is a perfect checkpoint, beside the store and in it."""
    for elsewhere in (store.folder.parent / "elsewhere", store.folder / "elsewhere"):
        elsewhere.mkdir()
        write(elsewhere)
        manifest.seal(elsewhere, {"update": 3, **FACTS})
    (store.folder / "latest").write_bytes(f"{name}\n".encode().replace(b"\xef\xbf\xbd", b"\xff"))
    with pytest.raises(DestructError, match="is no checkpoint here") as caught:
        store.latest()
    assert repr(name) in caught.value.problem
    assert str(store.folder) in caught.value.remedy


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
    path = contents.save(store, held, TrainState(kl_coef=1 / 3, update=5), '{"ü": 1}', FACTS)
    assert path == store.path(5) == store.latest()[0]
    state = contents.load(path, other)
    assert (state.kl_coef, state.update) == (1 / 3, 5)
    assert all(torch.equal(a, b) for a, b in zip(tensors(other), tensors(held), strict=True))
    assert not torch.equal(tensors(held)[0], tensors(held)[4]), "policy and frozen weight"
    assert (path / contents.TOKENIZER).read_text(encoding="utf-8") == '{"ü": 1}'
    with disk_full_after(64):
        assert contents.save(store, held, state, "", FACTS) is None


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
