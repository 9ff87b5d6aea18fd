"""Measures one model: losses on held-out windows, figures of what it says after held-out prompts, and the person's own
prompts continued.  Ranks share the work; each holds the whole model.
"""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from destruct.batch import PromptBatch, RolloutBatch
from destruct.config.settings import Config
from destruct.data.tokenizing import Tokenizer
from destruct.engine.single import SingleFrozen
from destruct.engine.topology import Topology
from destruct.errors import DestructError
from destruct.evaluating.estimates import Estimate, Replicated, distinct, mean, per_unit, perplexity
from destruct.evaluating.model import Model
from destruct.evaluating.subject import Job
from destruct.evaluation import WINDOWS_PER_FORWARD, window_nats
from destruct.inputs import HeldOut
from destruct.models.policy import PolicyNetwork
from destruct.progress import Tell, progress
from destruct.prompting import continue_prompts
from destruct.rollout.generate import Sampling, generate, sampling
from destruct.rollout.rewards import REWARDS, RewardContext, Term, repetition
from destruct.rollout.user_terms import user_term
from destruct.seeding import derive
from destruct.tracking.console import Screen

SAMPLED_AT_ONCE = 32
"""Responses of a rank; each needs a cache of keys and values."""
NGRAMS = (1, 2, 3, 4)
"""Of distinct-n."""
SHOWN_ANYWAY = ("repetition", "length", "eos")
"""Reward terms that are figures of every evaluation."""
NEED_MORE = ("match", "frozen_likelihood", "reward_model")
"""Reward terms that are no function of prompt, response and continuation alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Loss:
    """One source's held-out windows under one model."""

    nats: Tensor  # (n,) float64  of each window
    tokens: Tensor  # (n,) int64  predicted ones of each
    bytes: Tensor  # (n,) int64  UTF-8 bytes of these
    learnable: bool
    digest: str  # of what was measured on: tokens, where documents begin, and what the tokens stand for

    @property
    def nats_per_token(self) -> Estimate:
        """As the validation loss of a run."""
        return per_unit(self.nats, self.tokens)

    @property
    def perplexity(self) -> Estimate:
        """Of that."""
        return perplexity(self.nats_per_token)

    @property
    def bits_per_byte(self) -> Estimate:
        """Of the predicted tokens."""
        return per_unit(self.nats / math.log(2), self.bytes)


@dataclass(frozen=True, slots=True, eq=False)
class Speech:
    """What one model said after one source's held-out prompts."""

    prompts: int
    figures: dict[str, Replicated]
    digest: str  # of the prompts, likewise


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """All that was measured of one model."""

    model: Model
    losses: dict[str, Loss]
    speech: dict[str, Speech]  # empty where nothing was sampled
    continuations: list[str]  # of the job's prompts, in their order


def reward_terms(config: Config) -> dict[str, Term]:
    """The reward terms of the config that judge a whole response by its text, but for those that are shown anyway.

    Raises:
        DestructError: a user's function cannot be had.
    """
    names = [name for name in config.reward.terms if name not in (*SHOWN_ANYWAY, *NEED_MORE)]
    return {name: REWARDS.get(name) or user_term(name) for name in names}


def measure(
    job: Job,
    model: Model,
    network: PolicyNetwork,
    held_out: list[HeldOut],
    prompts: list[list[int]],
    topology: Topology,
    screen: Screen,
) -> Measured:
    """Measure a model; all ranks call it.

    Args:
        prompts: tokens of the person's own.

    Raises:
        DestructError: nothing is predicted in a source's windows, or a user's reward function fails.
    """
    config, how = job.config, sampling(model.tokenizer, job.config.rollout.temperature, job.config.rollout.stop)
    engine, read_by = SingleFrozen(network), _Reading.of(model.tokenizer)
    steps = sum(len(_slices(source, job.windows, topology)) for source in held_out)
    with progress("loss", steps, console=screen.console) as tell:
        losses = {each.name: _loss(engine, each, job.windows, read_by, topology, tell) for each in held_out}
    speech: dict[str, Speech] = {}
    if job.samples:
        judge = _Judge(config, model.tokenizer, reward_terms(config), read_by)
        with progress("sample", len(held_out), console=screen.console) as tell:
            for source in held_out:
                responses = _sampled(network, source, job.seed, how, topology)
                speech[source.name] = topology.together(partial(judge, responses))
                tell(more=f"  {source.name}")
    said = continue_prompts(network, prompts, config.prompts.response_tokens, job.seed, how, topology)
    return Measured(model, losses, speech, [model.tokenizer.decode(ids) for ids in said])


def _slices(source: HeldOut, most: int, topology: Topology) -> range:
    """Where the windows of a forward of all ranks begin: in each rank's share as in `validate`."""
    return range(0, min(most, len(source.windows)), WINDOWS_PER_FORWARD * topology.world_size)


@dataclass(frozen=True, slots=True)
class _Reading:
    """What tokens stand for."""

    token_bytes: Tensor  # (V,) int64
    vocabulary: bytes  # a digest of it

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Self:
        tokens = sorted(tokenizer.fast.get_vocab().items(), key=lambda item: item[1])
        return cls(torch.from_numpy(tokenizer.token_bytes.copy()), _digest(repr(tokens).encode()).digest())


def _digest(begin: bytes) -> Any:
    return hashlib.blake2b(begin, digest_size=16)


def _loss(engine: SingleFrozen, source: HeldOut, most: int, read_by: _Reading, topology: Topology, tell: Tell) -> Loss:
    count, begins = min(most, len(source.windows)), _slices(source, most, topology)
    nats, tokens, sizes, digest = [], [], [], _digest(read_by.vocabulary)
    for begin in begins:
        windows = source.windows.select(np.arange(begin, min(begin + begins.step, count)))
        bytes_of = torch.zeros(windows.predicted.shape, dtype=torch.int64)
        bytes_of[windows.predicted] = read_by.token_bytes[windows.targets]
        for part in (windows.tokens, windows.positions):
            digest.update(part.numpy().tobytes())
        nats.append(window_nats(engine, windows, topology).cpu())
        tokens.append(windows.target_counts)
        sizes.append(bytes_of.sum(1))
        tell(more=f"  {source.name}")
    loss = Loss(torch.cat(nats), torch.cat(tokens), torch.cat(sizes), source.learnable, digest.hexdigest())
    if not loss.tokens.any():
        raise DestructError(
            f"source {source.name!r}: nothing is predicted in its {count} held-out windows: every document in them is "
            "one token",
            "give it longer texts",
        )
    return loss


def _sampled(network: PolicyNetwork, source: HeldOut, seed: int, how: Sampling, topology: Topology) -> RolloutBatch:
    """Responses to a source's prompts, all on every rank; random numbers are addressed by seed, source and prompt."""
    assert source.prompts is not None
    prompts, address = _on(source.prompts, topology.device), derive(seed, "evaluation", source.name)
    alone = Topology(0, 1, topology.device)  # shares may be of unequal size
    mine: dict[int, tuple[list[int], bool]] = {}
    for rows in topology.share(len(prompts.source)).split(SAMPLED_AT_ONCE):
        said = generate(network, prompts.select(rows), alone, address, how)
        mine |= zip(rows.tolist(), zip(said.response_ids(), said.stopped.tolist(), strict=True), strict=True)
    every = {row: said for part in topology.from_all(mine) for row, said in part.items()}
    return _rollouts(_on(prompts, torch.device("cpu")), [every[row] for row in sorted(every)], how.pad_id)


def _on(prompts: PromptBatch, device: torch.device) -> PromptBatch:
    columns = ("windows", "prompt_lengths", "continuation_lengths", "source", "sample")
    return replace(prompts, **{name: getattr(prompts, name).to(device) for name in columns})


def _rollouts(prompts: PromptBatch, said: list[tuple[list[int], bool]], pad_id: int) -> RolloutBatch:
    limit = prompts.windows.shape[1] - prompts.prompt_tokens
    responses = torch.tensor([[*ids, *[pad_id] * (limit - len(ids))] for ids, _ in said])
    mask = torch.arange(limit) < torch.tensor([len(ids) for ids, _ in said])[:, None]
    return RolloutBatch(prompts, responses, mask, torch.tensor([stopped for _, stopped in said]), teacher_forced=False)


class _Judge:
    """Makes figures of responses; the eos that ends one counts in all of them but distinct-n.

    Args:
        terms: reward terms that are figures, too.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer, terms: Mapping[str, Term], read_by: _Reading):
        self.vocabulary = read_by.vocabulary
        self.context, self.terms, self.eos_id = RewardContext(config.reward.ngram, tokenizer), terms, tokenizer.eos_id

    def __call__(self, said: RolloutBatch) -> Speech:
        """Raises DestructError where a user's reward function fails."""
        ids = said.response_ids()
        texts = [each[:-1] if each[-1] == self.eos_id else each for each in ids]
        figures = {"repetition": mean((-repetition(said, self.context)).tolist())}
        figures |= {f"distinct-{n}": distinct(texts, n) for n in NGRAMS}
        figures |= {"length": mean(said.lengths.tolist()), "eos_rate": mean(said.stopped.tolist())}
        for name, term in self.terms.items():
            values = term.measure(said, self.context).double()
            figures[name] = mean((values.sum(1) / said.lengths if term.per_token else values).tolist())
        digest = _digest(self.vocabulary + repr(said.prompts.prompt_ids()).encode()).hexdigest()
        return Speech(len(ids), figures, digest)
