"""Run the commands of the docs that the tests only parse: `python -m tests.docs_commands.full [PAGE ...]`.

Every block of each page runs in order in a copy of the checkout; docs/outputs.md takes down what each command said,
when, and how long it took.  What this machine cannot run is listed there with the reason.
"""

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from tests.docs_commands.blocks import ROOT, Block, blocks_of, missing, pages
from tests.docs_commands.outputs import PAGE, Record, read, why, write
from tests.docs_commands.session import Said, copy_checkout, run

PATIENCE, LEAST = 6, 600
"""A page may take so many times what it says of itself, and so many seconds at least."""
NEVER = ("hosts", "yours", "account", "waits", "hours", "tests", "install")


def lacking(need: str) -> bool:
    """Whether this machine cannot run a block with that need."""
    if need.endswith(" gpus"):
        there = shutil.which("nvidia-smi") is not None
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout if there else ""
        return listed.count("GPU ") < int(need.split()[0])
    if need == "hub":
        try:
            socket.create_connection(("huggingface.co", 443), timeout=5).close()
        except OSError:
            return True
        return False
    if need == "slurm":
        return not shutil.which("sinfo") or subprocess.run(["sinfo"], capture_output=True).returncode != 0
    return need in NEVER


def possible(block: Block) -> bool:
    return not any(lacking(need) for need in block.needs)


def take_down(page: Path, folder: Path) -> Record:
    """Run a page; what each command said."""
    name = page.relative_to(ROOT).as_posix()
    blocks = blocks_of(page.read_text(encoding="utf-8"), name)
    checkout = copy_checkout(folder / page.stem)
    for block in blocks:
        if block.file is not None:
            (checkout / block.file).write_text("\n".join(block.lines) + "\n", encoding="utf-8")
    ours = [block for block in blocks if block.commands]
    able = [block for block in ours if possible(block)]
    limit = max(LEAST, PATIENCE * sum(block.seconds or 0 for block in able))
    said = [without_path(answer, checkout) for answer in run(able, checkout, limit)]
    not_run = [(command, why(block.needs)) for block in ours if block not in able for command in block.commands]
    return Record(name, time.strftime("%Y-%m-%d"), machine(), tuple(said), tuple(not_run))


def without_path(answer: Said, checkout: Path) -> Said:
    """The same, as if the checkout lay where people have it."""
    return replace(answer, lines=tuple(line.replace(str(checkout), "~/destruct") for line in answer.lines))


def machine() -> str:
    """What it is measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "an unknown processor")
    return f"{len(os.sched_getaffinity(0))} cores of {model}, load {os.getloadavg()[0]:.1f} before"


def faults(record: Record, blocks: list[Block]) -> list[str]:
    """Commands that ended otherwise than the page says, and lines it quotes that did not come."""
    found, said = [], iter(record.said)
    for block in blocks:
        answers: list[Said] = []
        if block.commands and possible(block):
            answers = [next(said) for _ in block.commands]
        codes = [0] * (len(answers) - 1) + [block.exit_code]
        for answer, code in zip(answers, codes, strict=False):
            if answer.code != code:
                found.append(f"{block.place}: {answer.command} ended with {answer.code}, not {code}")
        if answers and (lost := missing(block.quoted, [line for answer in answers for line in answer.lines])):
            found.append(f"{block.place}: the page quotes what did not come: {lost[0]!r}")
    return found


def main() -> int:
    """Run the pages that are named, or all; 1 where one says what is not so."""
    parser = argparse.ArgumentParser(prog="python -m tests.docs_commands.full", description=__doc__)
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE", help="such as docs/tutorial.md; by default all")
    wanted = [(ROOT / page).resolve() for page in parser.parse_args().pages] or pages()
    records, found = read(PAGE), []
    with tempfile.TemporaryDirectory(prefix="destruct-docs-") as folder:
        os.environ.setdefault("DESTRUCT_CACHE", f"{folder}/cache")
        for page in wanted:
            blocks = blocks_of(page.read_text(encoding="utf-8"), page.relative_to(ROOT).as_posix())
            if page == PAGE or not any(block.commands for block in blocks):
                continue
            print(f"{page.relative_to(ROOT)} ...", flush=True)
            record = take_down(page, Path(folder))
            records[record.page] = record
            for answer in record.said:
                print(f"  {answer.seconds:7.1f} s  {answer.code}  {answer.command}", flush=True)
            write(PAGE, records)
            found += faults(record, blocks)
    print("\n".join(found) or f"{PAGE.relative_to(ROOT)} is written; every command did what its page says")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
