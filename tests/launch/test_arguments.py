"""Which arguments of `launch/bin/deepspeed` are the launcher's own, and what becomes of them."""

import ast
import importlib.util
from pathlib import Path

import pytest

from tests.launch.test_launcher import OURS


def translated(*arguments: str) -> list[str]:
    """The command line given to DeepSpeed's launcher, without the port that is drawn anew each time."""
    return [a for a in OURS["translate"](list(arguments)) if not a.startswith("--master_port=")]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ("-m toy", "--module toy"),
        ("--num_gpus 8 -m toy -m x --num_gpus 1", "--num_gpus 8 --module toy -m x --num_gpus 1"),
        ("--num_gpus=8 --bind_cores_to_rank -m toy", "--num_gpus=8 --bind_cores_to_rank --module toy"),
        ("-H hosts -i node:0 -m toy", "-H hosts -i node:0 --module toy"),
        ("-Hhosts -q -m toy", "-Hhosts -q --module toy"),
        ("--module toy -m x", "--module toy -m x"),
        ("train.py -m x", "train.py -m x"),
        ("--help", "--help"),
        ("--num_gpus", "--num_gpus"),
        ("", ""),
    ],
)
def test_only_the_launchers_own_dash_m_is_translated(given, wanted):
    assert translated(*given.split()) == ["--log_level=critical", *wanted.split()]


def test_defaults_come_before_the_users_options_so_that_the_users_win():
    first = OURS["translate"](["--master_port", "29501", "--log_level=info", "-m", "toy"])
    assert [argument.split("=")[0] for argument in first[:2]] == ["--log_level", "--master_port"]
    assert first[2:] == ["--master_port", "29501", "--log_level=info", "--module", "toy"]


def test_nodes_that_are_started_one_by_one_get_no_port_of_their_own():
    assert OURS["translate"](["--no_ssh", "toy.py"]) == ["--log_level=critical", "--no_ssh", "toy.py"]


def test_every_switch_of_the_installed_launcher_is_known():
    """An option without value that we did not know would swallow the `-m` after it."""
    spec = importlib.util.find_spec("deepspeed")
    assert spec is not None and spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "launcher" / "runner.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and "add_argument" in ast.unparse(node.func)]
    switches = {
        option.value
        for call in calls
        if any(keyword.arg == "action" for keyword in call.keywords)
        for option in call.args
        if isinstance(option, ast.Constant)
    }
    assert switches | {"-h", "--help"} == OURS["SWITCHES"]
