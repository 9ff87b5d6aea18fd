"""What is sampled, and what it is worth."""

import re
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from destruct.config.base import Section

SEQUENCE_TERMS = ("repetition", "continuation_overlap", "length", "eos", "reward_model")
TOKEN_TERMS = ("match", "frozen_likelihood")
REWARD_TERMS = SEQUENCE_TERMS + TOKEN_TERMS
USER_TERM = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")  # package.module:function


class RolloutConfig(Section):
    """What one update samples."""

    mode: Literal["generate", "per_position"] = "generate"
    """`generate`: a response after each prompt, token by token.  `per_position`: one token at every position of the
    data's own text after the prompt, each an action of its own (so gamma is 0, and only per-token reward terms act)."""
    batch_size: int = Field(64, ge=1)
    """B: rollouts of one update over all ranks."""
    prompt_tokens: int = Field(32, ge=1)
    """P: tokens of each prompt, cut from the front of a window of the data."""
    response_tokens: int = Field(32, ge=1)
    """R: maximum number of tokens sampled after a prompt; the window's next R tokens are the true continuation."""
    temperature: float = Field(1.0, gt=0.01, le=10)
    """Logits are divided by this in sampling and in every log-probability of a sampled token."""
    stop: tuple[str, ...] = Field((), strict=False)
    """Texts that end a response as eos does, e.g. `["\\n\\n"]`; the token that completes one is the response's last."""

    gather: Literal["once", "layers"] = "once"
    """What samples: a whole copy of the policy on every rank, gathered once (`once`), or a network that gathers each
    layer at every token (`layers`), for models of which no rank can hold a copy; many times slower."""

    @model_validator(mode="after")
    def _stop_ends_something(self) -> Self:
        if any(not text for text in self.stop):
            raise ValueError("stop holds an empty text, which would end every response; leave it out")
        if self.stop and self.mode == "per_position":
            raise ValueError("stop ends nothing in mode=per_position, which samples no text; leave one of them out")
        return self


class RewardModelConfig(Section):
    """The model of the term `reward_model`: a sequence classifier with one label, with a tokenizer of its own.

    It is sharded and offloaded as `engine.frozen` says.
    """

    path: str | None = Field(None, min_length=1)
    """Hub id or local folder.  It reads prompt and response as plain text, without the special tokens of a chat."""
    revision: str | None = Field(None, min_length=1)
    """Branch, tag or commit of a hub `path`."""


class RewardConfig(Section):
    """What a rollout is worth: a weighted sum of terms; that of a whole rollout is paid with its last real token."""

    terms: dict[str, float] = Field(
        default_factory=lambda: {"repetition": 1.0, "continuation_overlap": 1.0},
        json_schema_extra={
            "minProperties": 1,
            "properties": {name: {"type": "number"} for name in REWARD_TERMS},
            "propertyNames": {"anyOf": [{"enum": [*REWARD_TERMS]}, {"pattern": f"^{USER_TERM.pattern}$"}]},
        },
    )
    """Term -> weight.  Per rollout: `repetition` in [-1, 0], `continuation_overlap` (0 where the data has none),
    `length` and `eos` in [0, 1], `reward_model`.  Per token: `match` (the token is the text's own; per_position alone),
    `frozen_likelihood` (its logprob under the frozen model, nats).  Or the user's own `module:function`
    (destruct/rollout/user_terms.py)."""
    ngram: int = Field(3, ge=1)
    """Length of the n-grams of `repetition`."""
    model: RewardModelConfig = RewardModelConfig()
    """The model of the term `reward_model`."""

    @field_validator("terms")
    @classmethod
    def _known(cls, terms: dict[str, float]) -> dict[str, float]:
        unknown = [name for name in terms if name not in REWARD_TERMS and not USER_TERM.fullmatch(name)]
        if unknown:
            raise ValueError(f"no reward term {unknown[0]!r}; take one of {', '.join(REWARD_TERMS)} or module:function")
        if not terms:
            raise ValueError("no reward term is given; name one, or leave terms out")
        return terms

    @model_validator(mode="after")
    def _the_model_is_named_and_used(self) -> Self:
        if "reward_model" in self.terms and self.model.path is None:
            raise ValueError("the term reward_model has no model; set reward.model.path")
        if "reward_model" not in self.terms and self.model.path is not None:
            raise ValueError(f"model.path={self.model.path} scores nothing; add the term reward_model, or leave it out")
        if self.model.path is None and self.model.revision is not None:
            raise ValueError("model.revision is that of a path, and none is given; give path, or leave revision out")
        return self
