"""What is sampled, and what it is worth."""

import re

from pydantic import Field, field_validator

from destruct.config.base import Section

REWARD_TERMS = ("repetition", "continuation_overlap", "length", "eos")
USER_TERM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")  # package.module:function


class RolloutConfig(Section):
    """What one update samples."""

    batch_size: int = Field(64, ge=1)
    """B: rollouts of one update over all ranks."""
    prompt_tokens: int = Field(32, ge=1)
    """P: tokens of each prompt, cut from the front of a window of the data."""
    response_tokens: int = Field(32, ge=1)
    """R: maximum number of tokens sampled after a prompt; the window's next R tokens are the true continuation."""
    temperature: float = Field(1.0, gt=0.01, le=10)
    """Logits are divided by this in sampling and in every log-probability of a sampled token."""


class RewardConfig(Section):
    """The score of a rollout: a weighted sum of terms, placed on its last real token."""

    terms: dict[str, float] = Field(default_factory=lambda: {"repetition": 1.0, "continuation_overlap": 1.0})
    """Term -> weight.  `repetition` in [-1, 0], `continuation_overlap`, `length` and `eos` in [0, 1], or the
    user's own `module:function` (see destruct/rollout/rewards.py for its arguments)."""
    ngram: int = Field(3, ge=1)
    """Length of the n-grams of `repetition`."""

    @field_validator("terms")
    @classmethod
    def _known(cls, terms: dict[str, float]) -> dict[str, float]:
        unknown = [name for name in terms if name not in REWARD_TERMS and not USER_TERM.fullmatch(name)]
        if unknown:
            raise ValueError(f"no reward term {unknown[0]!r}; take one of {', '.join(REWARD_TERMS)} or module:function")
        if not terms:
            raise ValueError("no reward term is given; name one, or leave terms out")
        return terms
