"""A user's reward function whose module lets one rank go wrong in one update, in the way that the environment names.

Every rank imports it, as any module of a user, and it wraps what it spoils; the code under test knows nothing of it.
"""

import ctypes
import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from destruct import loop
from destruct.data.loader import Loader
from destruct.engine.topology import Topology
from destruct.rollout import generate

FAULT, RANK, UPDATE, BEGUN = "FAULTS_FAULT", "FAULTS_RANK", "FAULTS_UPDATE", "FAULTS_BEGUN"
"""Variables: the fault, the rank, the update, and the file that is made when it begins."""

AGAIN = "FAULTS_AGAIN"
"""Variable that is set where the fault comes in every life of the run, and not in the first one alone."""

fault, place = os.environ.get(FAULT, ""), int(os.environ.get(UPDATE, "2"))
is_here = os.environ.get("RANK", "0") == os.environ.get(RANK, "1")
is_on = is_here and (AGAIN in os.environ or "DESTRUCT_AGAIN" not in os.environ)
now = threading.Event()  # this is the update


def begin() -> None:
    """Say, on the disk, that the fault begins."""
    Path(os.environ[BEGUN]).touch()


def never_returns(*_: object) -> None:
    """Where a rank hangs; its stack shows this name."""
    begin()
    time.sleep(1000)


def keeps_the_interpreter(*_: object) -> None:
    begin()
    while True:
        ctypes.PyDLL(None).sleep(1000)


def is_stopped(*_: object) -> None:
    begin()
    os.kill(os.getpid(), signal.SIGSTOP)


def quiet(prompts: list[str], responses: list[str], continuations: list[str]) -> list[float]:
    """The reward term: the share of vowels; or what hangs."""
    if now.is_set() and fault in IN_THE_REWARD:
        IN_THE_REWARD[fault]()
    return [sum(letter in "aeiou" for letter in response) / max(len(response), 1) for response in responses]


IN_THE_REWARD: dict[str, Callable[[], None]] = {
    "reward sleeps": never_returns,
    "reward keeps the interpreter": keeps_the_interpreter,
    "stopped in the reward": is_stopped,
}


def before(owner: Any, name: str, act: Callable[..., None]) -> None:
    """Let a function do something first, while it is the update."""
    real = getattr(owner, name)

    def spoiled(*args: Any, **kwargs: Any) -> Any:
        if now.is_set():
            act(*args)
        return real(*args, **kwargs)

    setattr(owner, name, spoiled)


def in_a_signal_handler(*_: object) -> None:
    signal.signal(signal.SIGUSR2, never_returns)
    os.kill(os.getpid(), signal.SIGUSR2)


def in_a_save(run: Any) -> None:
    before(run.policy.engine.checkpoint_engine, "save", never_returns)


def in_a_forward(run: Any) -> None:
    run.policy.module.register_forward_pre_hook(never_returns)


def no_number(output: Any) -> Any:
    begin()
    return output * math.nan


def in_a_gradient(run: Any) -> None:
    def spoil(_: object, __: object, values: torch.Tensor) -> torch.Tensor:
        if now.is_set() and values.requires_grad:
            values.register_hook(no_number)
        return values

    run.value.module.head.register_forward_hook(spoil)


def in_a_weight(run: Any) -> None:
    begin()
    next(iter(run.policy.engine.optimizer.fp32_partitioned_groups_flat)).data[0] = math.nan


def flip(p: torch.Tensor) -> None:
    begin()
    p.data.view(-1).view(torch.int16)[0] ^= 1


def flip_a_parameter(run: Any) -> None:
    names = [name for name, _ in run.policy.module.named_parameters()]
    flip(run.policy.module.get_parameter(names[4 * run.state.update % len(names)]))


def move_a_weight(run: Any) -> None:
    begin()
    state = run.curriculum.strategy.state_dict()
    state["shares"]["weights"] = list(reversed(state["shares"]["weights"]))
    run.curriculum.strategy.load_state_dict(state)


def change(owner: str, name: str, value: Callable[[Any], Any]) -> Callable[[Any], None]:
    """What sets an attribute of the run, or of a part of it."""

    def act(run: Any) -> None:
        begin()
        part = getattr(run, owner) if owner else run
        setattr(part, name, value(getattr(part, name)))

    return act


WHEN_IT_BEGINS: dict[str, Callable[[Any], None]] = {
    "save sleeps": in_a_save,
    "forward sleeps": in_a_forward,
    "nan in a gradient": in_a_gradient,
    "nan in a weight": in_a_weight,
}
WHEN_IT_IS_COMPARED: dict[str, Callable[[Any], None]] = {
    "bit of a parameter": flip_a_parameter,
    "bit of the sampling copy": lambda run: flip(next(iter(run.replica.parameters()))),
    "sampling weights": move_a_weight,
    "KL coefficient": change("state", "kl_coef", lambda beta: beta * (1 + 1e-12)),
    "steps": change("state", "optimizer_steps", lambda steps: steps + 1),
    "learning rate": change(
        "", "update_settings", lambda was: dataclasses.replace(was, policy_lr=lambda step: 2 * was.policy_lr(step))
    ),
    "place in the data": change("mixture", "_draws", lambda draws: draws + 1),
}


def spoil_an_update(run: Any) -> None:
    """`loop.one_update` calls this first."""
    if run.state.update >= place and fault == "slow":
        begin()
        now.set()
    elif run.state.update == place:
        now.set()
        WHEN_IT_BEGINS.get(fault, lambda _: None)(run)
    else:
        now.clear()


def arrange() -> None:
    """Wrap what is to be spoiled."""
    real = loop.one_update

    def one_update(run: Any) -> Any:
        spoil_an_update(run)
        if fault in WHEN_IT_IS_COMPARED and run.state.update == place:
            run.compare = _then(WHEN_IT_IS_COMPARED[fault], run)
        return real(run)

    loop.one_update = one_update
    before(Loader, "read", never_returns) if fault == "data read sleeps" else None
    before(Topology, "interleave", is_stopped) if fault == "stopped before a collective" else None
    before(Topology, "interleave", in_a_signal_handler) if fault == "signal handler sleeps" else None
    before(generate, "sample_responses", lambda *_: time.sleep(0.7)) if fault == "slow" else None
    if fault in ("nan in an advantage", "nan in a reward"):
        loop.with_advantages = _no_numbers(loop.with_advantages, fault == "nan in a reward")


def _then(act: Callable[[Any], None], run: Any) -> Callable[[], None]:
    real = run.compare

    def compare() -> None:
        act(run)
        real()

    return compare


def _no_numbers(real: Callable[..., Any], in_the_reward: bool) -> Callable[..., Any]:
    def spoiled(scored: Any, *args: Any) -> Any:
        if now.is_set() and in_the_reward:
            for minibatch in scored:
                no = [no_number(each.rewards.clone()) for each in minibatch.micro_batches]
                [each.rewards.copy_(nan) for each, nan in zip(minibatch.micro_batches, no, strict=True)]
        batches = real(scored, *args)
        if now.is_set() and not in_the_reward:
            for minibatch in batches:
                [train.advantages.mul_(math.nan) for train in minibatch.micro_batches]
            begin()
        return batches

    return spoiled


if is_on and fault:
    arrange()
