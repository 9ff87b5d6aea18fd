"""The short form of the campaign: some kills of one run, damage to its checkpoints, a crash at every call of a save."""

import json
import random
import shutil

import pytest

from tests.faults import damage, kills, page, publishing, trials
from tests.faults.trials import CannotRun, Trials


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nobody strikes, with its digest."""
    folder = tmp_path_factory.mktemp("faults") / "whole"
    return folder / "tiny", kills.undisturbed(folder)


@pytest.mark.distributed
@pytest.mark.slow
def test_a_run_that_is_killed_four_times_ends_as_if_nothing_had_been(whole, tmp_path):
    """A rank while files are written, both launchers in a step, everything while the pointer is moved."""
    chain = kills.Chain(tmp_path, random.Random(1))
    for target, aim in (("rank 1", "stage"), ("launcher", "step"), ("wrapper", "step"), ("everything", "pointer")):
        assert chain.struck_life(kills.Kill(target, aim)), f"{target} was not struck"
    chain.last_life()
    assert [kill.code for kill in chain.kills] == [76, 75, -9, -9]
    assert not (chain.unrecoverable + chain.silent_restarts + chain.orphaned)
    assert kills.final_digest(chain.run) == whole[1]


@pytest.mark.distributed
@pytest.mark.slow
@pytest.mark.parametrize("fault", damage.FAULTS)
def test_whatever_befalls_a_file_of_a_real_checkpoint_is_named_and_the_one_before_it_taken(whole, fault, tmp_path):
    shutil.copytree(whole[0] / "checkpoints", tmp_path / "checkpoints")
    outcome = damage.at_every_file(tmp_path / "checkpoints", fault)
    assert outcome["corruptions"] >= 4 and not outcome["wrong"], "\n".join(outcome["wrong"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "calls"), [(publishing.KILLED, publishing.CHANGING), ("error=ENOSPC", ("write", "rename"))]
)
def test_at_every_call_that_changes_the_disk_a_save_may_be_killed_or_refused(how, calls, tmp_path):
    try:
        outcome = publishing.every_call(tmp_path / "place", "save", "publish", how, calls)
    except CannotRun as reason:
        pytest.skip(str(reason))
    assert outcome["calls"] >= 8 and not outcome["wrong"], "\n".join(outcome["wrong"])
    assert outcome["crashes"] == (outcome["calls"] if how == publishing.KILLED else 0)


def test_a_finished_trial_is_not_made_again_on_the_same_code_and_those_of_other_code_do_not_count(tmp_path):
    path = tmp_path / "results.jsonl"
    other = {"part": "kills", "trial": "a", "code": "another", "commit": "", "seconds": 5, "kills": 7, "wrong": []}
    path.write_text(json.dumps(other) + "\n")
    made = []

    def trial() -> dict:
        made.append(1)
        return {"kills": 3, "orphans": 1, "wrong": ["one is left"]}

    for _ in range(2):
        Trials(path, tmp_path, 9).make("kills", "a", trial)
    Trials(path, tmp_path, 9).make("kills", "b", trial)
    figures = Trials(path, tmp_path, 9).figures()
    assert len(made) == 2 and (figures["kills"], figures["orphans"], figures["undetected"]) == (6, 2, 0)
    assert len(trials.read(path)) == 3


def test_the_page_says_what_the_results_file_says():
    text = page.PAGE.read_text(encoding="utf-8")
    shown = text[text.index(page.BEGIN) : text.index(page.END) + len(page.END)]
    assert shown == page.rendered(trials.read(trials.RESULTS)), "write it anew: python -m tests.faults.campaign"


def test_every_trial_of_the_results_stands_in_one_row_of_the_page():
    lines = page.newest_of_each_part(trials.read(trials.RESULTS))
    for line in lines:
        rows = [row for row in page.ROWS if row.part == line["part"] and any(w in line["trial"] for w in row.words)]
        assert rows or line["part"] in ("bare", "cost"), line["trial"]
