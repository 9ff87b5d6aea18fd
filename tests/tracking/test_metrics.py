"""The table of metrics: unknown names are refused, what the loop writes is listed, and what is listed is written."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from destruct.curriculum.estimates import Estimates, Floats
from destruct.ppo.update import UpdateStats
from destruct.tracking.metrics import METRICS, check_name
from destruct.tracking.watch import Watch

PACKAGE = Path(__file__).resolve().parents[2] / "destruct"
FILES = ("loop.py", "preparation.py", "steps.py", "recording.py")
TREES = [ast.parse((PACKAGE / name).read_text()) for name in FILES]
NAMED = ("sinks.text", "sinks.histogram")
NAME = re.compile(r"[a-z]+(/[a-z_{}]+)+")


@pytest.mark.parametrize("name", ["ppo/aprox_kl", "curriculum/weight", "rollout", "", "ppo/", "time/a/b", "a/b/c"])
def test_a_name_that_the_table_does_not_list_is_refused_by_name(name):
    with pytest.raises(KeyError, match=re.escape(repr(name))):
        check_name(name)


@pytest.mark.parametrize(
    "name", ["ppo/approx_kl", "curriculum/weight/anything", "rollout/reward", "rollout/reward/c-3"]
)
def test_listed_names_pass_and_so_does_any_member_of_a_family(name):
    check_name(name)


def test_every_metric_is_a_group_and_a_stem_with_unit_and_meaning():
    for name, metric in METRICS.items():
        assert re.fullmatch(r"[a-z]+/[a-z0-9_]+(/<[a-z]+>)?", name), name
        assert metric.unit and metric.meaning and not metric.meaning.endswith("."), name


def titles(tree: ast.Module) -> Iterator[ast.expr]:
    """What `sinks.text` and `sinks.histogram` are called with: names that the table does not list."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    yield from (argument for call in calls if ast.unparse(call.func).endswith(NAMED) for argument in call.args)


def written() -> Iterator[str]:
    """Every "group/name" in the two files that log, with {} for what is computed: "curriculum/{}/{}"."""
    for tree in TREES:
        parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
        parts |= {id(title) for title in titles(tree)}
        for node in ast.walk(tree):
            text = ""
            if isinstance(node, ast.JoinedStr):
                text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts:
                text = node.value
            if NAME.fullmatch(text):
                yield text


def listed(text: str) -> list[str]:
    """Entries of the table that a written name can stand for."""
    pattern = re.compile(re.escape(text).replace(r"\{\}", "[^/]+"))
    return [name for name in METRICS if pattern.fullmatch(name)]


def words() -> set[str]:
    """Strings that the two files hold, and fields of what updates and rounds return: the stems of computed names."""
    constants = [node.value for tree in TREES for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    figures = {field.name for made in (UpdateStats, Estimates) for field in fields(made)}
    return {text for text in constants if isinstance(text, str)} | figures


def test_every_name_that_the_loop_writes_is_in_the_table():
    assert len(set(written())) > 20, "the search finds something"
    assert not [text for text in written() if not listed(text)]


def test_every_entry_of_the_table_is_written_somewhere():
    """Word for word but for a family's member, or by a computed stem that is a word of the same files."""
    patterns = set(written())
    for name in METRICS:
        group, stem, *member = name.split("/")
        exact = "/".join([group, stem, *("{}" for _ in member)])
        computed = "/".join([group, "{}", *("{}" for _ in member)])
        assert exact in patterns or (computed in patterns and stem in words()), name


def test_the_figures_of_a_round_are_the_families_of_the_curriculum():
    """The weights, the target, and every field of the estimates that is of a source."""
    figures = ["weight", "target", *(field.name for field in fields(Estimates) if field.type == Floats)]
    names = [f"curriculum/{figure}/<source>" for figure in figures]
    assert sorted(names) == sorted(name for name in METRICS if re.fullmatch("curriculum/.*<source>", name))


def test_every_figure_of_an_update_and_every_phase_of_the_watch_is_in_the_table():
    figures = [
        f"ppo/{field.name}" for field in fields(UpdateStats) if field.name not in ("epochs", "ratios", "not_finite")
    ]
    calls = [node for tree in TREES for node in ast.walk(tree) if isinstance(node, ast.Call) and node.args]
    phases = [call.args[0].value for call in calls if ast.unparse(call.func) in ("watch", "run.watch")]
    assert len(phases) >= 7
    assert not [name for name in [*figures, *(f"time/{phase}" for phase in phases)] if name not in METRICS]


def test_the_watch_adds_up_a_phases_seconds_also_when_its_block_fails(monkeypatch):
    clock = iter([10.0, 11.5, 20.0, 20.25, 30.0, 33.0])
    monkeypatch.setattr("destruct.tracking.watch.time.perf_counter", lambda: next(clock))
    watch = Watch()
    for _ in range(2):
        with watch("score"):
            pass
    with pytest.raises(ZeroDivisionError), watch("update"):
        raise ZeroDivisionError
    assert watch.take() == {"score": 1.75, "update": 3.0}
    assert watch.take() == {}, "each second is told once"
