"""Asked to stop, a run saves at the next boundary between two steps; what goes on from there is the run itself."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from destruct.loop import train
from destruct.run import Run
from destruct.signals import APART_S, ASKING, Signals, Stopped
from tests.test_resume_from import figures, state, weights
from tests.tiny import tiny_run, write_config


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.fixture
def signals() -> Iterator[Signals]:
    noted = Signals()
    before = [signal.getsignal(number) for number in ASKING]
    with noted.heeded():
        yield noted
    assert [signal.getsignal(number) for number in ASKING] == before, "the handlers of before are back"


@pytest.mark.parametrize("number", ASKING)
def test_before_there_is_something_to_save_a_signal_stops_at_once(signals, number):
    with pytest.raises(Stopped, match=f"stopped by {number.name}"):
        send(number)


class Finalized:
    """Sends a signal as soon as nobody has it any more."""

    def __del__(self):
        send(signal.SIGUSR1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_that_a_finalizer_swallows_stops_before_there_is_something_to_save(signals):
    Finalized()
    with pytest.raises(Stopped, match="stopped by SIGUSR1: the run had not begun"):
        signals.defer()


@pytest.mark.parametrize("number", ASKING)
def test_later_it_is_noted_and_nothing_is_interrupted(signals, number):
    signals.defer()
    send(number)
    send(signal.SIGTERM)
    assert signals.received == number, "the first one is named"


def test_a_second_interrupt_of_a_person_ends_at_once_and_an_echo_of_the_first_does_not(signals):
    signals.defer()
    send(signal.SIGINT)
    send(signal.SIGINT)
    time.sleep(APART_S + 0.1)
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGINT)


def one_step(run: Run) -> None:
    """A signal arrives in the step after the first boundary."""
    calls, pause = iter(range(100)), run.pause

    def counted() -> None:
        if next(calls) == 1:
            send(signal.SIGUSR1)
        pause()

    run.pause = counted


@pytest.mark.slow
def test_stopped_after_every_step_a_run_ends_as_if_it_never_was(tmp_path, signals):
    """Four steps of the policy's warm-up, two of the value network's, six updates: a life for each."""
    how = ["warmup.value_updates=2", "run.evaluate_every=2", "frozen.refresh_every=2"]
    (tmp_path / "whole").mkdir()
    with tiny_run(tmp_path / "whole", *how) as whole:
        train(whole)
    signals.defer()
    stops = []
    for _ in range(12):
        with tiny_run(tmp_path, *how, "run.resume=auto") as run:
            signals.received, run.signals = 0, signals
            one_step(run)
            try:
                train(run)
            except Stopped as stop:
                stops.append(str(stop))
    names = [f"warmup-{step:08d}" for step in range(1, 6)] + [f"step-{update:08d}" for update in range(6)]
    assert [Path(stop.split()[3]).name for stop in stops] == names
    assert figures(run) == figures(whole)
    assert state(run) == state(whole)
    assert all(torch.equal(a, b) for a, b in zip(weights(run), weights(whole), strict=True))


@contextmanager
def started(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A run of one process that goes on for long, and tells its launcher in `reports`; it is killed in the end."""
    config = write_config(folder)
    (folder / "reports").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "destruct.train", "--config", str(config), "engine.backend=single"]
    process = subprocess.Popen(
        [*command, "run.num_epochs=1000", "run.resume=auto"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DESTRUCT_REPORTS": str(folder / "reports")},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # as on a terminal
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_process_that_is_asked_to_stop_saves_says_where_and_ends_with_75(tmp_path):
    """In the warm-up or later; one of a resume that is asked before it begins has nothing to save."""
    with started(tmp_path) as process:
        for line in process.stdout:
            if line.startswith("ppo "):
                break
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=120)
    saved = max(path.name for path in (tmp_path / "tiny" / "checkpoints").glob("step-*"))
    assert process.returncode == 75
    assert err.startswith("destruct: stopped by SIGTERM: ") and err.count("\n") == 1 and saved in err
    assert "validation loss" not in out
    told = tmp_path / "reports" / "failed-0"
    told.unlink()
    with started(tmp_path) as again:
        assert again.stdout.readline().startswith("reading")
        again.send_signal(signal.SIGUSR1)
        _, err = again.communicate(timeout=120)
    assert (again.returncode, err) == (75, "destruct: stopped by SIGUSR1: the run had not begun\n")
    assert told.exists(), "before the other ranks fail for want of it"


WAITING = """
import datetime, sys, time
import torch.distributed as dist
from destruct.signals import Signals
store = dist.TCPStore("127.0.0.1", 0, is_master=True)
signals = Signals()
with signals.heeded():
    if sys.argv[1] == "deferred":
        signals.defer()
    print("waiting", flush=True)
    try:
        # Longer than any thread may take to wake where it is to end this, and long enough to see that it does not.
        store.wait(["of another rank"], datetime.timedelta(seconds=12 if sys.argv[1] == "deferred" else 50))
    except dist.DistStoreError:
        time.sleep(0.1)  # Python is back, and hears it
        print(f"waited, {signals.received}", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "deferred"])
def test_a_rank_that_waits_for_another_outside_of_python_ends_unless_there_is_something_to_save(when):
    process = subprocess.Popen(
        [sys.executable, "-c", WAITING, when], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "waiting\n"
    time.sleep(3)  # Python hears it while it still is about to wait, which is another test
    process.send_signal(signal.SIGTERM)
    said, error = process.communicate(timeout=180)
    if when == "before":
        assert (process.returncode, said) == (75, "")
        assert error == "destruct: stopped by SIGTERM: the run had not begun\n"
    else:
        assert (process.returncode, said) == (0, f"waited, {int(signal.SIGTERM)}\n"), error
