"""How a run went, in a sentence, a few figures and a table of its sources; what it was, and how to run it again."""

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from destruct import events
from destruct.config.base import COMMAND_LINE, scalar
from destruct.reporting.curves import sources_of, validation
from destruct.reporting.log import Series
from destruct.reporting.recorded import Recorded
from destruct.reporting.scales import duration, even, short


@dataclass(frozen=True, slots=True)
class Tile:
    """One figure of the first screen."""

    label: str
    value: str
    note: str = ""
    is_bad: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """A figure at the beginning and at the end; NaN where it is not known."""

    before: float
    after: float

    def words(self, write: Callable[[float], str] = even) -> str:
        """Both with an arrow, or what there is."""
        return f"{write(self.before)} → {write(self.after)}" if math.isfinite(self.before) else write(self.after)

    @property
    def verb(self) -> str:
        """What it did."""
        if self.before == self.after:
            return "stayed at"
        return "rose" if self.after > self.before else "fell"


def state(run: Recorded) -> tuple[str, str]:
    """In one word and in a sentence: done, going on, stopped, or neither."""
    made = f"{run.log.updates:,} of {run.planned:,}" if run.planned else f"{run.log.updates:,}"
    updates = f"{made} updates"
    last = run.events[-1] if run.events else {}
    if run.summary is not None:
        early = run.planned is not None and run.log.updates < run.planned
        return "done", f"ended early, after {updates}" if early else f"finished its {run.log.updates:,} updates"
    if run.holder is not None:
        return "going on", f"is going on, after {updates}"
    if last.get("event") == events.STOPPED:
        return "stopped", f"was stopped by {last.get('by', 'a signal')} and saved, after {updates}"
    if run.log.updates == 0:
        return "not done", "has made no update yet, and no process of this machine is seen at work on it"
    return "not done", f"is not done, and no process of this machine is seen at work on it, after {updates}"


def reward(run: Recorded) -> Change:
    """In the first and in the last tenth of the updates, reward units: of the summary, else of the log."""
    if run.summary is not None:
        return Change(_number(run.summary.get("reward_before")), _number(run.summary.get("reward_after")))
    return _tenths(run.log.series("rollout/reward"))


def _tenths(series: Series) -> Change:
    tenth = max(1, len(series) // 10)
    return Change(_mean(series.y[:tenth]), _mean(series.y[-tenth:]) if len(series) > 1 else math.nan)


def loss(run: Recorded, name: str = "validation/mean") -> Change:
    """Validation loss after the warm-up and in the last validation."""
    y = validation(run.log, name).y
    if not len(y):
        return Change(math.nan, math.nan)
    return Change(float(y[0]) if len(y) > 1 else math.nan, float(y[-1]))


def largest_kl(run: Recorded) -> float:
    """After an update, to the reference, nats per token; infinite where one was not finite."""
    y = run.log.series("kl/to_reference").y
    return float(np.nan_to_num(y, nan=np.inf).max()) if len(y) else math.nan


def breaches(run: Recorded) -> int:
    """Updates that ended beyond the bound."""
    y = run.log.series("kl/breaches").y
    return int(np.nan_to_num(y[-1])) if len(y) else 0


def skipped(run: Recorded) -> int:
    """Steps that were dropped because something was not finite."""
    return int(np.nansum(run.log.series("ppo/skipped").y))


def sentence(run: Recorded) -> list[str]:
    """What happened, in a few clauses with figures."""
    clauses = [f"{run.name} {state(run)[1]}{_took(run)}."]
    r, v, kl = reward(run), loss(run), largest_kl(run)
    if math.isfinite(r.after):
        clauses.append(f"The reward {_moved(r)}.")
    if math.isfinite(v.after):
        clauses.append(f"The validation loss {_moved(v)} nats per token.")
    if not math.isnan(kl):
        bound, times = run.number("kl.bound"), breaches(run)
        where = f"inside its bound of {short(bound)}" if kl <= bound else f"beyond its bound of {short(bound)}"
        often = f" ({times} time{'s' if times != 1 else ''})" if times else ""
        clauses.append(f"The KL to the reference was at most {_or_infinite(kl)}, {where}{often}.")
    if skipped(run):
        clauses.append(f"{skipped(run):,} optimizer steps were dropped as not finite.")
    if run.setbacks:
        clauses.append(f"It diverged and was set back {len(run.setbacks)} time{'s' if len(run.setbacks) != 1 else ''}.")
    return clauses


def _moved(change: Change) -> str:
    if not math.isfinite(change.before):
        return f"is {short(change.after)}"
    if change.before == change.after:
        return f"stayed at {short(change.after)}"
    return f"{change.verb} from {short(change.before)} to {short(change.after)}"


def _took(run: Recorded) -> str:
    seconds = _number((run.summary or {}).get("seconds"))
    ranks = run.environment.get("world_size")
    on = f" on {ranks} rank{'s' if ranks != 1 else ''} ({run.environment.get('device', '?')})" if ranks else ""
    return (f" in {duration(seconds)}" if math.isfinite(seconds) else "") + on


def _or_infinite(value: float) -> str:
    return short(value) if math.isfinite(value) else "infinite"


def tiles(run: Recorded) -> list[Tile]:
    """The figures of the first screen."""
    kl, bound, times = largest_kl(run), run.number("kl.bound"), breaches(run)
    summary = run.summary or {}
    found = [
        Tile("Reward", reward(run).words(), "first → last tenth of the updates"),
        Tile("Validation loss", loss(run).words(), "nats per token, after the warm-up → now"),
    ]
    if not math.isnan(kl):
        note = f"bound {short(bound)}" + (f", passed {times} times" if times > 1 else ", passed once" if times else "")
        found.append(Tile("Largest KL", _or_infinite(kl), note, is_bad=not kl <= bound))
    best = best_validation(run)
    if best is not None:
        found.append(Tile("Best validation", short(best[1]), f"after {best[0]:,} updates"))
    speed = run.log.series("time/tokens_per_s").y
    if np.isfinite(speed).any():
        found.append(Tile("Throughput", short(float(np.nanmedian(speed)), 3), "tokens per second, median"))
    if "tokens" in summary:
        seconds = duration(_number(summary.get("seconds")))
        found.append(Tile("Tokens", short(_number(summary["tokens"])), f"drawn and sampled, in {seconds}"))
    if lost := skipped(run):
        found.append(Tile("Dropped steps", f"{lost:,}", "not finite", is_bad=True))
    return found


def best_validation(run: Recorded) -> tuple[int, float] | None:
    """Updates made, and the lowest mean in PPO."""
    series = run.log.series("validation/mean")
    if not np.isfinite(series.y).any():
        return None
    k = int(np.nanargmin(series.y))
    return int(series.x[k]) + 1, float(series.y[k])


def source_table(run: Recorded) -> tuple[list[str], list[list[str]]]:
    """Heads and rows: what became of each source."""
    heads = ["source", "before", "after warm-up", "last", "bits per byte", "reward", "weight"]
    rows, log = [], run.log
    for name in [*sources_of(log), "mean"]:
        figure = "validation/mean" if name == "mean" else f"validation/nats_per_token/{name}"
        before, change = log.series(figure, "before").y, loss(run, figure)
        bits = loss(run, f"validation/bits_per_byte/{name}")
        paid = reward(run) if name == "mean" else _tenths(log.series(f"rollout/reward/{name}"))
        weights = log.series(f"curriculum/weight/{name}").y
        cells = [_mean(before[:1]), change.before, change.after, bits.after]
        share = even(float(weights[-1])) if len(weights) and run.has(name) else "–"
        rows.append([name, *map(even, cells), paid.words(), share if name != "mean" else ""])
    return heads, rows


def facts(run: Recorded) -> list[tuple[str, str]]:
    """What was run."""
    here, summary = run.environment, run.summary or {}
    packages = here.get("packages")
    began = [entry.get("time", "") for entry in run.events if entry["event"] in (events.STARTED, events.RESUMED)]
    dirty = " (the tree had changes that are in no commit)" if str(here.get("commit") or "").endswith("+") else ""
    model = run.setting("model.policy.path") or f"a Llama from scratch, {run.setting('model.policy.hidden_size')} wide"
    found = {
        "folder": str(run.folder),
        "model": f"{model}; {run.setting('curriculum.strategy')} curriculum, {run.setting('rollout.mode')} rollouts",
        "commit": f"{str(here['commit']).removesuffix('+')}{dirty}" if here.get("commit") else "",
        "devices": f"{here.get('world_size')} × {here.get('device')}" if here else "",
        "backend": f"{run.setting('engine.backend')}, {run.setting('engine.deepspeed')}",
        "seed": str(run.setting("run.seed", "")),
        "started": ", then ".join(str(time).replace("T", " ").replace("+00:00", " UTC") for time in began),
        "training time": duration(_number(summary["seconds"])) if "seconds" in summary else "",
        "peak memory": f"{short(_number(summary['peak_rss_mib']))} MiB of the largest rank"
        if "peak_rss_mib" in summary
        else "",
        "versions": ", ".join(f"{name} {version}" for name, version in packages.items())
        if isinstance(packages, dict)
        else "",
        "machine": f"{here.get('platform')}, Python {here.get('python')}" if here else "",
        "checkpoints": ", ".join(run.checkpoints) + (f"; best is {run.best}" if run.best else ""),
    }
    return [(name, words) for name, words in found.items() if words]


def strip(run: Recorded) -> list[str]:
    """What was run, in a line."""
    model = run.setting("model.policy.path") or f"Llama from scratch, {run.setting('model.policy.hidden_size')} wide"
    sources = len({key.split(".")[2] for key in run.settings.values if key.startswith("data.sources.")})
    commit = str(run.environment.get("commit") or "")
    began = [entry.get("time", "") for entry in run.events if entry["event"] == events.STARTED]
    return [
        str(model),
        f"{sources} sources",
        f"{run.setting('curriculum.strategy')} curriculum",
        f"{run.setting('engine.backend')} backend",
        f"seed {run.setting('run.seed')}",
        *([f"commit {commit[:10]}{'+' if commit.endswith('+') else ''}"] if commit else []),
        *([f"started {str(began[0]).partition('T')[0]}"] if began else []),
    ]


def commands(run: Recorded) -> list[tuple[str, str]]:
    """What to type, and what that does."""
    ranks = run.environment.get("world_size", 1)
    starts = {
        "single": ["python", "-m"],
        "fsdp": ["torchrun", "--nproc-per-node", str(ranks), "-m"],
        "deepspeed": ["deepspeed", "--num_gpus", str(ranks), "-m"],
    }
    start = [*starts.get(str(run.setting("engine.backend")), starts["deepspeed"]), "destruct.train", "--config"]
    resolved = f"{run.folder}/resolved.yaml"
    again = [*start, resolved, f"run.name={run.name}-again", "run.resume=never"]
    found = [("The same values once more, in a folder of their own:", shlex.join(again))]
    if commit := run.environment.get("commit"):
        checkout = shlex.join(["git", "checkout", str(commit).removesuffix("+")])
        found.insert(0, ("The code that it ran:", checkout))
    files, overrides = origins(run)
    if files:
        written = shlex.join([*start, *files[:1], *overrides])
        found.append(("As it was last started, with the file as it is now, wherever it lies:", written))
    if run.summary is None and run.checkpoints:
        found.append(("To go on from its newest checkpoint:", shlex.join([*start, resolved, "--resume", "auto"])))
    return found


def origins(run: Recorded) -> tuple[list[str], list[str]]:
    """The YAML files that values come from, and what the command line of the last start said."""
    said = run.settings.origins
    files = dict.fromkeys(origin.rpartition(":")[0] for origin in said.values() if ":" in origin)
    given = [key for key, origin in said.items() if origin == COMMAND_LINE]
    return list(files), [f"{key}={scalar(run.settings.values[key])}" for key in given]


def chosen_settings(run: Recorded) -> list[tuple[str, str, str]]:
    """Key, value and origin of every value that is no default."""
    values, said = run.settings.values, run.settings.origins
    return [(key, scalar(value), said[key]) for key, value in values.items() if said[key] != "default"]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else math.nan
