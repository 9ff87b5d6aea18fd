"""The reward term `reward_model`: what a sequence classifier says of prompt and response, read as text."""

import torch
from torch import Tensor

from destruct.batch import RolloutBatch
from destruct.engine.base import InferenceEngine
from destruct.models.reward_model import Reader
from destruct.rollout.rewards import RewardContext, Term


def reward_model(engine: InferenceEngine, reader: Reader) -> Term:
    """The classifier's logit for each rollout's text: (B,).  All ranks call it.

    Args:
        engine: around a `RewardModel`.
        reader: its own tokenizer, through which the text of prompt and response goes.
    """

    def measure(rollouts: RolloutBatch, terms: RewardContext) -> Tensor:
        pairs = zip(rollouts.prompts.prompt_ids(), rollouts.response_ids(), strict=True)
        texts = [terms.tokenizer.decode(prompt + response) for prompt, response in pairs]
        # Without rollouts one token stands in: every rank makes every forward.
        encoded = [ids or [0] for ids in reader(texts)] or [[0]]
        longest = max(map(len, encoded))
        device = rollouts.responses.device
        tokens = torch.tensor([ids + [0] * (longest - len(ids)) for ids in encoded], device=device)
        mask = torch.tensor([[t < len(ids) for t in range(longest)] for ids in encoded], device=device)
        return engine(tokens, mask)[: len(texts)]

    return Term(measure)
