"""The model card: what the model learnt from, by which settings, how well it does, and how to make the run again."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from destruct.config.data import SourceConfig
from destruct.config.settings import Config
from destruct.exporting import record
from destruct.exporting.source import FROZEN, INITIAL, POLICY, RESOLVED, TRAINING, Source
from destruct.secrets import masked

ROLE_WORDS = {
    FROZEN: "the policy as it was at the last refresh of the frozen model",
    INITIAL: "the policy as PPO began, after the warm-up",
}
PHASES = {"before": "before", "after_warmup": "after the warm-up", "after": "newest in PPO"}

SETTINGS = (
    "rollout.mode",
    "rollout.batch_size",
    "rollout.prompt_tokens",
    "rollout.response_tokens",
    "rollout.temperature",
    "reward.terms",
    "kl.coef",
    "kl.target",
    "kl.reference",
    "kl.bound",
    "ppo.policy_lr",
    "ppo.value_lr",
    "ppo.clip_range",
    "ppo.epochs",
    "ppo.minibatches",
    "ppo.ptx_coef",
    "warmup.lm_updates",
    "warmup.lm_lr",
    "warmup.value_updates",
    "frozen.refresh_every",
    "curriculum.strategy",
    "run.seed",
)
"""Keys of the config that say most about a run; all of them are in training/resolved.yaml."""

AGAIN = f"{TRAINING}/{RESOLVED}"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")

FIGURES = ("rollout/reward", "kl/to_reference", "kl/from_initial", "ppo/approx_kl", "ppo/clip_fraction")
"""Of `metrics.jsonl`, the newest up to the checkpoint; docs/metrics.md says what they are."""


def model_card(source: Source, kind: str, parameters: int, dtype: str) -> str:
    """The README.md.

    Args:
        kind: transformers' name of the architecture, e.g. `llama`.
        parameters: elements; a tied weight counts once.
        dtype: of the weights.
    """
    config = source.config
    front: dict[str, Any] = {"library_name": "transformers", "pipeline_tag": "text-generation"}
    front["tags"] = ["destruct", "ppo", kind]
    if (base := config.model.policy.path) is not None and _base(base) == base:
        front["base_model"] = base
    if hubs := sorted({s.hub for s in config.data.sources.values() if s.hub is not None}):
        front["datasets"] = hubs
    sections = [
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---",
        f"# {config.run.name}",
        _opening(source, kind, parameters, dtype),
        "## Use\n\n" + _use(source, dtype),
        "## Data\n\n" + "\n".join(_data(source)),
        "## Settings\n\n" + "\n".join(_settings(config)),
        "## Figures\n\n" + "\n".join(_figures(source)),
        "## How to make it again\n\n" + _again(source),
    ]
    return masked("\n\n".join(sections) + "\n")


def _opening(source: Source, kind: str, parameters: int, dtype: str) -> str:
    state, path, revision = source.state, source.config.model.policy.path, source.config.model.policy.revision
    start = "from scratch" if path is None else f"from {_base(path)}" + (f" at {revision}" if revision else "")
    what = "" if source.role not in ROLE_WORDS else f"  These weights are {ROLE_WORDS[source.role]}."
    return (
        f"A {kind} of {parameters:,} parameters in {dtype}, trained by PPO with destruct, {start}: {state.update:,} "
        f"updates, {state.tokens:,} tokens, {state.seconds:,.0f} s. Checkpoint {source.checkpoint.name}.{what}"
    )


def _base(path: str) -> str:
    """What a pretrained model is called elsewhere: its id on the hub, or its folder without the way there."""
    return path if HUB_ID.fullmatch(path) and not Path(path).exists() else Path(path).name


def _use(source: Source, dtype: str) -> str:
    windows = source.config.rollout
    return (
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)\nmodel = AutoModelForCausalLM.from_pretrained(FOLDER)\n```\n"
        '\nor `destruct generate --model FOLDER "prompt"`. It was trained on windows of '
        f"{windows.prompt_tokens} prompt tokens and {windows.response_tokens} response tokens. "
    ) + _exactness(source, dtype)


def _exactness(source: Source, dtype: str) -> str:
    """How near transformers comes to the losses below."""
    if source.role != POLICY:
        return ""
    if source.dtype == "float32":
        return "transformers computes the losses below to within 1e-4 nats per token."
    lead = (
        "In bfloat16 transformers rounds logits, which the run did not"
        if dtype == "bfloat16"
        else ("These are the weights before they were rounded to bfloat16, as the run computed")
    )
    return f"{lead}: its losses are off from those below by some 1e-4 nats per token, 1e-3 at worst."


def _data(source: Source) -> Iterator[str]:
    yield "| source | from | format | share at the start | reward, newest |"
    yield "|---|---|---|--:|--:|"
    config, prior = source.config, source.config.data.prior
    total = sum(prior.values())
    for name, about in config.data.sources.items():
        yield (
            f"| {name} | {_cell(_origin(about))} | {_cell(about.format)} | {prior[name] / total:.1%} "
            f"| {_reward(source, name)} |"
        )


def _origin(source: SourceConfig) -> str:
    if source.hub is not None:
        parts = [source.config, source.revision and f"revision {source.revision}", f"split {source.split}"]
        return ", ".join(["hub: " + source.hub, *filter(None, parts)])
    return f"made by destruct: {source.embedded}" if source.path is None else f"files: {Path(source.path).name}"


def _reward(source: Source, name: str) -> str:
    """Mean score of a source's rollouts in the newest update that had one."""
    state = source.state
    column = state.sources.index(name) if name in state.sources else None
    for row in reversed(state.rewards if column is not None else []):
        total, count = row[column or 0]
        if count:
            return f"{total / count:.4f}"
    return ""


def _settings(config: Config) -> Iterator[str]:
    yield "| key | value |"
    yield "|---|---|"
    for key in SETTINGS:
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        yield f"| {key} | {_cell(json.dumps(value, ensure_ascii=False, default=str))} |"


def _figures(source: Source) -> Iterator[str]:
    state = source.state
    if source.role != POLICY:
        yield "All of these are the policy's at this checkpoint, and not of the weights here."
        yield ""
    columns = [phase for phase in PHASES if phase in state.validation]
    if columns:
        yield "Validation loss, nats per token, on held-out windows of each source."
        if "after" in columns and state.validated:
            yield f"The newest one in PPO was made after update {state.validated}."
        yield ""
        yield f"| source | {' | '.join(PHASES[phase] for phase in columns)} |"
        yield f"|---|{'--:|' * len(columns)}"
        for name in state.validation[columns[-1]]:
            losses = (state.validation[phase].get(name) for phase in columns)
            yield f"| {name} | {' | '.join('' if loss is None else f'{loss:.4f}' for loss in losses)} |"
        yield ""
    yield "| figure | value |"
    yield "|---|--:|"
    yield f"| largest KL to the reference, nats per token | {state.kl_max:.4g} |"
    yield f"| updates beyond kl.bound | {state.breaches} |"
    for name, value in record.newest_figures(source, FIGURES).items():
        yield f"| {name} | {value:.4g} |"
    for name, value in _of_summary(source).items():
        yield f"| {name} | {value:.4g} |"


def _of_summary(source: Source) -> dict[str, float]:
    """Figures of the whole run, where it ended with this checkpoint."""
    summary = record.summary(source)
    words = {
        "reward_before": "reward, first tenth of the updates",
        "reward_after": "reward, last tenth of the updates",
        "peak_rss_mib": "peak memory of a rank, MiB",
    }
    return {what: summary[key] for key, what in words.items() if isinstance(summary.get(key), int | float)}


def _again(source: Source) -> str:
    about = record.environment(source.run)
    ranks, commit, packages = source.facts["ranks"], about.get("commit"), about.get("packages")
    launcher = {"deepspeed": f"deepspeed --num_gpus {ranks}", "fsdp": f"torchrun --nproc-per-node {ranks}"}
    lines = [f"{launcher.get(source.backend, 'python')} -m destruct.train --config FOLDER/{AGAIN} --resume never"]
    if isinstance(commit, str):
        lines.insert(0, f"git checkout {commit.rstrip('+')}  # of destruct" + ("; it had changes" * ("+" in commit)))
    machine = ""
    if isinstance(packages, dict):
        numbers = ", ".join(f"{name} {number}" for name, number in packages.items())
        machine = f" It ran on {about.get('device')} with {numbers}."
    return (
        "In a checkout of destruct, where FOLDER is this one:\n\n```\n" + "\n".join(lines) + "\n```\n\n"
        f"{ranks} rank(s), {source.backend}, seed {source.config.run.seed}; `{AGAIN}` has every value and where it "
        f"came from, `{TRAINING}/deepspeed.json` what DeepSpeed was given. Paths in there are those of its machine: "
        f"correct `data.sources`, `engine.deepspeed` and the like on another one.{machine}"
    )


def _cell(text: str) -> str:
    """A text that stays in its cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ")
