"""What the doctor finds, one thing at a time, where a machine would be hard to come by: the files it reads are ours."""

import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from destruct.checkup import disk, gpus, machine, run, slurm, software
from tests.distributed.launching import ROOT
from tests.tiny import write_config

GIB = 2**30


def told(findings) -> list[str]:
    return [f"{finding.state}: {finding.what}" for finding in findings]


def program(folder: Path, name: str, text: str) -> Path:
    """A shell script on a PATH of its own."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("own", "limits", "allowed"),
    [
        ("0::/slurm/job_7/step_0\n", {"slurm/job_7": "max\n", "slurm/job_7/step_0": "1073741824\n"}, 1.0),
        ("4:memory:/x\n0::/slurm/job_7/step_0\n", {"slurm": "536870912\n", "slurm/job_7/step_0": "max"}, 0.5),
        ("0::/\n", {".": "805306368\n", "slurm": "1\n"}, 0.75),
        ("4:memory:/x\n", {".": "805306368\n"}, 0.75),
        ("0::/../elsewhere\n", {".": "805306368\n"}, 0.75),
    ],
)
def test_memory_is_the_least_that_a_group_around_this_process_leaves(tmp_path, monkeypatch, own, limits, allowed):
    groups = tmp_path / "groups"
    for group, limit in limits.items():
        (groups / group).mkdir(parents=True, exist_ok=True)
        (groups / group / "memory.max").write_text(limit)
    (tmp_path / "own").write_text(own)
    monkeypatch.setattr(machine, "GROUPS", groups)
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB
    assert told(machine.memory()) == [f"ok: {allowed:.1f} GiB of {whole:.1f}, by a control group"]


def test_a_port_that_is_taken_ends_only_a_run_that_no_launcher_starts(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        number = taken.getsockname()[1]
        monkeypatch.setenv("MASTER_PORT", str(number))
        words = f"MASTER_PORT={number} cannot be taken: Address already in use"
        assert told(machine.port(alone=False)) == [f"warn: {words}"]
        assert told(machine.port(alone=True)) == [f"fail: {words}"]
    monkeypatch.setenv("MASTER_PORT", "abc")
    assert told(machine.port(alone=False)) == ["warn: MASTER_PORT=abc is no port"]


@pytest.mark.parametrize("host", ["leads.nowhere.invalid", "elsewhere"])
def test_a_name_that_leads_elsewhere_ends_only_what_torchrun_starts(monkeypatch, host):
    found = {"elsewhere": [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.7", 0))]}

    def getaddrinfo(name, *_):
        if name not in found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return found[name]

    monkeypatch.setattr(socket, "gethostname", lambda: host)
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert [next(machine.name(of_torchrun)).state for of_torchrun in (False, True)] == ["warn", "fail"]


def test_the_clock_is_held_against_a_server_and_never_ends_a_run():
    assert told(machine.clock(("hub", -3600.0))) == ["warn: this clock is 3,600 s slow of hub's"]
    assert told(machine.clock(("hub", 29.0))) == ["ok: within 29 s of hub's"]
    assert "held against no other" in told(machine.clock(None))[0]


def test_one_process_is_the_number_of_ranks_of_a_run_without_an_engine(tmp_path):
    config = write_config(tmp_path)
    assert run.backend_of(config, ["engine.backend=single"]) == "single"
    assert run.backend_of(config, ["engine.backend=none"]) is None and run.backend_of(None, []) is None


UP = "echo 'Slurmctld(primary) at one is UP'"


@pytest.mark.parametrize(
    ("ping", "nodes", "outside", "words"),
    [
        (UP, "n1 idle\nn1 idle\nn2 mixed\n", "ok", "nodes: 1 idle, 1 mixed"),
        (UP, "n1 idle\nn1 idle\nn2 down*\n", "warn", "some nodes take no jobs: 1 idle, 1 down*"),
        (UP, "n1 down*\nn1 down*\nn2 drained\n", "worse", "no node takes jobs: 1 down*, 1 drained"),
        (UP, "", "warn", "sinfo shows no node"),
        ("echo 'error: nobody there' >&2; exit 1", "", "worse", "the controller does not answer: error: nobody there"),
    ],
)
def test_slurm_ends_no_run_outside_of_its_jobs(tmp_path, monkeypatch, ping, nodes, outside, words):
    program(tmp_path, "scontrol", f'[ "$1" = ping ] && {{ {ping}; exit; }}\necho "JobRequeue = 1"')
    (tmp_path / "nodes").write_text(nodes)
    program(
        tmp_path,
        "sinfo",
        f'echo "sinfo: error: a plugin is old" >&2\nwhile read -r n; do echo "$n "; done < {tmp_path}/nodes',
    )
    for name in ("sbatch", "srun"):
        program(tmp_path, name, "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert told(slurm.slurm()) == [f"{outside.replace('worse', 'warn')}: {words}"]
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert told(slurm.slurm()) == [f"{outside.replace('worse', 'fail')}: {words}"]


def test_without_slurm_there_is_nothing_to_look_at(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert told(slurm.slurm()) == ["ok: none on this machine"]


def test_every_fault_of_a_gpu_is_told_and_none_hides_behind_its_memory():
    whole = 80 * GIB
    found = [
        {"name": "A100", "major": 8, "free": whole, "total": whole},
        {"name": "A100", "major": 8, "free": whole // 2, "total": whole},
        {"name": "V100", "major": 7, "free": whole // 2, "total": whole},
        {"error": "CUDA error: out of memory"},
    ]
    assert told(gpus.judge(found)) == [
        "ok: A100, 80.0 of 80.0 GiB free",
        "warn: A100, 40.0 of 80.0 GiB free",
        "fail: V100, 40.0 of 80.0 GiB free; it knows no bfloat16",
        "fail: does not answer: CUDA error: out of memory",
    ]


def test_gpus_are_asked_by_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)  # here; that process has none
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpus.ask() == []
    monkeypatch.setattr(gpus, "QUERY", "import json\nprint('a warning')\nprint(json.dumps([{'error': 'busy'}]))")
    assert gpus.ask() == [{"error": "busy"}]
    monkeypatch.setattr(gpus, "QUERY", "raise RuntimeError('no driver')")
    assert gpus.ask() == [{"error": "RuntimeError: no driver"}] * 2


@pytest.mark.parametrize(
    ("visible", "opens", "said"),
    [("", True, "ok"), ("-1", True, "ok"), (None, False, "warn"), (None, True, "fail"), ("0", True, "fail")],
)
def test_gpus_that_a_run_cannot_use_anyway_end_none_on_the_cpu(tmp_path, monkeypatch, visible, opens, said):
    device = tmp_path / "nvidia0"
    device.touch() if opens else device.mkdir()  # a folder cannot be opened to be written, not by root either
    monkeypatch.setattr(gpus, "FILES", f"{tmp_path}/nvidia[0-9]*")
    monkeypatch.setattr("torch.version.cuda", None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert next(gpus.torch_build()).state == said


def test_a_compiler_may_be_several_words(tmp_path, monkeypatch):
    said = program(tmp_path, "c++", 'echo "$@" > "$0.said"')
    monkeypatch.setenv("CXX", f"{said} -O2")
    assert told(software.compiler("DeepSpeed")) == [f"ok: {said} -O2 compiles"]
    assert Path(f"{said}.said").read_text().startswith("-O2 -shared -fPIC -o ")
    monkeypatch.setenv("CXX", "/nowhere/c++ -O2")
    assert told(software.compiler("DeepSpeed")) == [
        "fail: the compiler /nowhere/c++ is not installed; DeepSpeed needs one"
    ]


def test_triton_needs_a_compiler_of_c_and_python_s_headers(tmp_path, monkeypatch):
    said = program(tmp_path, "gcc", 'for last; do :; done; read -r line < "$last"; echo "$@ $line" > "$0.said"')
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert [finding.state for finding in software.triton_compiler()] == ["ok"]
    assert Path(f"{said}.said").read_text().endswith("small.c #include <Python.h>\n")
    program(tmp_path, "gcc", "echo 'Python.h: No such file' >&2; exit 1")
    assert told(software.triton_compiler())[0].startswith("fail: the compiler gcc does not compile: Python.h: No such")


def test_without_any_package_those_that_are_missing_are_named():
    """As with the system's python3, and no .venv."""
    command = [sys.executable, "-S", "-m", "destruct.doctor"]
    done = subprocess.run(command, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (3, "")
    assert "fail packages           torch is not installed; deepspeed is not installed; " in done.stdout
    assert "remedy: run `make setup` in the checkout" in done.stdout


def test_a_link_is_followed_to_the_disk_that_it_leads_to(tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "WRITTEN", 2**20)
    (tmp_path / "runs").symlink_to("/dev/shm/yet/to/be/made")
    room = next(disk.disk(tmp_path / "runs", None, "run.folder"))
    assert room.what.startswith("/dev/shm has ") and "(tmpfs)" in room.what


def test_a_folder_below_one_that_may_not_be_read_is_told(tmp_path):
    (tmp_path / "runs").mkdir()
    tmp_path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # root may look everywhere
    try:
        found = told(disk.disk(tmp_path / "runs", None, "run.folder"))
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o700)
    assert found == [f"fail: {tmp_path}/runs cannot be looked at: Permission denied"]


def test_a_slow_disk_is_written_for_a_few_seconds_and_no_more(tmp_path, monkeypatch):
    """A sync of 10 s by a clock of ours: the first block is the last, and 16 MiB in 10 s are 1.6 MiB/s."""
    now = [0.0]
    monkeypatch.setattr(disk.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(disk.os, "fsync", lambda file: now.__setitem__(0, now[0] + 10))
    speed = next(finding for finding in disk.disk(tmp_path, 1, "run.folder") if finding.name.endswith("speed"))
    assert speed.what.startswith("2 MiB/s written and synced") and speed.state == "warn"


@pytest.mark.parametrize(
    ("off_s", "sync_s", "said"),
    [
        (-100.0, 0.0, ["its server's clock is 100 s ahead of this machine's"]),
        (100.0, 0.0, ["its server's clock is 100 s behind this machine's"]),
        (0.0, 10.0, []),
    ],
)
def test_a_servers_clock_is_held_against_the_moments_before_and_after_a_write(
    tmp_path, monkeypatch, off_s, sync_s, said
):
    """This machine's clock is off by so much; it moves on while the small file, the second one, is synced."""
    clock, off, files = time.time, [off_s], iter((0.0, sync_s))
    monkeypatch.setattr(disk, "WRITTEN", 2**20)
    monkeypatch.setattr(disk.time, "time", lambda: clock() + off[0])
    monkeypatch.setattr(disk.os, "fsync", lambda file: off.__setitem__(0, off[0] + next(files)))
    found = list(disk.disk(tmp_path, 1, "run.folder"))
    assert [finding.what for finding in found if finding.name == "run.folder: clock"] == said


def test_memory_that_may_not_be_locked_is_told_where_there_is_infiniband(monkeypatch):
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/infiniband" or exists(path))
    monkeypatch.setattr(resource, "getrlimit", lambda which: (2**23, 2**23))
    assert told(machine.limits())[1] == "warn: a process may lock 8 MiB, and this machine has InfiniBand"
