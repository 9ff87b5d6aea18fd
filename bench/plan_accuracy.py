"""How right `destruct plan` is: memory and collectives of real runs on CPU ranks, against the plan of the same runs.

    python -m bench.plan_accuracy                  # all rows, about half an hour; one JSON line at the end
    python -m bench.plan_accuracy --rows zero3     # those whose name begins so

Memory is the peak of the fullest rank's anonymous memory above that of the imports, in an update, with what glibc keeps
of freed memory given back; bytes are those of the whole tensors of each kind of collective in that update.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from destruct.config.settings import load
from destruct.planning.collectives import TRIPS, plan_collectives
from destruct.planning.hardware import HARDWARE
from destruct.planning.job import MIB, job_of
from destruct.planning.memory import plan_memory
from destruct.progress import tracked

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs" / "local.yaml"
PHASES = ("generate", "score", "update", "kl")
LEAST_BYTES = 1e6  # of a kind of collective that is compared; below it are sums of figures


@dataclass(frozen=True)
class Row:
    """A run."""

    name: str
    ranks: int
    layers: int
    backend: str = "deepspeed"
    stage: int = 3
    value_layers: int | None = None
    bucket: int | None = None
    offload: str | None = None  # device of weights and optimizer
    changes: dict[str, object] = field(default_factory=dict)

    def overrides(self, folder: Path) -> list[str]:
        """What is changed in configs/local.yaml.

        Args:
            folder: for the JSON and the run.
        """
        shipped = ROOT / "ds_configs" / f"zero{max(2, self.stage)}.json"
        json_ = json.loads(shipped.read_text(encoding="utf-8"))
        json_["zero_optimization"]["stage"] = self.stage
        if self.bucket is not None:
            json_["zero_optimization"]["reduce_bucket_size"] = self.bucket
        if self.offload is not None:
            place = {"device": self.offload} | ({"nvme_path": str(folder)} if self.offload == "nvme" else {})
            json_["zero_optimization"] |= {"offload_param": place, "offload_optimizer": place}
        (folder / "training.json").write_text(json.dumps(json_), encoding="utf-8")
        shape = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_key_value_heads": 4}
        values: dict[str, object] = {
            "run.folder": folder,
            "run.num_epochs": 1,
            "run.updates_per_epoch": 2,
            "run.checkpoint_every": 0,
            "run.validation_windows": 4,
            "engine.backend": self.backend,
            "engine.deepspeed": folder / "training.json",
            "data.sources": "{prose: {embedded: prose}, code: {embedded: code}}",
            "data.tokenizer.vocab_size": 8192,
            "rollout.batch_size": 16,
            "ppo.epochs": 1,
            "warmup.lm_updates": 0,
            "warmup.value_updates": 1,
            "curriculum.difficulty_sample_size": 8,
            "model.policy.num_hidden_layers": self.layers,
            "model.value.num_hidden_layers": self.value_layers or self.layers,
        }
        values |= {f"model.{network}.{key}": size for network in ("policy", "value") for key, size in shape.items()}
        return [f"{key}={value}" for key, value in (values | self.changes).items()]


LONG = {"rollout.prompt_tokens": 128, "rollout.response_tokens": 128}
ROWS = (
    *(Row(f"zero3 x{w}", w, layers) for w, layers in ((1, 3), (2, 6), (4, 8))),
    *(Row(f"zero2 x{w}", w, layers, stage=2) for w, layers in ((1, 4), (2, 7), (4, 8))),
    *(Row(f"fsdp x{w}", w, layers, "fsdp") for w, layers in ((1, 5), (2, 8), (4, 12))),
    Row("zero3 x2 offloaded", 2, 6, offload="cpu"),
    Row("zero3 x2 in files", 2, 8, offload="nvme"),
    Row("zero3 x2 small bucket, small value network", 2, 10, value_layers=2, bucket=10_000_000),
    Row("zero2 x2 small bucket, small value network", 2, 10, stage=2, value_layers=2, bucket=10_000_000),
    Row("zero3 x2 long windows", 2, 6, bucket=10_000_000, changes=LONG),
    Row("zero3 x2 long windows, checkpointing", 2, 6, changes=LONG | {"model.activation_checkpointing": "true"}),
    Row("fsdp x2 long windows", 2, 8, "fsdp", changes=LONG),
    Row("fsdp x2 untied, exact KL", 2, 8, "fsdp", changes={"model.policy.tie_word_embeddings": "false",
                                                          "kl.in_loss": "exact", "kl.in_reward": "false"}),
)  # fmt: skip


def planned(row: Row, folder: Path) -> tuple[float, Counter[str]]:
    """MiB of the fullest moment of an update, and bytes of each kind of collective."""
    job = job_of(load(CONFIG, row.overrides(folder), row.ranks), HARDWARE["cpu"], 8)
    moments = plan_memory(job).moments("host")
    moments.pop("checkpoint")
    kinds: Counter[str] = Counter()
    for call in plan_collectives(job):
        if call.phase in PHASES:
            kinds[call.kind] += round(call.bytes)
    return max(moments.values()) / MIB, kinds


def measured(row: Row, folder: Path) -> tuple[float, Counter[str]]:
    """The same of a run."""
    phases = watched(row, folder, "memory,bytes")
    return max(phases[phase]["peak_mib"] for phase in PHASES), kinds_of(phases)


def watched(row: Row, folder: Path, meters: str) -> dict[str, dict[str, float]]:
    """What `bench.watched_rank` says of a run, by phase."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={row.ranks}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "DS_ACCELERATOR": "cpu"}
    command = [*launcher, "-m", "bench.watched_rank", meters, str(CONFIG), *row.overrides(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    phases: dict[str, dict[str, float]] = json.loads(done.stdout.splitlines()[-1])
    return phases


def kinds_of(phases: dict[str, dict[str, float]]) -> Counter[str]:
    """Bytes of each kind of collective in all phases of an update."""
    kinds: Counter[str] = Counter()
    for phase in PHASES:
        kinds.update({kind: round(phases[phase].get(kind, 0)) for kind in TRIPS})
    return kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="", help="beginning of the names of the rows to run")
    options = parser.parse_args()
    report: list[dict[str, object]] = []
    memory_errors, bytes_errors = [0.0], [0.0]
    for row in tracked([row for row in ROWS if row.name.startswith(options.rows)], "plan", "rows"):
        with tempfile.TemporaryDirectory() as scratch:
            (plan_mib, plan_bytes), (mib, kinds) = planned(row, Path(scratch)), measured(row, Path(scratch))
        error = plan_mib / mib - 1
        # One rank's collectives send nothing, and the plan has none.
        compared = {kind for kind, size in kinds.items() if size > LEAST_BYTES and row.ranks > 1} | set(plan_bytes)
        errors = {kind: plan_bytes[kind] / max(1, kinds[kind]) - 1 for kind in sorted(compared)}
        memory_errors.append(abs(error))
        bytes_errors += map(abs, errors.values())
        line = {"row": row.name, "mib": round(mib), "planned_mib": round(plan_mib), "error": round(error, 4)}
        report.append(line | {"bytes_errors": {kind: round(each, 4) for kind, each in errors.items()}})
        print(json.dumps(report[-1]), file=sys.stderr, flush=True)
    figures = {"memory_error_max": max(memory_errors), "bytes_error_max": max(bytes_errors)}
    print(json.dumps(figures | {"rows": report}))


if __name__ == "__main__":
    main()
