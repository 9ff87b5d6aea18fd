"""Long work: its words worked by hand, its lines where it is piped, its bar in a terminal."""

import re
import subprocess
import sys
import threading

import pytest

from destruct.progress import Work, clock, progress, tracked
from tests.terminal import in_terminal
from tests.tiny import ROOT


@pytest.fixture
def no_terminal(monkeypatch):
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0:00"), (59.6, "1:00"), (754, "12:34"), (3723, "1:02:03"), (90061, "1 day, 1:01:01"), (-3, "0:00")],
)
def test_a_duration_in_words(seconds, words):
    assert clock(seconds) == words


def test_what_is_left_is_the_rest_at_the_pace_of_the_steps_made_here_less_the_time_since_the_last():
    """Of 10 steps 4 came before a resume; 3 more took 30 s, and 4 s have gone since: 3 x 10 - 4."""
    work = Work("ppo", 10, done=4)
    assert work.time(work.began + 20) == ""
    work.advance(3, work.began + 30)
    assert work.time(work.began + 34) == "0:26 left"
    assert work.line(work.began + 34) == "ppo        7/10  0:26 left"
    work.advance(3, work.began + 70)
    assert work.time(work.began + 70) == "in 1:10"


def test_a_step_that_takes_longer_than_the_others_leaves_no_time_below_zero():
    work = Work("ppo", 3)
    work.advance(2, work.began + 4)
    assert work.time(work.began + 60) == ""


def test_bytes_are_counted_in_the_units_of_disks():
    work = Work("exporting", 3_400_000_000, "B")
    work.advance(1_200_000_000, work.began + 12)
    assert work.line(work.began + 12) == "exporting  1.2 GB of 3.4 GB  0:22 left"
    assert Work("reading", unit="B").count() == "0 bytes"


def test_threads_lose_no_step():
    work = Work("count", 40_000)
    threads = [threading.Thread(target=lambda: [work.advance(1, 0.0) for _ in range(10_000)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert work.done == 40_000


def test_piped_it_speaks_every_ten_seconds_on_stderr_and_not_of_short_work(capsys, monkeypatch, no_terminal):
    """It begins at 0, and each step takes 4 s: the third and the sixth are the first to be due."""
    clock = iter(x * 4.0 for x in range(100))
    monkeypatch.setattr("destruct.progress.time.monotonic", lambda: next(clock))
    with progress("export", 8, "files") as advance:
        for _ in range(8):
            advance()
    out, err = capsys.readouterr()
    assert not out
    assert err.splitlines() == ["export     3/8 files  0:20 left", "export     6/8 files  0:08 left"]


def test_a_total_that_is_told_later_begins_the_work_anew(capsys, monkeypatch, no_terminal):
    """It begins at 0, and each call comes 4 s after the one before: 2 of 3 took 8 s, and 1 of 2 took 4 s."""
    clock = iter(x * 4.0 for x in range(100))
    monkeypatch.setattr("destruct.progress.time.monotonic", lambda: next(clock))
    monkeypatch.setattr("destruct.progress.EVERY_S", 0.0)
    with progress("read", unit="files") as tell:
        for files in (3, 2):
            tell(0, files)
            for _ in range(files):
                tell(more=f", of {files}")
    assert capsys.readouterr().err.splitlines() == [
        "read       0/3 files",
        "read       1/3 files, of 3  0:08 left",
        "read       2/3 files, of 3  0:04 left",
        "read       3/3 files, of 3  in 0:12",
        "read       0/2 files",
        "read       1/2 files, of 2  0:04 left",
        "read       2/2 files, of 2  in 0:08",
    ]


def test_tracked_gives_every_item_and_passes_on_what_goes_wrong(capsys, no_terminal):
    assert list(tracked({"a": 1, "b": 2}.items(), "items")) == [("a", 1), ("b", 2)]
    with pytest.raises(KeyError):
        for item in tracked([1, 2], "items"):
            raise KeyError(item)
    assert capsys.readouterr() == ("", "")


PROGRAM = """
import sys, time
from destruct.progress import {how}
def work():
    time.sleep(0.7)
    print("a line of the work")
    print("one of its errors", file=sys.stderr)
{loop}
print("the end")
"""
LOOPS = {
    "progress": "with progress('export', 3, 'files') as advance:\n    for _ in range(3):\n        work(); advance()",
    "tracked": "for _ in tracked(range(3), 'export', 'files'):\n    work()",
}


@pytest.mark.parametrize("how", LOOPS)
def test_in_a_terminal_it_is_a_bar_below_what_is_printed_and_goes_at_the_end(how):
    program = PROGRAM.format(how=how, loop=LOOPS[how])
    seen = in_terminal([sys.executable, "-c", program], 60, cwd=ROOT)
    assert seen.code == 0, seen.plain
    assert "export" in seen.plain and "1/3 files" in seen.plain and "━━━" in seen.plain
    assert seen.screen.text().splitlines() == [*["a line of the work", "one of its errors"] * 3, "the end"]
    assert seen.screen.widest <= 60


ASIDE = """
import sys
import destruct.progress
from destruct.export import quiet
from destruct.tracking.console import Screen
destruct.progress.EVERY_S = 0.0
for first in (True, False):
    screen = Screen(first, file=sys.stderr)
    with quiet(), destruct.progress.progress("loss" if first else "silent", 3, console=screen.console) as tell:
        for word in ("a", "b", "c"):
            print("from a library", file=sys.stderr)
            tell(more=f"  {word}")
print("the result")
"""


def test_of_a_console_it_is_shown_there_by_the_first_rank_alone_and_the_result_is_left_alone():
    done = subprocess.run([sys.executable, "-c", ASIDE], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "the result\n"
    steps = re.sub(r"  (in )?\d:\d\d( left)?$", "", done.stderr, flags=re.M)  # said where a second has passed
    assert steps.splitlines() == [f"loss       {step}/3  {word}" for step, word in enumerate("abc", 1)]


def test_a_terminal_has_its_bar_though_the_result_is_piped_and_libraries_are_silenced(tmp_path):
    (tmp_path / "program.py").write_text(ASIDE)
    line = f"PYTHONPATH={ROOT} {sys.executable} {tmp_path / 'program.py'} > {tmp_path / 'out'}"
    seen = in_terminal(["bash", "-c", line], 60)
    assert (seen.code, (tmp_path / "out").read_text()) == (0, "the result\n")
    assert "loss" in seen.plain and "3/3  c" in seen.plain
    assert "silent" not in seen.plain and "library" not in seen.plain and not seen.screen.text()


def test_where_nobody_reads_what_it_says_the_work_goes_on():
    nobody = "import os; r, w = os.pipe(); os.close(r); os.dup2(w, 2)"
    done = subprocess.run([sys.executable, "-c", f"{nobody}\n{ASIDE}"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "the result\n")
    plain = f"{nobody}\nimport destruct.progress as p\np.EVERY_S = 0.0\nfor _ in p.tracked('ab', 'x'): print('y')"
    done = subprocess.run([sys.executable, "-c", plain], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "y\ny\n")


def test_what_goes_to_a_file_goes_there_though_there_is_a_bar(tmp_path):
    program = PROGRAM.format(how="progress", loop=LOOPS["progress"])
    line = f"{sys.executable} -c '{program.replace(chr(39), chr(34))}' > {tmp_path / 'out'}"
    seen = in_terminal(["bash", "-c", line], 60, cwd=ROOT)
    assert seen.code == 0, seen.plain
    assert (tmp_path / "out").read_text() == "a line of the work\n" * 3 + "the end\n"
    assert "1/3 files" in seen.plain and "a line of the work" not in seen.plain
