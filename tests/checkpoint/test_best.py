"""The best checkpoint: pointed to, kept beside the newest ones, and never one of a life that was given up."""

import json
from pathlib import Path

import pytest

from destruct.checkpoint import contents
from destruct.checkpoint.state import TrainState
from destruct.checkpoint.store import CheckpointStore
from destruct.errors import DestructError
from destruct.exits import Exit
from tests.checkpoint.test_store import ALONE, FACTS, disk_full_after, names, networks, write


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", ALONE, keep=2)


def save(store: CheckpointStore, *updates: int, best: tuple[int, ...] = ()) -> None:
    for update in updates:
        assert store.save(update, [write], FACTS, best=update in best) is not None


def steps(store: CheckpointStore) -> list[int]:
    """Updates of the checkpoints that lie there."""
    return [int(name.removeprefix("step-")) for name in names(store.folder) if name.startswith("step-")]


def pointed(store: CheckpointStore, pointer: str) -> int:
    text = (store.folder / pointer).read_text()
    assert text == f"step-{int(text.removeprefix('step-')):08d}\n"
    return int(text.removeprefix("step-"))


def test_the_pointer_best_follows_the_best_ones_and_latest_all(store):
    save(store, 1)
    assert names(store.folder) == ["latest", "step-00000001"], "the first one need not be the best"
    where = []
    for update, best in ((2, True), (3, False), (4, True), (5, False)):
        store.save(update, [write], FACTS, best)
        where.append((pointed(store, "best"), pointed(store, "latest")))
    assert where == [(2, 2), (2, 3), (4, 4), (4, 5)]


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        (1, [[1], [1, 2], [1, 3], [4], [4, 5], [4, 6]]),
        (2, [[1], [1, 2], [1, 2, 3], [3, 4], [4, 5], [4, 5, 6]]),
        (3, [[1], [1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [4, 5, 6]]),
    ],
)
def test_the_best_stays_besides_the_newest_until_a_better_one_comes(tmp_path, keep, left):
    """Of six checkpoints the first and the fourth are the best of their time."""
    store = CheckpointStore(tmp_path, ALONE, keep)
    found = []
    for update in range(1, 7):
        save(store, update, best=(1, 4))
        found.append(steps(store))
    assert found == left


def full_disk(store: CheckpointStore) -> None:
    with disk_full_after(4096):
        big = [write, lambda stage: (stage / "weights").write_bytes(bytes(10_000)) and None]
        assert store.save(2, big, FACTS, best=True) is None


def obstacle_at_best(store: CheckpointStore) -> None:
    """The files of the checkpoint can be written, but not the pointer."""
    (store.folder / ".best").mkdir()
    assert store.save(2, [write], FACTS, best=True) is None
    (store.folder / ".best").rmdir()


@pytest.mark.parametrize("failing", [full_disk, obstacle_at_best])
def test_a_save_that_fails_moves_no_pointer_and_deletes_nothing(tmp_path, failing):
    store = CheckpointStore(tmp_path, ALONE, keep=1)
    save(store, 1, best=(1,))
    failing(store)
    assert names(store.folder) == ["best", "latest", "step-00000001"]
    assert (pointed(store, "best"), pointed(store, "latest")) == (1, 1)
    save(store, 3)
    assert steps(store) == [1, 3] and pointed(store, "best") == 1
    save(store, 4, best=(4,))
    assert steps(store) == [4] and pointed(store, "best") == 4


def test_set_back_both_pointers_name_what_was_there_at_that_time(store):
    store.keep = 9
    save(store, 2, 4, 6, 8, best=(2, 6))
    store.stand_at(store.path(4), store.path(2))
    assert (pointed(store, "latest"), pointed(store, "best")) == (4, 2)
    store.stand_at(store.path(4), None)
    assert names(store.folder) == ["latest", *(store.path(update).name for update in (2, 4, 6, 8))]


def test_checkpoints_that_were_given_up_stay_and_count_neither_before_nor_after_the_run_has_passed_them(store):
    """Kept are 6, 8, 9; the run goes back to 6 and saves 7, 10 and 11, of which two stay beside 8 and 9."""
    store.keep = 3
    save(store, 6, 8, 9, best=(9,))
    store = CheckpointStore(store.folder, ALONE, keep=2)
    store.stand_at(store.path(6), None)
    left = []
    for update in (7, 10, 11):
        save(store, update)
        left.append(steps(store))
    assert left == [[6, 7, 8, 9], [7, 8, 9, 10], [8, 9, 10, 11]]
    assert names(store.folder)[0] == "latest", "no best one came since"


def test_a_given_up_checkpoint_is_replaced_by_a_new_one_of_its_number_which_counts(store):
    save(store, 6, 8)
    store.stand_at(store.path(6), None)
    save(store, 8, 9, 10)
    assert steps(store) == [9, 10]


def test_a_manifest_that_names_other_folders_does_not_get_them_deleted(store):
    save(store, 1)
    for precious in (store.folder / "precious", store.folder.parent / "precious"):
        precious.mkdir()
    path = store.path(1) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"line": ["precious", "../precious", "step-00000001"]}))
    save(store, 2, 3, 4)
    assert steps(store) == [3, 4]
    assert (store.folder / "precious").is_dir() and (store.folder.parent / "precious").is_dir()


def test_pointers_that_cannot_be_written_are_a_fault_of_the_environment(store):
    save(store, 1, 2)
    (store.folder / ".latest").mkdir()
    with pytest.raises(DestructError, match="the pointers of .*checkpoints cannot be written") as caught:
        store.stand_at(store.path(1), None)
    assert caught.value.exit_code is Exit.ENVIRONMENT


def published(store: CheckpointStore, update: int, loss: float) -> TrainState:
    """The state after a save that was the best of its time."""
    state = TrainState(kl_coef=0.1, update=update, best_loss=loss, best_update=update)
    assert contents.save(store, networks(1), state, "tokenizer", FACTS, best=True) is not None
    return state


def test_the_best_checkpoint_of_a_state_is_the_one_that_was_saved_with_its_loss(store):
    first = published(store, 3, 1 / 3)
    assert contents.best_checkpoint(store, first) == store.path(3)
    second = published(store, 3, 0.5)
    assert contents.best_checkpoint(store, second) == store.path(3)
    assert contents.best_checkpoint(store, first) is None, "another life's has taken its place"
    assert contents.best_checkpoint(store, TrainState(kl_coef=0.1)) is None
    elsewhere = CheckpointStore(Path(store.folder.parent / "elsewhere"), ALONE, keep=1)
    assert contents.best_checkpoint(elsewhere, second) is None
