"""The whole command with `configs/base.yaml` against a hub on this machine: may it have the model comes first."""

import subprocess
import sys
from pathlib import Path

import pytest

from destruct.exits import Exit
from tests.hub import Hub
from tests.pretrained import write_llama

ROOT = Path(__file__).parents[1]
MODEL = "meta-llama/Llama-3.2-1B"
pytestmark = pytest.mark.slow  # each run imports torch and transformers: about five seconds


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    write_llama(folder)
    content = {path.name: path.read_bytes() for path in folder.iterdir()}
    with Hub() as hub:
        hub.add("models", MODEL, content, gated=True)
        hub.add("models", "me/open", content)
        yield hub


def train(hub: Hub, folder: Path, *arguments: str, **variables: str) -> tuple[int, list[str], list[str]]:
    """Exit code, lines on standard error and requests to the hub; nothing may be left in the working folder."""
    here, before = folder / "here", len(hub.requests)
    here.mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "destruct.train", "--config", str(ROOT / "configs" / "base.yaml")]
        + ["engine.backend=single", *arguments],
        cwd=here,
        env=hub.environment(folder / "cache") | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert list(here.iterdir()) == [], "a run that cannot start leaves no folder"
    return done.returncode, done.stderr.splitlines(), hub.requests[before:]


@pytest.mark.parametrize(
    ("argument", "key"),
    [("run.seed=0", "model.policy.path"), ("model.policy.path=me/open", "model.value.path")],
    ids=["policy", "value"],
)
def test_without_access_to_the_gated_model_no_data_set_is_asked_for(hub, tmp_path, argument, key):
    code, lines, asked = train(hub, tmp_path, argument)
    assert (code, lines) == (
        Exit.ENVIRONMENT,
        [
            f"destruct: {key}: {MODEL} is gated, and this account has no access",
            f"  remedy: accept its terms at https://huggingface.co/{MODEL}, then `hf auth login` or set HF_TOKEN",
        ],
    )
    assert asked and not [request for request in asked if "datasets" in request]


def test_with_access_the_same_command_goes_on_to_the_data_sets(hub, tmp_path):
    """Without this, the test above would prove nothing about data sets; this hub has none."""
    code, lines, asked = train(hub, tmp_path, HF_TOKEN=hub.token)
    assert code == Exit.CONFIG and len(lines) == 2 and lines[0].startswith("destruct: source 'bookcorpusopen': ")
    assert [request for request in asked if "datasets/lucadiliello/bookcorpusopen" in request]


def test_offline_with_an_empty_cache_the_hub_is_not_asked_at_all(hub, tmp_path):
    code, lines, asked = train(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert (code, asked, len(lines)) == (Exit.ENVIRONMENT, [], 2)
    assert lines[0] == (
        f"destruct: model.policy.path: {MODEL} is not all in the cache, and HF_HUB_OFFLINE switches the hub off"
    )
    assert lines[1].startswith("  remedy: ") and f"hf download {MODEL}" in lines[1]
