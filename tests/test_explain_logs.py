"""`destruct explain` on logs that are not of one piece: resumed, cut, damaged, of other sources, or just begun."""

import json
import shutil
from pathlib import Path

import pytest

from destruct.loop import train
from tests.recorded_runs import ROUNDS, lines, record_runs, refused, said, told, write
from tests.tiny import tiny_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    record_runs(folder, ["second_order"])
    return folder / "second_order"


@pytest.fixture
def log(whole, tmp_path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "log"))


def test_a_run_with_other_dials_in_between_is_said_not_to_be_reproduced(log, capsys):
    path = log / "resolved.yaml"
    path.write_text(path.read_text().replace("eta: 0.5", "eta: 0.25"))
    answer, text = told(capsys, log), said(capsys, log)
    assert not answer["reproduced"] and answer["notes"][0].startswith("replay: NOT the weights of the log from round 2")
    assert "resumed with other dials" in answer["notes"][0] and "The weights and targets are the log's" in text
    last = lines(log)[-1]
    assert answer["sources"]["arithmetic"]["target"] == last["curriculum/target/arithmetic"]


def test_where_sources_came_or_went_the_replay_begins_anew_and_says_so(log, capsys):
    entries = lines(log)
    before = [{key.replace("/noise", "/gone"): value for key, value in entry.items()} for entry in entries[:4]]
    write(log, [*before, *entries[4:]])
    answer = told(capsys, log)
    assert [each["round"] for each in answer["history"]] == [4, 5, 6, 7, 8]
    assert not answer["reproduced"] and "it does not begin where the run did" in answer["notes"][0]
    assert answer["notes"][1].startswith("sources came or went before round 4: the replay begins anew there")
    assert refused(capsys, log, "--round", 3) == (
        "there is no round 3 of arithmetic, noise",
        "take one of 4 to 8",
    )
    write(log, before)
    problem, remedy = refused(capsys, log)
    assert problem.startswith("the rounds are of arithmetic, gone, and") and remedy == "wait for its next round"


@pytest.mark.slow
def test_a_run_that_goes_on_with_a_new_source_is_explained_from_there(tmp_path, capsys):
    plan = ["run.num_epochs=1", "run.checkpoint_every=0", "ppo.epochs=1"]
    more = ["run.resume=auto", "data.sources.markov={embedded: markov}"]
    for updates, overrides in ((4, []), (8, more)):
        with tiny_run(tmp_path, *plan, f"run.updates_per_epoch={updates}", *overrides) as run:
            train(run)
    answer, last = told(capsys, run.folder), lines(run.folder)[-1]
    assert [each["round"] for each in answer["history"]] == [4, 5, 6, 7]
    assert answer["notes"][1].startswith("sources came or went before round 4")
    for name in ("arithmetic", "markov", "noise"):
        assert answer["sources"][name]["weight"] == last[f"curriculum/weight/{name}"]
    assert answer["sources"]["markov"]["prior"] == pytest.approx(1 / 3)


def test_a_log_that_begins_late_or_lacks_rounds_says_why_it_is_not_reproduced(log, capsys):
    entries = lines(log)
    write(log, entries[4:])
    late = told(capsys, log)["notes"]
    assert "it does not begin where the run did" in late[0] and late[1].startswith("the log begins with round 4: ")
    write(log, entries[:3] + entries[5:])
    assert "2 rounds are missing from the log, the first is 3" in told(capsys, log)["notes"][0]


def test_damaged_lines_are_skipped_and_counted(log, capsys):
    path = log / "metrics.jsonl"
    good = path.read_bytes()
    lacking = json.dumps({key: x for key, x in lines(log)[-1].items() if "epochs" not in key}).encode()
    path.write_bytes(
        good + lacking + b'\n{"phase": "ppo", "step": 9, "curriculum/ro\nno\n{"phase": "ppo"}\n{"phase": "pp'
    )
    answer = told(capsys, log)
    assert answer["rounds"] == ROUNDS and answer["reproduced"]
    assert answer["notes"][1] == "damaged lines of metrics.jsonl, which were skipped: 4"


def test_before_the_third_round_it_says_how_many_updates_are_left(log, capsys):
    path = log / "resolved.yaml"
    path.write_text(path.read_text().replace("refresh_every: 1", "refresh_every: 4"))
    write(log, [*lines(log)[:2], {"phase": "ppo", "step": 4, "ppo/steps": 4.0}])
    assert told(capsys, log)["notes"][-1] == "no weight moves before the third round, in 3 updates"
    write(log, [{"phase": "warmup", "step": 0, "warmup/lm_loss": 6.0}])
    problem, remedy = refused(capsys, log)
    assert problem == f"{log / 'metrics.jsonl'} has no round yet" and "after 8 updates" in remedy
