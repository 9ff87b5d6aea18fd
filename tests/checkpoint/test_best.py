"""The best checkpoint: pointed to, kept beside the newest ones, and never one of a life that was given up."""

import shutil
from pathlib import Path

import pytest

from destruct.checkpoint import contents, shelf
from destruct.checkpoint.state import TrainState
from destruct.checkpoint.store import CheckpointStore
from destruct.errors import DestructError
from destruct.exits import Exit
from tests.checkpoint.test_store import ALONE, FACTS, disk_full_after, names, networks, publish, write


@pytest.fixture
def store(tmp_path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", ALONE, keep=2)


def save(store: CheckpointStore, *updates: int, best: tuple[int, ...] = ()) -> None:
    for update in updates:
        assert publish(store, update, [write], FACTS, best=update in best) is not None


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
        publish(store, update, [write], FACTS, best)
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
        assert publish(store, 2, big, FACTS, best=True) is None


def obstacle_at_best(store: CheckpointStore) -> None:
    """The files of the checkpoint can be written, but not the pointer."""
    (store.folder / ".best").mkdir()
    assert publish(store, 2, [write], FACTS, best=True) is None
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


def given_up(store: CheckpointStore) -> list[str]:
    return names(store.folder / "given-up")


def test_set_back_both_pointers_name_what_was_there_at_that_time_and_the_later_ones_are_given_up(store):
    store.keep = 9
    save(store, 2, 4, 6, 8, best=(2, 6))
    shelf.stand_at(store.path(4), store.path(2))
    assert (pointed(store, "latest"), pointed(store, "best")) == (4, 2)
    assert given_up(store) == ["step-00000006", "step-00000008"]
    shelf.stand_at(store.path(4), None)
    assert names(store.folder) == ["given-up", "latest", "step-00000002", "step-00000004"]
    assert store.latest().folder == store.path(4)


def test_what_was_given_up_stays_and_counts_neither_as_newest_nor_as_best(store):
    """Kept are 6, 8, 9; the run goes back to 6 and saves 7, 8 and 11, and then back to 7 and saves 8 again."""
    store.keep = 3
    save(store, 6, 8, 9, best=(9,))
    before = (store.path(8) / "manifest.json").read_bytes()
    store.stand_at(store.path(6), TrainState(kl_coef=0.1))
    assert names(store.folder) == ["given-up", "latest", "step-00000006"], "9 was the best of the life that is over"
    save(store, 7, 8, 11)
    assert steps(store) == [7, 8, 11]
    store.stand_at(store.path(7), TrainState(kl_coef=0.1))
    save(store, 8)
    assert given_up(store) == ["step-00000008", "step-00000008.2", "step-00000009", "step-00000011"]
    assert (store.folder / "given-up" / "step-00000008" / "manifest.json").read_bytes() == before


def test_a_checkpoint_that_lies_where_a_new_one_is_published_is_given_up_and_not_deleted(store):
    save(store, 4)
    (store.path(4) / "state.json").write_text("mine")
    save(store, 4)
    assert (store.folder / "given-up" / "step-00000004" / "state.json").read_text() == "mine"
    assert store.latest().folder == store.path(4)


def test_a_checkpoint_that_cannot_be_deleted_whole_is_none_any_more(store, monkeypatch):
    save(store, 1, 2)
    monkeypatch.setattr(shutil, "rmtree", lambda path, **_: (path / "state.json").unlink() if path.exists() else None)
    save(store, 3)
    monkeypatch.undo()
    assert steps(store) == [2, 3] and (store.folder / ".gone-step-00000001" / "policy").exists()
    save(store, 4)
    assert names(store.folder) == ["latest", "step-00000003", "step-00000004"]


def test_pointers_that_cannot_be_written_are_a_fault_of_the_environment(store):
    save(store, 1, 2)
    (store.folder / ".latest").mkdir()
    with pytest.raises(DestructError, match="the pointers of .*checkpoints cannot be written") as caught:
        store.stand_at(store.path(1), TrainState(kl_coef=0.1))
    assert caught.value.exit_code is Exit.ENVIRONMENT


def published(store: CheckpointStore, update: int, loss: float) -> TrainState:
    """The state after a save that was the best of its time."""
    state = TrainState(kl_coef=0.1, update=update, best_loss=loss, best_update=update)
    contents.save(store, networks(1), state, "tokenizer", FACTS, best=True)
    assert store.settle() is not None
    return state


def test_the_best_checkpoint_of_a_state_is_the_one_that_was_saved_with_its_loss(store):
    first = published(store, 3, 1 / 3)
    assert shelf.best_of(store.folder, first) == store.path(3)
    second = published(store, 3, 0.5)
    assert shelf.best_of(store.folder, second) == store.path(3)
    assert shelf.best_of(store.folder, first) is None, "another life's has taken its place"
    assert shelf.best_of(store.folder, TrainState(kl_coef=0.1)) is None
    elsewhere = CheckpointStore(Path(store.folder.parent / "elsewhere"), ALONE, keep=1)
    assert shelf.best_of(elsewhere.folder, second) is None
