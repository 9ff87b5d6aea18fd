"""A training loop on DeepSpeed and nothing else: ZeRO-3, a checkpoint after each step, resumed from at the start.

deepspeed --num_gpus 2 tests/faults/bare_deepspeed.py FOLDER STEPS
"""

import argparse
import json
import time
from pathlib import Path

import deepspeed
import torch
from torch import nn

CONFIG = {
    "train_micro_batch_size_per_gpu": 4,
    "zero_optimization": {"stage": 3},
    "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "torch_adam": True}},
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("steps", type=int)
    parser.add_argument("--local_rank", type=int)
    options = parser.parse_args()
    deepspeed.init_distributed()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))
    engine, *_ = deepspeed.initialize(model=model, model_parameters=model.parameters(), config=CONFIG)
    saves = str(options.folder / "saves")
    path, _ = engine.load_checkpoint(saves)
    first = deepspeed.comm.get_rank() == 0
    for step in range(engine.global_steps, options.steps):
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(2 * step + deepspeed.comm.get_rank()))
        loss = engine(x).square().mean()
        engine.backward(loss)
        engine.step()
        engine.save_checkpoint(saves, tag=f"step{step + 1}")
        if first:
            with (options.folder / "steps.jsonl").open("a") as file:
                file.write(json.dumps({"step": step + 1, "loss": loss.item(), "resumed": path}) + "\n")
        time.sleep(0.2)
    if first:
        torch.save([p.numel() for p in model.parameters()], options.folder / "done")


if __name__ == "__main__":
    main()
