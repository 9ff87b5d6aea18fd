"""`destruct doctor` on this machine as it is, and on ones that are broken in fact: each finding is true."""

import json
import os
import re
import resource
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import yaml

from destruct.doctor import main
from tests.distributed.launching import ROOT
from tests.hub import Hub
from tests.tiny import write_config

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

PRIVATE = ["unshare", "--mount", "--uts", "sh", "-c"]
"""A shell whose mounts and name are its own."""


@pytest.fixture
def config(tmp_path) -> Path:
    return write_config(tmp_path)


@pytest.fixture
def hub():
    with Hub() as hub:
        yield hub


def surroundings(folder: Path, hub: Hub) -> dict[str, str]:
    """The variables of a shell in which all is well."""
    unwanted = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_CONF", "LD_PRELOAD", "CXX")
    own = {name: value for name, value in hub.environment(folder / "hub").items() if name not in unwanted}
    path = f"{ROOT / 'launch' / 'bin'}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{own['PATH']}"
    return own | {"PATH": path, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def compiled_shim(folder: Path) -> Path:
    """What LD_PRELOAD breaks the disk and the clock with."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler on this machine")
    shim = folder / "shim.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, Path(__file__).with_name("shim.c"), "-ldl"], check=True)
    return shim


def doctor(folder: Path, variables: dict[str, str], *arguments: str, before: str = "", **how) -> tuple[int, dict]:
    """The exit code, and the findings by their names.

    Args:
        before: lines of a shell that make a machine of its own of this one.
    """
    command = [sys.executable, "-m", "destruct.doctor", "--json", *arguments]
    if before:
        command = [*PRIVATE, f"set -e\n{before}\nexec {shlex.join(command)}"]
    done = subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, timeout=240, **how)
    assert done.stdout, done.stderr
    report = json.loads(done.stdout)
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert len(findings) == len(report["findings"])
    assert all((finding["remedy"] is None) == (finding["state"] == "ok") for finding in report["findings"])
    assert report["ok"] == (done.returncode == 0) == all(each["state"] != "fail" for each in report["findings"])
    return done.returncode, findings


def not_ok(findings: dict) -> dict[str, str]:
    return {name: finding["state"] for name, finding in findings.items() if finding["state"] != "ok"}


CUSTOMARY = {"slurm", "shared memory", "run.folder", "run.folder: speed", "name", "limits", "port", "all-reduce"}
"""What may be worth a look on the machine of whoever runs the tests, though nothing was broken."""


def test_on_this_machine_as_it_is_nothing_fails(config, hub, tmp_path):
    code, findings = doctor(tmp_path, surroundings(tmp_path, hub), "--config", str(config), "--ranks", "2")
    assert code == 0 and not_ok(findings).keys() <= CUSTOMARY, not_ok(findings)
    words = {name: finding["what"] for name, finding in findings.items()}
    assert {"python", "packages", "torch", "launcher", "memory", "compiler", "all-reduce", "hub"} <= words.keys()
    assert words["config"] == "right for 2 rank(s)"
    assert words["all-reduce"].startswith("2 ranks over gloo, 16 MiB in ")
    assert words["hub"] == f"{hub.endpoint} answers"
    assert re.fullmatch("within [12] s of 127.0.0.1's", words["clock"])
    assert words["launcher"] == str(ROOT / "launch" / "bin" / "deepspeed")
    assert words["memory"].startswith(f"{psutil.virtual_memory().total / 2**30:.1f} GiB")


def test_a_shell_in_which_all_is_wrong(config, hub, tmp_path):
    hub.add("datasets", "me/secret", {"train.jsonl": b'{"text": "a"}'}, gated=True)
    content = yaml.safe_load(config.read_text())
    content["data"]["sources"]["secret"] = {"hub": "me/secret", "revision": "main"}
    config.write_text(yaml.safe_dump(content))
    json_file = json.loads((ROOT / "ds_configs" / "zero3.json").read_text())
    json_file["optimizer"]["params"]["torch_adam"] = False
    (tmp_path / "own_adam.json").write_text(json.dumps(json_file))
    variables = surroundings(tmp_path, hub)
    own_first = f"{Path(sys.executable).parent}{os.pathsep}{variables['PATH']}"
    variables |= {"PATH": own_first, "CXX": "/nowhere/c++", "RANK": "3", "GLOO_SOCKET_IFNAME": "nowhere0"}
    del variables["OMP_NUM_THREADS"]
    overrides = [f"engine.deepspeed={tmp_path / 'own_adam.json'}"]
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, findings = doctor(
            tmp_path,
            variables | {"MASTER_PORT": port},
            *("--config", str(config), "--ranks", "2", *overrides),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (128, 4096)),
        )
    assert code == 3
    words = {name: f"{finding['state']}: {finding['what']}" for name, finding in findings.items()}
    assert words["compiler"] == (
        "fail: the compiler /nowhere/c++ is not installed; DeepSpeed's own Adam (torch_adam: false) needs one"
    )
    assert words["port"] == f"warn: MASTER_PORT={port} cannot be taken: Address already in use"
    assert words["limits"] == "fail: a process may open 128 files; 4096 are usual"
    gated = "fail: the data set me/secret is gated, and this account has no access"
    assert words["hub: data.sources.secret.hub"] == gated
    assert words["all-reduce"].startswith("fail: 2 ranks over gloo failed: ") and "nowhere0" in words["all-reduce"]
    assert words["launcher"].startswith(f"warn: {Path(sys.executable).parent / 'deepspeed'} is DeepSpeed's own")


def test_a_machine_of_which_the_files_and_the_clock_are_broken(config, hub, tmp_path):
    """A full disk, /dev/shm of 1 MiB, a name that leads elsewhere, GPUs that torch is not built for."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("mounts need root, and unshare")
    shim = compiled_shim(tmp_path)
    devices, full = tmp_path / "dev", tmp_path / "full"
    devices.mkdir()
    full.mkdir()
    before = f"""
        mount -t tmpfs tmpfs {devices}
        cp -a /dev/null /dev/zero /dev/urandom /dev/random {devices}
        mkdir {devices}/shm
        touch {devices}/nvidia0 {devices}/nvidia1
        mount --bind {devices} /dev
        mount -t tmpfs -o size=1m tmpfs /dev/shm
        mount -t tmpfs -o size=200k tmpfs {full}
        mkdir {full}/runs
        echo '192.0.2.7 elsewhere' > {tmp_path}/hosts
        echo '127.0.0.1 localhost' >> {tmp_path}/hosts
        mount --bind {tmp_path}/hosts /etc/hosts
        hostname elsewhere
        export LD_PRELOAD={shim} SHIM_FAST_CLOCK=1
    """
    code, findings = doctor(
        tmp_path,
        surroundings(tmp_path, hub),
        *("--config", str(config), "--ranks", "2", f"run.folder={full}/runs"),
        before=before,
    )
    assert code == 3
    words = {name: f"{finding['state']}: {finding['what']}" for name, finding in findings.items()}
    assert words["shared memory"] == "fail: /dev/shm has 1 of 1 MiB free, and 2 rank(s) take up to 128"
    assert words["run.folder"].startswith(
        f"fail: {full}/runs has 0.0 of 0.0 GiB free (tmpfs), and the checkpoints take"
    )
    assert words["name"].startswith("warn: elsewhere leads to 192.0.2.7, which is no address of this machine")
    assert words["torch"].startswith("fail: torch 2.") and "and this machine has 2 GPU(s)" in words["torch"]
    assert words["all-reduce"].partition(": ")[2].startswith("2 ranks over gloo, 16 MiB in ")
    skew = re.fullmatch(r"warn: this clock is 3,([56]\d\d) s fast of 127.0.0.1's", words["clock"])
    assert skew and skew[1] in ("599", "600", "601", "602"), words["clock"]


def test_a_disk_that_keeps_nothing_and_a_config_that_is_refused(config, hub, tmp_path):
    shim = compiled_shim(tmp_path)
    hub.down = True
    variables = surroundings(tmp_path, hub) | {"LD_PRELOAD": str(shim), "SHIM_NO_FSYNC": "1", "CXX": "false"}
    code, findings = doctor(tmp_path, variables, "--config", str(config), "--ranks", "1", "ppo.clip_rnage=0.1")
    assert code == 3
    words = {name: f"{finding['state']}: {finding['what']}" for name, finding in findings.items()}
    assert words["config"] == "fail: command line: unknown key 'ppo.clip_rnage'"
    assert findings["config"]["remedy"] == "did you mean 'ppo.clip_range'?"
    assert words["run.folder: fsync"].startswith(f"fail: fsync fails in {tmp_path} (Invalid argument)")
    assert words["compiler"].startswith("warn: the compiler false does not compile: exit 1")
    assert words["hub"] == f"warn: {hub.endpoint} answers 503"


def test_packages_of_other_versions_are_named_and_nothing_is_imported_from_them(hub, tmp_path):
    for name, version in (("torch", "2.5.0"), ("deepspeed", "0.18.1")):
        info = tmp_path / f"{name}-{version}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    variables = surroundings(tmp_path, hub)
    code, findings = doctor(tmp_path, variables | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"})
    assert (code, list(findings)) == (3, ["python", "packages", "the rest"])
    assert (
        findings["packages"]["what"] == "torch 2.5.0 is not torch>=2.11; deepspeed 0.18.1 is not deepspeed<0.20,>=0.19"
    )


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--ranks", "0"], "--ranks 0 is no number of ranks of one machine"),
        (["run.seed=1"], "run.seed=1 overrides no config"),
        (["--rank"], "argument --ranks: expected one argument"),
    ],
)
def test_what_cannot_be_read_is_told_in_two_lines(arguments, problem, capsys):
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"destruct: {problem}\n  remedy: ")
