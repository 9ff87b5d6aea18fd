"""The Slurm scripts as far as they go without Slurm; `tests/slurm` runs them on a cluster."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from destruct.train import world_size

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
SINGLE, MULTI = LAUNCH / "slurm_single_node.sbatch", LAUNCH / "slurm_multi_node.sbatch"
SCRIPTS = [SINGLE, MULTI, LAUNCH / "rank.sh", LAUNCH / "local_slurm.sh"]

TASK = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "7", "SLURM_GTIDS": "4,5,6"}
"""The second of three tasks on a node, among seven."""


def bash(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"], **variables}
    return subprocess.run(["bash", *arguments], env=environment, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_bash_and_shellcheck_find_nothing_in(script):
    assert bash("-n", script).stderr == ""
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", "--exclude=SC1091", script], capture_output=True, text=True, timeout=60)
        assert done.stdout == ""


def test_the_batch_scripts_fit_on_a_screen_and_differ_in_nodes_and_config_alone():
    single, multi = (path.read_text().splitlines() for path in (SINGLE, MULTI))
    assert len(single) == len(multi) <= 45
    differing = [line for pair in zip(single, multi, strict=True) for line in pair if pair[0] != pair[1]]
    code = [line for line in differing if not re.match(r"#( |$)", line)]
    assert code == [
        "#SBATCH --nodes=1",
        "#SBATCH --nodes=2",
        "CONFIG=configs/base.yaml",
        "CONFIG=configs/llama3_8b_multinode.yaml",
    ]


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
        ("kill -KILL $$", 76, "rank 5 was killed by SIGKILL; SIGKILL often means that memory ran out\n"),
    ],
)
def test_a_rank_that_was_told_to_end_has_the_lowest_code_and_one_that_was_killed_76(act, code, said):
    """srun reports the highest code of all ranks."""
    done = bash(LAUNCH / "rank.sh", "sh", "-c", act, **TASK)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", said)


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
