"""The KL constraint, PPO itself and the warm-up before it."""

from typing import Literal, Self

from pydantic import Field, model_validator

from destruct.config.base import Section


class KLConfig(Section):
    """The KL constraint to the reference."""

    reference: Literal["frozen", "initial"] = "frozen"
    """What the KL is measured to: the rolling frozen model, which bounds the drift between two refreshes and not the
    drift from the start (`kl/from_initial` shows that); or the model that PPO began from, which is then kept too."""
    coef: float = Field(0.05, ge=0)
    """beta: what a nat of per-token KL costs, in reward units where it is in the reward, in units of the whitened
    advantage where it is in the loss; 0 leaves nothing that pulls the policy back."""
    in_reward: bool = True
    """Subtract beta*k1 from each token's reward."""
    in_loss: Literal["none", "k2", "k3", "k3_weighted", "exact", "exact_forward"] = "none"
    """Add beta times this to the loss.  `k2` has the gradient of KL(policy || reference) on policy, `k3_weighted` (k3
    times pi/pi_old) off policy too, `k3` that of the KL the other way round.  `exact` is KL(policy || reference) over
    the whole vocabulary, without a sample's noise, `exact_forward` the other way round: a fourth product beside the
    loss's three, the reference's head in full and its hidden states at the response tokens on each rank."""
    bound: float = Field(0.1, gt=0)
    """The constraint in nats per token: k3(policy after the update || reference) on the update's own tokens."""
    breach_factor: float = Field(1.5, ge=1)
    """A breach of the bound multiplies beta by this, once per breach."""
    target: float | None = Field(None, gt=0)
    """Nats per token, at most the bound: after each update beta is multiplied by 1 + e B / horizon, e being KL / target
    - 1 held inside [-0.2, 0.2] and KL the figure that the bound holds (arXiv:1909.08593 sec. 2.2, where the KL is that
    of a whole sequence); what a breach does comes on top.  null: only breaches move beta."""
    horizon: int = Field(10_000, gt=0)
    """Rollouts over which the target moves beta by a fifth at most."""

    @model_validator(mode="after")
    def _something_steers(self) -> Self:
        if self.coef > 0 and not self.in_reward and self.in_loss == "none":
            raise ValueError(f"coef={self.coef} acts nowhere; set in_reward, or in_loss to k2, or coef to 0")
        return self

    @model_validator(mode="after")
    def _a_target_can_be_followed(self) -> Self:
        if self.target is None:
            if self.changed("horizon"):
                raise ValueError(f"horizon={self.horizon} is read only with a target; set target, or leave horizon out")
            return self
        if self.coef == 0:
            raise ValueError(f"target={self.target} cannot move coef=0.0, which only multiplies; set coef above 0")
        if self.target > self.bound:
            raise ValueError(f"target={self.target} lies above bound={self.bound}; set it to at most the bound")
        return self


class PPOConfig(Section):
    """Clipped policy optimisation (arXiv:1707.06347) with a value network of its own."""

    epochs: int = Field(2, ge=1)
    """E: passes over the rollouts of one update."""
    minibatches: int = Field(2, ge=1)
    """Optimizer steps of one epoch."""
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount per token; always 0 in `rollout.mode: per_position`."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's dial between bias (0) and variance (1)."""
    clip_range: float = Field(0.2, gt=0, lt=1)
    """epsilon of eq. 7: the ratio pi/pi_old is held inside [1 - epsilon, 1 + epsilon]."""
    clip_range_high: float | None = Field(None, gt=0)
    """Another epsilon above 1, clip_range then being the one below; a larger one lets unlikely tokens rise further in
    one update (arXiv:2503.14476 sec. 3.1).  null: clip_range on both sides."""
    dual_clip: float | None = Field(None, gt=1)
    """c of arXiv:1912.09729 eq. 5: a token of negative advantage costs no more beyond a ratio of c, and has no gradient
    there; without it that loss has no bound.  null: off."""
    value_clip_range: float = Field(0.2, gt=0)
    """New values are held within this of the old ones."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the entropy bonus, per nat."""
    ptx_coef: float = Field(0.5, ge=0)
    """Weight of the cross-entropy on the true continuations (InstructGPT's PTX, arXiv:2203.02155 eq. 2)."""
    early_stop_kl: float | None = Field(None, gt=0)
    """After each epoch k3(old || new) is measured on the update's rollouts; above this (nats per token) the remaining
    epochs are skipped."""
    policy_lr: float = Field(1e-6, gt=0)
    """Learning rate of the policy."""
    value_lr: float = Field(5e-6, gt=0)
    """Learning rate of the value network."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradients of each network are clipped to this norm, each network by itself."""

    @model_validator(mode="after")
    def _the_dual_clip_lies_outside_the_clip(self) -> Self:
        above = 1 + self.upper_clip_range
        if self.dual_clip is not None and self.dual_clip <= above:
            key = "clip_range" if self.clip_range_high is None else "clip_range_high"
            raise ValueError(
                f"dual_clip={self.dual_clip} does not lie above 1 + {key} = {above:g}; raise it (the paper has 3), or "
                f"set it to null to turn it off"
            )
        return self

    @property
    def upper_clip_range(self) -> float:
        """The distance above 1 at which the ratio stops paying."""
        return self.clip_range if self.clip_range_high is None else self.clip_range_high


class WarmupConfig(Section):
    """What comes before the first PPO update.  Counts in neither updates nor epochs."""

    lm_updates: int = Field(0, ge=0)
    """Steps of plain cross-entropy on the windows, policy alone: a model from scratch learns to speak."""
    lm_lr: float = Field(1e-3, gt=0)
    """Learning rate of these steps; it falls to a tenth along a cosine."""
    value_updates: int = Field(0, ge=0)
    """Rollout batches on which the value network alone is trained."""
