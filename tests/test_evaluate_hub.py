"""`destruct evaluate` of a model on a hub on this machine, in processes of their own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from destruct import evaluate
from tests.hub import Hub
from tests.pretrained import write_llama
from tests.test_train_stream import hub as hub_of_texts  # noqa: F401
from tests.test_train_stream import streaming_config, train
from tests.tiny import ROOT, write_config

pytestmark = pytest.mark.slow  # each process imports torch and transformers: about five seconds


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    write_llama(folder)
    return folder


@pytest.fixture(scope="module")
def hub(llama):
    content = {path.name: path.read_bytes() for path in llama.iterdir()}
    with Hub() as hub:
        hub.add("models", "me/open", content)
        hub.add("models", "me/closed", content, gated=True)
        yield hub


def asked(hub: Hub, folder: Path, name: str, *options: str, **variables: str) -> tuple[int, str, list[str]]:
    """Exit code, standard output and the lines on standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "destruct.evaluate", "--checkpoint", name, "--samples", "3", "--json", "-", *options],
        cwd=folder,
        env=hub.environment(folder / "hf") | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        timeout=90,
    )
    return done.returncode, done.stdout, done.stderr.splitlines()


def test_a_hub_id_has_the_figures_of_the_folder_that_was_put_there(hub, llama, tmp_path, capsys):
    config = str(write_config(tmp_path))
    code, out, _ = asked(hub, tmp_path, "me/open", "--config", config)
    assert code == 0
    assert evaluate.main(["--checkpoint", str(llama), "--config", config, "--samples", "3", "--json", "-"]) == 0
    there, here = json.loads(out), json.loads(capsys.readouterr().out)
    assert there["checkpoints"][0].pop("checkpoint") == "me/open"
    assert here["checkpoints"][0].pop("checkpoint") == str(llama)
    assert there["checkpoints"] == here["checkpoints"] and there["checkpoints"][0]["dtype"] == "bfloat16"
    assert there["notes"] == [f"me/open reads the texts with its own tokenizer; {config} would train one"]


@pytest.mark.parametrize(
    ("name", "variables", "code", "problem"),
    [
        ("me/nowhere", {}, 2, "destruct: --checkpoint: me/nowhere is not on the hub, or is private"),
        ("me/closed", {}, 3, "destruct: --checkpoint: me/closed is gated, and this account has no access"),
        (
            "me/open",
            {"HF_HUB_OFFLINE": "1"},
            3,
            "destruct: --checkpoint: me/open is not all in the cache, and HF_HUB_OFFLINE switches the hub off",
        ),
    ],
)
def test_what_the_hub_does_not_give_is_told_in_two_lines(hub, tmp_path, name, variables, code, problem):
    got, out, lines = asked(hub, tmp_path, name, "--config", str(write_config(tmp_path)), **variables)
    assert (got, out, lines[0], len(lines)) == (code, "", problem, 2)
    assert lines[1].startswith("  remedy: ")


def test_a_stream_is_measured_as_in_the_run(hub_of_texts, tmp_path):  # noqa: F811
    streaming_config(tmp_path)
    done = train(hub_of_texts, tmp_path, "run.num_epochs=1", "run.updates_per_epoch=1")
    assert done.returncode == 0, done.stderr
    code, out, _ = asked(hub_of_texts, tmp_path, str(tmp_path / "tiny"))
    assert code == 0
    (found,) = json.loads(out)["checkpoints"]
    log = json.loads((tmp_path / "tiny" / "summary.json").read_text())["validation_loss_after"]
    losses = {name: source["nats_per_token"]["value"] for name, source in found["sources"].items()}
    assert losses | {"mean": found["mean"]["nats_per_token"]["value"]} == log
    assert found["sources"]["tales"]["responses"]["prompts"] == 3
