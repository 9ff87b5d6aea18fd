"""The user's own reward functions: imported, called on texts, and answered for when they fail."""

import traceback
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from destruct.batch import RolloutBatch
from destruct.errors import DestructError
from destruct.rollout.rewards import Decoder, RewardContext, Term
from destruct.rollout.score import spread
from destruct.user_function import import_function

LARGEST = torch.finfo(torch.float32).max

Texts = tuple[list[str], Sequence[Any], Sequence[Any]]


def user_term(path: str) -> Term:
    """The user's `module:function`, called as f(prompts, responses, continuations) on B rollouts.

    Without more it gets three lists of B texts and returns B finite numbers.  With the attribute `per_token = True` on
    the function a response and a continuation are lists of texts, one per token, and it returns for each response a
    list of as many finite numbers.  Where the data has no continuation, it is empty.

    Raises:
        DestructError: the module or the function cannot be imported (here); the function raises, or returns another
            number of values, or one that is not finite (when called).
    """
    function = import_function("reward term", path)
    per_token = bool(getattr(function, "per_token", False))

    def measure(rollouts: RolloutBatch, context: RewardContext) -> Tensor:
        texts = _texts(rollouts, context.tokenizer, per_token)
        values = _Call(path, function, per_token, rollouts.prompts.sample.tolist())(texts) if texts[0] else []
        numbers = torch.tensor([number for each in values for number in each], dtype=torch.float32)
        numbers = numbers.to(rollouts.responses.device)
        return spread(numbers, rollouts.mask) if per_token else numbers

    return Term(measure, per_token)


def _texts(rollouts: RolloutBatch, tokenizer: Decoder, per_token: bool) -> Texts:
    def text(ids: list[int]) -> str | list[str]:
        return [tokenizer.decode([token]) for token in ids] if per_token else tokenizer.decode(ids)

    return (
        [tokenizer.decode(prompt) for prompt in rollouts.prompts.prompt_ids()],
        [text(response) for response in rollouts.response_ids()],
        [text(continuation) for continuation in rollouts.prompts.continuation_ids()],
    )


class _Call:
    """One call of a user's function on the rollouts of a micro-batch."""

    def __init__(self, path: str, function: Callable, per_token: bool, samples: list[int]):
        self.path, self.function, self.per_token, self.samples = path, function, per_token, samples
        each = "a list of one finite number per token" if per_token else "one finite number"
        self.remedy = f"fix {path}: it gets (prompts, responses, continuations) and returns {each} per response"

    def __call__(self, texts: Texts) -> list[list[float]]:
        """The numbers of each response: one, or one per token."""
        try:
            values = [self._numbers(value) for value in self.function(*texts)]
        except Exception as error:
            raise self._raised(texts, error) from error
        responses = texts[1]
        if len(values) != len(responses):
            samples = ", ".join(map(str, self.samples))
            raise self._error(f"gave {len(values)} values for the {len(responses)} responses of samples {samples}")
        for sample, response, numbers in zip(self.samples, responses, values, strict=True):
            if self.per_token and len(numbers) != len(response):
                raise self._error(f"gave {len(numbers)} values for the {len(response)} tokens of sample {sample}")
            for number in numbers:
                if not abs(number) <= LARGEST:
                    text = "".join(response)[:60]
                    raise self._error(f"gave {number} for sample {sample}, the response {text!r}")
        return values

    def _numbers(self, value: Any) -> list[float]:
        return [float(number) for number in (value if self.per_token else [value])]

    def _raised(self, texts: Texts, error: Exception) -> DestructError:
        last = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error} ({last.filename}:{last.lineno})"
        return self._error(f"raised {said} on {self._culprit(texts)}")

    def _culprit(self, texts: Texts) -> str:
        """The first sample that the function fails on by itself; all of them where it needs their company."""
        for sample, *alone in zip(self.samples, *texts, strict=True):
            try:
                [self._numbers(value) for value in self.function(*([text] for text in alone))]
            except Exception:
                return f"sample {sample}"
        return f"samples {', '.join(map(str, self.samples))} together"

    def _error(self, said: str) -> DestructError:
        return DestructError(f"reward term {self.path!r} {said}", self.remedy)
