"""No value of the environment that looks like a secret reaches what a run writes or says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from destruct.secrets import masked
from tests.tiny import write_config

CANARIES = {
    "HF_TOKEN": "hf_canaryOne1234",
    "WANDB_API_KEY": "canarytwo-56789",
    "AWS_SECRET_ACCESS_KEY": "canary/three+333",
    "MLFLOW_TRACKING_PASSWORD": "canary four 4444",
    "MY_AUTH": "Bearer canaryfive",
}

TELLTALE = """
import logging, os, warnings

def f(prompts, responses, continuations):
    secrets = ", ".join(os.environ[name] for name in {names})
    logging.getLogger("mine").warning("logged %s", secrets)
    warnings.warn(f"warned {{secrets}}")
    f.calls = getattr(f, "calls", 0) + 1
    if f.calls > {calls}:
        raise {error}(secrets)
    return [0.0] * len(responses)
"""


def test_values_are_masked_by_the_names_of_their_variables(monkeypatch):
    for name, value in {**CANARIES, "USER_HOME": "not a secret", "SHORT_TOKEN": "abc"}.items():
        monkeypatch.setenv(name, value)
    for value in CANARIES.values():
        assert masked(f"x{value}y {value}") == "x<secret>y <secret>"
    assert masked("not a secret, abc") == "not a secret, abc"


@pytest.mark.parametrize(
    "name", ["TOKENIZERS_PARALLELISM", "GIT_AUTHOR_NAME", "XAUTHORITY", "SSH_AUTH_SOCK", "HF_TOKEN_PATH"]
)
def test_what_only_sounds_like_a_secret_stays(monkeypatch, name):
    monkeypatch.setenv(name, "a plain value")
    assert masked("a plain value") == "a plain value"


def test_a_value_is_found_in_the_text_of_json_too(monkeypatch):
    monkeypatch.setenv("A_SECRET", 'quote " and é')
    for text in (json.dumps({"a": 'quote " and é'}), json.dumps(['quote " and é'], ensure_ascii=False)):
        assert "quote" not in masked(text) and json.loads(masked(text))


def test_the_longer_of_two_values_goes_first(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "beginning")
    monkeypatch.setenv("B_TOKEN", "beginning-and-end")
    assert masked("beginning-and-end") == "<secret>"


@pytest.mark.slow
@pytest.mark.parametrize(("error", "calls", "code"), [("ValueError", 4, 2), ("KeyboardInterrupt", 4, 130)])
def test_a_run_whose_code_tells_them_in_logs_warnings_and_errors_writes_none(tmp_path, error, calls, code):
    (tmp_path / "telltale.py").write_text(TELLTALE.format(names=list(CANARIES), calls=calls, error=error))
    command = [sys.executable, "-m", "destruct.train", "--config", str(write_config(tmp_path)), "engine.backend=single"]
    done = subprocess.run(
        [*command, "reward.terms={'telltale:f': 1.0}", "data.embedded_bytes=20001"],
        env={**os.environ, **CANARIES, "PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, done.stderr
    files = [path for path in (tmp_path / "tiny").rglob("*") if path.is_file()]
    assert len(files) > 6 and any("tfevents" in path.name for path in files)
    log = (tmp_path / "tiny/logs/rank-0.log").read_text()
    assert "logged <secret>" in log and "warned <secret>" in log
    assert log.index("warned <secret>") < log.index(": starting 1 rank(s)"), "before there was a log"
    for secret in CANARIES.values():
        assert secret not in done.stdout + done.stderr
        assert not [path for path in files if secret.encode() in path.read_bytes()]
    assert f"telltale:f is {tmp_path / 'telltale.py'}:4" in done.stdout, "what the config runs is named"


def test_a_run_folder_is_its_owners_alone(tmp_path):
    code = "from pathlib import Path; import sys; from tests.tiny import tiny_run\n"
    code += "with tiny_run(Path(sys.argv[1])): pass"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, umask=0o022, timeout=120)
    assert (Path(tmp_path) / "tiny").stat().st_mode & 0o777 == 0o700
