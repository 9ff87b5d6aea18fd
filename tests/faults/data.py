"""Slow, failing, broken and changed data, in runs of one rank: each goes on, or ends in words that name the culprit."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from destruct.data.embedded import EMBEDDED
from tests import forked
from tests.faults.trials import Outcome, Trials
from tests.tiny import write_config

FUNCTIONS = "tests.faults.user_functions"
HOW = ["engine.backend=single", "run.num_epochs=1", "run.updates_per_epoch=2", "run.resume=auto"]


def untouched(path: Path) -> None:
    """It is not the data that fails."""


@dataclass(frozen=True, slots=True)
class Case:
    """A fault, and what is promised of it.

    Args:
        code: how the run ends.
        says: pattern of its words.
        overrides: of the first life.
        spoil: what becomes of the data file; before the first life, or between two where `later` is set.
    """

    code: int
    says: str
    overrides: tuple[str, ...] = ()
    spoil: Callable[[Path], object] = untouched
    later: bool = False


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def put(path: Path, content: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in content), encoding="utf-8")


def one_letter(path: Path) -> None:
    """Of one row; the size is the same."""
    path.write_text(path.read_text(encoding="utf-8").replace(" the ", " tha ", 1), encoding="utf-8")


def cut(path: Path) -> None:
    """In the middle of a row."""
    put(path, [*lines(path)[:20], lines(path)[20][:30]])


def huge(path: Path) -> None:
    """A row of eight million characters."""
    put(path, [*lines(path), json.dumps({"text": "word " * 1_600_000})])


CASES: dict[str, Case] = {
    "a reward that takes 10 s": Case(0, "", (f"reward.terms={{'{FUNCTIONS}:slow': 1.0}}",)),
    "a reward that raises": Case(
        2, r"'\S+:raising' raised ConnectionError: the judge", (f"reward.terms={{'{FUNCTIONS}:raising': 1.0}}",)
    ),
    "a reward for too few": Case(2, r"'\S+:too_few'", (f"reward.terms={{'{FUNCTIONS}:too_few': 1.0}}",)),
    "a reward that is no number": Case(2, r"'\S+:no_number'", (f"reward.terms={{'{FUNCTIONS}:no_number': 1.0}}",)),
    "a row that takes 10 s": Case(0, "", (f"data.sources.mine.format={FUNCTIONS}:slow_row",)),
    "a row that raises": Case(
        2, r"'\S+:raising_row' raised KeyError", (f"data.sources.mine.format={FUNCTIONS}:raising_row",)
    ),
    "a row that broke off": Case(2, r"line 21 of \S+mine.jsonl: not JSON", spoil=cut),
    "an empty file": Case(2, r"mine", spoil=lambda path: path.write_bytes(b"")),
    "bytes that are not UTF-8": Case(
        2, r"line \d+ of \S+mine.jsonl: not UTF-8", spoil=lambda path: path.write_bytes(path.read_bytes() + b'{"\xff"}')
    ),
    "a row of 8 MB": Case(0, "", spoil=huge),
    "a missing file": Case(2, r"mine.jsonl does not exist", spoil=Path.unlink),
    "a letter changed between two lives": Case(2, r"trained on other texts than 'mine'", spoil=one_letter, later=True),
    "a row fewer between two lives": Case(
        2, r"trained on other texts than 'mine'", spoil=lambda path: put(path, lines(path)[:-1]), later=True
    ),
    "rows in another order between two lives": Case(
        2, r"trained on other texts than 'mine'", spoil=lambda path: put(path, lines(path)[::-1]), later=True
    ),
    "the same in another place between two lives": Case(
        0, r"", spoil=lambda path: shutil.move(path, path.with_name("moved.jsonl")), later=True
    ),
}


def config(folder: Path, data: Path) -> Path:
    """The tiny run, on a file of one's own beside the embedded noise."""
    path = write_config(folder)
    whole = yaml.safe_load(path.read_text(encoding="utf-8"))
    whole["data"]["sources"] = {"mine": {"path": str(data)}, "noise": {"embedded": "noise", "learnable": False}}
    path.write_text(yaml.safe_dump(whole), encoding="utf-8")
    return path


def life(folder: Path, name: str, *overrides: str) -> forked.Done:
    said = folder / name
    said.mkdir()
    data = next(folder.glob("*.jsonl"), folder / "mine.jsonl")
    arguments = ["--config", str(config(folder, data)), *HOW, *overrides]
    return forked.end(said, forked.start(said, forked.train, arguments))


def one(folder: Path, case: Case) -> Outcome:
    """One fault, and what the run says to it."""
    folder.mkdir(parents=True)
    path, wrong = folder / "mine.jsonl", []
    put(path, [json.dumps({"text": text}) for text in EMBEDDED["prose"](20_000, 1)])
    if case.later:
        first = life(folder, "first")
        wrong += [f"the first life ended with {first.code}: {first.err[-400:]}"] if first.code else []
    case.spoil(path)
    more = ("run.num_epochs=2",) if case.later else ()
    done = life(folder, "last", *case.overrides, *more)
    in_words = not done.code or (re.search(case.says, done.err) and "remedy: " in done.err)
    if done.code != case.code or not in_words or "Traceback" in done.err:
        wrong.append(f"exit code {done.code}: {done.err[-600:]}")
    if not wrong:
        shutil.rmtree(folder)
    return {"corruptions": int(case.spoil is not untouched), "undetected": len(wrong), "wrong": wrong}


def data(trials: Trials) -> None:
    """Every case."""
    for number, (name, case) in enumerate(CASES.items()):
        trials.make("data", name, lambda: one(trials.folder / "data" / str(number), case))  # noqa: B023
