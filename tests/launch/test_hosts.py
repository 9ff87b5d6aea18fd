"""Several hosts without Slurm: what `destruct launch hosts` prints is run, each part in a shell of its own."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from destruct.launching.hosts import main
from destruct.launching.surroundings import free_port
from tests.distributed.launching import ROOT, TIMEOUT_S, Life, begin, end, environment
from tests.faults.digests import figures
from tests.forked import train_ranks
from tests.launch import sshd
from tests.launch.test_launcher import TOY, left, ready
from tests.processes import words
from tests.tiny import write_config

HOSTS = ",".join(f"{host}:1" for host in sshd.HOSTS)

OVERRIDES = (
    'reward.terms={"tests.tiny:one": 1.0}',
    "run.num_epochs=1",
    "run.updates_per_epoch=2",
    "warmup.lm_updates=1",
)
"""Blanks and quotes included, which have to reach every rank as they are."""

CONFIG = ("--config", "configs/local.yaml")


def printed(capsys, *arguments: str) -> str:
    """What it prints for a config that is fine."""
    code = main(list(arguments))
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    return out


def by_host(text: str) -> dict[str, str]:
    """The commands below each `# on HOST: ...`, by host."""
    parts = re.split(r"^# on (\S+): .*\n", text, flags=re.MULTILINE)
    return {host: commands.partition("\n\n")[0] for host, commands in zip(parts[1::2], parts[2::2], strict=True)}


def in_shells(scripts: list[str]) -> list[Life]:
    """Each script in a bash of its own, all at the same time, to their ends."""
    started = [begin(["bash", "-c", script]) for script in scripts]
    return [end(process) for process in started]


def write_hostfile(folder: Path, *lines: str) -> Path:
    path = folder / "hostfile"
    path.write_text("".join(f"{line}\n" for line in lines or [f"{host} slots=1" for host in sshd.HOSTS]))
    return path


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Iterator[list[dict]]:
    """What two ranks of one host measure."""
    folder = tmp_path_factory.mktemp("alone")
    done = train_ranks(2, write_config(folder), *OVERRIDES)
    assert done.returncode == 0, done.stderr
    return figures(folder / "tiny")


@pytest.mark.distributed
@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_what_is_printed_for_two_hosts_measures_what_one_host_measures(alone, launcher, tmp_path, capsys):
    hostfile = write_hostfile(tmp_path)
    where = ("--hostfile", str(hostfile), "--launcher", launcher, "--port", str(free_port()))
    commands = by_host(printed(capsys, "--config", str(write_config(tmp_path)), *where, *OVERRIDES))
    assert tuple(commands) == sshd.HOSTS
    lives = in_shells(list(commands.values()))
    assert [life.code for life in lives] == [0, 0], "".join(life.err for life in lives)
    assert not [each for life in lives for each in life.left]
    assert figures(tmp_path / "tiny") == alone


def test_each_host_gets_its_number_its_ranks_and_the_arguments_as_they_were(capsys):
    out = printed(capsys, *CONFIG, "--hosts", "n1:2,n2:2", "--launcher", "torchrun", *OVERRIDES)
    assert "# 2 hosts, 4 ranks, by torchrun; they meet at n1:29500.  Nothing is started." in out
    assert re.findall(r"^# on .*", out, re.MULTILINE) == ["# on n1: ranks 0-1", "# on n2: ranks 2-3"]
    for node, script in enumerate(by_host(out).values()):
        words = shlex.split(script.splitlines()[-1])
        assert words[words.index("--node-rank") + 1] == str(node)
        assert words[-len(OVERRIDES) :] == list(OVERRIDES)


@pytest.mark.parametrize(("backend", "program"), [("deepspeed", "deepspeed"), ("fsdp", "torchrun")])
def test_the_backend_chooses_the_launcher_where_nobody_does(backend, program, capsys):
    out = printed(capsys, *CONFIG, "--hosts", "n1:1,n2:1", f"engine.backend={backend}")
    assert [shlex.split(script.splitlines()[-1])[0] for script in by_host(out).values()] == [program] * 2


def test_hosts_on_the_command_line_are_made_a_hostfile_that_says_the_same(tmp_path, capsys):
    out = printed(capsys, *CONFIG, "--hosts", "n1:2,n2:6")
    (line,) = [line for line in out.splitlines() if line.startswith("printf")]
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True)
    assert (tmp_path / "hostfile").read_text() == "n1 slots=2\nn2 slots=6\n"


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (["n1 slots=1", "n2"], "line 2 of {path} is 'n2', which names no host and its slots"),
        (["# two", "n1 slots=1", "n1 slots=2"], "line 3 of {path} names n1 a second time"),
        (["n1 slots=0"], "line 1 of {path} gives n1 no slots"),
        (["-oProxyCommand=x slots=1"], "line 1 of {path} is '-oProxyCommand=x slots=1', which names no host"),
        (["# none", ""], "{path} names no host"),
        (None, "the hostfile {path} cannot be read: No such file or directory"),
        (["localhost slots=1", "n2 slots=1"], "the ranks meet at localhost, and by that name n2 does not find"),
    ],
)
def test_a_hostfile_that_is_wrong_is_refused_with_its_line(lines, problem, tmp_path, capsys):
    path = write_hostfile(tmp_path, *lines) if lines else tmp_path / "hostfile"
    code = main([*CONFIG, "--hostfile", str(path)])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith(f"destruct: {problem.format(path=path)}") and "\n  remedy: " in err


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--hosts", "n1:2,n2:x"], "'n2:x' is not a host and its ranks"),
        (["--hosts", "n1:1,n2:1", "--port", "70000"], "--port 70000 is no port"),
        (["--hosts", "n1:1,n2:1", "engine.backend=single"], "engine.backend=single"),
        (["--hosts", "n1:3,n2:4"], "rollout.batch_size="),
        ([], "one of the arguments --hostfile --hosts is required"),
    ],
)
def test_what_could_not_run_is_refused_before_a_command_is_printed(arguments, problem, capsys):
    code = main([*CONFIG, *arguments])
    out, err = capsys.readouterr()
    assert (code, out) == (2, "") and problem in err.splitlines()[0]


def test_a_secret_of_this_shell_is_not_printed_and_what_ranks_need_is(monkeypatch, capsys):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth 0")
    monkeypatch.setenv("NCCL_AUTH_TOKEN", "hush-hush-hush")
    out = printed(capsys, *CONFIG, "--hosts", "n1:1,n2:1")
    assert "export GLOO_SOCKET_IFNAME='eth 0'\n" in out and "hush" not in out


def test_help_takes_no_time():
    code = (
        "import sys\n"
        "from destruct.launching.hosts import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=180)
    assert (done.returncode, done.stderr) == (0, "") and "--hostfile FILE" in done.stdout


def launch(folder: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    """launch/bin/deepspeed in a folder that holds the module `toy`."""
    (folder / "toy.py").write_text(TOY)
    command = ["deepspeed", "--hostfile", str(folder / "hostfile"), *arguments]
    outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=folder, env=environment() | variables, **outputs)


def test_a_hostfile_that_is_not_there_is_no_run_on_this_host_alone(tmp_path):
    _, err = (process := launch(tmp_path, "-m", "toy", "a")).communicate(timeout=180)
    assert process.returncode == 2 and "cannot be read" in err


@pytest.mark.skipif(not os.path.exists("/usr/bin/ssh"), reason="ssh not installed: apt-get install openssh-client")
def test_a_host_that_ssh_does_not_reach_gives_3_and_its_name(tmp_path):
    write_hostfile(tmp_path)
    _, err = (process := launch(tmp_path, "--ssh_port", str(free_port()), "-m", "toy", "a")).communicate(timeout=180)
    assert process.returncode == 3
    assert "deepspeed: the ssh to 127.0.0.2 does not come about" in err and "Traceback" not in err


ssh_alone = [pytest.mark.slow, pytest.mark.distributed, pytest.mark.skipif(bool(sshd.why_not()), reason=sshd.why_not())]


@pytest.fixture(scope="module")
def reachable(tmp_path_factory) -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        yield stack.enter_context(sshd.two_hosts(tmp_path_factory.mktemp("sshd")))


def ranks_of_toy(folder: Path) -> list[psutil.Process]:
    return [psutil.Process(int((folder / f"pid-{rank}").read_text())) for rank in range(2)]


class TestOverSsh:
    """Both addresses answer on a real sshd."""

    pytestmark = ssh_alone

    def test_one_command_measures_what_one_host_measures_and_tells_no_command_line_a_secret(
        self, alone, reachable, tmp_path, monkeypatch
    ):
        write_hostfile(tmp_path)
        arguments = ("-m", "destruct.train", "--config", str(write_config(tmp_path)), *OVERRIDES)
        process = launch(tmp_path, *arguments, **reachable, MLFLOW_TRACKING_TOKEN="hush-hush-hush")
        seen = set()
        while process.poll() is None and not (tmp_path / "tiny" / "metrics.jsonl").exists():
            seen |= {words(each) for each in psutil.process_iter()}
            time.sleep(0.5)
        out, err = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, err
        assert figures(tmp_path / "tiny") == alone
        assert any("far.py" in word for word in seen) and not any("hush" in word for word in seen)

    def test_a_signal_and_the_arguments_reach_all_ranks_as_they_are_and_the_code_is_75(self, reachable, tmp_path):
        """DeepSpeed's way stops at the quotes, and makes of each signal a SIGTERM."""
        write_hostfile(tmp_path)
        process = launch(tmp_path, "-m", "toy", "listen", "a b", "$HOME", "'\"", **reachable)
        ready(tmp_path, process)
        ranks = ranks_of_toy(tmp_path)
        process.send_signal(signal.SIGUSR1)
        out, err = process.communicate(timeout=180)
        assert (process.returncode, err) == (75, "")
        assert [(tmp_path / f"got-{rank}").read_text() for rank in range(2)] == [str(int(signal.SIGUSR1))] * 2
        said = "of 2 got listen a b $HOME '\""
        assert sorted(out.splitlines()) == [f"127.0.0.2: rank 1 {said}", f"rank 0 {said}"]
        assert not left(ranks)

    def test_ranks_whose_first_launcher_was_killed_are_asked_to_stop(self, reachable, tmp_path):
        write_hostfile(tmp_path)
        process = launch(tmp_path, "-m", "toy", "listen", **reachable)
        ready(tmp_path, process)
        ranks = ranks_of_toy(tmp_path)
        process.kill()
        process.communicate(timeout=180)
        assert not psutil.wait_procs(ranks, timeout=30)[1]
        assert [(tmp_path / f"got-{rank}").read_text() for rank in range(2)] == [str(int(signal.SIGTERM))] * 2
