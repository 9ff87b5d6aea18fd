"""The one table of metric names.  A name that is not here cannot be logged."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Metric:
    """What a number is."""

    unit: str
    meaning: str


METRICS: dict[str, Metric] = {
    "ppo/policy_loss": Metric("reward units", "clipped surrogate, mean per response token"),
    "ppo/value_loss": Metric("reward units squared", "clipped value loss, mean per response token"),
    "ppo/ptx_loss": Metric("nats/token", "cross-entropy on the true continuations"),
    "ppo/entropy": Metric("nats/token", "entropy of the policy at the sampling temperature"),
    "ppo/approx_kl": Metric("nats/token", "k3(old || new), mean over the update's minibatch passes"),
    "ppo/approx_kl_k1": Metric("nats/token", "k1(old || new), of either sign"),
    "ppo/reference_kl": Metric("nats/token", "k3(policy || reference), mean over the update's minibatch passes"),
    "ppo/reference_kl_k1": Metric("nats/token", "k1(policy || reference), of either sign"),
    "ppo/first_ratio_error": Metric("nats", "max |log ratio| of the first minibatch; 0 when scoring equals training"),
    "ppo/ratio_mean": Metric("ratio", "mean pi/pi_old of the update's minibatch passes; near 1"),
    "ppo/reference_kl_exact": Metric(
        "nats/token", "KL to the reference over the whole vocabulary; 0 unless kl.in_loss is exact or exact_forward"
    ),
    "ppo/ratio_min": Metric("ratio", "smallest pi/pi_old of the update"),
    "ppo/ratio_max": Metric("ratio", "largest pi/pi_old of the update"),
    "ppo/clip_fraction": Metric("share", "response tokens whose gradient was clipped away"),
    "ppo/dual_clip_fraction": Metric("share", "the part of that which ppo.dual_clip cut; logged where it is set"),
    "ppo/policy_grad_norm": Metric("norm", "policy's gradient before clipping, mean over steps"),
    "ppo/value_grad_norm": Metric("norm", "value network's gradient before clipping, mean over steps"),
    "ppo/explained_variance": Metric("share", "1 - var(returns - old values) / var(returns)"),
    "ppo/policy_lr": Metric("1", "learning rate of the update's first policy step"),
    "ppo/value_lr": Metric("1", "learning rate of the update's first value step"),
    "ppo/steps": Metric("count", "optimizer steps taken by each network"),
    "ppo/steps_planned": Metric("count", "optimizer steps without early stop"),
    "ppo/epochs": Metric("count", "passes over the rollouts before the early stop"),
    "ppo/skipped": Metric(
        "count", "steps neither network took because a loss, a ratio, a KL or a gradient was not finite"
    ),
    "kl/to_reference": Metric("nats/token", "k3(policy after the update || reference) on the update's tokens"),
    "kl/sampled": Metric("nats/token", "k1(policy that sampled || reference), the penalty's estimate"),
    "kl/from_initial": Metric(
        "nats/token", "k3(model that PPO began from || policy) on a fixed set that the former sampled"
    ),
    "kl/coef": Metric("reward units/nat", "beta of the update"),
    "kl/breaches": Metric("count", "updates after which kl/to_reference passed kl.bound, so far"),
    "rollout/reward": Metric("reward units", "score without KL penalty, mean over rollouts"),
    "rollout/reward/<source>": Metric("reward units", "the same per source"),
    "rollout/term/<term>": Metric("1", "a reward term before its weight, mean over rollouts"),
    "rollout/response_tokens": Metric("tokens", "mean length of a response"),
    "rollout/filled": Metric("share", "columns of the drawn windows that hold the data's tokens; the rest is padding"),
    "rollout/eos_rate": Metric("share", "responses that ended by themselves"),
    "curriculum/weight/<source>": Metric("share", "sampling weight"),
    "curriculum/target/<source>": Metric("share", "weight that the last estimates argue for"),
    "curriculum/difficulty/<source>": Metric("nats/token", "loss of the frozen model on the panel"),
    "curriculum/difficulty_se/<source>": Metric("nats/token", "its standard error"),
    "curriculum/variance/<source>": Metric("(nats/token)^2", "variance over the panel's sequences"),
    "curriculum/metric/<source>": Metric("nats/token", "combined metric, difficulty + kappa * sqrt(variance)"),
    "curriculum/progress/<source>": Metric("nats/token/round", "fall of the combined metric per round"),
    "curriculum/progress_se/<source>": Metric("nats/token/round", "its standard error"),
    "curriculum/compressed/<source>": Metric(
        "nats/token", "what LZMA takes for held-out windows: a model above it has something to learn"
    ),
    "curriculum/gap_growth/<source>": Metric(
        "nats/token/round", "progress on training windows less that on held-out ones; 0 before a first epoch has ended"
    ),
    "curriculum/gap_growth_se/<source>": Metric("nats/token/round", "its standard error"),
    "curriculum/tokens/<source>": Metric("tokens", "drawn since the round before"),
    "curriculum/share/<source>": Metric("share", "of the tokens drawn over the rounds that the progress spans"),
    "curriculum/exhausted/<source>": Metric("0 or 1", "1 where nothing more can be drawn"),
    "curriculum/advantage/<source>": Metric("1", "mean |whitened advantage| of the rollouts since the round before"),
    "curriculum/advantage_se/<source>": Metric("1", "its standard error"),
    "curriculum/reward_variance/<source>": Metric("reward units squared", "variance of those rollouts' scores"),
    "curriculum/reward_variance_se/<source>": Metric("reward units squared", "its standard error"),
    "curriculum/round": Metric("count", "rounds before this one"),
    "curriculum/batches": Metric("count", "updates since the round before"),
    "curriculum/held": Metric("count", "rounds whose step fell outside every projection and was dropped, so far"),
    "curriculum/stability_margin": Metric(
        "share/round/share", "how much more the target could answer the weights before they swing; below 0 they do"
    ),
    "curriculum/panel_size": Metric("windows", "held-out windows scored per source"),
    "curriculum/probe_share": Metric("share", "tokens scored by rounds so far, per token trained on (all PPO epochs)"),
    "curriculum/epochs/<source>": Metric(
        "epochs", "times the source's windows have been drawn; of a stream, 0 before its end is reached"
    ),
    "validation/nats_per_token/<source>": Metric("nats/token", "held-out loss"),
    "validation/bits_per_byte/<source>": Metric("bits/byte", "held-out loss, whatever the tokenizer"),
    "validation/mean": Metric("nats/token", "held-out loss, mean over learnable sources"),
    "warmup/lm_loss": Metric("nats/token", "cross-entropy of a warm-up step"),
    "warmup/value_loss": Metric("reward units squared", "value loss of a warm-up pass"),
    "time/data": Metric("s", "waiting for the batch's windows"),
    "time/generate": Metric("s", "sampling responses"),
    "time/score": Metric("s", "logprobs, values, rewards, advantages"),
    "time/update": Metric("s", "PPO epochs"),
    "time/kl": Metric("s", "measuring the KL constraint"),
    "time/round": Metric("s", "refresh, panels, weights"),
    "time/evaluate": Metric("s", "validation since the line before"),
    "time/checkpoint": Metric("s", "saving since the line before"),
    "time/compare": Metric("s", "holding the ranks against each other since the line before"),
    "time/slowest_rank": Metric(
        "ratio",
        "time of the slowest rank to sample a token, as a multiple of the others' median; every guard.compare_every "
        "updates; 1 where a rank never samples by itself (rollout.gather: layers)",
    ),
    "time/tokens_per_s": Metric("tokens/s", "drawn and sampled tokens per second since the line before"),
    "memory/peak_rss_mib": Metric("MiB", "peak resident memory of the largest rank"),
    "memory/peak_gpu_mib": Metric("MiB", "peak memory that torch has taken of the fullest GPU; absent without one"),
}


def check_name(name: str) -> None:
    """Refuse a metric that the table does not list.

    Raises:
        KeyError: naming it.
    """
    if name in METRICS:
        return
    family = name.rpartition("/")[0]
    if not any(known.startswith(f"{family}/<") for known in METRICS):
        raise KeyError(f"{name!r} is not in METRICS (destruct/tracking/metrics.py)")
