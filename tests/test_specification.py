"""docs/specification.md names files, functions, keys and tests that exist; and what it says of `make` and pip holds."""

import ast
import json
import os
import re
import shutil
import subprocess
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "specification.md"
HEAD = ["Asked", "Where", "Test", "Note"]


def rows(text: str) -> list[list[str]]:
    """The cells of every row of every table below its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row in cells if row != HEAD and set("".join(row)) != {"-"}]


@cache
def names_in(path: Path) -> frozenset[str]:
    """Functions, classes, methods and assigned names of a Python file."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found.update(target.id for target in targets if isinstance(target, ast.Name))
    return frozenset(found)


def functions_of_tests(path: Path) -> set[str]:
    """Test functions of a file."""
    tree = ast.parse(path.read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


def holds(path: Path, name: str) -> bool:
    """Whether a Python file defines `name`, or a YAML or JSON file has this dotted key."""
    if path.suffix == ".py":
        return name in names_in(path)
    place: Any = yaml.safe_load(path.read_text()) if path.suffix == ".yaml" else json.loads(path.read_text())
    for key in name.split("."):
        if not isinstance(place, dict) or key not in place:
            return False
        place = place[key]
    return True


def faults(text: str, root: Path) -> list[str]:
    """Rows of the page that are not four cells, name nothing, or name what is not there."""
    found = []
    for row in rows(text):
        if len(row) != len(HEAD):
            found.append(f"{row[0]}: {len(row)} cells")
            continue
        asked, where, tests, note = row
        places, shown = re.findall(r"`([^`]+)`", where), re.findall(r"`([^`]+)`", tests)
        for place in places:
            path, _, name = place.partition(": ")
            if not (root / path).exists() or (name and not holds(root / path, name)):
                found.append(f"{asked}: no {place}")
        for test in shown:
            path, _, name = test.partition("::")
            if not (root / path).is_file() or name not in functions_of_tests(root / path):
                found.append(f"{asked}: no {test}")
        if not places:
            found.append(f"{asked}: no place")
        if not shown and not (tests == "—" and note):
            found.append(f"{asked}: no test, and no word of it")
    return found


def test_every_path_and_name_of_the_table_is_there():
    text = PAGE.read_text(encoding="utf-8")
    assert len(rows(text)) > 50
    assert not (found := faults(text, ROOT)), "\n" + "\n".join(found)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ("| a | `code.py: f`, `code.py: K` | `test_code.py::test_f` | |", None),
        ("| a | `run.yaml: ppo.epochs` | — | as there is nothing to run |", None),
        ("| a | `code.py` | — | |", "a: no test, and no word of it"),
        ("| a | words | `test_code.py::test_f` | |", "a: no place"),
        ("| a | `gone.py` | `test_code.py::test_f` | |", "a: no gone.py"),
        ("| a | `code.py: g` | `test_code.py::test_f` | |", "a: no code.py: g"),
        ("| a | `run.yaml: ppo.epoch` | `test_code.py::test_f` | |", "a: no run.yaml: ppo.epoch"),
        ("| a | `code.py` | `test_code.py::test_g` | |", "a: no test_code.py::test_g"),
        ("| a | `code.py` | `test_code.py` | |", "a: no test_code.py"),
        ("| a | `code.py` | `test_code.py::test_f` |", "a: 3 cells"),
    ],
)
def test_a_row_that_names_what_is_not_there_is_caught(tmp_path, row, fault):
    (tmp_path / "code.py").write_text("K: int = 1\ndef f():\n    pass\n")
    (tmp_path / "test_code.py").write_text("def test_f():\n    'def test_g():'\n")
    (tmp_path / "run.yaml").write_text("ppo: {epochs: 2}\n")
    page = f"# Page\n\n| Asked | Where | Test | Note |\n|---|---|---|---|\n{row}\n"
    assert faults(page, tmp_path) == ([] if fault is None else [fault])


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_train_is_the_launchers_line_on_the_local_config():
    arguments = ["make", "--dry-run", "--no-print-directory", "train", "NUM_GPUS=2", "ARGS=ppo.epochs=1"]
    # The tests run under make too, whose flags are not those of a person at a terminal.
    outside = {name: value for name, value in os.environ.items() if not name.startswith("MAKE") and name != "MFLAGS"}
    done = subprocess.run(arguments, cwd=ROOT, env=outside, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    line = "deepspeed --num_gpus 2 -m destruct.train --config configs/local.yaml ppo.epochs=1"
    assert done.stdout.splitlines()[-1] == f"source launch/env.sh && {line}"


def test_every_requirement_of_pyproject_is_pinned_within_its_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["test"]]
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and line[0] != "#"]
    # A CUDA build of torch asks for one version of triton, the CPU's for none: what torch brings stays.
    assert [line for line in lines if "==" not in line] == ["triton>=3.6"]
    pinned = dict(line.replace(">=", "==").split("==") for line in lines)
    outside = [str(wish) for wish in wanted if not wish.specifier.contains(pinned.get(wish.name, "0"))]
    assert not outside and pinned.keys() == {wish.name for wish in wanted} | {"setuptools"}
