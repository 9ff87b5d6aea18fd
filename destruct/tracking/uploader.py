"""What hands a run's figures to Weights & Biases: a process of its own, so that training never waits for it.

It is started as a script by `weights_and_biases.py`, and reads one JSON object a line from stdin until that ends.  It
answers in lines of JSON: {"say": ...} for the person, and {"done": true} when nothing is left to be done.  It imports
nothing of destruct, and so neither torch.
"""

import json
import os
import secrets
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

START_S, FINISH_S = 20, 15
"""Patience with the server of W&B: for the run to be opened, and at its end for what is not uploaded yet."""

AXES = {
    "update": ("ppo", "kl", "rollout", "curriculum", "validation", "time", "memory", "samples", "prompts"),
    "warmup_step": ("warmup",),
}
"""What counts the steps -> the groups of curves that are drawn over it."""

NOT_LOGGED_IN = 4
"""Exit code of the check."""


def main(arguments: list[str]) -> int:
    """Check the login, or send what comes; the exit code."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what the package prints goes to the log
    if arguments:
        return check(answers)
    opening = json.loads(sys.stdin.readline())
    kept = Kept(Path(opening["folder"]) / "wandb.json")
    run = opened(opening, kept, answers)
    ended = Rows(run, kept).take(sys.stdin)
    run.finish(exit_code=0 if ended else 1)
    answer(answers, done=True)
    return 0


def answer(answers: int, **message: Any) -> None:
    """Tell the run, if it is there still."""
    with suppress(OSError):
        os.write(answers, json.dumps(message).encode() + b"\n")


def check(answers: int) -> int:
    """Whether a key is there, in the environment or in .netrc, that looks like one; no server is asked."""
    import wandb
    from wandb.sdk.lib import wbauth

    try:
        host = wandb.setup().settings.base_url
        key = wbauth.authenticate_session(host=host, source="destruct", prompt=False, update_session=False)
    except Exception as error:
        answer(answers, say=str(error))
        return NOT_LOGGED_IN
    if key is None:
        answer(answers, say=f"no key for {host}")
    return 0 if key is not None else NOT_LOGGED_IN


class Kept:
    """What a later life of the run has to know, in its folder.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path):
        self._path = path
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = {}
        self.run_id: str | None = content.get("id")  # the run's name for W&B, if it has one already
        self.rows: int = content.get("rows", 0)  # handed over so far
        self.newest: dict[str, int] = content.get("newest", {})  # by name of a curve its newest step

    def save(self) -> None:
        """Write the file; a kill leaves the old or the new one."""
        staged = self._path.with_suffix(".staged")
        content = {"id": self.run_id, "rows": self.rows, "newest": self.newest}
        staged.write_text(json.dumps(content), encoding="utf-8")
        os.replace(staged, self._path)


def opened(opening: dict[str, Any], kept: Kept, answers: int) -> Any:
    """The run of W&B, the one of an earlier life if there was one; offline where the server does not answer."""
    import wandb

    given = {name: opening[name] or None for name in ("project", "entity", "group", "tags", "name")}
    arguments: dict[str, Any] = given | {
        "id": kept.run_id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(4),
        "resume": "allow",
        "config": opening["config"],
        "dir": None if "WANDB_DIR" in os.environ else opening["folder"],
        "settings": wandb.Settings(
            console="off",
            silent=True,
            # The run's own files say all this, without the secrets of a command line.
            x_disable_meta=True,
            x_save_requirements=False,
            disable_git=True,
            disable_code=True,
            x_stats_pid=os.getppid(),
            init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", START_S)),
            finish_timeout=FINISH_S,
        ),
    }
    try:
        run = wandb.init(mode=opening["mode"], **arguments)
    except Exception as error:  # of the network, of the account, or whatever else the package raises
        answer(answers, say=f"W&B does not take this run ({first_line(error)}), so it is written offline")
        wandb.teardown(1)  # its service holds on to the name of the run
        run = wandb.init(mode="offline", **arguments)
    kept.run_id = run.id
    kept.save()
    folder = Path(run.dir).parent
    answer(
        answers, say=f"W&B: offline; `wandb sync {folder}` sends what is there" if run.offline else f"W&B: {run.url}"
    )
    return run


def first_line(error: Exception) -> str:
    """What an exception says, in one line."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


class Rows:
    """Puts what belongs to one step into one row of W&B, and gives each step of a curve once.

    A run that goes on from a checkpoint makes some updates anew.  W&B keeps what it has, so the figures that it has
    already are passed over; they are the same, unless the run was set back or continued with other settings.
    """

    def __init__(self, run: Any, kept: Kept):
        self._run, self._kept = run, kept
        self._place: tuple[str, int] | None = None  # the axis and the step of the row under way
        self._names: set[str] = set()  # in it
        for axis, groups in AXES.items():
            for group in groups:
                run.define_metric(f"{group}/*", step_metric=axis)

    def take(self, lines: TextIO) -> bool:
        """Hand over what comes, up to its end; whether the run ended with all its updates made."""
        ended = False
        for line in lines:
            if not line.endswith("\n"):  # the run was killed as it wrote
                break
            message = json.loads(line)
            if message["kind"] == "finals":
                self._run.summary.update(message["figures"])
                ended = True
            else:
                self._put(message["axis"], message["step"], made(message))
        self._row_ends()
        return ended

    def _put(self, axis: str, step: int, values: dict[str, Any]) -> None:
        if (axis, step) != self._place:
            self._row_ends()
            self._place = axis, step
        fresh = {name: x for name, x in values.items() if step > self._kept.newest.get(name, -1)}
        if fresh:
            self._names |= set(fresh)
            self._run.log({axis: step, **fresh}, step=self._kept.rows)

    def _row_ends(self) -> None:
        """Only now: of a row that a kill breaks off, W&B has nothing yet."""
        if self._names and self._place is not None:
            self._kept.newest |= dict.fromkeys(self._names, self._place[1])
            self._kept.rows += 1
            self._kept.save()
            self._names = set()


def made(message: dict[str, Any]) -> dict[str, Any]:
    """What W&B is to log, by name."""
    import wandb

    name = message.get("name", "")
    if message["kind"] == "histogram":
        return {name: wandb.Histogram(np_histogram=(message["counts"], message["edges"]))}
    if message["kind"] == "html":
        return {name: wandb.Html(message["html"], inject=False)}
    figures: dict[str, float] = message["figures"]
    return figures


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
