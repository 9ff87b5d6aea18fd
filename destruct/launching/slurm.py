"""Write or submit a Slurm job: `destruct launch slurm --config FILE [--nodes N] [--gpus-per-node N] [key.sub=value]`.

It is launch/slurm_single_node.sbatch, slurm_multi_node.sbatch or, with --sweep, slurm_sweep.sbatch, with these values
in it.  The config is read for that many ranks first, that of each point of a sweep too.
"""

import argparse
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
from copy import copy
from pathlib import Path

import yaml

from destruct.doors import Parser, told
from destruct.errors import DestructError
from destruct.exits import Exit
from destruct.last_words import STARTED_AGAIN
from destruct.train import add_run, read, resuming

LAUNCH = Path(__file__).resolve().parents[2] / "launch"

REST = re.compile(r"--[a-z-]+(=\S.*)?")
"""An option of sbatch as it stands in a script."""


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; DestructError where it cannot be read."""
    parser = Parser(
        "write: --config FILE [--nodes N] [--gpus-per-node N] [key.sub=value ...]; --help says more",
        prog="destruct launch slurm",
        description=__doc__,
        epilog="Without --submit or --dry-run the script is written to RUN.sbatch, for `sbatch RUN.sbatch`.",
    )
    add_run(parser)
    parser.add_argument("--nodes", type=int, default=1, metavar="N")
    parser.add_argument("--gpus-per-node", type=int, default=8, metavar="N", help="8; 0 for a run on CPUs")
    parser.add_argument("--ranks-per-node", type=int, metavar="N", help="as many as GPUs")
    parser.add_argument("--time", metavar="D-HH:MM:SS", help="limit of each life of the job")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="--OPTION=VALUE", help="any option of sbatch's"
    )
    parser.add_argument(
        "--sweep", action="append", default=[], metavar="KEY=V1,V2", help="a job array over the product"
    )
    parser.add_argument("--at-once", type=int, metavar="N", help="points of a sweep that run at a time (all)")
    parser.add_argument("--chain", type=int, metavar="N", help="N jobs, one after another, where none may be requeued")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--submit", action="store_true", help="hand it to sbatch")
    how.add_argument("--dry-run", action="store_true", help="print the script alone")
    options = parser.parse_intermixed_args(arguments)
    options.ranks_per_node = options.gpus_per_node if options.ranks_per_node is None else options.ranks_per_node
    for name, least in {"nodes": 1, "gpus_per_node": 0, "ranks_per_node": 1, "at_once": 1, "chain": 2}.items():
        count = getattr(options, name)
        if count is not None and count < least:
            remedy = "write how many ranks a node runs" if name == "ranks_per_node" else f"write {least} or more"
            raise DestructError(f"--{name.replace('_', '-')} is {count}", remedy)
    if options.sweep and options.chain:
        raise DestructError("--chain and --sweep do not go together", "requeue a sweep's jobs (leave --chain out)")
    for option in options.sbatch:
        if not REST.fullmatch(option):
            raise DestructError(f"--sbatch {option!r} is no option of sbatch's", "write --sbatch=--partition=NAME")
        if options.chain and option.startswith("--dependency"):
            raise DestructError("--chain sets --dependency itself", "leave --sbatch=--dependency out")
    return options


def grid(sweep: list[str]) -> dict[str, list[str]]:
    """The values of each key of a sweep.

    Raises:
        DestructError: one is not KEY=VALUE,VALUE, or holds a blank, at which a script splits a point.
    """
    values = {}
    for given in sweep:
        key, _, text = given.partition("=")
        remedy = "write --sweep run.seed=1,2,3"
        try:
            node = yaml.compose(f"[{text}]")  # for its commas: those in brackets and quotes are none
        except yaml.YAMLError:
            raise DestructError(f"--sweep {given!r} cannot be read", remedy) from None
        found = [text[each.start_mark.index - 1 : each.end_mark.index - 1] for each in node.value] if node else []
        if not key or not found or "" in found:
            raise DestructError(f"--sweep {given!r} is not KEY=VALUE,VALUE", remedy)
        if re.search(r"\s", given) or key in values:
            raise DestructError(f"--sweep {given!r} holds a blank, or its key twice", remedy)
        if key == "run.name":
            raise DestructError("--sweep run.name: each point has a name by its number and values", "leave it out")
        values[key] = found
    return values


def check(options: argparse.Namespace, values: dict[str, list[str]]) -> str:
    """Read the config of every point, for as many ranks as the job has; the run's name.

    Raises:
        DestructError: one of them is refused.
    """
    name = ""
    for point in itertools.product(*values.values()):
        run = copy(options)
        run.overrides = [*options.overrides, *(f"{key}={value}" for key, value in zip(values, point, strict=True))]
        name = read(run, options.nodes * options.ranks_per_node).config.run.name
    return name


def render(options: argparse.Namespace, values: dict[str, list[str]], name: str) -> str:
    """The script of the job."""
    kind = "sweep" if values else ("single_node" if options.nodes == 1 else "multi_node")
    template = LAUNCH / f"slurm_{kind}.sbatch"
    if not template.exists():
        raise DestructError(f"{template} is missing", "launch from a checkout of destruct", Exit.ENVIRONMENT)
    lines = template.read_text(encoding="utf-8").splitlines()
    settings = [f"--job-name={name}", f"--nodes={options.nodes}", f"--gpus-per-node={options.gpus_per_node}"]
    settings.append(f"--ntasks-per-node={options.ranks_per_node}")
    settings += [f"--time={options.time}"] if options.time else []
    settings += ["--dependency=singleton"] if options.chain else []
    if values:
        last = len(list(itertools.product(*values.values()))) - 1
        settings.append(f"--array=0-{last}" + (f"%{options.at_once}" if options.at_once else ""))
        _put(lines, r"POINTS=", f"POINTS=({_braces(values)})")
    if any(option.startswith("--mem-per-") for option in options.sbatch):
        lines.remove("#SBATCH --mem=0")  # Slurm takes one of them
    for option in [*settings, *options.sbatch]:
        _put(lines, rf"#SBATCH {option.partition('=')[0]}(?![\w-])", f"#SBATCH {option}")
    _put(lines, r"CONFIG=", f"CONFIG={shlex.quote(str(options.config))}")
    if options.chain:
        _put(lines, r"CHAIN=", "CHAIN=true")
        _put(lines, r"#SBATCH --requeue", "#SBATCH --no-requeue")
    words = [*([] if options.resume is None else [resuming(options.resume)]), *options.overrides]
    at = next(number for number, line in enumerate(lines) if line.startswith("if [[ $# -gt 0"))
    if options.quiet:
        lines.insert(at + 1, 'set -- --quiet "$@"')  # behind that line, which takes it for a config
    if words:
        lines.insert(at, f'set -- {shlex.join(words)} "$@"')
    text = "\n".join(lines) + "\n"
    if not Path("launch").exists() or not Path("launch").samefile(LAUNCH):
        text = re.sub(r"^(source |    )launch/", rf"\1{shlex.quote(str(LAUNCH))}/", text, flags=re.MULTILINE)
    return text


def _put(lines: list[str], pattern: str, line: str) -> None:
    """Replace the line that begins so; a directive that is not there goes behind the others."""
    found = [number for number, each in enumerate(lines) if re.match(pattern, each)]
    if found:
        lines[found[0]] = line
    else:
        last = max(number for number, each in enumerate(lines) if each.startswith("#SBATCH"))
        lines.insert(last + 1, line)


def _braces(values: dict[str, list[str]]) -> str:
    """The product, as bash multiplies it; braces around one word it would leave as they are."""
    words = []
    for number, (key, found) in enumerate(values.items()):
        quoted = [shlex.quote(value) for value in found]
        braces = quoted[0] if len(quoted) == 1 else f"{{{','.join(quoted)}}}"
        words.append(f'"{" " if number else ""}{key}="{braces}')
    return "".join(words)


def submit(script: str, times: int) -> list[str]:
    """Hand it to sbatch; the jobs' numbers.  All but the first one go on with the run.

    Raises:
        DestructError: Slurm is not here, or refuses it.
    """
    if shutil.which("sbatch") is None:
        raise DestructError("sbatch is not on PATH", "submit from a node of a Slurm cluster", Exit.ENVIRONMENT)
    numbers: list[str] = []
    for later in range(times):
        environment = os.environ | ({STARTED_AGAIN: numbers[0]} if later else {})
        done = subprocess.run(
            ["sbatch", "--parsable"], input=script, env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            words = " ".join(done.stderr.split()).removeprefix("sbatch: error: ")
            begun = f"; scancel {' '.join(numbers)} ends those before it" if numbers else ""
            raise DestructError(
                f"Slurm refuses the job: {words}", f"sinfo shows what there is{begun}", Exit.ENVIRONMENT
            )
        numbers.append(done.stdout.strip().partition(";")[0])
    return numbers


def answer(options: argparse.Namespace) -> int:
    """Print, write or submit it; the exit code."""
    values = grid(options.sweep)
    name = check(options, values)
    script = render(options, values, name)
    if options.dry_run:
        print(script, end="")
        return Exit.DONE
    if options.submit:
        numbers = submit(script, options.chain or 1)
        named = any(option.startswith(("--output=", "--job-name=")) for option in options.sbatch)
        follow = "" if named else f"tail -f {name}-{numbers[0]}{'_0' if values else ''}.out follows it, "
        print(f"submitted {', '.join(numbers)}; {follow}scancel {' '.join(numbers)} ends it")
        return Exit.DONE
    path = Path(f"{name}.sbatch")
    if path.exists() and path.read_text(encoding="utf-8") != script:
        raise DestructError(
            f"{path} is there already, and another script", "remove it, or give the run another run.name"
        )
    path.write_text(script, encoding="utf-8")
    print(f"{path} is written; to submit it: sbatch {path}", end="" if options.chain else "\n")
    if options.chain:
        print(f", then {options.chain - 1} times, with the number that it says: {STARTED_AGAIN}=NUMBER sbatch {path}")
    return Exit.DONE


def main(arguments: list[str] | None = None) -> int:
    """Write or submit a Slurm job; returns the exit code."""
    return told(lambda: answer(parse(sys.argv[1:] if arguments is None else arguments)))
