"""The two ends of an ssh to a host of a hostfile, without the ssh: which hosts there are, and what one does there."""

import contextlib
import json
import subprocess

import pytest

from destruct.launching import across


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--include", "n2@n3:0,1"],
        ["--include", "n3"],
        ["-e", "n2"],
        ["--exclude", "n1:0@n2:0,1"],
        ["--num_nodes", "2"],
        ["--num_nodes=1"],
    ],
)
def test_the_hosts_that_are_reached_are_those_of_deepspeed(arguments, tmp_path):
    from deepspeed.launcher import runner

    hostfile = tmp_path / "hostfile"
    hostfile.write_text("n1 slots=2\n# not yet: n9 slots=2\n\nn2 slots=2 max_slots=4\nn3 slots=4\n")
    theirs = runner.parse_args(["--hostfile", str(hostfile), *arguments, "x"])
    found = runner.parse_inclusion_exclusion(runner.fetch_hostfile(hostfile), theirs.include, theirs.exclude)
    found = runner.apply_num_nodes_and_gpus(found, theirs.num_nodes, theirs.num_gpus)
    ours = across.chosen(["--force_multi", "--hostfile", str(hostfile), *arguments])
    assert ours.hosts == list(found)


def there(order: dict | None = None) -> subprocess.CompletedProcess[str]:
    """What another host's shell does with the command that ssh hands it, and with the order that follows."""
    command = ["sh", "-c", across.remote_command()]
    outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, stdin=subprocess.PIPE, **outputs) as process:
        assert process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(f"{json.dumps(order)}\n")
            process.stdin.flush()
        process.wait(timeout=60)  # with its stdin open: the end of that would be a SIGTERM
        return subprocess.CompletedProcess(command, process.returncode, *(process.communicate()))


def test_a_host_without_the_checkout_gives_3_and_not_pythons_2(monkeypatch):
    monkeypatch.setattr(across.far, "__file__", "/not here/far.py")
    done = there()
    assert done.returncode == 3 and "remedy: have the same checkout" in done.stderr
    assert "/not here/far.py is not on this host" in done.stderr


def test_a_host_without_the_working_folder_gives_3():
    done = there({"folder": "/not here", "environment": {}, "hostfile": "", "command": ["true"]})
    assert done.returncode == 3 and "the folder /not here is not to be entered here: No such file" in done.stderr


@pytest.mark.parametrize("code", [0, 2, 75, 76])
def test_the_code_of_a_hosts_launcher_is_that_of_its_connection(code, tmp_path):
    """In the place of None stands the hostfile, which is written over there."""
    script = f'test "$(cat "$0")" = "n1 slots=1" && test "$PLACE" = "$PWD" && exit {code}'
    order = {"folder": str(tmp_path), "environment": {"PLACE": str(tmp_path)}, "hostfile": "n1 slots=1\n"}
    assert there({**order, "command": ["sh", "-c", script, None]}).returncode == code
