"""docs/scaling.md: the plan's projection of two models over many GPUs, written by docs/generate.py."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from destruct.config.settings import load
from destruct.planning import report, sweep
from destruct.planning.duration import assumptions
from destruct.planning.hardware import GIB, HARDWARE
from destruct.planning.job import job_of

ROOT = Path(__file__).resolve().parents[1]
COUNTS = [8 << i for i in range(8)]

INTRO = """\
What `destruct plan` expects of two models from 8 to 1,024 GPUs; `python docs/generate.py` writes this page anew, and a
check compares it with the code. No run on more than one GPU stands behind the times: they are a projection, to see what
bounds a run and which setting to turn. Memory and bytes are measured on CPU ranks (`python -m bench.plan_accuracy`,
docs/lab.md).

Rollouts grow with the GPUs (16 a GPU), so that every row gives each GPU the same work. *device* is GiB of
one rank at its fullest moment, of 73.0 that an H100 leaves, *host* that of a machine with its eight ranks, of 2,048;
*sent* is GiB that one rank sends in an update;
*tokens/s* counts prompts and responses; *efficiency* is tokens a second and GPU over those of the first row; the last
column names the longest phase of an update, and what bounds it. The same table for a config of yours:

```bash
destruct plan --config configs/base.yaml --gpus 8..1024 --png plan.png
```"""

READING = """\
## What bounds them

- **Launches**, on few GPUs: with two rollouts in a micro-batch, and one token a step while responses are sampled, the
  GPU waits for the host, which launches the kernels of one layer after the other. Larger micro-batches cost nothing
  there: a larger `rollout.batch_size`, or less `gradient_accumulation_steps`.
- **Collectives**, on hundreds: the bytes that a rank sends hardly grow with the ranks, but each call goes once around
  the ring. ZeRO-3 in DeepSpeed gathers parameter by parameter in the backward pass, FSDP layer by layer, so that FSDP
  waits for several times fewer calls. Every pass gathers the weights anew: larger micro-batches divide this, too.
- **Memory** never does it here: what is left over in a row is room for larger micro-batches.

"""

LIMITS = """\
## Limits

- Rings over all ranks: NCCL may take trees or its own algorithms for small messages, which are faster on many nodes;
  stragglers, failures and a shared network, which are slower, are left out. Sharding within a machine and copies across
  (HSDP, MiCS) is not supported.
- In each phase the longest of arithmetic, memory, launches and collectives is taken to hide the others; real runs lie
  between that and their sum.
- Memory is that of the tensors: what an allocator keeps of freed memory comes on top, and where response lengths differ
  much, micro-batches that are balanced by tokens hold more rollouts, and more padding.
- Networks from scratch are made whole on every rank before they are sharded; pretrained ones are read in shards.
- Validation, checkpoints and reading data are not in an update's time."""


@dataclass(frozen=True, slots=True)
class Model:
    """A table of the page."""

    title: str
    config: str
    changes: tuple[str, ...]


MODELS = (
    Model("Llama-3.2-1B, `configs/base.yaml`, ZeRO-3", "base", ()),
    Model("The same over FSDP", "base", ("engine.backend=fsdp",)),
    Model(
        "Llama-3-8B with a value network of 1B, `configs/llama3_8b_multinode.yaml`, ZeRO-3, optimizer on the hosts",
        "llama3_8b_multinode",
        (),
    ),
    Model(
        "The same over FSDP, nothing offloaded but the frozen model",
        "llama3_8b_multinode",
        ("engine.backend=fsdp", "engine.deepspeed=ds_configs/zero3.json"),
    ),
)
LARGER = (1, 2, 4, 8, 16)


def plans(model: Model, counts: list[int], each: int) -> list[report.Plan]:
    """One for each number of GPUs, with so many rollouts on each of them."""
    found = []
    for count in counts:
        changes = [*model.changes, f"rollout.batch_size={each * count}"]
        settings = load(ROOT / "configs" / f"{model.config}.yaml", changes, count)
        found.append(report.plan(job_of(settings, HARDWARE["h100"], 8)))
    return found


def cells(row: dict[str, Any]) -> list[str]:
    """A row of a table after its first column."""
    return [
        f"{row['device_bytes'] / GIB:.1f}{'' if row['fits'] else ' (too much)'}",
        f"{row['host_bytes'] / GIB:.1f}",
        f"{row['sent_bytes'] / GIB:,.0f}",
        f"{row['seconds_per_update']:.1f}",
        f"{row['tokens_per_second']:,.0f}",
        f"{row['efficiency']:.2f}",
        f"{row['longest_phase']}, {row['bound']}",
    ]


HEADS = ["device", "host", "sent", "s an update", "tokens/s", "efficiency", "longest, bound by"]


def scaling_page(note: str, table: Any) -> str:
    """docs/scaling.md.

    Args:
        note: first line of every generated page.
        table: makes the lines of a table from its head and its rows.
    """
    lines = [note, "", "# Scaling", "", INTRO]
    for model in MODELS:
        rows = sweep.rows(plans(model, COUNTS, 16))
        body = [[f"{row['devices']:,}", *cells(row)] for row in rows]
        lines += ["", f"## {model.title}", "", *table(["GPUs", *HEADS], body)]
    lines += ["", READING + "Llama-3.2-1B on 1,024 GPUs over FSDP, by rollouts in a micro-batch:", ""]
    larger = [plans(MODELS[1], [1024], 16 * times)[0] for times in LARGER]
    body = [
        [str(plan.job.settings.micro_batch), *cells(row)] for plan, row in zip(larger, sweep.rows(larger), strict=True)
    ]
    lines += table(["rollouts", *HEADS], body)
    lines += ["", "## Assumptions", "", "Of 1,024 GPUs; within one machine the ring has its link's bandwidth.", ""]
    lines += [f"- {line}" for line in assumptions(larger[0].job)]
    lines += [
        f"- {hardware.title}: {hardware.memory / 1e9:.0f} GB, {hardware.reserved / GIB} GiB of it for driver and NCCL; "
        f"{hardware.peak_flops / 1e12:.0f} TFLOP/s, of which {hardware.efficiency:.0%}; "
        f"{hardware.memory_bandwidth / 1e12:.2f} TB/s; {hardware.link / 1e9:.0f} GB/s within a machine and "
        f"{hardware.network / 1e9:.0f} GB/s a GPU between machines"
        for hardware in HARDWARE.values()
        if not hardware.is_cpu
    ]
    return "\n".join([*lines, "", LIMITS]) + "\n"
