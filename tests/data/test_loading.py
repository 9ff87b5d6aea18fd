"""The hub: real `datasets` and `huggingface_hub` against a hub on this machine, and what each fault says."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from destruct.exits import Exit
from tests.data.hub_datasets import EXPORT, fill, tales
from tests.hub import Hub

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow  # each process imports `datasets`: about a second and a half

WORKER = [sys.executable, "-m", "tests.data.hub_worker"]


@pytest.fixture(scope="module")
def hub():
    with Hub() as hub:
        fill(hub)
        yield hub


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def start(hub: Hub, cache: Path, *arguments: str, **variables: str) -> subprocess.Popen[str]:
    environment = hub.environment(cache) | {"PYTHONPATH": str(ROOT)} | variables
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [*WORKER, *arguments], cwd=cache, env=environment, stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )


def finish(process: subprocess.Popen[str], sources: dict[str, Any]) -> dict[str, Any]:
    out, err = process.communicate(json.dumps(sources), timeout=60)
    assert (process.returncode, err) == (0, ""), "loading is silent"
    return json.loads(out)


TALES = {"hub": "me/tales", "config": "long", "validation_split": "validation"}
PAIRS = {"hub": "me/pairs", "revision": EXPORT, "format": "translation"}

CASES: dict[str, dict[str, Any]] = {
    "tales": TALES,
    "split": TALES | {"split": "test"},
    "slice": TALES | {"split": "train[1:]", "validation_split": "train[:1]"},
    "sum": TALES | {"split": "train+test"},
    "revision": TALES | {"revision": "v1.0"},
    "capped": TALES | {"max_documents": 2},
    "config": {"hub": "me/tales", "config": "short"},
    "export": {"hub": "me/script", "revision": EXPORT, "format": "dialog"},
    "folder of the export": PAIRS | {"config": "en-fr", "validation_split": "test"},
    "translation": {"hub": "me/talks", "config": "en-fr", "format": "translation", "language": "fr"},
    "no config": {"hub": "me/tales"},
    "wrong config": {"hub": "me/tales", "config": "middle"},
    "wrong split": TALES | {"split": "training"},
    "wrong validation split": TALES | {"validation_split": "dev"},
    "wrong revision": TALES | {"revision": "v2.0"},
    "wrong column": TALES | {"column": "body"},
    "script": {"hub": "me/pairs"},
    "gated": {"hub": "me/closed", "config": "long"},
    "missing": {"hub": "me/nowhere"},
    "bare": {"hub": "me/bare"},
    "never a name": {"hub": "me/two--dashes"},
}


@pytest.fixture(scope="module")
def online(hub, cache):
    # A folder of the data set's name in the working folder is not the data set.
    (cache / "me" / "tales").mkdir(parents=True)
    (cache / "me" / "tales" / "train.txt").write_text("from the working folder\n")
    return finish(start(hub, cache), CASES)


def texts(outcome: dict[str, Any]) -> dict[str, list[str]]:
    assert "problem" not in outcome, outcome
    return {side: outcome[side] for side in ("train", "validation")}


def fault(outcome: dict[str, Any], exit_code: Exit = Exit.CONFIG) -> tuple[str, str]:
    assert outcome.keys() == {"problem", "remedy", "exit_code"}, outcome
    assert outcome["exit_code"] == exit_code and outcome["problem"].startswith("source 'mine': ")
    return outcome["problem"].removeprefix("source 'mine': "), outcome["remedy"]


def test_split_and_held_out_split_of_a_configuration_are_read_in_order_over_their_files(online):
    assert texts(online["tales"]) == {"train": ["first tale", "second tale", "third tale"], "validation": ["held out"]}
    assert online["capped"]["train"] == ["first tale", "second tale"]


def test_another_split_configuration_or_revision_gives_its_own_rows(online):
    assert online["split"]["train"] == ["tested on"]
    assert online["revision"]["train"][0] == "first tale, as it was"
    assert sorted(online["config"]["train"] + online["config"]["validation"]) == ["short a", "short b"]


def test_slices_and_sums_of_splits_work(online):
    """Row 1 of the file is empty."""
    assert texts(online["slice"]) == {"train": ["second tale", "third tale"], "validation": ["first tale"]}
    assert online["sum"]["train"] == ["first tale", "second tale", "third tale", "tested on"]


def test_the_hubs_own_conversion_of_a_script_is_read_with_its_folders_as_configurations(online):
    assert sorted(online["export"]["train"] + online["export"]["validation"]) == ["Bye.", "Hello.\nHi!"]
    got = texts(online["folder of the export"])
    assert got == {"train": ["en-fr train 1", "en-fr train 2"], "validation": ["en-fr test 1", "en-fr test 2"]}


def test_a_translation_that_the_data_sets_card_declares_gives_the_language_asked_for(online):
    assert sorted(online["translation"]["train"] + online["translation"]["validation"]) == ["Non.", "Oui."]


def test_configurations_and_splits_that_are_not_there_are_told_with_those_that_are(online):
    problem, remedy = fault(online["no config"])
    assert problem == "the hub's data set me/tales has several configurations: long, short"
    assert remedy == "set data.sources.mine.config to one of them"
    problem, _ = fault(online["wrong config"])
    assert problem == "the hub's data set me/tales has no configuration 'middle'; it has long, short"
    problem, remedy = fault(online["wrong split"])
    assert problem.endswith("configuration long has no split 'training'; it has train, validation, test")
    assert remedy == "set data.sources.mine.split to one of them"
    assert fault(online["wrong validation split"])[1] == "set data.sources.mine.validation_split to one of them"


def test_a_wrong_split_is_found_before_the_download(hub, tmp_path):
    before = len(hub.requests)
    finish(start(hub, tmp_path), {"one": CASES["wrong split"]})
    asked = hub.requests[before:]
    assert asked and not [request for request in asked if request.endswith(".parquet")]


def test_an_id_a_revision_or_a_column_that_is_not_there_is_named(online):
    problem, remedy = fault(online["missing"])
    assert problem == "the hub's data set me/nowhere does not exist, or is private"
    assert "data.sources.mine.hub" in remedy and "HF_TOKEN" in remedy
    problem, remedy = fault(online["wrong revision"])
    assert problem.endswith("has no revision 'v2.0'") and "data.sources.mine.revision" in remedy
    problem, remedy = fault(online["wrong column"])
    assert problem.endswith("me/tales, configuration long, split train has no column 'body'; it has 'text'")
    assert remedy == "set data.sources.mine.column: text"
    assert (
        fault(online["bare"])[0] == "the hub's data set me/bare holds no data files in this configuration and revision"
    )
    assert "HFValidationError" in fault(online["never a name"])[0]


def test_a_loading_script_is_refused_with_the_revision_that_works(online):
    problem, remedy = fault(online["script"])
    assert problem == "the hub's data set me/pairs is a loading script, which `datasets` no longer runs"
    assert remedy == "set data.sources.mine.revision: refs/convert/parquet, the hub's own conversion"


def test_a_copy_in_the_cache_does_not_hide_why_the_hub_refuses(online, hub, cache):
    """The export of `pairs` was loaded before; its main branch is a script still, and other folders are not there."""
    sources = {"script": {"hub": "me/pairs"}, "folder": PAIRS | {"config": "en-it"}, "export": CASES["export"]}
    sources["script of one"] = {"hub": "me/script"}
    got = finish(start(hub, cache), sources)
    for name in ("script", "script of one"):
        assert "is a loading script" in fault(got[name])[0]
    problem, remedy = fault(got["folder"])
    assert "holds no data files" in problem and remedy.endswith("/datasets/me/pairs/tree/refs%2Fconvert%2Fparquet")
    assert got["export"] == online["export"]


def test_a_gated_data_set_asks_for_its_terms_and_opens_with_the_right_token(online, hub, tmp_path):
    case = {"gated": CASES["gated"]}
    stranger = finish(start(hub, tmp_path, HF_TOKEN="hf_of_somebody_else"), case)
    for outcome in (online["gated"], stranger["gated"]):
        problem, remedy = fault(outcome, Exit.ENVIRONMENT)
        assert "is gated" in problem
        assert "https://huggingface.co/datasets/me/closed" in remedy and "`hf auth login` (or set HF_TOKEN)" in remedy
    opened = finish(start(hub, tmp_path, HF_TOKEN=hub.token), case)["gated"]
    assert "a secret" in opened["train"] + opened["validation"]
    before = len(hub.requests)
    offline = finish(start(hub, tmp_path, HF_HUB_OFFLINE="1"), case)["gated"]
    assert offline == opened and len(hub.requests) == before, "the cache asks for no token"


def test_ranks_that_start_together_download_each_file_once(hub, tmp_path):
    before = len(hub.requests)
    ranks = [start(hub, tmp_path) for _ in range(3)]
    for rank in ranks:  # all of them are told before one is waited for
        assert rank.stdin is not None
        rank.stdin.write(json.dumps({"one": TALES}))
        rank.stdin.close()
    for rank in ranks:
        assert rank.stdout is not None and rank.stderr is not None
        got = json.loads(rank.stdout.read())["one"]
        assert got["train"] == ["first tale", "second tale", "third tale"]
        assert (rank.wait(60), rank.stderr.read()) == (0, "")
        rank.stdout.close(), rank.stderr.close()
    fetched = [request for request in hub.requests[before:] if request.startswith("GET") and ".parquet" in request]
    assert len(fetched) == len(set(fetched)) == 4, "the four files of the configuration `long`"


def test_offline_the_cache_serves_what_was_loaded_and_nothing_of_another_revision(online, hub, tmp_path):
    sources = {
        "tales": TALES,
        "never loaded": {"hub": "me/other"},
        "config never loaded": {"hub": "me/tales", "config": "short"},
    }
    first = {"one": TALES}
    told = finish(start(hub, tmp_path), first)
    before = len(hub.requests)
    got = finish(start(hub, tmp_path, HF_HUB_OFFLINE="1"), sources)
    assert got["tales"] == told["one"] == online["tales"] and len(hub.requests) == before
    for name in ("never loaded", "config never loaded"):
        problem, remedy = fault(got[name], Exit.ENVIRONMENT)
        assert problem.endswith("cannot be reached on the hub, and the cache below HF_HOME does not hold it")
        assert "data.root" in remedy and "mine/train.*" in remedy


def test_offline_another_revision_than_the_newest_in_the_cache_is_refused(online, hub, cache):
    """`datasets` gives the newest copy of the configuration, whatever revision is asked for."""
    commits = {name: hub.repositories["datasets", "me/tales"].commit(name)[:12] for name in ("main", "v1.0")}
    sources = {"main": TALES, "v1.0": TALES | {"revision": "v1.0"}}
    got = finish(start(hub, cache, HF_HUB_OFFLINE="1"), sources)
    assert got["v1.0"] == online["revision"], "the later one of the two"
    problem, remedy = fault(got["main"], Exit.ENVIRONMENT)
    assert f"({commits['v1.0']}) is not of its revision main ({commits['main']})" in problem and "HF_HOME" in remedy


def test_offline_an_empty_cache_holds_nothing_and_says_what_to_do(tmp_path):
    with Hub() as hub:
        fill(hub)
        got = finish(start(hub, tmp_path, HF_HUB_OFFLINE="1"), {"tales": TALES, "script": CASES["export"]})
        assert not hub.requests
    for outcome in got.values():
        problem, remedy = fault(outcome, Exit.ENVIRONMENT)
        assert problem.endswith("cannot be reached on the hub, and the cache below HF_HOME does not hold it")
        assert remedy == "load it once where there is a network, or give data.root a folder with mine/train.*"


def test_the_fingerprint_is_known_without_a_download_and_is_that_of_the_data_read(online, hub, tmp_path):
    before = len(hub.requests)
    names = ("tales", "split", "slice", "revision", "capped", "export", "folder of the export")
    got = finish(start(hub, tmp_path, "open"), {name: CASES[name] for name in names})
    assert not [request for request in hub.requests[before:] if "GET" in request and request.endswith(".parquet")]
    assert [got[name]["fingerprint"] for name in names] == [online[name]["fingerprint"] for name in names]
    assert len({outcome["fingerprint"] for outcome in got.values()}) == len(names), "no two of them read the same"
    commit = hub.repositories["datasets", "me/tales"].commit("v1.0")
    by_commit = finish(start(hub, tmp_path, "open"), {"one": TALES | {"revision": commit}})["one"]
    assert by_commit == got["revision"], "whatever name the commit was asked for by"


def test_a_revision_that_moves_between_two_openings_changes_the_fingerprint_and_the_texts(tmp_path):
    with Hub() as hub:
        fill(hub)
        first = finish(start(hub, tmp_path), {"one": TALES})["one"]
        hub.add("datasets", "me/tales", tales("first tale, told anew"))
        moved = finish(start(hub, tmp_path), {"one": TALES})["one"]
        offline = finish(start(hub, tmp_path, HF_HUB_OFFLINE="1"), {"one": TALES})["one"]
    assert moved["fingerprint"] != first["fingerprint"] and offline == moved
    assert [outcome["train"][0] for outcome in (first, moved)] == ["first tale", "first tale, told anew"]


@pytest.mark.parametrize("how", ["refused", "down"])
def test_without_a_hub_the_remedy_names_the_folder_that_replaces_it(tmp_path, how):
    with Hub() as hub:
        hub.down = how == "down"
        variables = {"HF_ENDPOINT": "http://127.0.0.1:9"} if how == "refused" else {}
        got = finish(start(hub, tmp_path, "impatient", **variables), {"one": TALES})["one"]
    problem, remedy = fault(got, Exit.ENVIRONMENT)
    assert problem.startswith("the hub's data set me/tales cannot be reached on the hub")
    assert "data.root a folder with mine/train.*" in remedy


def test_a_cache_that_cannot_be_written_is_named(hub, tmp_path):
    (tmp_path / "file").write_text("in the way of a folder")
    blocked = str(tmp_path / "file" / "cache")
    got = finish(start(hub, tmp_path, HF_DATASETS_CACHE=blocked), {"one": TALES})["one"]
    problem, remedy = fault(got, Exit.ENVIRONMENT)
    assert f"{tmp_path / 'file'}" in problem and "cannot be written" in problem and "HF_HOME" in remedy
