"""`destruct checkpoints`: what it tells, deletes and picks, on the folder of a run that `auto` then goes on from."""

import json
import shutil
from pathlib import Path

import pytest

from destruct.checkpoint.shelf import STATE
from destruct.checkpoint.state import TrainState
from destruct.checkpoint.store import CheckpointStore
from destruct.checkpoints import main
from tests.checkpoint.test_store import ALONE, publish, write
from tests.test_doors import go

FACTS = {"ranks": 2, "engine.backend": "deepspeed"}


@pytest.fixture
def run(tmp_path) -> Path:
    """A run with checkpoints after 1, 3, 6 and 9 updates; the third was the best until the ninth."""

    def save(update: int, best: int, loss: float) -> None:
        def with_state(stage: Path) -> None:
            write(stage)
            TrainState(kl_coef=0.1, update=update, best_update=best, best_loss=loss).save(stage / STATE)

        publish(store, update, [with_state], FACTS, best=update == best)

    store = CheckpointStore(tmp_path / "mine" / "checkpoints", ALONE, keep=9)
    for update, best, loss in ((1, 1, 5.0), (3, 3, 4.0), (6, 3, 4.0), (9, 9, 3.0)):
        save(update, best, loss)
    return tmp_path / "mine"


def told(capsys, *arguments: str) -> tuple[int, list[dict]]:
    capsys.readouterr()
    code = main([*arguments, "--json"])
    out = capsys.readouterr().out
    return code, json.loads(out[out.index("{") :])["checkpoints"]


def names(run: Path) -> list[str]:
    return sorted(path.relative_to(run / "checkpoints").as_posix() for path in (run / "checkpoints").rglob("step-*"))


def step(update: int) -> str:
    return f"step-{update:08d}"


def test_the_list_tells_newest_first_of_whom_each_is_and_which_the_pointers_name(run, capsys):
    code, entries = told(capsys, str(run))
    assert code == 0
    assert [(entry["name"], entry["pointers"]) for entry in entries] == [
        (step(9), ["latest", "best"]),
        (step(6), []),
        (step(3), []),
        (step(1), []),
    ]
    assert {(entry["ranks"], entry["backend"], entry["fault"]) for entry in entries} == {(2, "deepspeed", None)}
    files = [path for path in (run / "checkpoints" / step(9)).rglob("*") if path.is_file()]
    assert entries[0]["mib"] == sum(len(path.read_bytes()) for path in files) / 2**20


def test_a_flipped_bit_is_told_by_verify_alone_and_another_size_by_both(run, capsys):
    victim = run / "checkpoints" / step(6) / "policy" / "state.pt"
    victim.write_bytes(b"W" + victim.read_bytes()[1:])
    (run / "checkpoints" / step(3) / "policy" / "state.pt").write_bytes(b"")
    code, entries = told(capsys, str(run))
    assert code == 3 and [bool(entry["fault"]) for entry in entries] == [False, False, True, False]
    code, entries = told(capsys, str(run), "--verify")
    assert code == 3 and [bool(entry["fault"]) for entry in entries] == [False, True, True, False]
    assert entries[1]["fault"] == f"{victim} is not the file that was saved: its digest is another one"


def test_prune_counts_the_whole_ones_and_keeps_the_best(run, capsys):
    assert told(capsys, str(run), "--pick", step(6))[0] == 0
    (run / "checkpoints" / step(6) / "policy" / "state.pt").write_bytes(b"")
    assert names(run) == ["given-up/" + step(9), step(1), step(3), step(6)]
    code, entries = told(capsys, str(run), "--prune", "2")
    assert code == 0 and names(run) == [step(1), step(3)]
    code, entries = told(capsys, str(run), "--prune", "1")
    assert [entry["name"] for entry in entries] == [step(3)]


@pytest.mark.parametrize("keep", ["0", "1"])
def test_prune_never_leaves_none_that_is_whole(run, capsys, keep):
    if keep == "1":
        for path in run.rglob("state.pt"):
            path.write_bytes(b"")
    before = names(run)
    assert main([str(run), "--prune", keep]) == 2
    assert "would leave no checkpoint that is whole" in capsys.readouterr().err
    assert names(run) == before


def test_the_picked_one_is_where_auto_goes_on_and_the_best_is_that_of_its_time(run, capsys):
    code, entries = told(capsys, str(run), "--pick", step(6))
    assert code == 0
    assert [(entry["name"], entry["pointers"]) for entry in entries] == [
        (step(6), ["latest"]),
        (step(3), ["best"]),
        (step(1), []),
    ]
    assert CheckpointStore(run / "checkpoints", ALONE, keep=2).latest().folder.name == step(6)
    shutil.move(run / "checkpoints" / "given-up" / step(9), run / "checkpoints" / step(9))
    assert told(capsys, str(run), "--pick", step(9))[1][0]["pointers"] == ["latest", "best"], "and back again"


@pytest.mark.parametrize(
    ("name", "problem", "remedy"),
    [
        (step(4), f"holds no checkpoint '{step(4)}'", f"name one of: {step(9)}, {step(6)}, {step(3)}, {step(1)}"),
        ("../mine", "holds no checkpoint '../mine'", "name one of"),
        (step(3), "state.pt is not the file that was saved: 0 bytes instead of 10", "pick another one"),
    ],
)
def test_what_cannot_be_picked_is_refused_and_nothing_moves(run, capsys, name, problem, remedy):
    (run / "checkpoints" / step(3) / "policy" / "state.pt").write_bytes(b"")
    before = names(run)
    assert main([str(run), "--pick", name]) == 2
    said = capsys.readouterr().err
    assert problem in said and remedy in said and names(run) == before


def test_the_door_needs_no_torch_and_prints_a_table(run, tmp_path):
    done, modules = go(tmp_path, "checkpoints", str(run))
    assert "torch" not in modules
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 5
    assert done.stdout.splitlines()[1].split()[0] == step(9)
