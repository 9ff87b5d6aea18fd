"""Models of the hub: real `transformers` and `huggingface_hub` against a hub on this machine, what each fault says."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from destruct.exits import Exit
from tests.hub import Hub
from tests.models.hub_worker import READERS, TEXT, digests
from tests.pretrained import write_llama, write_reward_model

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow  # each process imports torch and transformers: about four seconds

KEYS = {
    "config": "model.policy.path",
    "policy": "model.policy.path",
    "value": "model.value.path",
    "reward": "reward.model.path",
    "tokenizer": "data.tokenizer.path",
}
OWNER, STRANGER, EXPIRED = "hf_accepted", "hf_of_somebody_else", "hf_expired"


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Name -> a folder, and the model that was saved in it."""
    root = tmp_path_factory.mktemp("models")
    writers = {
        "main": lambda folder: write_llama(folder, seed=0),
        "v2": lambda folder: write_llama(folder, seed=1),
        "whole": lambda folder: write_llama(folder, seed=2, shard="5GB"),
        "judge": write_reward_model,
    }
    return {name: (root / name, write(root / name)) for name, write in writers.items()}


@pytest.fixture(scope="module")
def hub(models):
    content = {name: files(folder) for name, (folder, _) in models.items()}
    with Hub() as hub:
        hub.add("models", "me/tiny", content["main"])
        hub.add("models", "me/tiny", content["v2"], revision="v2")
        hub.add("models", "me/whole", content["whole"])
        hub.add("models", "me/judge", content["judge"])
        hub.add("models", "me/begun", content["main"])
        hub.add("models", "me/begun-whole", content["whole"])
        hub.add("models", "me/late", content["main"])
        hub.add("models", "me/closed", content["main"], gated=True)
        hub.add("models", "me/dumb", {name: held for name, held in content["main"].items() if "token" not in name})
        hub.add("models", "me/hollow", {name: held for name, held in content["main"].items() if "model" not in name})
        yield hub


def read(hub: Hub, cache: Path, cases: dict[str, Any], *arguments: str, **variables: str) -> dict[str, Any]:
    """What a process of its own makes of the cases."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.hub_worker", *arguments],
        cwd=ROOT,
        env=hub.environment(cache) | variables,
        input=json.dumps(cases),
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def each(path: str, *more: str | None) -> dict[str, list[str | None]]:
    """One case for each thing that a run reads of a model."""
    return {f"{what} of {' '.join(filter(None, (path, *more)))}": [what, path, *more] for what in READERS}


GOOD = {
    "config": ["config", "me/tiny"],
    "policy": ["policy", "me/tiny"],
    "policy v2": ["policy", "me/tiny", "v2"],
    "value v2": ["value", "me/tiny", "v2"],
    "value in one file": ["value", "me/whole"],
    "reward": ["reward", "me/judge"],
    "tokenizer": ["tokenizer", "me/tiny"],
}
"""Read online first, then from the cache."""

BAD = {
    **each("me/nowhere"),
    **each("me/tiny", "v9"),
    **each("me/closed"),
    **each("me/closed", None, STRANGER),
    **each("me/late", None, EXPIRED),
    "no tokenizer": ["tokenizer", "me/dumb"],
    "no weights": ["policy", "me/hollow"],
    "opened": ["policy", "me/closed", None, OWNER],
}
BEGUN = {path: ["config", path] for path in ("me/begun", "me/begun-whole")}
"""Models of which the config alone is fetched."""

MISSING = {
    **each("me/late"),
    **{f"{what} begun": [what, "me/begun"] for what in ("policy", "value", "tokenizer")},
    "policy begun whole": ["policy", "me/begun-whole"],
}
"""What the cache lacks, wholly or in part."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def online(hub, cache):
    return read(hub, cache, GOOD | BAD | BEGUN)


def fault(outcome: Any, key: str, exit_code: Exit) -> tuple[str, str]:
    """Problem behind the key, and remedy; one line each."""
    assert isinstance(outcome, dict) and outcome.keys() == {"problem", "remedy", "exit_code"}, outcome
    problem, remedy = outcome["problem"], outcome["remedy"]
    assert "\n" not in problem + remedy and outcome["exit_code"] == exit_code, outcome
    assert problem.startswith(f"{key}: "), problem
    return problem.removeprefix(f"{key}: "), remedy


def faults(got: dict[str, Any], cases: dict[str, Any], exit_code: Exit) -> list[tuple[str, str, str]]:
    """Key of the config, problem and remedy of each case."""
    return [(KEYS[what], *fault(got[name], KEYS[what], exit_code)) for name, (what, *_) in cases.items()]


def test_each_revision_gives_its_own_weights_to_the_bit(online, models):
    main, second = (digests(dict(models[name][1].named_parameters())) for name in ("main", "v2"))
    assert online["policy"] == main and online["policy v2"] == second and main != second
    body = digests(models["v2"][1].model.state_dict())
    assert online["value v2"] == body and online["value in one file"] == digests(models["whole"][1].model.state_dict())
    assert online["reward"] == digests(models["judge"][1].state_dict())


def test_config_and_tokenizer_are_those_of_the_files(online, models):
    folder, lm = models["main"]
    assert online["config"] == lm.config.vocab_size
    assert online["tokenizer"] == tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).encode(TEXT).ids


def test_a_model_without_weights_or_tokenizer_is_no_fault_of_the_network(online):
    problem, remedy = fault(online["no tokenizer"], "data.tokenizer.path", Exit.CONFIG)
    assert problem == "me/dumb has no tokenizer that can be read" and "data.tokenizer.path" in remedy
    problem, _ = fault(online["no weights"], "model.policy.path", Exit.CONFIG)
    assert problem.startswith("me/hollow cannot be read: me/hollow does not appear to have a file named")


@pytest.mark.parametrize("token", [(), (None, STRANGER)], ids=["nobody", "a stranger"])
def test_a_gated_model_asks_for_its_terms_under_each_key(online, token):
    for _, problem, remedy in faults(online, each("me/closed", *token), Exit.ENVIRONMENT):
        assert problem == "me/closed is gated, and this account has no access"
        assert "https://huggingface.co/me/closed," in remedy and "`hf auth login` or set HF_TOKEN" in remedy


def test_a_gated_model_opens_with_the_right_token(online, models):
    assert online["opened"] == digests(dict(models["main"][1].named_parameters()))


def test_a_token_that_has_expired_is_to_be_renewed(online):
    for _, problem, remedy in faults(online, each("me/late", None, EXPIRED), Exit.ENVIRONMENT):
        assert problem == "me/late is refused by the hub: the token of this machine is not valid"
        assert "`hf auth login`" in remedy and "HF_TOKEN" in remedy


def test_an_id_or_a_revision_that_is_not_there_is_named_with_its_key(online):
    for key, problem, remedy in faults(online, each("me/nowhere"), Exit.CONFIG):
        assert problem == "me/nowhere is not on the hub, or is private"
        assert remedy.startswith(f"correct {key};") and "HF_TOKEN" in remedy
    for key, problem, remedy in faults(online, each("me/tiny", "v9"), Exit.CONFIG):
        assert problem == "me/tiny has no revision 'v9'"
        assert remedy.startswith(f"set {key.removesuffix('path')}revision to a branch, tag or commit")


def test_offline_the_cache_serves_and_what_it_lacks_is_told_with_the_switch_and_the_download(online, hub, cache):
    """Of the models that are begun transformers says, offline, that they have no weights and no tokenizer."""
    before = len(hub.requests)
    never = {"never fetched": ["policy", "me/tiny", "v9"]}
    got = read(hub, cache, GOOD | MISSING | never, HF_HUB_OFFLINE="1")
    assert len(hub.requests) == before
    assert {name: got[name] for name in GOOD} == {name: online[name] for name in GOOD}
    for key, problem, remedy in faults(got, MISSING, Exit.ENVIRONMENT):
        path = problem.partition(" ")[0]
        assert problem == f"{path} is not all in the cache, and HF_HUB_OFFLINE switches the hub off"
        assert remedy.startswith("unset it, or fetch it") and f"(hf download {path})" in remedy
        assert remedy.endswith(f"let {key} name a local folder")
    ((_, _, remedy),) = faults(got, never, Exit.ENVIRONMENT)
    assert "(hf download me/tiny --revision v9)" in remedy


@pytest.mark.parametrize("how", ["refused", "down"])
def test_without_a_hub_the_cache_serves_and_what_it_lacks_is_told(online, hub, cache, how):
    hub.down = how == "down"
    try:
        variables = {"HF_ENDPOINT": "http://127.0.0.1:9"} if how == "refused" else {}
        got = read(hub, cache, GOOD | MISSING, "impatient", **variables)
    finally:
        hub.down = False
    assert {name: got[name] for name in GOOD} == {name: online[name] for name in GOOD}
    for key, problem, remedy in faults(got, MISSING, Exit.ENVIRONMENT):
        path = problem.partition(" ")[0]
        assert problem == f"{path} is not all in the cache, and the hub cannot be reached"
        assert f"(hf download {path})" in remedy and remedy.endswith(f"let {key} name a local folder")


def test_weights_whose_download_breaks_off_again_and_again_are_a_fault_of_the_network(hub, tmp_path):
    hub.broken = ".safetensors"
    cases = {"one": ["policy", "me/whole"], "many": ["value", "me/tiny"]}
    try:
        got = read(hub, tmp_path, cases, "impatient")
    finally:
        hub.broken = None
    for _, problem, _ in faults(got, cases, Exit.ENVIRONMENT):
        assert problem.endswith("is not all in the cache, and the hub cannot be reached")


def test_a_cache_that_cannot_be_written_is_named(hub, tmp_path):
    (tmp_path / "file").write_text("in the way of a folder")
    cases = each("me/tiny")
    for _, problem, remedy in faults(read(hub, tmp_path / "file" / "cache", cases), cases, Exit.ENVIRONMENT):
        assert str(tmp_path / "file") in problem and "HF_HOME" in remedy
