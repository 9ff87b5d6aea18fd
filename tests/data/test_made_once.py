"""A folder that is made once: who gets to make it, and who may take it away (how builders die: test_token_cache.py)."""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import pytest

from destruct.data.made_once import MadeOnce
from destruct.errors import DestructError


def opened(folder: Path) -> str | None:
    return (folder / "word").read_text() if (folder / "word").exists() else None


def fill(stage: Path) -> None:
    stage.mkdir()
    (stage / "word").write_text("made")


def other(stage: Path) -> None:
    raise AssertionError("it was there")


@pytest.fixture
def folder(tmp_path) -> MadeOnce:
    return MadeOnce("mine", tmp_path / "cache" / "one", 5.0)


def test_it_is_made_once_and_again_after_it_was_removed(folder):
    assert folder.get(opened, fill) == folder.get(opened, other) == "made"
    assert folder.remove() and not folder.remove()
    assert [path.name for path in folder.final.parent.iterdir()] == ["one.lock"]
    assert folder.get(opened, fill) == "made"


def test_what_is_being_made_is_not_removed(folder):
    folder.get(opened, fill)
    with filelock.FileLock(folder.lock):
        assert not folder.remove()
    assert folder.get(opened, other) == "made"


@pytest.mark.parametrize("is_held", [True, False])
def test_a_head_start_ends_when_somebody_holds_the_lock_whatever_files_lie_there(folder, is_held):
    folder.get(opened, fill)
    folder.remove()
    assert folder.lock.exists()
    head_s = 20.0 if is_held else 0.6
    with ThreadPoolExecutor(1) as thread:
        lock = filelock.FileLock(folder.lock)
        if is_held:
            lock.acquire()
        began = time.monotonic()
        late = thread.submit(folder.get, opened, fill, head_s)
        if is_held:
            time.sleep(0.2)
            folder.final.mkdir()  # it is not there yet
            (folder.final / "word").write_text("made by another")
            lock.release()
        assert late.result(timeout=10) == ("made by another" if is_held else "made")
        assert (time.monotonic() - began < head_s) == is_held


def test_what_cannot_be_made_leaves_nothing(folder):
    def fails(stage: Path) -> None:
        fill(stage)
        raise OSError(28, "No space left on device")

    with pytest.raises(DestructError, match=r"'mine': the token cache in .*cache cannot be written .*No space left"):
        folder.get(opened, fails)
    assert [path.name for path in folder.final.parent.iterdir()] == ["one.lock"]
