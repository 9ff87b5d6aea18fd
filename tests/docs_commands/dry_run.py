"""A command held against what would read it: programs, sub-commands, options, files, make targets and the whole config.

Nothing is trained.  `check` raises `Refused` with the reason; a program that it does not know is refused, too.
"""

import contextlib
import io
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from argparse import Namespace
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

from destruct import doors
from destruct.config.settings import load
from destruct.errors import DestructError
from tests.docs_commands.parsers import Refused, parsed, read_by
from tests.docs_commands.session import environment

CONTROL = {"&&", "||", ";", "|", "&"}
THERE = (
    "cat",
    "cp",
    "du",
    "echo",
    "git",
    "head",
    "ls",
    "mkdir",
    "ruff",
    "mypy",
    "pytest",
    "sort",
    "tail",
    "tensorboard",
    "wandb",
)
"""Programs of which it is enough that they are there."""


def check(command: str, checkout: Path) -> None:
    """Hold a command, which may be several behind one another, against what would read it."""
    done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, text=True)
    if done.returncode:
        raise Refused(done.stderr.strip())
    for words in simple_commands(command):
        _check(words, checkout)


def simple_commands(command: str) -> Iterator[list[str]]:
    """The words of each simple command, without comments, redirections and assignments before the program."""
    reader = shlex.shlex(command, posix=True, punctuation_chars=True)
    reader.whitespace_split, reader.commenters = True, "#"
    words: list[str] = []
    redirected = False
    for word in [*reader, ";"]:
        if word in CONTROL:
            while words and re.match(r"\w+=", words[0]):
                words = words[1:]
            if words:
                yield words
            words = []
        elif redirected or re.fullmatch(r"[<>]+&?|&>", word):
            redirected = not redirected
        else:
            words.append(word)


def _check(words: list[str], checkout: Path) -> None:
    program, arguments = Path(words[0]).name, words[1:]
    if program in PROGRAMS:
        PROGRAMS[program](arguments, checkout)
    elif (checkout / words[0]).is_file():
        _script(checkout / words[0])
    elif program not in THERE:
        raise Refused(f"nobody here knows how to check {program}: run the block, or teach tests/docs_commands")
    elif shutil.which(program) is None and not (checkout / ".venv" / "bin" / program).exists():
        raise Refused(f"there is no program {program}")


def _source(arguments: list[str], checkout: Path) -> None:
    if not (checkout / arguments[0]).is_file():
        raise Refused(f"there is no file {arguments[0]}")
    _script(checkout / arguments[0])


def _export(arguments: list[str], checkout: Path) -> None:
    if not all(re.match(r"\w+=", word) for word in arguments):
        raise Refused("export without a value")


def _timeout(arguments: list[str], checkout: Path) -> None:
    """What stands behind the options and the seconds."""
    behind = next(place for place, word in enumerate(arguments) if re.fullmatch(r"\d+[smh]?", word))
    _check(arguments[behind + 1 :], checkout)


def _hf(arguments: list[str], checkout: Path) -> None:
    tool = checkout / ".venv" / "bin" / "hf"
    words = arguments[: 2 if arguments[0] == "auth" else 1]
    if subprocess.run([tool, *words, "--help"], capture_output=True, timeout=60).returncode:
        raise Refused(f"hf has no command {' '.join(words)}")


def _pip(arguments: list[str], checkout: Path) -> None:
    """Extras of ours are those of pyproject.toml."""
    project = tomllib.loads((checkout / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for word in arguments:
        if (extra := re.fullmatch(r"destruct\[(\w+)\]", word)) and extra[1] not in project["optional-dependencies"]:
            raise Refused(f"destruct has no extra {extra[1]}")


def _make(arguments: list[str], checkout: Path) -> None:
    """The target's own commands, as `make -n` has them."""
    done = subprocess.run(
        ["make", "-n", *arguments], cwd=checkout, env=environment(checkout), capture_output=True, text=True
    )
    if done.returncode:
        raise Refused(done.stderr.strip())
    for words in simple_commands(done.stdout.replace("\\\n", " ").replace("\n", ";")):
        if Path(words[0]).name in ("deepspeed", "destruct", "python", "sbatch"):
            _check(words, checkout)


def _script(path: Path) -> None:
    if (
        path.suffix in (".sh", ".sbatch")
        and (done := subprocess.run(["bash", "-n", path], capture_output=True, text=True)).returncode
    ):
        raise Refused(done.stderr.strip())


def _python(arguments: list[str], checkout: Path, ranks: int = 1) -> None:
    if not arguments or arguments[0] == "-c":
        compile(arguments[1], "-c", "exec")
        return
    module, rest = (arguments[1], arguments[2:]) if arguments[0] == "-m" else (arguments[0], arguments[1:])
    if module.startswith("destruct.") and module.removeprefix("destruct.") in doors.DOORS:
        _door([module.removeprefix("destruct."), *rest], checkout, ranks)
    elif module.endswith(".py") or module.startswith(("bench.", "tests.")):
        options = read_by(module, tuple(rest), checkout)
        if "config" in options:
            _check_config(Namespace(**options), checkout, ranks)
    elif module == "pytest" or find_spec(module) is None:
        _pytest(rest, checkout) if module == "pytest" else _refuse(f"there is no module {module}")


def _refuse(reason: str) -> None:
    raise Refused(reason)


def _pytest(arguments: list[str], checkout: Path) -> None:
    for word in arguments:
        if "/" in word and not (checkout / word.partition("::")[0]).exists():
            raise Refused(f"there is no {word}")


def _door(arguments: list[str], checkout: Path, ranks: int | None = None) -> None:
    """A command of `destruct`, by its own parser and, where it takes a config, the config's own reading."""
    if arguments[:2] == ["launch", "slurm"] or arguments[:2] == ["launch", "local"]:
        _dry_launch([word for word in arguments if word not in ("--submit", "--dry-run")], checkout)
        return
    options = parsed(arguments, checkout)
    if options is not None and getattr(options, "config", None) is not None:
        given = getattr(options, "ranks", None) or getattr(options, "gpus", None)
        _check_config(options, checkout, ranks or int(re.match(r"\d+", str(given or 1))[0]))


def _dry_launch(arguments: list[str], checkout: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "destruct.doors", *arguments, "--dry-run"],
        cwd=checkout,
        env=environment(checkout),
        capture_output=True,
        text=True,
        timeout=60,
    )
    if done.returncode:
        raise Refused(done.stderr.strip())


def _check_config(options: Namespace, checkout: Path, ranks: int) -> None:
    overrides = list(getattr(options, "overrides", []))
    try:
        with contextlib.chdir(checkout):
            load(Path(options.config), overrides, ranks)
    except DestructError as error:
        raise Refused(str(error)) from None


def _deepspeed(arguments: list[str], checkout: Path) -> None:
    from deepspeed.launcher.runner import parse_args

    cut = next((place for place, word in enumerate(arguments) if word in ("-m", "--module")), None)
    if cut is None:
        raise Refused("deepspeed without -m")
    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            own = parse_args([*arguments[:cut], "script.py"])
        except SystemExit:
            raise Refused(said.getvalue().strip()) from None
    _python(["-m", *arguments[cut + 1 :]], checkout, max(1, own.num_gpus) * max(1, own.num_nodes))


def _torchrun(arguments: list[str], checkout: Path) -> None:
    from torch.distributed.run import get_args_parser

    with contextlib.redirect_stderr(io.StringIO()) as said:
        try:
            own = get_args_parser().parse_args(arguments)
        except SystemExit:
            raise Refused(said.getvalue().strip()) from None
    ranks = int(own.nproc_per_node) * int(own.nnodes.rpartition(":")[2])
    _python(["-m", own.training_script, *own.training_script_args], checkout, ranks)


def _sbatch(arguments: list[str], checkout: Path) -> None:
    """The script's syntax, the options that it has too, and the config for that many tasks."""
    cut = next(place for place, word in enumerate(arguments) if not word.startswith("-"))
    script, rest = checkout / arguments[cut], arguments[cut + 1 :]
    if not script.is_file():
        raise Refused(f"there is no script {arguments[cut]}")
    _script(script)
    own = re.findall(r"^#SBATCH (--\S+)", script.read_text(), re.MULTILINE)
    options = dict(word.removeprefix("--").partition("=")[::2] for word in [*own, *arguments[:cut]])
    known = {word.partition("=")[0] for word in own} | {"--partition", "--account", "--qos"}
    for word in arguments[:cut]:  # sbatch itself answers nothing where there is no cluster
        if word.partition("=")[0] not in known:
            raise Refused(f"{word} is none of the options of {arguments[cut]}")
    config = rest.pop(0) if rest and "=" not in rest[0] else "configs/base.yaml"
    ranks = int(options["nodes"]) * int(options["ntasks-per-node"])
    _check_config(Namespace(config=config, overrides=rest), checkout, ranks)


PROGRAMS: dict[str, Callable[[list[str], Path], None]] = {
    "source": _source,
    "cd": lambda arguments, checkout: None,
    "bash": _source,
    "export": _export,
    "timeout": _timeout,
    "make": _make,
    "destruct": _door,
    "python": _python,
    "deepspeed": _deepspeed,
    "torchrun": _torchrun,
    "sbatch": _sbatch,
    "hf": _hf,
    "pip": _pip,
}
"""Programs -> what holds their arguments."""
