"""What launch/requeue.sh makes of an exit code, with programs in Slurm's place that note how they are called.

On a real cluster tests/slurm shows the same.
"""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from destruct.exits import Exit

ROOT = Path(__file__).resolve().parents[2]

JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "mine", "SLURM_JOB_NODELIST": "n[1-2]", "REQUEUES": "3", "CHAIN": "false"}

SCONTROL = """#!/bin/sh
if [ "$1" = --oneliner ]; then
    echo >>"$CALLS.asked"
    [ "$(wc -l <"$CALLS.asked")" -gt "${ANSWERS_AFTER:-0}" ] || exit 1
    echo "JobId=$4 JobName=mine JobState=${STATE:-RUNNING Reason=None} Dependency=(null) Requeue=1"
else
    echo "scontrol $*" >>"$CALLS"
    exit "${REFUSES:-0}"
fi
"""


@dataclass
class End:
    """How a batch script ended: its code, what it asked Slurm for, and what it said."""

    code: int
    calls: list[str]
    out: str
    err: str


@pytest.fixture
def end(tmp_path):
    """End a life with a code of srun's, or with what a shell makes of it."""
    others = {"scancel": '#!/bin/sh\necho "scancel $*" >>"$CALLS"\n', "sleep": "#!/bin/sh\n"}
    for name, text in {"scontrol": SCONTROL, **others}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def ended(code: int | str, **variables: str) -> End:
        calls = tmp_path / "calls"
        calls.write_text("")
        (tmp_path / "calls.asked").write_text("")
        environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "CALLS": str(calls), **JOB, **variables}
        script = f'set -euo pipefail; source launch/requeue.sh; echo "${{DESTRUCT_AGAIN:-first}}"; end_life {code}'
        done = subprocess.run(
            ["bash", "-c", script], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
        )
        return End(done.returncode, calls.read_text().splitlines(), done.stdout, done.stderr)

    return ended


@pytest.mark.parametrize(
    ("code", "as_what"), [(75, 75), (76, 76), (137, 76), (134, 76), (143, 76), (129, 76), (255, 76), (1, 76)]
)
def test_a_run_that_saved_or_lost_a_rank_is_requeued(end, code, as_what):
    """Above 128: the task itself was killed; 1: all were told to end before they listened, or srun started none."""
    life = end(code)
    assert (life.code, life.calls) == (as_what, ["scontrol requeue 7"])
    assert f"destruct: job 7 ended with {as_what} and is requeued: 1 of at most 3 times\n" in life.out


@pytest.mark.parametrize("code", [*(set(Exit) - {75, 76}), 4, 74, 78, 127, 130])
def test_every_other_code_ends_the_job_as_it_is(end, code):
    life = end(code)
    assert (life.code, life.calls, life.err) == (code, [], "")


@pytest.mark.parametrize("code", [1, 2, 3])
def test_what_a_rank_itself_says_is_wrong_came_raised_and_ends_the_job(end, code):
    life = end(100 + code)
    assert (life.code, life.calls, life.err) == (code, [], "")
    assert end("$RAISED_BY").code == 100


@pytest.mark.parametrize("wrong", [{"REQUEUES": "no"}, {"REQUEUES": "1e3"}, {"REQUEUES": "-1"}, {"CHAIN": "1"}])
def test_a_variable_that_cannot_be_read_is_told_before_the_run_starts(end, wrong):
    life = end(0, **wrong)
    ((name, value),) = wrong.items()
    assert (life.code, life.err.splitlines()[0].startswith(f"destruct: {name}={value} is n")) == (2, True)
    assert len(life.err.splitlines()) == 2 and "first" not in life.out


@pytest.mark.parametrize(("answers", "requeued"), [("5", True), ("99", False)])
def test_a_controller_that_is_away_is_asked_for_two_minutes(end, answers, requeued):
    life = end(75, ANSWERS_AFTER=answers)
    assert (life.code, bool(life.calls)) == (75, requeued)
    problem = "destruct: job 7 ended with 75, and Slurm does not tell its state"
    assert (problem in life.err.splitlines()) is not requeued


@pytest.mark.parametrize(("restarts", "requeued"), [("0", True), ("2", True), ("3", False), ("4", False)])
def test_the_limit_counts_requeues_and_says_so_in_two_lines(end, restarts, requeued):
    life = end(76, SLURM_RESTART_COUNT=restarts)
    assert (life.code, bool(life.calls)) == (76, requeued)
    problem = f"destruct: job 7 ended with 76 in life {int(restarts) + 1}, and REQUEUES=3"
    assert (life.err.splitlines()[:1] == [problem]) is not requeued
    assert len(life.err.splitlines()) == (0 if requeued else 2)


@pytest.mark.parametrize(
    ("state", "requeued"),
    [
        ("RUNNING Reason=None", True),
        ("SIGNALING Reason=None", True),
        ("COMPLETING Reason=TimeLimit", True),
        ("COMPLETING Reason=None", False),  # cancelled, preempted, a node lost, or requeued by a person
        ("CANCELLED Reason=None", False),
        ("PENDING Reason=BeginTime", False),
    ],
)
def test_a_job_that_is_cancelled_or_that_slurm_requeues_is_left_alone(end, state, requeued):
    life = end(75, STATE=state)
    assert (life.code, bool(life.calls)) == (75, requeued)


def test_of_an_array_only_the_task_is_requeued(end):
    """The task whose number is the array's, too."""
    task = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    assert end(75, **task).calls == ["scontrol requeue 7_3"]


def test_a_cluster_that_does_not_requeue_says_so_and_the_code_stays(end):
    life = end(75, REFUSES="1")
    assert life.code == 75 and life.calls == ["scontrol requeue 7"]
    assert life.err.splitlines()[0] == "destruct: job 7 ended with 75, and Slurm does not requeue it"
    assert life.err.splitlines()[1].startswith("  remedy: ")


@pytest.mark.parametrize(
    ("code", "cancels"),
    [(0, True), (2, True), (3, True), (77, True), (101, True), (75, False), (76, False), (137, False)],
)
def test_in_a_chain_nothing_is_requeued_and_an_end_for_good_cancels_what_waits_under_its_name(end, code, cancels):
    life = end(code, CHAIN="true")
    assert life.calls == (["scancel --me --state=PENDING --name=mine"] if cancels else [])
    assert life.code == {137: 76, 101: 1}.get(code, code)


@pytest.mark.parametrize("signal", ["TERM", "USR1"])
def test_the_shell_outlives_what_is_signalled_to_its_ranks(end, signal):
    life = end(f"$(kill -{signal} $$; echo 75)")
    assert (life.code, life.calls) == (75, ["scontrol requeue 7"])


@pytest.mark.parametrize(
    ("variables", "again"),
    [
        ({}, "first"),
        ({"SLURM_RESTART_COUNT": "2"}, "7"),
        ({"DESTRUCT_AGAIN": "1"}, "1"),
        ({"SLURM_RESTART_COUNT": "2", "DESTRUCT_AGAIN": "1"}, "1"),
    ],
)
def test_a_later_life_knows_that_it_is_one_of_this_job_or_of_this_chain(end, variables, again):
    life = end(0, **variables)
    number = int(variables.get("SLURM_RESTART_COUNT", "0")) + 1
    assert life.out.splitlines()[0].startswith(f"destruct: job 7, life {number}, on n[1-2], ")
    assert life.out.splitlines()[1] == again
