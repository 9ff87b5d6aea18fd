"""What the doctor says of the hub: a name that is none, one that is not there, a cache that does without it."""

import json
import os
import subprocess
import sys
import time
from email.utils import formatdate
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants

from destruct.checkup.hub import Hub, Repository, _skew
from tests.distributed.launching import ROOT
from tests.hub import Hub as Server

DOWN = "http://127.0.0.1:9"  # discard: nobody listens


@pytest.fixture(scope="module")
def running():
    with Server() as server:
        yield server


@pytest.fixture
def server(running, tmp_path, monkeypatch):
    running.down, running.repositories = False, {}
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    huggingface_hub.close_session()
    monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
    yield running
    huggingface_hub.close_session()


def model(name: str, revision: str | None = None) -> Repository:
    return Repository("model.policy.path", "model", name, revision)


def told(*wanted: Repository) -> list[str]:
    return [f"{finding.state}: {finding.what}" for finding in Hub(wanted).reach()]


@pytest.mark.parametrize("name", ["/models/llama", "a/b/c", "not there"])
def test_what_is_neither_a_folder_nor_a_name_is_told(server, monkeypatch, name):
    words = f"fail: {name} is neither a folder here nor a name on the hub"
    assert told(model(name)) == [f"ok: {server.endpoint} answers", words]
    monkeypatch.setattr(constants, "ENDPOINT", DOWN)
    assert told(model(name))[1] == words


def test_what_the_hub_has_and_has_not(server):
    server.add("models", "me/tiny", {"config.json": b"{}"})
    found = told(model("me/tiny"), model("me/tiny", "v9"), model("me/none"))
    assert found[1:] == [
        "ok: the model me/tiny can be had",
        "fail: the model me/tiny has no revision 'v9'",
        "fail: the model me/none does not exist, or is private",
    ]


def test_a_token_that_is_refused_is_told_in_the_hub_s_words(server, monkeypatch):
    server.add("models", "me/tiny", {"config.json": b"{}"})
    monkeypatch.setenv("HF_TOKEN", server.expired)
    found = told(model("me/tiny"))[1]
    assert found.startswith("fail: the model me/tiny is not in the cache, and cannot be asked for: ") and "401" in found


@pytest.mark.parametrize("how", ["down", "offline", "ill"])
def test_without_a_hub_the_cache_decides(server, tmp_path, monkeypatch, how):
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
    whole = {"config.json": b"{}", "model.safetensors": b"x"}
    shards = {"config.json": b"{}", "model.safetensors.index.json": index, "model-1.safetensors": b"x"}
    for name, files in {"whole": whole, "shards": shards, "bare": {"config.json": b"{}"}}.items():
        snapshot = tmp_path / "cache" / f"models--me--{name}" / "snapshots" / "0123abc"
        snapshot.mkdir(parents=True)
        for path, content in files.items():
            (snapshot / path).write_bytes(content)
        (snapshot.parents[1] / "refs").mkdir()
        (snapshot.parents[1] / "refs" / "main").write_text("0123abc")
    if how == "offline":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif how == "down":
        monkeypatch.setattr(constants, "ENDPOINT", DOWN)
    server.down = how == "ill"
    hub, *rest = told(*map(model, ("me/whole", "me/shards", "me/bare", "me/none")))
    assert hub.startswith("warn: ")
    assert rest[0] == "ok: the model me/whole is in the cache"
    ends = "is not in the cache, and cannot be asked for: the hub gives no answer"
    assert rest[1:] == [f"fail: the model me/{name} {ends}" for name in ("shards", "bare", "none")]


LOADS = """
import json, sys, datasets
from destruct.checkup.hub import Repository, _is_cached
asked = [Repository("data.sources.x.hub", "dataset", name, None) for name in ("me/TallTales", "me/none")]
before = [_is_cached(each) for each in asked]
datasets.load_dataset("hf://datasets/me/TallTales")
print(json.dumps([before, [_is_cached(each) for each in asked]]))
"""


@pytest.mark.slow
def test_a_data_set_is_in_the_cache_once_it_was_loaded(server, tmp_path):
    server.add("datasets", "me/TallTales", {"train.jsonl": b'{"text": "a"}\n'})
    variables = server.environment(tmp_path / "hub") | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", LOADS], env=variables, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [[False, False], [True, False]]


def test_the_password_of_an_address_is_not_told(server, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint.replace("//", "//me:geheim@"))
    assert told() == [f"ok: {server.endpoint} answers"]
    monkeypatch.setattr(constants, "ENDPOINT", "htp://me:geheim@127.0.0.1:9")
    assert "geheim" not in (found := told()[0]) and found.startswith("ok: htp://127.0.0.1:9 cannot be reached")


def test_the_hub_is_switched_off_where_its_client_takes_it_to_be(tmp_path):
    code = "from destruct.checkup.hub import Hub; print(next(Hub([]).reach()).what)"
    variables = os.environ | {"HF_HUB_OFFLINE": "false", "HF_ENDPOINT": DOWN, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(f"{DOWN} cannot be reached"), done.stderr


def test_an_answer_that_a_proxy_kept_for_an_hour_is_an_hour_old():
    """Sent an hour ago by the server's clock, in the proxy since then: the clocks agree."""
    answer = SimpleNamespace(url=SimpleNamespace(host="hub"), headers={})
    assert _skew(answer) is None
    answer.headers = {"date": formatdate(time.time() - 3600, usegmt=True), "age": "3600"}
    host, ahead = _skew(answer)
    assert host == "hub" and abs(ahead) < 5
