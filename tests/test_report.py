"""The command `destruct report`, and the page that a run writes when it is done."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from destruct.claim import Claim, holder
from destruct.report import main
from tests.reported import SAMPLES, Page, lines, made
from tests.test_doors import go
from tests.tiny import ROOT, write_config


def test_help_imports_nothing_that_takes_long_and_a_report_no_torch(tmp_path):
    done, modules = go(tmp_path, "report", "--help")
    assert done.returncode == 0 and "RUN [RUN ...]" in done.stdout and not done.stderr
    assert not modules & {"torch", "numpy", "jinja2", "pydantic", "yaml"}
    run = made(tmp_path, "run", lines(6), SAMPLES)
    done, modules = go(tmp_path, "report", str(run))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{run}/report.html\n", "")
    assert not modules & {"torch", "deepspeed", "transformers", "datasets", "matplotlib"}


def test_a_run_is_found_by_its_name_and_several_go_where_the_person_is(tmp_path, monkeypatch, capsys):
    (tmp_path / "runs").mkdir()
    for name in ("one", "two"):
        made(tmp_path / "runs", name, lines(4), SAMPLES)
    monkeypatch.chdir(tmp_path)
    assert main(["one"]) == main(["one", "two"]) == main(["one", "two", "--to", "both.html"]) == 0
    assert capsys.readouterr().out.split() == ["runs/one/report.html", "report.html", "both.html"]
    assert Path("report.html").read_text() == Path("both.html").read_text()
    assert "2 runs compared" in Path("report.html").read_text()
    before = Path("runs/one/report.html").read_bytes()
    assert main(["runs/one", "runs/one/"]) == 0  # the same run twice is one
    assert Path("runs/one/report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "problem", "remedy"),
    [
        ([], "the following arguments are required: RUN", "write: RUN [RUN ...] [--to FILE]; --help says more"),
        (["none"], "there is no run none, neither a folder of that name nor one in runs/", "name the folder of a run"),
        (["."], ". is not a run's folder: it has no resolved.yaml", "name the folder of a run"),
        (["run", "--to", "run"], "--to run is a folder", "name a file, e.g. run/report.html"),
        (["run", "--to", "a/b.html"], "--to a/b.html: there is no folder a", "make it, or name another file"),
    ],
)
def test_what_is_wrong_is_told_in_two_lines(tmp_path, monkeypatch, capsys, arguments, problem, remedy):
    made(tmp_path, "run", lines(1))
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert capsys.readouterr() == ("", f"destruct: {problem}\n  remedy: {remedy}\n")


def test_who_writes_a_run_is_told_and_his_lock_is_left_to_him(tmp_path):
    run = made(tmp_path, "run", lines(4))
    assert holder(run) is None
    code = "import sys; from destruct.claim import Claim; from pathlib import Path; c = Claim(Path(sys.argv[1]))\n"
    code += "c.take(print); print('taken', flush=True); input()"
    command = [sys.executable, "-c", code, str(run)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, **pipes) as other:
        assert other.stdout.readline() == "taken\n"
        assert holder(run) == holder(run) == f"process {other.pid} on {os.uname().nodename}"
        assert main([str(run)]) == 0
        page = Page((run / "report.html").read_text())
        assert "run is going on, after 4 of 6 updates" in page.text
        other.communicate("\n")
    assert holder(run) is None
    Claim(run).take(print, patience_s=0.0)


def train(config: Path, *overrides: str, stop_after: str = "") -> int:
    """One rank as a process of its own; it is asked to stop as soon as its log has these words."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "destruct.train", "--config", str(config), "engine.backend=single", *overrides]
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        log = config.parent / "tiny" / "metrics.jsonl"
        while stop_after and process.poll() is None and not (log.is_file() and stop_after in log.read_text()):
            time.sleep(0.05)
        if stop_after:
            process.send_signal(signal.SIGTERM)
        return process.wait(timeout=120)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run that was stopped, went on, and was done."""
    folder = tmp_path_factory.mktemp("train")
    config = write_config(folder)
    (folder / "prompts.yaml").write_text("prompts: [{topic: code, text: 'def f(n):'}]")
    prompts = f"prompts.file={folder}/prompts.yaml"
    assert train(config, prompts, "run.num_epochs=50", stop_after='"ppo/steps"') == 75
    assert train(config, prompts, "run.num_epochs=4", "run.resume=auto", "ppo.policy_lr=0.0005") == 0
    return folder / "tiny"


@pytest.mark.slow
def test_a_run_notes_when_it_started_stopped_went_on_and_was_done(finished):
    events = [json.loads(line) for line in (finished / "events.jsonl").read_text().splitlines() if line]
    assert [event["event"] for event in events] == ["started", "stopped", "resumed", "finished"]
    assert events[1]["by"] == "SIGTERM" and events[2]["checkpoint"].endswith(events[1]["checkpoint"])
    assert {"engine.backend=single", "run.resume=auto", "ppo.policy_lr=0.0005"} <= set(events[2]["overrides"])
    assert events[3]["updates"] == 12


@pytest.mark.slow
def test_a_run_that_is_done_has_written_its_page_and_names_it(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["files"]["report"] == str(finished / "report.html")
    page = Page((finished / "report.html").read_text())
    assert not page.faults
    assert "tiny finished its 12 updates in" in page.text and "def f(n):" in page.text
    before, after = summary["reward_before"], summary["reward_after"]
    assert f"{before:.3f} → {after:.3f}" in page.text
    kinds = [row[1] for row in page.tables[""] if len(row) == 4]
    lives = ["started", "stopped", "resumed", "finished"]
    assert [kind for kind in kinds if kind in lives] == lives
    written = (finished / "report.html").read_text()
    assert main([str(finished)]) == 0
    assert (finished / "report.html").read_text() == written


@pytest.mark.slow
def test_the_command_that_the_page_gives_makes_the_same_run_again(finished, monkeypatch):
    text = (finished / "report.html").read_text()
    command = text.partition("The same values once more, in a folder of their own:")[2]
    command = command.partition('<pre class="command">')[2].partition("</pre>")[0]
    *start, module, flag, config, name, resume = command.split()
    assert [*start, module, flag] == ["python", "-m", "destruct.train", "--config"]
    monkeypatch.chdir(ROOT)
    code = train(Path(config), name, resume)
    again = finished.parent / "tiny-again"
    assert code == 0
    values = [yaml.safe_load((folder / "resolved.yaml").read_text()) for folder in (finished, again)]
    for value in values:
        del value["run"]["name"], value["run"]["resume"]
    assert values[0] == values[1]
