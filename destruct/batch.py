"""The typed batches that pass between the steps of an update.

Letters: B rollouts, P columns for the prompt, R for the response, T = P + R.  A row is a rollout:

    | left padding | prompt | response, or the true continuation | right padding |
                   P - length                P                                   T

The response begins in column P, whatever the prompt's length.  The networks read rollouts from their first token on
(`destruct/rollout/score.py`), so that neither an attention mask nor positions are needed.

Each stage takes one frozen object and returns another:

    PromptBatch -> generate -> RolloutBatch -> reward -> RewardedBatch -> score -> ScoredBatch
        -> advantages -> TrainBatch -> update -> UpdateStats
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


def _require(owner: object, name: str, want: tuple[int, ...]) -> None:
    got = tuple(getattr(owner, name).shape)
    if got != want:
        raise ValueError(f"{type(owner).__name__}.{name} is {got}; it must be {want}")


def _require_lengths(owner: object, name: str, rows: int, least: int, most: int) -> None:
    _require(owner, name, (rows,))
    lengths = getattr(owner, name)
    if rows and not (least <= int(lengths.min()) and int(lengths.max()) <= most):
        found = f"{int(lengths.min())} to {int(lengths.max())}"
        raise ValueError(f"{type(owner).__name__}.{name} holds {found}; {least} to {most} are possible")


def _cut(rows: Tensor, start: Tensor, stop: Tensor) -> list[list[int]]:
    """Columns start to stop - 1 of each row (n, T), the borders (n,)."""
    borders = zip(rows.tolist(), start.tolist(), stop.tolist(), strict=True)
    return [row[first:end] for row, first, end in borders]


@dataclass(frozen=True, slots=True)
class TokenWindows:
    """n windows of T tokens for cross-entropy.  Several documents may stand in one, and none sees another.

    Padding is a document too, or many of one token, in which nothing is predicted.
    """

    tokens: Tensor  # (n, T) int64
    positions: Tensor  # (n, T) int64  place in its document, or in the part that the window holds: 0 begins one

    def __post_init__(self) -> None:
        _require(self, "positions", tuple(self.tokens.shape))
        # Of windows of this size numpy's comparisons take a third of the time that torch's threads need to meet.
        places = self.positions.numpy() if self.positions.device.type == "cpu" else self.positions
        follows = (places[:, 1:] == 0) | (places[:, 1:] == places[:, :-1] + 1)
        if not ((places[:, :1] == 0).all() and follows.all()):
            raise ValueError("TokenWindows.positions must begin at 0, and go on by 1 or begin again at 0")

    def __len__(self) -> int:
        return len(self.tokens)

    @classmethod
    def full(cls, tokens: Tensor) -> TokenWindows:
        """Windows (n, T) int64 of one document each."""
        return cls(tokens, torch.arange(tokens.shape[1], device=tokens.device).repeat(len(tokens), 1))

    def select(self, rows: Tensor) -> TokenWindows:
        """The windows at `rows` (m,) int64."""
        return TokenWindows(self.tokens[rows], self.positions[rows])

    def to(self, device: torch.device) -> TokenWindows:
        """The same windows there."""
        return TokenWindows(self.tokens.to(device), self.positions.to(device))

    @property
    def predicted(self) -> Tensor:
        """(n, T - 1) bool: which tokens after the first column stand behind another one of their document."""
        return self.positions[:, 1:] > 0

    @property
    def rows(self) -> Tensor:
        """(N,) int64: places among the n * T of the states that predict, the one before each predicted token."""
        row, column = self.predicted.nonzero(as_tuple=True)
        return row * self.tokens.shape[1] + column

    @property
    def targets(self) -> Tensor:
        """(N,) int64: the predicted tokens, in the order of `rows`."""
        return self.tokens[:, 1:][self.predicted]

    @property
    def target_counts(self) -> Tensor:
        """(n,) int64: predicted tokens of each window."""
        return self.predicted.sum(1)


@dataclass(frozen=True, slots=True)
class PromptBatch:
    """B windows drawn from the mixture, the same on every rank."""

    draw: int  # number of this draw; only ever grows
    prompt_tokens: int  # P
    windows: Tensor  # (B, T) int64   prompt, then the true continuation, padding around both
    prompt_lengths: Tensor  # (B,) int64   1 to P: the prompt stands in columns P - length to P - 1
    continuation_lengths: Tensor  # (B,) int64   0 to R: the continuation begins in column P; 0 where the data has none
    source: Tensor  # (B,)   int64   index of the data set
    sample: Tensor  # (B,)   int64   global sample index: the address of a rollout's randomness

    def __post_init__(self) -> None:
        b, t = self.windows.shape
        _require(self, "source", (b,))
        _require(self, "sample", (b,))
        _require_lengths(self, "prompt_lengths", b, 1, self.prompt_tokens)
        _require_lengths(self, "continuation_lengths", b, 0, t - self.prompt_tokens)

    @classmethod
    def full(cls, draw: int, prompt_tokens: int, windows: Tensor, source: Tensor, sample: Tensor) -> PromptBatch:
        """Windows without padding."""
        prompts = torch.full_like(source, prompt_tokens)
        continuations = torch.full_like(source, windows.shape[1] - prompt_tokens)
        return cls(draw, prompt_tokens, windows, prompts, continuations, source, sample)

    def select(self, rows: Tensor) -> PromptBatch:
        """The windows at `rows` (b,) int64."""
        return PromptBatch(
            self.draw,
            self.prompt_tokens,
            self.windows[rows],
            self.prompt_lengths[rows],
            self.continuation_lengths[rows],
            self.source[rows],
            self.sample[rows],
        )

    @property
    def positions(self) -> Tensor:
        """(B, T) int64: the left padding and the prompt begin at 0, and the response goes on from the prompt."""
        column = torch.arange(self.windows.shape[1], device=self.windows.device)
        start = self.prompt_tokens - self.prompt_lengths[:, None]
        return torch.where(column < start, column, column - start)

    @property
    def continuation_mask(self) -> Tensor:
        """(B, R) bool: True on the tokens of the true continuation."""
        column = torch.arange(self.windows.shape[1] - self.prompt_tokens, device=self.windows.device)
        return column < self.continuation_lengths[:, None]

    @property
    def real_tokens(self) -> int:
        """Tokens of all prompts and true continuations."""
        return int(self.prompt_lengths.sum() + self.continuation_lengths.sum())

    def tokens_per_source(self, sources: int) -> Tensor:
        """Real tokens of the windows of each of so many sources: (S,) int64."""
        lengths = self.prompt_lengths + self.continuation_lengths
        return torch.zeros(sources, dtype=torch.int64, device=lengths.device).index_add_(0, self.source, lengths)

    def prompt_ids(self) -> list[list[int]]:
        """The tokens of each prompt."""
        end = torch.full_like(self.prompt_lengths, self.prompt_tokens)
        return _cut(self.windows, end - self.prompt_lengths, end)

    def continuation_ids(self) -> list[list[int]]:
        """The tokens of each true continuation."""
        start = torch.full_like(self.continuation_lengths, self.prompt_tokens)
        return _cut(self.windows, start, start + self.continuation_lengths)


@dataclass(frozen=True, slots=True)
class RolloutBatch:
    """Prompts with what the policy sampled after them, one token after another, or each after the data's own text."""

    prompts: PromptBatch
    responses: Tensor  # (B, R) int64  sampled tokens, then padding
    mask: Tensor  # (B, R) bool    True on sampled tokens, eos included: a prefix of each row
    stopped: Tensor  # (B,)   bool    the response ended with eos or a stop string rather than at R tokens
    teacher_forced: bool  # the state of a token is the true text before it, not what was sampled before it

    def __post_init__(self) -> None:
        b, t = self.prompts.windows.shape
        _require(self, "responses", (b, t - self.prompts.prompt_tokens))
        _require(self, "mask", (b, t - self.prompts.prompt_tokens))
        _require(self, "stopped", (b,))

    def select(self, rows: Tensor) -> RolloutBatch:
        """The rollouts at `rows` (b,) int64."""
        prompts = self.prompts.select(rows)
        return RolloutBatch(prompts, self.responses[rows], self.mask[rows], self.stopped[rows], self.teacher_forced)

    @property
    def tokens(self) -> Tensor:
        """(B, T) int64, what the networks read: prompt and response; the window itself when teacher-forced."""
        if self.teacher_forced:
            return self.prompts.windows
        return torch.cat([self.prompts.windows[:, : self.prompts.prompt_tokens], self.responses], 1)

    @property
    def continuations(self) -> Tensor:
        """(B, R) int64: what the data has in the place of the responses, padding after it."""
        return self.prompts.windows[:, self.prompts.prompt_tokens :]

    @property
    def lengths(self) -> Tensor:
        """(B,) int64: sampled tokens of each rollout."""
        return self.mask.sum(1)

    def response_ids(self) -> list[list[int]]:
        """The sampled tokens of each rollout."""
        return _cut(self.responses, torch.zeros_like(self.lengths), self.lengths)


@dataclass(frozen=True, slots=True)
class RewardedBatch:
    """Rollouts with what they are worth, in which no KL penalty is."""

    rollouts: RolloutBatch
    rewards: Tensor  # (B, R) float32  reward units: weighted sum of the terms; a sequence's score on its last token
    score: Tensor  # (B,)   float32  reward units: sum of the rewards; their mean when teacher-forced
    terms: Tensor  # (B, K) float32  each term before its weight, in the config's order; a term per token as its mean

    def __post_init__(self) -> None:
        rows = len(self.rollouts.responses)
        _require(self, "rewards", tuple(self.rollouts.mask.shape))
        _require(self, "score", (rows,))
        _require(self, "terms", (rows, *self.terms.shape[1:]))


@dataclass(frozen=True, slots=True)
class ScoredBatch:
    """Rollouts with everything that is known before advantages; all 0 where the mask is False."""

    rewarded: RewardedBatch
    old_logprobs: Tensor  # (B, R) float32  nats, under the policy that sampled
    reference_logprobs: Tensor  # (B, R) float32  nats, under the reference
    old_values: Tensor  # (B, R) float32  reward units, V(s_t) before token t
    rewards: Tensor  # (B, R) float32  reward units: those of the terms, less the KL penalty
    reference_states: Tensor | None = None  # (mask.sum(), H) the reference's, where the loss has the exact KL to it

    def __post_init__(self) -> None:
        shape = tuple(self.rollouts.mask.shape)
        for name in ("old_logprobs", "reference_logprobs", "old_values", "rewards"):
            _require(self, name, shape)
        if self.reference_states is not None:
            _require(self, "reference_states", (int(self.rollouts.mask.sum()), *self.reference_states.shape[1:]))

    @property
    def rollouts(self) -> RolloutBatch:
        """What was sampled."""
        return self.rewarded.rollouts


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """What the PPO update reads."""

    scored: ScoredBatch
    advantages: Tensor  # (B, R) float32  whitened over all ranks; 0 where the mask is False
    returns: Tensor  # (B, R) float32  reward units

    def __post_init__(self) -> None:
        shape = tuple(self.scored.rollouts.mask.shape)
        _require(self, "advantages", shape)
        _require(self, "returns", shape)
