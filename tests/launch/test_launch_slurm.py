"""`destruct launch slurm` as far as it goes without Slurm; `tests/slurm` submits by it."""

import itertools
import subprocess
from pathlib import Path

import pytest

from destruct import launch
from tests.distributed.launching import ROOT
from tests.tiny import write_config

SHIPPED = ROOT / "launch"


@pytest.fixture(autouse=True)
def in_the_checkout(monkeypatch):
    monkeypatch.chdir(ROOT)


def script(capsys, folder: Path, *words: str) -> list[str]:
    """The lines that a dry run prints."""
    assert launch.main(["slurm", "--dry-run", "--config", str(write_config(folder)), *words]) == 0
    text = capsys.readouterr().out
    assert subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False).stderr == ""
    return text.splitlines()


@pytest.mark.parametrize(
    ("words", "shipped", "values"),
    [
        (["--gpus-per-node=4"], "single_node", ["--gpus-per-node=4", "--ntasks-per-node=4"]),
        (
            ["--nodes=2", "--gpus-per-node=0", "--ranks-per-node=1", "--time=0:10:00"],
            "multi_node",
            ["--gpus-per-node=0", "--ntasks-per-node=1", "--time=0:10:00"],
        ),
    ],
)
def test_the_script_is_the_shipped_one_with_these_values_in_it(tmp_path, capsys, words, shipped, values):
    lines = script(capsys, tmp_path, *words)
    template = (SHIPPED / f"slurm_{shipped}.sbatch").read_text().splitlines()
    assert len(lines) == len(template)
    changed = [new for old, new in zip(template, lines, strict=True) if old != new]
    assert changed == [
        "#SBATCH --job-name=tiny",
        *(f"#SBATCH {each}" for each in values),
        f"CONFIG={tmp_path}/tiny.yaml",
    ]


def test_options_of_sbatch_that_the_script_has_are_replaced_and_others_added_behind_them(tmp_path, capsys):
    options = ["--mem=10G", "--partition=a100", "--exclusive=user", "--mem-bind=local"]
    lines = script(capsys, tmp_path, "--gpus-per-node=2", *(f"--sbatch={option}" for option in options))
    template = (SHIPPED / "slurm_single_node.sbatch").read_text().splitlines()
    directives = [line for line in lines if line.startswith("#SBATCH")]
    assert len(lines) == len(template) + 2
    assert directives[-2:] == ["#SBATCH --partition=a100", "#SBATCH --mem-bind=local"]
    assert "#SBATCH --mem=10G" in directives and "#SBATCH --mem=0" not in directives
    assert "#SBATCH --exclusive=user" in directives and "#SBATCH --exclusive" not in directives


def test_overrides_reach_the_run_as_they_are_before_those_of_sbatchs_own_command_line(tmp_path, capsys):
    """The part of the script up to where srun would start is run by bash, with stand-ins for what needs a job."""
    words = [
        "--gpus-per-node=2",
        'reward.terms={"continuation_overlap": 1.0, "repetition": 0.5}',
        "run.seed=5",
        "--resume",
        "auto",
    ]
    lines = script(capsys, tmp_path, *words)
    cut = next(number for number, line in enumerate(lines) if line.startswith("export RANK_LOGS"))
    said = "\n".join([*lines[:cut], 'printf "%s\\n" "$CONFIG" "$@"'])
    done = subprocess.run(["bash", "-s", "ppo.epochs=1"], input=said, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        f"{tmp_path}/tiny.yaml",
        'run.resume="auto"',
        words[1],
        "run.seed=5",
        "ppo.epochs=1",
    ]


def test_a_sweep_is_an_array_over_the_product_of_its_values(tmp_path, capsys):
    sweep = {"ppo.clip_range": ["0.1", "0.2"], "warmup.lm_updates": ["3"], "rollout.stop": ["[a,b]", "[]", "['{x}']"]}
    words = [f"--sweep={key}={','.join(values)}" for key, values in sweep.items()]
    lines = script(capsys, tmp_path, "--gpus-per-node=1", "--at-once=3", *words)
    assert "#SBATCH --array=0-5%3" in lines
    points = next(line for line in lines if line.startswith("POINTS="))
    said = f'{points}\nprintf "%s\\n" "${{POINTS[@]}}"'
    done = subprocess.run(["bash", "-s"], input=said, capture_output=True, text=True, check=True)
    wanted = [
        " ".join(f"{k}={v}" for k, v in zip(sweep, point, strict=True)) for point in itertools.product(*sweep.values())
    ]
    assert done.stdout.splitlines() == wanted


def test_a_chain_is_one_job_after_another_none_of_which_is_requeued(tmp_path, capsys):
    lines = script(capsys, tmp_path, "--gpus-per-node=1", "--chain=3")
    assert {"#SBATCH --dependency=singleton", "#SBATCH --no-requeue", "CHAIN=true"} < set(lines)
    assert "#SBATCH --requeue" not in lines


def test_from_another_folder_the_script_knows_where_the_checkout_is(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = script(capsys, tmp_path, "--gpus-per-node=1")
    code = [line for line in lines if "launch/" in line and not line.startswith("#")]
    assert len(code) == 3 and all(f"{SHIPPED}/" in line for line in code)


def test_it_is_written_for_sbatch_and_never_over_another_one(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["slurm", "--config", str(write_config(tmp_path)), "--gpus-per-node=1"]
    for _ in range(2):
        assert launch.main(command) == 0
        assert capsys.readouterr().out == "tiny.sbatch is written; to submit it: sbatch tiny.sbatch\n"
    before = (tmp_path / "tiny.sbatch").read_text()
    assert launch.main([*command, "run.seed=9"]) == 2
    assert capsys.readouterr().err.startswith("destruct: tiny.sbatch is there already, and another script\n  remedy: ")
    assert (tmp_path / "tiny.sbatch").read_text() == before
    assert launch.main([*command, "--chain=3", "run.name=other"]) == 0
    said = "sbatch other.sbatch, then 2 times, with the number that it says: DESTRUCT_AGAIN=NUMBER sbatch other.sbatch"
    assert said in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--nodes=0"], "--nodes is 0"),
        (["--gpus-per-node=0"], "--ranks-per-node is 0"),
        (["--chain=1"], "--chain is 1"),
        (["--chain=2", "--sweep=run.seed=1,2"], "--chain and --sweep do not go together"),
        (["--chain=2", "--sbatch=--dependency=afterok:12"], "--chain sets --dependency itself"),
        (["--sweep=run.name=a,b"], "--sweep run.name: each point has a name by its number and values"),
        (["--sbatch=partition=a"], "--sbatch 'partition=a' is no option of sbatch's"),
        (["--sweep=run.seed"], "--sweep 'run.seed' is not KEY=VALUE,VALUE"),
        (["--sweep=run.seed=[1"], "--sweep 'run.seed=[1' cannot be read"),
        (["--sweep=run.seed=1, 2"], "--sweep 'run.seed=1, 2' holds a blank, or its key twice"),
        (["--sweep=run.seed=1", "--sweep=run.seed=2"], "--sweep 'run.seed=2' holds a blank, or its key twice"),
        (
            ["--gpus-per-node=1", "--sweep=ppo.clip_range=0.1,2"],
            "command line: ppo.clip_range = 2 should be less than 1",
        ),
        (["--gpus-per-node=3"], "rollout.batch_size=16 does not divide"),
        (["--gpus-per-node=1", "kl.coeff=1"], "command line: unknown key 'kl.coeff'"),
    ],
)
def test_a_mistake_is_told_in_two_lines_and_nothing_is_written(tmp_path, capsys, monkeypatch, words, problem):
    monkeypatch.chdir(tmp_path)
    assert launch.main(["slurm", "--config", str(write_config(tmp_path)), *words]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"destruct: {problem}") and second.startswith("  remedy: ")
    assert not list(tmp_path.glob("*.sbatch"))


def test_without_slurm_it_says_so(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert launch.main(["slurm", "--submit", "--gpus-per-node=1", "--config", str(write_config(tmp_path))]) == 3
    assert capsys.readouterr().err.splitlines()[0] == "destruct: sbatch is not on PATH"


def test_quiet_comes_behind_what_takes_the_first_word_for_a_config(capsys):
    config = str(ROOT / "configs" / "base.yaml")
    assert launch.main(["slurm", "--dry-run", "--quiet", "--config", config, "run.name=mine"]) == 0
    lines = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("if [[ $# -gt 0"))
    assert lines[at - 1] == 'set -- run.name=mine "$@"' and lines[at + 1] == 'set -- --quiet "$@"'
