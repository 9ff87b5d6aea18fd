"""The whole configuration of a run: the root section, reading it, and the checks that cross sections and files."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from destruct.config.base import Section, sections_in, validate, walk
from destruct.config.curriculum import CurriculumConfig, FrozenConfig
from destruct.config.data import DataConfig
from destruct.config.deepspeed import FrozenJSON, TrainingJSON, frozen_json, read_json, training_json
from destruct.config.engine import EngineConfig
from destruct.config.fsdp import check_fsdp
from destruct.config.guard import GuardConfig
from destruct.config.model import ModelConfig
from destruct.config.offload import IN_MEMORY, OffloadFolders, offload_folders
from destruct.config.ppo import KLConfig, PPOConfig, WarmupConfig
from destruct.config.prompts import Prompt, PromptsConfig, read_prompts
from destruct.config.reading import apply_overrides, find_beside, read_yaml
from destruct.config.rollout import SEQUENCE_TERMS, TOKEN_TERMS, RewardConfig, RolloutConfig
from destruct.config.run import RunConfig
from destruct.config.wandb import WandbConfig
from destruct.errors import DestructError


class Config(Section):
    """Everything a run reads from its YAML file."""

    run: RunConfig = RunConfig()
    engine: EngineConfig = EngineConfig()
    model: ModelConfig = ModelConfig()
    data: DataConfig
    rollout: RolloutConfig = RolloutConfig()
    reward: RewardConfig = RewardConfig()
    kl: KLConfig = KLConfig()
    ppo: PPOConfig = PPOConfig()
    warmup: WarmupConfig = WarmupConfig()
    frozen: FrozenConfig = FrozenConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    guard: GuardConfig = GuardConfig()
    prompts: PromptsConfig = PromptsConfig()
    wandb: WandbConfig = WandbConfig()

    @model_validator(mode="after")
    def _window_fits_the_contexts(self) -> Self:
        for role, shape in (("policy", self.model.policy), ("value", self.model.value)):
            if shape.path is None and self.window_tokens > shape.max_position_embeddings:
                raise ValueError(
                    f"rollout.prompt_tokens={self.rollout.prompt_tokens} + rollout.response_tokens="
                    f"{self.rollout.response_tokens} = {self.window_tokens} tokens do not fit "
                    f"model.{role}.max_position_embeddings={shape.max_position_embeddings}; shorten a part or raise it"
                )
        return self

    @model_validator(mode="after")
    def _terms_and_gamma_fit_the_mode(self) -> Self:
        if self.rollout.mode == "generate":
            if "match" in self.reward.terms:
                raise ValueError(
                    "the reward term match compares with the text at the same place, and generated text has left it; "
                    "take continuation_overlap, or rollout.mode: per_position"
                )
            return self
        whole = [name for name in self.reward.terms if name in SEQUENCE_TERMS]
        if whole:
            raise ValueError(
                f"the reward term {whole[0]} judges a whole response, and rollout.mode=per_position samples single "
                f"tokens; take {', '.join(TOKEN_TERMS)} or a module:function that is per token"
            )
        if self.ppo.changed("gamma") and self.ppo.gamma:
            raise ValueError(
                f"ppo.gamma={self.ppo.gamma} in rollout.mode=per_position, where no action follows another; "
                "set ppo.gamma to 0, or leave it out"
            )
        return self

    @model_validator(mode="after")
    def _the_tokenizer_is_the_policys(self) -> Self:
        if self.model.policy.path is not None and self.data.tokenizer.changed("vocab_size"):
            raise ValueError(
                f"data.tokenizer.vocab_size={self.data.tokenizer.vocab_size} is for a tokenizer that is trained, and "
                "model.policy.path brings its own; leave vocab_size out"
            )
        return self

    @model_validator(mode="after")
    def _a_run_on_streams_says_how_long_an_epoch_is(self) -> Self:
        if self.data.streams and self.run.updates_per_epoch is None:
            raise ValueError(
                f"data.sources.{self.data.streams[0]} is streaming, so nobody knows how many tokens an epoch has; "
                "set run.updates_per_epoch"
            )
        return self

    @model_validator(mode="after")
    def _every_prior_is_above_the_floor(self) -> Self:
        if self.curriculum.strategy != "second_order":
            return self
        name, smallest = min(self.data.prior.items(), key=lambda item: item[1])
        highest = smallest * len(self.data.prior)
        if self.curriculum.floor > highest:
            raise ValueError(
                f"curriculum.floor={self.curriculum.floor} lies above the prior of source {name!r}; "
                f"set it to at most {math.floor(highest * 1e4) / 1e4:g}"
            )
        return self

    @model_validator(mode="after")
    def _the_strategy_has_what_it_reads(self) -> Self:
        c, sources = self.curriculum, list(self.data.sources)
        unknown = [name for name in c.reference_loss if name not in sources]
        if unknown:
            raise ValueError(
                f"curriculum.reference_loss.{unknown[0]} is of no source; name one of data.sources: "
                f"{', '.join(sources)}"
            )
        missing = [name for name in sources if name not in c.reference_loss]
        if c.strategy == "doremi" and missing:
            raise ValueError(
                f"curriculum.strategy=doremi has no reference loss of source {missing[0]!r}; set "
                f"curriculum.reference_loss.{missing[0]} to what a reference model has there, in {c.unit}"
            )
        if c.strategy == "temperature" and self.data.streams:
            raise ValueError(
                f"curriculum.strategy=temperature weighs sources by size, and {self.data.streams[0]} is streaming, so "
                "nobody knows its size; take static, with a data.sources.<name>.prior for each"
            )
        if c.strategy == "second_order" and c.signal == "metric":
            raise ValueError(
                "curriculum.signal=metric is no evidence of progress, which second_order asks for; take progress, "
                "advantage or reward_variance, or curriculum.strategy: literal"
            )
        return self

    @model_validator(mode="after")
    def _the_kl_target_leaves_beta_positive(self) -> Self:
        rollouts, horizon = self.rollout.batch_size, self.kl.horizon
        # A fifth is the most that a horizon's rollouts take away.
        if self.kl.target is not None and rollouts >= 5 * horizon:
            raise ValueError(
                f"kl.horizon={horizon} lets one update of rollout.batch_size={rollouts} rollouts take all of beta away"
                f"; set kl.horizon to {rollouts // 5 + 1} or more"
            )
        return self

    @property
    def gamma(self) -> float:
        """Discount per token; 0 where no token follows from another."""
        return 0.0 if self.rollout.mode == "per_position" else self.ppo.gamma

    @property
    def window_tokens(self) -> int:
        """T = P + R."""
        return self.rollout.prompt_tokens + self.rollout.response_tokens


@dataclass(frozen=True)
class Settings:
    """A validated run: the YAML, the files it names, and where each value came from."""

    config: Config
    training: TrainingJSON
    frozen: FrozenJSON
    prompts: tuple[Prompt, ...]
    provenance: dict[str, str]
    world_size: int
    micro_batch: int

    def deepspeed(self) -> dict[str, dict[str, Any]]:
        """The dictionaries of the engines `policy`, `value` and `frozen`, every "auto" filled."""
        ppo = self.config.ppo
        rates = {"policy": ppo.policy_lr, "value": ppo.value_lr}
        filled = {
            role: training_json(self.training, self.micro_batch, self.world_size, lr, ppo.max_grad_norm)
            for role, lr in rates.items()
        }
        return filled | {"frozen": frozen_json(self.frozen, self.training)}

    def offload_folders(self) -> OffloadFolders:
        """The folders of this rank in which DeepSpeed's engines keep what is offloaded to files.

        Raises:
            DestructError: one cannot be used.
        """
        if self.config.engine.backend != "deepspeed":
            return IN_MEMORY
        zero, frozen = self.training.zero_optimization, self.frozen.zero_optimization
        return offload_folders(zero.offload_param, zero.offload_optimizer, frozen.offload_param)


def read_config(path: Path, overrides: list[str]) -> tuple[Config, dict[str, str]]:
    """The YAML of a run with its overrides, and where each value comes from.

    Raises:
        DestructError: a key or a value is wrong by itself.
    """
    values, provenance = read_yaml(path)
    _refuse_whole_sections(overrides)
    apply_overrides(values, provenance, overrides)
    return validate(Config, values, str(path), provenance), provenance


def load(path: Path, overrides: list[str], world_size: int) -> Settings:
    """Read, override and validate a run for `world_size` ranks, before torch is imported.

    Raises:
        DestructError: anything a person can put right in the YAML, the JSON files or the command line.
    """
    config, provenance = read_config(path, overrides)
    training_path = find_beside(config.engine.deepspeed, path, "engine.deepspeed")
    training = read_json(training_path, TrainingJSON)
    frozen_path = find_beside(config.engine.frozen, path, "engine.frozen")
    frozen = read_json(frozen_path, FrozenJSON)
    prompts: tuple[Prompt, ...] = ()
    if config.prompts.file is not None:
        prompts = read_prompts(find_beside(config.prompts.file, path, "prompts.file"))
    if config.engine.backend == "fsdp":
        check_fsdp(training, str(training_path), frozen, str(frozen_path))
    if config.engine.backend == "single" and world_size > 1:
        raise DestructError(
            f"engine.backend=single runs in one process, but {world_size} ranks were started",
            "start one rank, or set engine.backend: deepspeed or fsdp",
        )
    if config.model.attention == "flash_attention_2" and not training.bf16.enabled:
        raise DestructError(
            f"model.attention=flash_attention_2 computes in bfloat16, and {training_path} has it off",
            'set "bf16": {"enabled": true} there, or model.attention: sdpa',
        )
    micro = micro_batch_size(
        config.rollout.batch_size,
        training.gradient_accumulation_steps,
        world_size,
        config.ppo.minibatches,
        training_path.name,
    )
    _check_contradictions(path, config, training_path, training, world_size, micro)
    return Settings(config, training, frozen, prompts, provenance, world_size, micro)


def _refuse_whole_sections(overrides: list[str]) -> None:
    """`ppo={epochs: 1}` would put every other key of the section back to its default without a word."""
    sections = [path for path, field in walk(Config) if next(sections_in(field.annotation), None)]
    for override in overrides:
        key, _, raw = override.partition("=")
        if key in sections and key != "data.sources" and raw.strip().startswith("{"):
            raise DestructError(f"override {override!r} replaces a whole section", f"name a key: {key}.sub=value")


def micro_batch_size(batch_size: int, accumulation: int, world_size: int, minibatches: int, json_name: str) -> int:
    """Rollouts per micro-batch, on average: B / (accumulation x world x minibatches).

    Raises:
        DestructError: B does not divide; the remedy names the nearest values that do.
    """
    per_pass = accumulation * world_size * minibatches
    if batch_size % per_pass == 0:
        return batch_size // per_pass
    below, above = batch_size // per_pass * per_pass, -(-batch_size // per_pass) * per_pass
    values = f"{below} or {above}" if below else str(above)
    raise DestructError(
        f"rollout.batch_size={batch_size} does not divide into gradient_accumulation_steps={accumulation} ({json_name})"
        f" x {world_size} ranks x ppo.minibatches={minibatches} = {per_pass} micro-batches",
        f"set rollout.batch_size to {values}, or change ppo.minibatches or the number of ranks",
    )


def _check_contradictions(
    yaml_path: Path, config: Config, json_path: Path, training: TrainingJSON, world_size: int, micro: int
) -> None:
    """A number in the JSON where `auto` would do must say what the YAML says.

    Raises:
        DestructError: naming both files, both keys and both values.
    """
    rates = [("ppo.policy_lr", config.ppo.policy_lr), ("ppo.value_lr", config.ppo.value_lr)]
    warmup_max_lr = training.scheduler.params.warmup_max_lr if training.scheduler else None
    expected: list[tuple[str, Any, str, Any]] = [
        ("train_micro_batch_size_per_gpu", training.train_micro_batch_size_per_gpu, "rollout.batch_size", micro),
        (
            "train_batch_size",
            training.train_batch_size,
            "rollout.batch_size / ppo.minibatches",
            micro * training.gradient_accumulation_steps * world_size,
        ),
        ("gradient_clipping", training.gradient_clipping, "ppo.max_grad_norm", config.ppo.max_grad_norm),
        *(("optimizer.params.lr", training.optimizer.params.lr, *rate) for rate in rates),
        *(("scheduler.params.warmup_max_lr", warmup_max_lr, *rate) for rate in rates),
    ]
    for json_key, in_json, yaml_key, in_yaml in expected:
        if in_json not in (None, "auto", in_yaml):
            raise DestructError(
                f"{json_path}: {json_key} = {in_json} contradicts {yaml_path}: {yaml_key} gives {in_yaml}",
                f'write "auto" for {json_key} in {json_path.name}',
            )
