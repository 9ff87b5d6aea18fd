"""The Slurm scripts as far as they go without Slurm; `tests/slurm` runs them on a cluster."""

import os
import re
import shutil
import signal as signals
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from destruct.train import world_size

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SINGLE, MULTI, SWEEP = (LAUNCH / f"slurm_{name}.sbatch" for name in ("single_node", "multi_node", "sweep"))
SCRIPTS = [SINGLE, MULTI, SWEEP, *(LAUNCH / f"{name}.sh" for name in ("rank", "requeue", "local_slurm"))]

TASK = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "7", "SLURM_GTIDS": "4,5,6"}
"""The second of three tasks on a node, among seven."""


def bash(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], **variables}
    how = {"capture_output": True, "text": True, "timeout": 60, "start_new_session": True}  # rank.sh ends its group
    return subprocess.run(["bash", *arguments], env=environment, **how)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_bash_and_shellcheck_find_nothing_in(script):
    assert bash("-n", script).stderr == ""
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "--exclude=SC1091", script], capture_output=True, text=True, timeout=60)
        assert done.stdout == ""


def code_of(script: Path) -> list[str]:
    """Its lines without comments; `#SBATCH` is none."""
    return [line for line in script.read_text().splitlines() if line and not re.match(r"\s*#( |$)", line)]


def test_the_batch_scripts_fit_on_a_screen_and_differ_in_nodes_and_config_alone():
    single, multi = (path.read_text().splitlines() for path in (SINGLE, MULTI))
    assert len(single) == len(multi) <= 45
    pairs = zip(code_of(SINGLE), code_of(MULTI), strict=True)
    assert [line for pair in pairs for line in pair if pair[0] != pair[1]] == [
        "#SBATCH --nodes=1",
        "#SBATCH --nodes=2",
        "CONFIG=configs/base.yaml",
        "CONFIG=configs/llama3_8b_multinode.yaml",
    ]


def test_a_sweep_is_the_script_of_one_node_with_a_grid_and_fits_on_a_screen():
    assert len(SWEEP.read_text().splitlines()) <= 52
    single, sweep = code_of(SINGLE), code_of(SWEEP)
    assert {line.partition("=")[0] for line in single if line not in sweep} == {
        "#SBATCH --job-name",
        "#SBATCH --output",
        "CHAIN",  # tasks of an array have one name
        "export RANK_LOGS OMP_NUM_THREADS",
        "container",
        'mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        "export MASTER_ADDR",
        "export MASTER_PORT",
        "export SRUN_CPUS_PER_TASK",
        '    launch/rank.sh python -m destruct.train --config "$CONFIG" "$@" || code',
    }


@pytest.mark.parametrize("script", [SINGLE, MULTI, SWEEP], ids=lambda script: script.name)
def test_what_a_person_sets_stands_at_the_top_on_a_line_of_its_own(script):
    lines = script.read_text().splitlines()
    end = lines.index("set -euo pipefail")
    names = ["CONFIG", *(["POINTS", "PART"] if script == SWEEP else []), "REQUEUES", "CHAIN", "RANK_LOGS"]
    assert [line.partition("=")[0] for line in lines[end + 2 : end + 2 + len(names)]] == sorted(
        names, key=["CONFIG", "POINTS", "PART", "REQUEUES", "CHAIN", "RANK_LOGS"].index
    )
    assert all(sum(line.startswith(f"{name}=") for line in lines) == 1 for name in names)
    assert "#SBATCH --signal=USR1@300" in lines and "#SBATCH --requeue" in lines
    assert "#SBATCH --open-mode=append" in lines


def test_a_task_of_srun_becomes_a_rank_that_counts_the_tasks_of_its_own_node():
    names = "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_SIZE $LOCAL_WORLD_SIZE"
    done = bash(LAUNCH / "rank.sh", "sh", "-c", f'echo {names} "$1"', "sh", "two  words", **TASK)
    assert (done.stdout, done.returncode) == ("5 1 7 3 3 two  words\n", 0)


@pytest.mark.parametrize(
    ("act", "code", "said"),
    [
        ("exit 0", 0, ""),
        ("exit 2", 2, ""),
        ("exit 130", 130, ""),
        ("kill -TERM $$", 1, ""),
        ("kill -USR1 $$", 75, ""),
        ("kill -KILL $$", 76, "rank 5 was killed by SIGKILL; SIGKILL often means that memory ran out\n"),
    ],
)
def test_a_rank_that_was_told_to_end_has_the_lowest_code_and_one_that_was_killed_76(act, code, said):
    """srun reports the highest code of all ranks."""
    done = bash(LAUNCH / "rank.sh", "sh", "-c", act, **TASK)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)


@pytest.mark.parametrize(
    ("act", "code"), [("exit 1", 101), ("exit 2", 102), ("exit 3", 103), ("exit 75", 75), ("kill -TERM $$", 1)]
)
def test_what_a_rank_says_is_wrong_stands_out_among_ranks_that_saved_where_somebody_takes_that_off_again(act, code):
    assert bash(LAUNCH / "rank.sh", "sh", "-c", act, **TASK, RAISED_BY="100").returncode == code


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")
def test_a_rank_goes_on_though_its_parent_is_another_users_process_as_slurmstepd_is():
    """A signal to ask whether that lives is not allowed then.  The watcher looks at once, and after two seconds."""
    command = ["setpriv", "--reuid=65534", "--clear-groups", "bash", "-s", "sh", "-c", "sleep 3; echo finished"]
    environment = {"PATH": os.environ["PATH"], **TASK}
    text = (LAUNCH / "rank.sh").read_text()  # which that user need not be able to read
    done = subprocess.run(
        command,
        env=environment,
        input=text,
        capture_output=True,
        text=True,
        cwd="/",
        timeout=60,
        start_new_session=True,
    )
    assert (done.stdout, done.returncode) == ("finished\n", 0), done.stderr


def logged(folder: Path) -> dict[str, str]:
    """Variables with which a rank leaves a log there."""
    return TASK | {"RANK_LOGS": str(folder / "logs"), "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "mine"}


def test_what_a_rank_says_is_added_to_its_log_and_keeps_its_stream_and_code(tmp_path):
    said = "echo one; echo two >&2; printf last; exit 75"
    for lives in (1, 2):
        done = bash(LAUNCH / "rank.sh", "sh", "-c", said, **logged(tmp_path))
        assert (done.stdout, done.stderr, done.returncode) == ("one\nlast", "two\n", 75)
        log = (tmp_path / "logs" / "mine-7-5.log").read_text()
        assert [log.count(word) for word in ("one\n", "two\n", "last")] == [lives] * 3


def test_the_log_of_a_task_of_an_array_has_the_arrays_number_and_its_own(tmp_path):
    bash(LAUNCH / "rank.sh", "true", **logged(tmp_path), SLURM_ARRAY_JOB_ID="6", SLURM_ARRAY_TASK_ID="3")
    assert [path.name for path in (tmp_path / "logs").iterdir()] == ["mine-6_3-5.log"]


def test_a_log_that_cannot_be_written_takes_nothing_else_away(tmp_path):
    (tmp_path / "logs").write_text("a file is in the way")
    done = bash(LAUNCH / "rank.sh", "sh", "-c", "echo one; exit 2", **logged(tmp_path))
    assert (done.stdout, done.returncode) == ("one\n", 2) and "logs" in done.stderr


def listening() -> None:
    """In a background job SIGINT is ignored, and stays so."""
    signals.signal(signals.SIGINT, signals.SIG_DFL)


@pytest.mark.parametrize("signal", ["TERM", "INT", "USR1", "USR2"])
def test_last_words_after_a_signal_to_all_processes_of_a_task_are_heard_and_in_its_log(tmp_path, signal):
    """All of them are one group, as Slurm has it; the copies must not end by it."""
    act = f'trap "sleep 0.2; echo last words; exit 75" {signal}; kill -{signal} 0; sleep 5'
    done = subprocess.run(
        [LAUNCH / "rank.sh", "bash", "-c", act],
        env={"PATH": os.environ["PATH"], **logged(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
        preexec_fn=listening,
    )
    assert (done.stdout, done.returncode) == ("last words\n", 75)
    assert (tmp_path / "logs" / "mine-7-5.log").read_text() == "last words\n"


@pytest.mark.slow
def test_a_process_that_a_rank_left_behind_with_its_outputs_holds_the_task_up_for_five_seconds(tmp_path):
    """Meanwhile srun tells the task to end, as it has told the rank: its code stays."""
    before = time.monotonic()
    with (tmp_path / "out").open("w") as out:  # and not through a pipe, whose other end this test would wait for
        command = [LAUNCH / "rank.sh", "sh", "-c", "trap '' TERM; sleep 30 & echo left; exit 76"]
        environment = {"PATH": os.environ["PATH"], **logged(tmp_path)}
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
        within(20, lambda: "left" in (tmp_path / "out").read_text())
        time.sleep(0.3)
        os.killpg(process.pid, signals.SIGTERM)
        assert process.wait(timeout=28) == 76
    assert 4 < time.monotonic() - before < 25
    os.killpg(process.pid, signals.SIGKILL)


@pytest.mark.slow
def test_a_rank_whose_slurmstepd_is_killed_is_told_to_save(tmp_path):
    """Here a shell is in the place of slurmstepd."""
    act = 'trap "echo saved >saved; exit 75" TERM; touch begun; while true; do sleep 0.1; done'
    parent = f"set -m; {LAUNCH / 'rank.sh'} bash -c '{act}' & wait"  # -m: the task in a group of its own
    environment = {"PATH": os.environ["PATH"], **TASK}
    process = subprocess.Popen(["bash", "-c", parent], cwd=tmp_path, env=environment)
    within(20, (tmp_path / "begun").exists)
    process.kill()
    process.wait()
    within(20, (tmp_path / "saved").exists)


def within(seconds: float, condition: Callable[[], bool]) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.1)


@pytest.mark.parametrize("signal", ["TERM", "USR1", "USR2"])
def test_a_signal_to_all_processes_of_a_rank_is_the_commands_to_answer(signal):
    """The shell in between neither dies of it nor makes the command ignore it."""
    act = f'trap "echo heard; exit 75" {signal}; kill -{signal} $PPID $$; exit 9'
    done = bash(LAUNCH / "rank.sh", "bash", "-c", act, **TASK)
    assert (done.returncode, done.stdout) == (75, "heard\n")


def test_slurms_variables_alone_do_not_make_a_command_wait_for_other_ranks(monkeypatch):
    """Inside an allocation, and in the batch script itself, they are set although srun started nothing."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in TASK.items():
        monkeypatch.setenv(name, value)
    assert world_size() == 1


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        ([], 2, "no command"),
        (["sideways"], 2, "unknown command sideways"),
        (["up", "--nodes", "two"], 2, "--nodes 'two' is not a number from 1 to 99"),
        (["up", "--nodes"], 2, "--nodes '' is not a number from 1 to 99"),
        (["up"], 3, "munged is not installed"),
    ],
)
def test_the_local_cluster_says_what_is_missing_in_two_lines(tmp_path, arguments, code, problem):
    """On a PATH with none of Slurm's programs."""
    for program in ("bash", "realpath"):
        (tmp_path / program).symlink_to(shutil.which(program) or "")
    done = bash(LAUNCH / "local_slurm.sh", *arguments, PATH=str(tmp_path), TMPDIR=str(tmp_path))
    first, second = done.stderr.splitlines()
    assert (done.returncode, first) == (code, f"local_slurm: {problem}")
    assert second.startswith("  remedy: ") and ("apt-get install --yes slurm-wlm munge" in second) is (code == 3)
    assert not (tmp_path / "destruct-slurm").exists()


def test_make_slurm_test_fails_in_two_lines_where_slurm_is_missing(tmp_path):
    """Where the whole suite would skip."""
    for program in ("bash", "dirname", "make"):
        (tmp_path / program).symlink_to(shutil.which(program) or "")
    command = ["make", "--assume-old=.venv/.installed", "PYTHON=python3", "slurm-test"]
    done = subprocess.run(
        command, cwd=ROOT, env={"PATH": str(tmp_path)}, capture_output=True, text=True, timeout=60, check=False
    )
    first, second, *rest = done.stderr.splitlines()
    assert first == "slurm-test: munged, slurmctld, slurmd, sbatch not installed"
    assert second == "  remedy: apt-get install slurm-wlm munge"
    assert done.returncode == 2 and "Error 3" in rest[0] and "pytest" not in done.stdout
