"""The package as pip builds it."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
pytestmark = pytest.mark.slow  # pip and setuptools take some five seconds


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Built from a copy, as setuptools leaves its folder `build` where it works."""
    folder = tmp_path_factory.mktemp("wheel")
    bytecode = shutil.ignore_patterns("__pycache__")
    for name in ("destruct", "tests", "configs", "ds_configs", "launch"):
        shutil.copytree(ROOT / name, folder / "tree" / name, ignore=bytecode)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "tree")
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "wheel",
        "--quiet",
        "--no-index",
        "--no-deps",
    ]
    done = subprocess.run(
        [*command, "--no-build-isolation", "--wheel-dir", str(folder), str(folder / "tree")],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def metadata(wheel: zipfile.ZipFile):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_holds_every_module_of_the_package_and_nothing_else(wheel):
    """Its templates too; no tests, and none of configs/, ds_configs/ and launch/, which belong to a checkout."""
    parts = {
        path.relative_to(ROOT).as_posix()
        for kind in ("*.py", "*.html", "*.css")
        for path in (ROOT / "destruct").rglob(kind)
    }
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == parts and len(held) > 80


def test_the_wheel_names_the_dependencies_of_pyproject(wheel):
    said = metadata(wheel)
    wanted = {Requirement(line) for line in PROJECT["dependencies"]}
    given = {Requirement(line) for line in said.get_all("Requires-Dist")}
    assert {wish for wish in given if wish.marker is None} == wanted
    extras = PROJECT["optional-dependencies"].items()
    optional = {Requirement(f'{line}; extra == "{extra}"') for extra, lines in extras for line in lines}
    assert given - wanted == optional
    card = {"torch", "deepspeed", "transformers", "datasets", "numpy", "pydantic", "rich", "tensorboard"}
    assert card <= {wish.name for wish in wanted}
    assert (said["Name"], said["Version"], said["Requires-Python"]) == ("destruct", PROJECT["version"], ">=3.11")


def test_the_wheel_carries_the_licence(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith("/LICENSE"))
    text = wheel.read(name)
    assert text == (ROOT / "LICENSE").read_bytes() and b"Jacob Valdez & Dylan Lanigan" in text
    assert metadata(wheel)["License-Expression"] == "MIT"


def test_the_wheel_brings_the_command(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/entry_points.txt"))
    assert wheel.read(name).decode().split() == ["[console_scripts]", "destruct", "=", "destruct.doors:enter"]
