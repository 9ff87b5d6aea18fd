"""Which checkpoint a person means by a path, and what is said where there is none."""

import shutil
from pathlib import Path

import pytest

from destruct.checkpoint import finding
from destruct.checkpoint.store import CheckpointStore
from destruct.errors import DestructError
from tests.checkpoint.test_store import ALONE, FACTS, publish, write


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a run with checkpoints after 3, 6 and 9 updates, of which the sixth is the best."""
    save(tmp_path / "run", 3, 6, 9, best=6)
    return tmp_path / "run"


def save(run: Path, *updates: int, best: int = 0) -> CheckpointStore:
    store = CheckpointStore(run / "checkpoints", ALONE, keep=9)
    for update in updates:
        publish(store, update, [write], FACTS, best=update == best)
    return store


def own(folder: Path) -> CheckpointStore:
    """The store of another run that is about to start."""
    return CheckpointStore(folder / "checkpoints", ALONE, keep=2)


@pytest.mark.parametrize(
    ("path", "step"),
    [
        ("checkpoints/step-00000003", 3),
        ("checkpoints/step-00000003/", 3),
        ("checkpoints/latest", 9),
        ("checkpoints/best", 6),
        (".", 9),
        ("checkpoints/../../run", 9),
    ],
)
def test_a_path_of_each_kind_finds_its_checkpoint_verified_with_its_manifest(run, tmp_path, monkeypatch, path, step):
    folder = run / "checkpoints" / f"step-{step:08d}"
    for given in (run / path, f"{run}/{path}"):
        found = own(tmp_path / "other").named(Path(given))
        assert (found.folder, found.facts["update"]) == (folder, step)
    monkeypatch.chdir(run)
    assert own(tmp_path / "other").named(Path(path)).folder == folder, "a relative one, too"


def test_a_copy_of_a_checkpoint_is_one_under_any_name(run, tmp_path):
    copy = shutil.copytree(run / "checkpoints" / "step-00000006", tmp_path / "my favourite")
    assert own(tmp_path / "other").named(copy).folder == copy


def test_a_checkpoint_of_the_runs_own_folder_is_known_however_it_is_named(run, tmp_path, monkeypatch):
    """Or the folder would be put aside with the checkpoint in it."""
    (tmp_path / "alias").symlink_to(run)
    (tmp_path / "favourite").symlink_to(run / "checkpoints" / "step-00000003")
    monkeypatch.chdir(tmp_path)
    store = own(Path("run"))
    for path in (run, "alias/checkpoints/step-00000003", "./run/checkpoints/best", "favourite"):
        found = store.named(Path(path)).folder
        assert store.holds(found) and found.parent == Path("run/checkpoints")
    shutil.copytree(run / "checkpoints" / "step-00000003", run / "checkpoints" / "step-00000003-mine")
    assert store.holds(store.named(Path("run/checkpoints/step-00000003-mine")).folder)
    assert not own(tmp_path / "run.1").holds(store.named(run).folder)


def test_from_a_copy_that_tells_its_step_later_ones_are_given_up_too(run):
    shutil.copytree(run / "checkpoints" / "step-00000003", run / "checkpoints" / "step-00000003-mine")
    store = own(run)
    store.stand_at(store.named(run / "checkpoints" / "step-00000003-mine").folder)
    assert sorted(path.name for path in (run / "checkpoints" / "given-up").iterdir()) == [
        "step-00000006",
        "step-00000009",
    ]
    publish(store, 4, [write], FACTS)
    assert store.latest().folder.name == "step-00000004"


@pytest.mark.parametrize("place", ["copies/step-00000003", "checkpoints/mine", "checkpoints/step-good"])
def test_a_copy_elsewhere_in_the_runs_own_folder_is_refused(run, place):
    shutil.copytree(run / "checkpoints" / "step-00000003", run / place)
    with pytest.raises(DestructError, match="lies in this run's own folder, but not as checkpoints/step-X") as caught:
        own(run).named(run / place)
    assert caught.value.remedy == f"move it there, or out of {run}"


def refused(store: CheckpointStore, path: Path) -> str:
    """The problem."""
    with pytest.raises(DestructError) as caught:
        store.named(path)
    assert caught.value.exit_code == 2
    return caught.value.problem


def test_what_holds_no_checkpoint_is_named_with_what_was_looked_for(run, tmp_path, monkeypatch):
    store = own(tmp_path / "other")
    (tmp_path / "fresh" / "checkpoints").mkdir(parents=True)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("step-00000003")
    problems = {
        "absent": "does not exist",
        "run/checkpoints/step-00000004": "does not exist",
        "fresh/checkpoints/best": "does not exist",
        "fresh": f"holds no checkpoint: {tmp_path}/fresh/checkpoints is empty",
        "empty": "holds no checkpoint: neither checkpoints/ nor manifest.json is in it",
        "notes.txt": "is neither a checkpoint nor a pointer (latest, best)",
    }
    for path, problem in problems.items():
        assert refused(store, tmp_path / path) == f"run.resume: {tmp_path / path} {problem}"
    monkeypatch.chdir(tmp_path)
    assert refused(store, Path("absent")) == f"run.resume: {tmp_path}/absent does not exist", "relative to what"


def test_of_a_runs_folder_the_newest_whole_checkpoint_is_taken_pointer_or_not(run):
    """By `auto` in the run's own folder, and by the folder of another run."""
    (run / "checkpoints" / "latest").unlink()
    (run / "checkpoints" / "step-00000009" / "state.json").write_bytes(b"")
    asked = [own(run).latest, lambda: own(run).named(run), lambda: own(run.parent / "other").named(run)]
    for ask in asked:
        found = ask()
        assert found.folder == run / "checkpoints" / "step-00000006"
        assert [line.split()[0] for line in found.passed_over] == [
            str(run / "checkpoints" / "latest"),
            str(run / "checkpoints" / "step-00000009" / "state.json"),
        ]


def test_a_pointer_to_what_is_no_longer_there_is_refused(run, tmp_path):
    shutil.rmtree(run / "checkpoints" / "step-00000006")
    assert "best names 'step-00000006', which is no checkpoint" in refused(own(run), run / "checkpoints" / "best")


@pytest.mark.parametrize("path", ["checkpoints/step-00000006", "checkpoints/best"])
def test_a_damaged_checkpoint_is_refused_by_the_files_name_and_the_one_before_it_is_offered(run, tmp_path, path):
    damaged = run / "checkpoints" / "step-00000006" / "policy" / "state.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(DestructError, match="is not the file that was saved") as caught:
        own(tmp_path / "other").named(run / path)
    assert str(damaged) in caught.value.problem
    assert caught.value.remedy.startswith(f"set run.resume to {run / 'checkpoints' / 'step-00000003'}, or ")


def test_a_checkpoint_without_its_manifest_is_damaged_and_not_unknown(run, tmp_path):
    (run / "checkpoints" / "step-00000006" / "manifest.json").unlink()
    assert "manifest.json is not the file that was saved" in refused(own(run), run / "checkpoints" / "step-00000006")


def test_a_name_too_long_for_the_disk_is_refused(tmp_path):
    assert "cannot be read: File name too long" in refused(own(tmp_path / "other"), tmp_path / ("x" * 5000))


def test_only_numbered_folders_count_as_checkpoints(run):
    (run / "checkpoints" / "step-00000010-mine").mkdir()
    assert [path.name for path in finding.checkpoints(run / "checkpoints")] == [
        "step-00000009",
        "step-00000006",
        "step-00000003",
    ]
