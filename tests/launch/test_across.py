"""The two ends of an ssh to a host of a hostfile, without the ssh: which hosts there are, and what one does there."""

import contextlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from destruct.launching import across
from destruct.launching.hostfile import carried


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
        process.wait(timeout=180)  # with its stdin open: the end of that would be a SIGTERM
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


def write_ssh(folder: Path, script: str) -> str:
    """A folder for PATH in which `ssh` is a script."""
    (folder / "bin").mkdir()
    (folder / "bin" / "ssh").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "bin" / "ssh").chmod(0o755)
    return f"{folder / 'bin'}:{os.environ['PATH']}"


def outcome(folder: Path, capfd, *own: str) -> tuple[int | None, str]:
    """The exit code and stderr of `deepspeed --hostfile F` with two hosts, whose ssh is the first one on PATH."""
    (folder / "hostfile").write_text("n1 slots=1\nn2 slots=1\n")
    arguments = ["--hostfile", str(folder / "hostfile"), "--master_addr=n1", *own]
    code = across.main(arguments, ["-m", "toy"], lambda: 29500, ["deepspeed"], [])
    return code, capfd.readouterr().err


@pytest.mark.parametrize(
    ("own", "variables", "code", "problem"),
    [
        ([], {"PATH": "/not here"}, 3, "ssh does not start: No such file or directory"),
        (
            [],
            {"PDSH_SSH_ARGS_APPEND": "-o 'User=me"},
            2,
            'PDSH_SSH_ARGS_APPEND is "-o \'User=me": No closing quotation',
        ),
        (
            [],
            {"DS_ENV_FILE": "{folder}/latin"},
            2,
            "{folder}/latin, whose variables ranks get, cannot be read: 'utf-8'",
        ),
        # a file that nobody can read, root included
        ([], {"DS_ENV_FILE": "/proc/self/mem"}, 2, "/proc/self/mem, whose variables ranks get, cannot be read: Input"),
        (["--force_multi", "--exclude", "n1@n2"], {}, 2, "no host of {folder}/hostfile is left to run on"),
        (["--force_multi", "--num_nodes", "0"], {}, 2, "no host of {folder}/hostfile is left to run on"),
        (["--exclude", "n1@n2"], {}, 2, "no host of {folder}/hostfile is left to run on"),
    ],
)
def test_a_mistake_is_told_in_two_lines_before_a_host_is_reached(
    own, variables, code, problem, tmp_path, monkeypatch, capfd
):
    (tmp_path / "latin").write_bytes("NAME=caf\u00e9\n".encode("latin-1"))
    monkeypatch.setenv("PATH", write_ssh(tmp_path, "exit 9"))
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(folder=tmp_path))
    got, err = outcome(tmp_path, capfd, *own)
    assert got == code
    first, second = err.splitlines()
    assert first.startswith(f"deepspeed: {problem.format(folder=tmp_path)}") and second.startswith("  remedy: ")


@pytest.mark.parametrize("ends", [0, 1, 255])
def test_a_host_that_lets_nobody_in_gives_3_and_its_name(ends, tmp_path, monkeypatch, capfd):
    """As nologin does, after whose word ssh ends with 1."""
    monkeypatch.setenv("PATH", write_ssh(tmp_path, f"echo This account is currently not available.\nexit {ends}"))
    code, err = outcome(tmp_path, capfd, "--ssh_port", "2222")
    assert code == 3
    how = (
        "the ssh to {} does not come about"
        if ends == 255
        else f"no launcher began on {{}}: the ssh to it ended with {ends}"
    )
    for host in ("n1", "n2"):
        told = err[err.index(f"deepspeed: {how.format(host)}\n") :].splitlines()[1]
        typed = shlex.split(told.partition("; try: ")[2])
        assert typed[0] == "ssh" and typed[-2:] == [host, "true"]
        assert typed[typed.index("-p") + 1] == "2222"


def test_what_a_host_did_not_read_is_no_traceback(tmp_path, monkeypatch):
    """`-X dev` prints what Python does from 3.13 on."""
    monkeypatch.setenv("PATH", write_ssh(tmp_path, "exit 1"))
    begin = "from destruct.launching.across import Connection; host = Connection('n1', None, {}, False)"
    code = f"{begin}; host.process.wait(); host.tell('end'); raise SystemExit(host.code())"
    done = subprocess.run([sys.executable, "-X", "dev", "-c", code], capture_output=True, text=True, timeout=180)
    assert done.returncode == 3 and "BrokenPipe" not in done.stderr


def test_a_host_that_does_not_answer_is_waited_for_as_long_as_the_person_says(monkeypatch):
    """Of an option that is given twice, ssh takes the first."""
    monkeypatch.setenv("PDSH_SSH_ARGS_APPEND", "-o ConnectTimeout=5")
    times = [word for word in across.ssh(None) if word.startswith("ConnectTimeout=")]
    assert times == ["ConnectTimeout=5", "ConnectTimeout=30"]


def test_a_proxy_and_its_certificates_are_known_on_all_hosts(tmp_path):
    names = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
    here = dict.fromkeys((*names, "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"), "x")
    assert here.items() <= carried(str(tmp_path), here).items()
