"""The screen: lines where output is piped, bars on a terminal, and silence on all ranks but the first."""

import os
import re
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from destruct.tracking.console import Screen
from destruct.tracking.summary import Summary

SUMMARY = Summary(
    validation_loss_before={"prose": 5.61234, "noise": 7.5, "mean": 5.61234},
    validation_loss_after_warmup={"prose": 4.25, "noise": 7.625, "mean": 4.25},
    validation_loss_after={"prose": 3.98766, "noise": 7.75, "mean": 3.98766},
    best_update=24,
    best_validation_loss=3.95004,
    reward_before=0.51234,
    reward_after=0.6,
    kl_max=0.0421,
    kl_bound=0.1,
    kl_from_initial=0.0123,
    kl_breaches=0,
    updates=36,
    rounds=9,
    significant_rounds={"prose": 4, "noise": 0},
    weights={"prose": 0.75, "noise": 0.25},
    tokens=1234567,
    skipped_steps=0,
    seconds=61.4,
    seconds_to_first_step=9.5,
    world_size=2,
    peak_rss_mib=812.3,
    seed=17,
    files={"summary": "/data/runs/local/summary.json"},
)


@pytest.fixture(autouse=True)
def piped(monkeypatch):
    """rich obeys these variables; the environment of whoever runs the tests must not decide."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "JUPYTER_COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def advance(screen: Screen, name: str, steps: int, done: int = 0) -> None:
    with screen.phase(name, steps, done) as phase:
        for step in range(done, steps):
            phase.advance(f"loss {step}")


def test_piped_output_is_plain_lines_the_first_and_the_last_of_a_fast_phase(capsys, monkeypatch):
    monkeypatch.setattr("destruct.tracking.console.time.monotonic", lambda: 0.0)
    screen = Screen(first_rank=True)
    screen.say("reading [data/x] in [bold]")
    advance(screen, "warm-up", 5)
    advance(screen, "ppo", 9, done=7)
    assert capsys.readouterr().out.splitlines() == [
        "reading [data/x] in [bold]",
        "warm-up    1/5  loss 0",
        "warm-up    5/5  loss 4",
        "ppo        8/9  loss 7",
        "ppo        9/9  loss 8",
    ]


def test_piped_a_slow_phase_speaks_every_two_seconds(capsys, monkeypatch):
    """Steps of 0.9 s: the third after a line is 2.7 s later and the first to be due."""
    clock = iter(x * 0.9 for x in range(100))
    monkeypatch.setattr("destruct.tracking.console.time.monotonic", lambda: next(clock))
    advance(Screen(first_rank=True), "ppo", 8)
    spoken = [int(line.split()[1].split("/")[0]) for line in capsys.readouterr().out.splitlines()]
    assert spoken == [1, 4, 7, 8]


@pytest.mark.parametrize("forced", [False, True])
def test_other_ranks_say_nothing_piped_or_on_a_terminal(capsys, monkeypatch, forced):
    if forced:
        monkeypatch.setenv("FORCE_COLOR", "1")
    screen = Screen(first_rank=False)
    screen.say("starting")
    advance(screen, "ppo", 3)
    screen.table(SUMMARY)
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_each_phase_has_a_bar_of_its_own_and_no_lines(capsys, monkeypatch):
    """A finished bar is not drawn again under the next one."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    screen = Screen(first_rank=True)
    advance(screen, "warm-up", 5)
    first = capsys.readouterr().out
    advance(screen, "ppo", 3)
    second = capsys.readouterr().out
    assert "warm-up" in first and "5/5" in first and "\x1b[" in first
    assert "ppo" in second and "3/3" in second and "loss 2" in second
    assert "warm-up" not in second
    assert "ppo        3/3" not in second, "the line that a pipe would get"


def test_piped_a_count_speaks_every_ten_seconds_of_work_and_not_at_all_where_that_was_short(capsys, monkeypatch):
    """4 s between two calls; it begins at 0, so that 12 and 24 s are the first to be due."""
    clock = iter(x * 4.0 for x in range(100))
    monkeypatch.setattr("destruct.tracking.console.time.monotonic", lambda: next(clock))
    screen = Screen(first_rank=True)
    with screen.count("tokenize", "books") as tell:
        for call in range(1, 8):
            tell(call, 1000 * call)
    assert capsys.readouterr().out.splitlines() == [
        "tokenize books 3 documents, 3,000 tokens, 250 tokens/s",
        "tokenize books 6 documents, 6,000 tokens, 250 tokens/s",
    ]


def test_on_a_terminal_a_count_has_a_bar_that_goes_when_it_is_done(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Screen(first_rank=True).count("tokenize", "books") as tell:
        tell(12, 3456)
        time.sleep(1.0)
    shown = capsys.readouterr().out
    assert "tokenize books" in shown and "12 documents, 3,456 tokens" in shown and shown.endswith("\x1b[2K\r")


def cells(text: str) -> list[list[str]]:
    """Rows of the printed tables, their cells stripped."""
    rows = [re.split("[│┃]", line)[1:-1] for line in text.splitlines() if line[:1] in "│┃"]
    return [[cell.strip() for cell in row] for row in rows]


def test_the_summary_tables_hold_the_figures(capsys):
    Screen(first_rank=True).table(SUMMARY)
    rows = cells(capsys.readouterr().out)
    assert rows[0] == ["source", "before", "after warm-up", "after PPO"]
    assert rows[1:4] == [
        ["prose", "5.6123", "4.2500", "3.9877"],
        ["noise", "7.5000", "7.6250", "7.7500"],
        ["mean", "5.6123", "4.2500", "3.9877"],
    ]
    facts = dict(rows[4:])
    assert facts["reward"] == "0.5123 -> 0.6000"
    assert facts["largest KL to the reference"] == "0.0421, inside its bound 0.1"
    assert facts["updates, rounds"] == "36, 9"
    assert facts["tokens"] == "1,234,567"
    assert facts["seconds, peak memory"] == "61 s, 812 MiB per rank"
    assert facts["best"] == "3.9500, after update 24"
    assert facts["summary"] == "/data/runs/local/summary.json"


def test_a_run_without_a_best_checkpoint_claims_none(capsys):
    Screen(first_rank=True).table(replace(SUMMARY, best_update=None, best_validation_loss=float("inf")))
    assert "best" not in [row[0] for row in cells(capsys.readouterr().out)]


@pytest.mark.parametrize(
    ("kl", "said"), [(0.11, "0.1100, OUTSIDE"), (float("inf"), "inf, OUTSIDE"), (0.1, "0.1000, inside")]
)
def test_a_breached_bound_is_shouted(capsys, kl, said):
    Screen(first_rank=True).table(replace(SUMMARY, kl_max=kl))
    assert ["largest KL to the reference", f"{said} its bound 0.1"] in cells(capsys.readouterr().out)


def test_steps_that_were_skipped_are_shouted_and_none_is_not_mentioned(capsys):
    Screen(first_rank=True).table(SUMMARY)
    assert "SKIPPED" not in capsys.readouterr().out
    Screen(first_rank=True).table(replace(SUMMARY, skipped_steps=3))
    assert ["SKIPPED STEPS", "3: a loss or a gradient was not finite"] in cells(capsys.readouterr().out)


def test_a_long_line_is_not_broken_where_it_is_piped(capsys):
    Screen(first_rank=True).say("/scratch/" + 40 * "long-folder/")
    assert capsys.readouterr().out.count("\n") == 1


def test_a_long_path_is_shown_in_full(capsys):
    path = "/scratch/" + "a-long-folder-name/" * 12 + "[run]/summary.json"
    Screen(first_rank=True).table(replace(SUMMARY, files={"summary": path}))
    rows = cells(capsys.readouterr().out)
    start = next(i for i, row in enumerate(rows) if row[0] == "summary")
    assert "".join(row[1] for row in rows[start:]) == path


def test_the_table_shows_the_sources_of_now_with_a_dash_for_what_was_not_measured(capsys):
    """noise went, code came: nothing is known of code before, and the older means are over others than now."""
    Screen(first_rank=True).table(replace(SUMMARY, validation_loss_after={"prose": 3.5, "code": 4.5, "mean": 4.0}))
    assert cells(capsys.readouterr().out)[1:4] == [
        ["prose", "5.6123", "4.2500", "3.5000"],
        ["code", "-", "-", "4.5000"],
        ["mean", "-", "-", "4.0000"],
    ]


TALK = """
import os, sys
from destruct.tracking.console import Screen
from tests.tracking.test_console import SUMMARY
screen = Screen(first_rank=True)
sys.stdin.read()  # until the reader of our output has gone
for number in range(3):
    screen.say(f"line {number} " + "x" * 100_000)
with screen.phase("update", 2) as phase:
    phase.advance("on")
    phase.advance("on")
screen.table(SUMMARY)
os.write(2, b"done")
"""


def test_where_nobody_reads_any_more_the_run_goes_on_in_silence():
    process = subprocess.Popen(
        [sys.executable, "-c", TALK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    process.stdin.close()
    assert (process.stderr.read(), process.wait(60)) == (b"done", 0)
    process.stderr.close()


def test_a_terminal_that_has_gone_ends_no_run():
    ours, theirs = os.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", TALK], stdin=subprocess.PIPE, stdout=theirs, stderr=subprocess.PIPE
    )
    os.close(theirs)
    os.close(ours)
    process.stdin.close()
    assert (process.stderr.read(), process.wait(60)) == (b"done", 0)
    process.stderr.close()
