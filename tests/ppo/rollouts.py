"""A batch of invented rollouts and scores, and the engines that train on it."""

import math
from collections.abc import Callable

import torch

from destruct.batch import PromptBatch, RewardedBatch, RolloutBatch, ScoredBatch, TrainBatch
from destruct.config.deepspeed import Optimizer, OptimizerParams
from destruct.config.model import PolicyShape
from destruct.engine.schedule import Schedule
from destruct.engine.single import SingleEngine
from destruct.engine.topology import Topology
from destruct.minibatch import Minibatch
from destruct.models.policy import PolicyNetwork
from destruct.models.value import build_value
from destruct.ops.rows import LossCoefficients
from destruct.ppo.update import UpdateSettings
from destruct.rollout.packing import pack

V, P, R, B = 50, 5, 6, 8
FLOAT32 = 1e-5  # relative L2 of a float32 gradient against float64
LENGTHS = torch.tensor([6, 1, 3, 6, 2, 5, 4, 6])
ALONE = Topology(0, 1, torch.device("cpu"))
SHAPE = PolicyShape(
    hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, initializer_range=0.3
)
COEFFICIENTS = LossCoefficients(clip_low=0.2, clip_high=0.2, kl_coef=0.07, kl="k2", entropy_coef=0.02)
TAU, PTX = 0.8, 0.4


def settings(**changes) -> UpdateSettings:
    values = dict(
        epochs=1,
        temperature=TAU,
        ptx_coef=PTX,
        value_clip_range=0.2,
        early_stop_kl=None,
        policy_lr=Schedule(1e-3, None, 1),
        value_lr=Schedule(1e-3, None, 1),
    )
    return UpdateSettings(**(values | changes))


def full(windows: torch.Tensor) -> PromptBatch:
    """Prompts of P tokens, continuations of R."""
    return PromptBatch.full(0, P, windows, torch.arange(B) % 2, torch.arange(B))


def make_batch(prompts_of: Callable[[torch.Tensor], PromptBatch] = full) -> TrainBatch:
    """Scores do not depend on `prompts_of`, which says what of the windows (B, P + R) is prompt and continuation."""
    g = torch.Generator().manual_seed(0)
    windows = torch.randint(0, V, (B, P + R), generator=g)
    mask = torch.arange(R) < LENGTHS[:, None]
    responses = torch.randint(0, V, (B, R), generator=g)
    prompts = prompts_of(windows)
    rollouts = RolloutBatch(prompts, responses, mask, torch.zeros(B, dtype=torch.bool), teacher_forced=False)
    noise = torch.randn(6, B, R, generator=g) * mask
    old, reference = (math.log(1 / V) + 0.4 * noise[0]) * mask, (math.log(1 / V) + 0.4 * noise[1]) * mask
    rewarded = RewardedBatch(rollouts, noise[3], noise[3].sum(1), noise[3].sum(1, keepdim=True))
    scored = ScoredBatch(rewarded, old, reference, noise[2], noise[3])
    return TrainBatch(scored, noise[4], noise[5])


def engines(policy: PolicyNetwork, accumulation: int = 2) -> tuple[SingleEngine, SingleEngine]:
    value = build_value(SHAPE, V, torch.float32, 2)
    torch.nn.init.normal_(value.head.weight, std=0.5, generator=torch.Generator().manual_seed(3))
    adam = Optimizer(params=OptimizerParams())
    return SingleEngine(policy, adam, accumulation, 1e6), SingleEngine(value, adam, accumulation, 1e6)


def packed(batch: TrainBatch, minibatches: int = 1, accumulation: int = 2) -> list[Minibatch[TrainBatch]]:
    def refill(rollouts: RolloutBatch) -> TrainBatch:
        i = rollouts.prompts.sample
        s = batch.scored
        scored = ScoredBatch(
            RewardedBatch(rollouts, s.rewarded.rewards[i], s.rewarded.score[i], s.rewarded.terms[i]),
            s.old_logprobs[i],
            s.reference_logprobs[i],
            s.old_values[i],
            s.rewards[i],
        )
        return TrainBatch(scored, batch.advantages[i], batch.returns[i])

    parts = pack(batch.scored.rollouts, torch.arange(B), minibatches, accumulation, ALONE)
    return [part.map(refill) for part in parts]
