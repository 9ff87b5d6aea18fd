"""Reward terms, each a number per rollout, and their weighted sum."""

import importlib
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from destruct.batch import RewardedBatch, RolloutBatch
from destruct.errors import DestructError


class Decoder(Protocol):
    """The part of a tokenizer that user functions need."""

    def decode(self, ids: list[int]) -> str:
        """Text of the token ids."""


@dataclass(frozen=True, slots=True)
class RewardContext:
    """What the terms need besides the rollouts."""

    ngram: int
    tokenizer: Decoder


Term = Callable[[RolloutBatch, RewardContext], Tensor]

LARGEST = torch.finfo(torch.float32).max


def repetition(rollouts: RolloutBatch, context: RewardContext) -> Tensor:
    """Minus the share of the response's n-grams that occurred earlier in it: (B,) in [-1, 0]; 0 when too short."""
    return _per_rollout(rollouts, lambda response, _: _distinct_share(response, context.ngram) - 1)


def _distinct_share(tokens: list[int], n: int) -> float:
    total = len(tokens) - n + 1
    if total <= 0:
        return 1.0
    distinct = len({tuple(tokens[i : i + n]) for i in range(total)})
    return distinct / total


def continuation_overlap(rollouts: RolloutBatch, context: RewardContext) -> Tensor:
    """Unigram F1 between the response and the true continuation, as multisets of tokens: (B,) in [0, 1].

    Source: SQuAD's F1 (arXiv:1606.05250, section 6.1), over tokens instead of words.
    """
    return _per_rollout(rollouts, _f1)


def _f1(response: list[int], truth: list[int]) -> float:
    left = list(truth)
    shared = 0
    for token in response:
        if token in left:
            left.remove(token)
            shared += 1
    return 2 * shared / (len(response) + len(truth)) if response or truth else 0.0


def _per_rollout(rollouts: RolloutBatch, measure: Callable[[list[int], list[int]], float]) -> Tensor:
    p = rollouts.prompts.prompt_tokens
    truths = rollouts.prompts.windows[:, p:].tolist()
    values = [
        measure(response[:length], truth)
        for response, length, truth in zip(rollouts.responses.tolist(), rollouts.lengths.tolist(), truths, strict=True)
    ]
    return torch.tensor(values, dtype=torch.float32, device=rollouts.tokens.device)


def length(rollouts: RolloutBatch, context: RewardContext) -> Tensor:
    """Sampled tokens divided by R: (B,) in (0, 1]."""
    return rollouts.lengths.float() / rollouts.mask.shape[1]


def eos(rollouts: RolloutBatch, context: RewardContext) -> Tensor:
    """1 where the response ended by itself, 0 where it was cut: (B,)."""
    return rollouts.stopped.float()


def user_term(path: str) -> Term:
    """The user's `module:function`, called as f(prompts, responses, continuations), three lists of B texts.

    It returns B finite numbers.

    Raises:
        DestructError: the module or the function cannot be imported (here); the function raises, or returns another
            number of values, or one that is not finite (when called).
    """
    module_name, _, function_name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # the module is the user's: anything may go wrong in it
        raise DestructError(
            f"reward term {path!r}: {type(error).__name__}: {error}",
            "put the module on PYTHONPATH and check the function's name",
        ) from None
    if not callable(function):
        raise DestructError(f"reward term {path!r} is {function!r}, not a function", "name a function of that module")

    def term(rollouts: RolloutBatch, context: RewardContext) -> Tensor:
        if not len(rollouts.tokens):
            return torch.zeros(0, device=rollouts.tokens.device)
        values = _call_user(path, function, _texts(rollouts, context.tokenizer))
        return torch.tensor(values, dtype=torch.float32, device=rollouts.tokens.device)

    return term


def _texts(rollouts: RolloutBatch, tokenizer: Decoder) -> tuple[list[str], list[str], list[str]]:
    p = rollouts.prompts.prompt_tokens
    windows = rollouts.prompts.windows.tolist()
    responses = zip(rollouts.responses.tolist(), rollouts.lengths.tolist(), strict=True)
    return (
        [tokenizer.decode(window[:p]) for window in windows],
        [tokenizer.decode(response[:n]) for response, n in responses],
        [tokenizer.decode(window[p:]) for window in windows],
    )


def _call_user(path: str, function: Callable, texts: tuple[list[str], list[str], list[str]]) -> list[float]:
    remedy = f"fix {path}: it gets (prompts, responses, continuations) and returns one finite number per response"
    try:
        values = [float(value) for value in function(*texts)]
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
        raise DestructError(f"reward term {path!r} raised {where}", remedy) from error
    if len(values) != len(texts[1]):
        raise DestructError(f"reward term {path!r} gave {len(values)} values for {len(texts[1])} responses", remedy)
    for value, response in zip(values, texts[1], strict=True):
        if not abs(value) <= LARGEST:
            raise DestructError(f"reward term {path!r} gave {value} for the response {response[:60]!r}", remedy)
    return values


REWARDS: dict[str, Term] = {
    "repetition": repetition,
    "continuation_overlap": continuation_overlap,
    "length": length,
    "eos": eos,
}


class Reward:
    """The weighted sum of the config's terms.

    Args:
        weights: term name (or module:function) -> weight.
    """

    def __init__(self, weights: dict[str, float], context: RewardContext):
        self.context = context
        self.names = list(weights)
        self.weights = torch.tensor(list(weights.values()), dtype=torch.float32)
        self.functions = [REWARDS.get(name) or user_term(name) for name in weights]

    def __call__(self, rollouts: RolloutBatch) -> RewardedBatch:
        """Score each rollout.

        Raises:
            DestructError: a user's function raised, or returned what it should not.
        """
        terms = torch.stack([function(rollouts, self.context) for function in self.functions], 1)
        return RewardedBatch(rollouts, terms @ self.weights.to(terms.device), terms)
