"""Where an export goes: it is whole or not there, whatever ends it, and nothing else is touched."""

import errno
import os
import platform
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from destruct import export
from destruct.checkpoint import manifest
from destruct.errors import DestructError
from destruct.exporting.folder import export as write_folder
from destruct.exporting.place import check_place
from destruct.exporting.source import open_source
from destruct.progress import Tell, tell_nobody
from tests.exported import complaint, named

pytestmark = pytest.mark.slow


def written(run: Path, to: Path, tell: Tell = tell_nobody, shard: str = "5GB"):
    """The export itself, without its door."""
    check_place(to)
    return write_folder(open_source(run), to, None, shard, tell)


def strike(number: int):
    """A `tell` that sends this process a signal."""
    return lambda *_: os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    "inside", ["checkpoints/step-00000002/out", "checkpoints/step-00000002/a/b", "checkpoints/out"]
)
def test_no_folder_is_made_inside_a_checkpoint_or_beside_one(run, tmp_path, capsys, inside):
    (tmp_path / "link").symlink_to(run)
    for to in (run / inside, tmp_path / "link" / inside):
        assert export.main([str(run), "--to", str(to)]) == 2
        assert "the checkpoint" in capsys.readouterr().err
    manifest.verify(run / "checkpoints" / "step-00000002")
    assert not (run / inside).exists()


def test_a_folder_that_exists_is_filled_from_inside_and_is_a_model_only_when_all_is_there(run, tmp_path):
    """It may be a disk that is mounted there: it is never renamed, and nothing is put beside it."""
    (tmp_path / "disk" / "out").mkdir(parents=True)
    before, seen = (tmp_path / "disk" / "out").stat().st_ino, []

    def look(*_: int) -> None:
        seen.append(([p.name for p in (tmp_path / "disk").iterdir()], len(list((tmp_path / "disk" / "out").iterdir()))))

    written(run, tmp_path / "disk" / "out", look, "20KB")
    assert all(at_that_time == (["out"], 1) for at_that_time in seen)
    assert (tmp_path / "disk" / "out").stat().st_ino == before
    assert named(tmp_path / "disk" / "out") and not list((tmp_path / "disk" / "out").glob(".*"))


def test_links_and_the_folder_where_one_stands_are_filled(run, tmp_path, monkeypatch):
    for name in ("there", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    (tmp_path / "dangling").symlink_to(tmp_path / "new" / "one")
    monkeypatch.chdir(tmp_path / "here")
    for to, lies in (("../link", "there"), ("../dangling", "new/one"), (".", "here")):
        assert export.main([str(run), "--to", to]) == 0
        assert (tmp_path / lies / "config.json").is_file()
    assert (tmp_path / "link").is_symlink() and (tmp_path / "dangling").is_symlink()
    assert not [path for path in tmp_path.rglob(".*")]


def test_a_disk_that_fails_as_entries_get_their_places_leaves_an_empty_folder(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").mkdir()
    rename = os.rename

    def fails(old: Path, new: Path) -> None:
        if Path(new) == tmp_path / "out" / "config.json":
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        rename(old, new)

    monkeypatch.setattr(os, "rename", fails)
    assert export.main([str(run), "--to", str(tmp_path / "out")]) == 3
    assert "cannot be written: Input/output error" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_what_killed_exports_left_is_taken_away_and_what_others_are_at_stays(run, tmp_path):
    gone = subprocess.Popen(["true"])
    gone.wait()
    here = platform.node()
    names = [f".out.{here}.{gone.pid}", f".out.{here}.{os.getppid()}", f".out.elsewhere.{gone.pid}", f".out.{here}.old"]
    for name in names:
        (tmp_path / name).mkdir()
    (tmp_path / "out" / names[0]).mkdir(parents=True)
    written(run, tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*names[1:], "out", "run"])
    assert not list((tmp_path / "out").glob(".*"))


def test_folders_above_that_were_made_go_with_an_export_that_fails(run, tmp_path):
    with pytest.raises(DestructError, match="SIGTERM ended the export"), export.stoppable():
        written(run, tmp_path / "a" / "b" / "out", strike(signal.SIGTERM))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_full_disk_is_told_and_leaves_nothing(run, tmp_path):
    """The largest size of a file stands for it: safetensors has an error of its own for both."""
    door = f"{sys.executable} -m destruct.export {run} --to {tmp_path / 'a' / 'out'} --dtype float32"
    done = subprocess.run(["bash", "-c", f"ulimit -f 100; exec {door}"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (3, "")
    said = complaint(done.stderr)
    assert said.startswith(f"destruct: {tmp_path / 'a' / 'out'} cannot be written: ")
    assert "File too large" in said and said.count("\n") == 2
    assert not (tmp_path / "a").exists()


def test_a_disk_without_room_is_refused_with_figures_before_anything_is_written(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(2**40, 2**40 - 2**24, 2**24))
    assert export.main([str(run), "--to", str(tmp_path / "a" / "out")]) == 3
    assert "out would take 0.0 GiB, and 0.0 GiB are free there" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_rights_are_those_of_the_umask_also_where_the_run_may_only_be_read(run, tmp_path):
    for path in (run, *run.rglob("*")):
        path.chmod(0o500 if path.is_dir() else 0o400)
    before = os.umask(0o027)
    try:
        written(run, tmp_path / "out")
    finally:
        os.umask(before)
        for path in (run, *run.rglob("*")):
            path.chmod(0o700 if path.is_dir() else 0o600)
    modes = {
        (path.is_dir(), path.stat().st_mode & 0o777) for path in (tmp_path / "out", *(tmp_path / "out").rglob("*"))
    }
    assert modes == {(True, 0o750), (False, 0o640)}


def test_a_signal_is_heeded_unless_it_is_ignored_as_under_nohup(run, tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever these tests were started under
    try:
        with pytest.raises(DestructError, match="SIGHUP ended the export"), export.stoppable():
            written(run, tmp_path / "out", strike(signal.SIGHUP))
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with export.stoppable():
            written(run, tmp_path / "out", strike(signal.SIGHUP))
    finally:
        signal.signal(signal.SIGHUP, before)
    assert named(tmp_path / "out")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_the_last_moment_comes_too_late_to_end_it(run, tmp_path, monkeypatch, number):
    rename = os.rename

    def struck(old: Path, new: Path) -> None:
        os.kill(os.getpid(), number)
        rename(old, new)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(os, "rename", struck)
    assert export.main([str(run), "--to", str(tmp_path / "out")]) == 0
    assert named(tmp_path / "out")


INTERRUPTED = """
import os, signal, sys, threading, time
from destruct.doors import main
from destruct.exits import leave
def press():
    while signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        time.sleep(0.001)  # the command has not begun
    time.sleep(float(sys.argv[1]))
    os.kill(os.getpid(), signal.SIGINT)

signal.signal(signal.SIGINT, signal.default_int_handler)  # who started the tests may ignore it
threading.Thread(target=press, daemon=True).start()
code = main(sys.argv[2:])
signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command is over
leave(code)
"""


@pytest.mark.parametrize("after_s", [0.05, 0.4, 1.5, 2.5, 3.5])
def test_ctrl_c_is_one_line_at_most_and_130_whenever_it_comes(run, tmp_path, after_s):
    for door in (["export", str(run), "--to", str(tmp_path / "out")], ["generate", "--model", str(run), "1 + 1"]):
        command = [sys.executable, "-c", INTERRUPTED, str(after_s), *door]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        if done.returncode == 0:  # it was ready, or had begun to speak
            assert complaint(done.stderr) == "" and done.stdout
        else:
            assert (done.returncode, complaint(done.stderr)) == (130, "destruct: interrupted\n")
            assert not (tmp_path / "out").exists()
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        assert [path.name for path in tmp_path.iterdir()] == ["run"]
