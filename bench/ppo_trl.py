"""TRL 1.12's PPOTrainer on the work of bench/ppo_iteration.py: `python -m bench.ppo_trl FOLDER WORK ITERATIONS`.

Its best settings on equal work: no gradient checkpointing, whole-batch rollouts, one step an epoch, nothing reported.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer

from bench.ppo_case import LEARNING_RATE, Work, prompts
from bench.ppo_process import Told
from destruct.engine.topology import own_device


class Laps(TrainerCallback):
    """Tells when an iteration has ended."""

    def __init__(self, told: Told):
        self.told = told

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.told.begin()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.told.lap()


def trainer_of(work: Work, folder: Path, iterations: int, callbacks: list[TrainerCallback]) -> PPOTrainer:
    """The trainer on the folder's models and prompts."""
    dtype = work.torch_dtype
    policy, reference = (LlamaForCausalLM.from_pretrained(folder / "policy", dtype=dtype) for _ in range(2))
    value, reward = (
        LlamaForSequenceClassification.from_pretrained(folder / name, dtype=dtype) for name in ("value", "reward")
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy")
    # One beyond the vocabulary: where pad is a token that is sampled, too, it would count as the end of a response.
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    assert tokenizer.pad_token_id == work.vocab
    arguments = PPOConfig(
        output_dir=str(folder / "trl"),
        per_device_train_batch_size=work.micro,
        gradient_accumulation_steps=work.accumulation,
        num_ppo_epochs=work.epochs,
        num_mini_batches=1,
        local_rollout_forward_batch_size=work.batch,
        total_episodes=work.batch * iterations,
        response_length=work.response,
        temperature=1.0,
        stop_token=None if work.mean_length is None else "eos",
        kl_coef=0.05,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        num_sample_generations=0,
        report_to=[],
        save_strategy="no",
        bf16=False,
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_num_workers=0,
    )
    # In the last batch of its data accelerate steps after every micro-batch, so there are more than are asked for.
    rows = Dataset.from_dict({"input_ids": prompts(work, folder) * (iterations + 1)})
    return PPOTrainer(
        args=arguments,
        processing_class=tokenizer,
        model=policy,
        ref_model=reference,
        reward_model=reward,
        value_model=value,
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=callbacks,
    )


def state_bytes(trainer: PPOTrainer) -> int:
    """Weights of all four networks; moments and gradients of the two that train."""
    trained = [p for p in trainer.model.parameters() if p.requires_grad]
    others = [*trainer.ref_model.parameters(), *trainer.reward_model.parameters()]
    return sum(4 * p.numel() * p.element_size() for p in trained) + sum(p.numel() * p.element_size() for p in others)


def main() -> None:
    folder, work, iterations = Path(sys.argv[1]), Work(**json.loads(sys.argv[2])), int(sys.argv[3])
    own_device()  # where this processor multiplies bfloat16 as float32, it does so for both sides
    torch.randn(64, 64) @ torch.randn(64, 64)  # its library is an import, too
    told = Told()
    trainer = trainer_of(work, folder, iterations, [Laps(told)])
    trainer.train()
    told.tell(state_bytes(trainer))


if __name__ == "__main__":
    main()
