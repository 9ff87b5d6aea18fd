"""The layout is a test: which file may import which, how long files and functions are, where collectives live.

A budget or a layer is changed here, in review; nothing is exempted.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "destruct"

LAYERS = (
    "__init__.py errors.py exits.py batch.py minibatch.py seeding.py user_function.py durable.py signals.py "
    "last_words.py config/ heartbeat.py secrets.py claim.py streams.py progress.py",
    "ops/ ppo/ curriculum/ evaluating/estimates.py",
    "data/ models/ engine/",
    "ppo/update.py curriculum/dials.py curriculum/probing.py curriculum/replay.py curriculum/round.py rollout/ "
    "checkpoint/ tracking/ evaluation.py run_folder.py warmup.py prompting.py drift.py ppo/distance.py "
    "watchdog.py guard.py setbacks.py events.py exporting/",
    "run.py inputs.py networks.py planning/ build.py loop.py preparation.py steps.py recording.py "
    "summarizing.py evaluating/",
    "doors.py train.py plan.py doctor.py checkup/ config/__main__.py configuring/ launch.py launching/ explain.py "
    "report.py reporting/ checkpoints.py verify_resume.py export.py generate.py evaluate.py",
)
LAYER = {name: layer for layer, names in enumerate(LAYERS) for name in names.split()}
"""A file's layer is that of the longest prefix of its path; it imports its own layer or a lower number."""

HOME = {
    "torch.distributed": ("engine/topology.py", "engine/fsdp.py"),
    "deepspeed.comm": ("engine/topology.py",),
    "tensorboard": ("tracking/board.py", "tracking/board_protos.py"),
    "torch.utils.tensorboard": ("tracking/board.py",),
    "wandb": ("tracking/uploader.py",),
    "deepspeed": (
        "engine/topology.py",
        "engine/deepspeed.py",
        "engine/deepspeed_files.py",
        "engine/deepspeed_start.py",
        "engine/universal.py",
    ),
}
"""Packages that only these files import: every collective of ours is in the topology, an adapter holds each backend."""

PURE = ("datetime", "io", "pathlib", "random", "socket", "subprocess", "tempfile", "time", "destruct.config")
"""What layer 1 does without: files, clocks, other processes, hidden randomness and the config."""

FILE_LINES, FUNCTION_LINES, NESTING = 300, 60, 3

Function = ast.FunctionDef | ast.AsyncFunctionDef
Block = ast.If | ast.For | ast.AsyncFor | ast.While | ast.With | ast.AsyncWith | ast.Try | ast.TryStar | ast.Match


def sources(package: Path) -> Iterator[tuple[str, ast.Module]]:
    """Path inside the package and syntax tree of each file."""
    for path in sorted(package.rglob("*.py")):
        yield path.relative_to(package).as_posix(), ast.parse(path.read_text(), str(path))


def layer_of(path: str) -> int | None:
    """The layer of a path such as `ppo/loss.py`, or None where no prefix of it is on the list."""
    prefixes = [prefix for prefix in LAYER if path == prefix or (prefix.endswith("/") and path.startswith(prefix))]
    return LAYER[max(prefixes, key=len)] if prefixes else None


def imported_modules(path: str, tree: ast.Module) -> set[str]:
    """Dotted names of all that a file imports, inside functions too; `from a import b` gives `a` and `a.b`."""
    package = ("destruct", *Path(path).parent.parts)
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            module = ".".join(filter(None, (base, node.module)))
            names.add(module)
            names.update(f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names.update(a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str))
    return names


def internal_imports(package: Path) -> Iterator[tuple[str, str]]:
    """Pairs (importing file, imported file) inside the package."""
    for path, tree in sources(package):
        for module in sorted(imported_modules(path, tree)):
            name = module.removeprefix("destruct.").replace(".", "/")
            if module.startswith("destruct.") and (package / f"{name}.py").is_file():
                yield path, f"{name}.py"
            elif module.startswith("destruct.") and (package / name).is_dir():
                yield path, f"{name}/__init__.py"


def layer_faults(package: Path) -> list[str]:
    """Files without a layer, and imports that point to a higher layer."""
    lost = [f"{path} has no layer" for path, _ in sources(package) if layer_of(path) is None]
    for here, there in internal_imports(package):
        own, other = layer_of(here), layer_of(there)
        if own is not None and other is not None and own < other:
            lost.append(f"{here} (layer {own}) imports {there} (layer {other})")
    return lost


def within(module: str, parents: Iterable[str]) -> bool:
    """Whether a dotted name is one of the parents or lies below one."""
    return any(module == parent or module.startswith(f"{parent}.") for parent in parents)


def attribute_chains(tree: ast.Module) -> set[str]:
    """Every `a.b.c` in a file: a collective is reached through `torch` as well as by an import of its own."""
    return {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def home_faults(package: Path) -> list[str]:
    """Uses of a package of `HOME` outside its files, and `dist.<anything>` outside the topology."""
    faults = []
    for path, tree in sources(package):
        chains = attribute_chains(tree)
        used = imported_modules(path, tree) | chains
        for module, files in HOME.items():
            if path not in files and any(within(name, [module]) for name in used):
                faults.append(f"{path} uses {module}; its home is {' or '.join(files)}")
        if path != "engine/topology.py" and any(within(chain, ["dist"]) for chain in chains):
            faults.append(f"{path} uses dist; its home is engine/topology.py")
    return faults


def purity_faults(package: Path) -> list[str]:
    """Imports of layer 1 that bring in a file, a clock or the config."""
    return [
        f"{path} imports {name}"
        for path, tree in sources(package)
        if layer_of(path) == 1
        for name in sorted(imported_modules(path, tree))
        if within(name, PURE)
    ]


def nesting(node: ast.AST) -> int:
    """Blocks inside one another (if, for, while, with, try, match); `elif` counts with its `if`, a function anew."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function | ast.ClassDef | ast.Lambda):
            continue
        is_elif = isinstance(node, ast.If) and isinstance(child, ast.If) and node.orelse == [child]
        deepest = max(deepest, nesting(child) + (isinstance(child, Block) and not is_elif))
    return deepest


def span(function: Function) -> int:
    """Lines from `def` to the last one, docstring included."""
    return (function.end_lineno or function.lineno) - function.lineno + 1


def size_faults(package: Path) -> list[str]:
    """Files, functions and nestings over their budgets."""
    faults = []
    for path, tree in sources(package):
        lines = len((package / path).read_text().splitlines())
        if lines > FILE_LINES:
            faults.append(f"{path} has {lines} lines, the budget is {FILE_LINES}")
        scopes = [("the module", tree)] + [(f"{n.name}()", n) for n in ast.walk(tree) if isinstance(n, Function)]
        for name, scope in scopes:
            if isinstance(scope, Function) and (length := span(scope)) > FUNCTION_LINES:
                faults.append(f"{path}: {name} has {length} lines, the budget is {FUNCTION_LINES}")
            if (depth := nesting(scope)) > NESTING:
                faults.append(f"{path}: {name} nests {depth} deep, the budget is {NESTING}")
    return faults


@pytest.mark.parametrize("faults", [layer_faults, home_faults, purity_faults])
def test_the_package_has_no(faults):
    assert not (found := faults(PACKAGE)), "\n" + "\n".join(found)


@pytest.mark.parametrize("folder", ["destruct", "bench", "tests"])
def test_sizes_are_within_their_budgets_in(folder):
    assert not (found := size_faults(ROOT / folder)), "\n" + "\n".join(found)


def test_config_imports_no_torch():
    """A config error is reported before the seconds that torch takes to import."""
    files = [path.relative_to(ROOT).with_suffix("") for path in sorted((PACKAGE / "config").rglob("*.py"))]
    imports = "; ".join(f"import {'.'.join(file.parts).removesuffix('.__init__')}" for file in files)
    heavy = "{'torch', 'deepspeed', 'transformers', 'datasets'}"
    code = f"import sys; {imports}; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_no_utils_module_and_no_unfinished_marks():
    files = [path for folder in ("destruct", "bench", "tests") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert not [path for path in files if "utils" in (path.stem, path.parent.name)]
    marks = re.compile(r"\b(TO" r"DO|FIX" r"ME|XX" r"X)\b")
    assert not [path for path in files if marks.search(path.read_text())]


def write(package: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    return package


def test_an_import_of_a_higher_layer_is_caught_however_it_is_written(tmp_path):
    upward = "def f():\n    from destruct.rollout import score\n"
    relative = "from ..rollout import score\n"
    dynamic = "import importlib\nimportlib.import_module('destruct.rollout.score')\n"
    files = {"ops/a.py": upward, "ops/b.py": relative, "ops/c.py": dynamic, "rollout/score.py": "import destruct.ops.a"}
    found = layer_faults(write(tmp_path, {**files, "rollout/__init__.py": "", "helper.py": ""}))
    assert "helper.py has no layer" in found
    upwards = {fault.split()[0] for fault in found if "rollout/score.py (layer 3)" in fault}
    assert upwards == {"ops/a.py", "ops/b.py", "ops/c.py"}
    assert not [fault for fault in found if fault.startswith("rollout")]


def test_the_longest_prefix_gives_the_layer():
    assert [layer_of(path) for path in ("ppo/loss.py", "ppo/update.py", "loop.py", "looping.py")] == [1, 3, 4, None]


def test_collectives_and_deepspeed_outside_their_homes_are_caught(tmp_path):
    files = {
        "engine/topology.py": "import torch.distributed as dist\ndist.barrier()",
        "engine/deepspeed.py": "import deepspeed",
        "loop.py": "from torch import distributed",
        "train.py": "import torch\ntorch.distributed.barrier()",
        "build.py": "import deepspeed.comm as comm",
        "evaluation.py": "from destruct.engine.topology import dist\ndist.barrier()",
    }
    found = home_faults(write(tmp_path, files))
    assert {fault.split()[0] for fault in found} == {"loop.py", "train.py", "build.py", "evaluation.py"}


def test_a_clock_in_layer_one_is_caught(tmp_path):
    files = {
        "ops/a.py": "from time import sleep",
        "ppo/b.py": "from destruct.config import ppo",
        "data/c.py": "import time",
    }
    found = purity_faults(write(tmp_path, files))
    assert {fault.split()[0] for fault in found} == {"ops/a.py", "ppo/b.py"}


def body(lines: int) -> str:
    return "def f():\n" + "    x = 0\n" * (lines - 1)


def test_a_function_of_61_lines_and_a_file_of_301_are_caught(tmp_path):
    files = {"a.py": body(60), "b.py": body(61), "c.py": "x = 0\n" * 300, "d.py": "x = 0\n" * 301}
    assert size_faults(write(tmp_path, files)) == [
        "b.py: f() has 61 lines, the budget is 60",
        "d.py has 301 lines, the budget is 300",
    ]


def nested(*heads: str) -> str:
    """A function whose blocks stand inside one another."""
    lines = ["def f(x):", *heads, "pass"]
    return "\n".join("    " * depth + line for depth, line in enumerate(lines))


def test_nesting_of_four_is_caught_and_elif_is_not_nesting(tmp_path):
    files = {
        "deep.py": nested("for i in x:", "with i:", "while i:", "if i:"),
        "shallow.py": nested("for i in x:", "with i:", "while i:"),
        "inner.py": nested("for i in x:", "with i:", "def g():", "while i:", "if i:"),
        "chain.py": "if x == 0:\n    pass\n" + "elif x:\n    pass\n" * 5,
    }
    assert size_faults(write(tmp_path, files)) == ["deep.py: f() nests 4 deep, the budget is 3"]
