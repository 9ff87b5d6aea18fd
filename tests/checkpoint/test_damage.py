"""What was done to a checkpoint after it was saved is found, by the file's name, and the one before it is taken."""

import os
from pathlib import Path

import pytest

from destruct.checkpoint import manifest
from destruct.checkpoint.store import CheckpointStore
from destruct.errors import DestructError
from tests.checkpoint.test_store import ALONE, FACTS, SEALED, publish, write


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", ALONE, keep=2)


@pytest.fixture
def saved(store) -> Path:
    return publish(store, 3, [write], FACTS)


def refused(store: CheckpointStore, path: Path) -> None:
    with pytest.raises(DestructError) as caught:
        store.latest()
    assert caught.value.problem.startswith(f"{path} is not the file that was saved")
    assert caught.value.remedy == "start the run anew with run.resume=never", "there is no older one"


def test_a_damaged_checkpoint_is_passed_over_for_the_newest_one_that_is_whole(store, saved):
    """With a line for each that names its file; where none is whole, all of them are named."""
    store.keep = 3
    newer, newest = (publish(store, update, [write], FACTS) for update in (6, 9))
    (newest / "policy" / "state.pt").write_bytes(b"")
    found = store.latest()
    assert (found.folder, found.facts["update"]) == (newer, 6)
    wrong = [f"{newest}/policy/state.pt is not the file that was saved: 0 bytes instead of 10"]
    assert list(found.passed_over) == wrong
    (newer / "state.json").unlink()
    wrong.append(f"{newer}/state.json is not the file that was saved: it is missing")
    found = store.latest()
    assert found.folder == saved and list(found.passed_over) == wrong
    (saved / "manifest.json").write_text("{}")
    wrong.append(f"{saved}/manifest.json is not the file that was saved: its digest is not that of manifest.sha256")
    with pytest.raises(DestructError) as caught:
        store.latest()
    assert caught.value.problem == f"all 3 checkpoints of {store.folder} are damaged: {'; '.join(wrong)}"


def test_shards_in_each_others_place_or_of_another_step_are_found(store, saved):
    """Ranks, roles or steps swapped: every file is whole, and of the right size."""

    def other(stage: Path) -> None:
        write(stage)
        (stage / "policy" / "state.pt").write_bytes(b"WEIGHTS \x00\xff")
        (stage / "value").mkdir()
        (stage / "value" / "state.pt").write_bytes(b"a value \x00\xff")

    newer = publish(store, 6, [other], FACTS)
    policy, value = newer / "policy" / "state.pt", newer / "value" / "state.pt"
    before = policy.read_bytes(), value.read_bytes()
    swaps = [(before[1], before[0]), ((saved / "policy" / "state.pt").read_bytes(), before[1])]
    for swapped in swaps:
        policy.write_bytes(swapped[0])
        value.write_bytes(swapped[1])
        found = store.latest()
        assert found.folder == saved
        assert found.passed_over == (f"{policy} is not the file that was saved: its digest is another one",)
    policy.write_bytes(before[0])
    value.write_bytes(before[1])
    assert store.latest().folder == newer


def test_a_file_that_the_manifest_does_not_list_is_refused(store, saved):
    """DeepSpeed takes every file whose name fits."""
    added = saved / "policy" / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    added.write_bytes(b"code")
    refused(store, added)
    added.unlink()
    added.symlink_to(saved / "state.json")
    refused(store, added)


def test_a_link_in_the_place_of_a_file_or_folder_is_refused(store, saved, tmp_path):
    (saved / "more").symlink_to(tmp_path)
    refused(store, saved / "more")
    (saved / "more").unlink()
    for name in ("state.json", "manifest.json", "manifest.sha256", "policy"):
        os.rename(saved / name, tmp_path / "elsewhere")
        (saved / name).symlink_to(tmp_path / "elsewhere")
        refused(store, saved / {"policy": "policy/state.pt"}.get(name, name))
        (saved / name).unlink()
        os.rename(tmp_path / "elsewhere", saved / name)
    assert store.latest().folder == saved


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
    assert store.latest().folder == saved


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
    refused(store, saved / manifest.CHECK)


ELSEWHERE = ["../elsewhere", "step-00000003/../../elsewhere", "elsewhere", "step-00000009", "step-\ufffd", "", "."]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_pointer_to_anything_but_a_checkpoint_of_this_folder_is_never_followed(store, saved, name):
    """The folder `elsewhere` is a perfect checkpoint, beside the store and in it."""
    for elsewhere in (store.folder.parent / "elsewhere", store.folder / "elsewhere"):
        elsewhere.mkdir()
        write(elsewhere)
        manifest.seal(elsewhere, {"update": 3, **FACTS})
    pointer = store.folder / "latest"
    pointer.write_bytes(f"{name}\n".encode().replace(b"\xef\xbf\xbd", b"\xff"))
    with pytest.raises(DestructError, match="is no checkpoint here") as caught:
        store.named(pointer)
    assert repr(name) in caught.value.problem
    assert str(store.folder) in caught.value.remedy
    found = store.latest()
    assert found.folder == saved
    assert found.passed_over == (f"{pointer} names {name!r}, and step-00000003 is the newest here",)


@pytest.mark.parametrize("how", ["older", "gone", "folder"])
def test_a_pointer_that_is_behind_or_lost_is_said_and_the_newest_taken(store, saved, how):
    """Behind it is where the run was killed between the two renames."""
    newer = publish(store, 6, [write], FACTS)
    pointer = store.folder / "latest"
    pointer.unlink()
    if how == "older":
        pointer.write_text("step-00000003\n")
    elif how == "folder":
        pointer.mkdir()
    found = store.latest()
    names = {"older": "step-00000003"}.get(how, "")
    assert found.folder == newer
    assert found.passed_over == (f"{pointer} names {names!r}, and step-00000006 is the newest here",)
