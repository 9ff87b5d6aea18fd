"""docs/performance.md: what an update was measured to cost, written by docs/generate.py from the files in bench/."""

import csv
import json
from pathlib import Path
from typing import Any

from bench.cost_growth import AXES, BASE, POWERS, fit

ROOT = Path(__file__).resolve().parents[1]
RESULTS, GROWTH = ROOT / "bench" / "results.csv", ROOT / "bench" / "cost_growth.json"

WORKLOADS = {
    "dtype bfloat16; vocab 8192; hidden 256; layers 6; prompt 64; response 64; batch 32; micro 8; epochs 2": (
        "bf16, V=8192, P=R=64"
    ),
    "dtype float32; vocab 8192; hidden 256; layers 6; prompt 64; response 64; batch 32; micro 8; epochs 2": (
        "float32, the same"
    ),
    "dtype bfloat16; vocab 8192; hidden 256; layers 6; prompt 64; response 64; batch 32; micro 8; epochs 2; "
    "mean_length 8.0": "bf16, the same, responses end after 8 tokens",
    "dtype bfloat16; vocab 128256; hidden 512; layers 4; prompt 256; response 64; batch 8; micro 4; epochs 2": (
        "bf16, V=128256, P=256, R=64"
    ),
}
"""Conditions of bench/ppo_iteration.py in the results -> how the page calls them."""

AXIS = {
    "P": "Prompt tokens, P",
    "R": "Response tokens, R",
    "B": "Rollouts, B",
    "V": "Vocabulary, V",
    "layers": "Layers",
    "H": "Hidden width, H",
    "ranks": "Ranks",
}


def last_figures(conditions: str) -> dict[str, dict[str, str]]:
    """Figure -> its last line, of bench/ppo_iteration.py."""
    with RESULTS.open(newline="", encoding="utf-8") as file:
        lines = [line for line in csv.DictReader(file) if line["benchmark"] == "ppo_iteration" and line["commit"]]
    return {line["figure"]: line for line in lines if line["conditions"] == conditions}


def beside_trl(table: Any) -> list[str]:
    """The lines of the comparison."""
    body = []
    for conditions, name in WORKLOADS.items():
        found = last_figures(conditions)

        def said(figure: str, found: dict[str, dict[str, str]] = found) -> str:
            return found[figure]["p50"] if figure in found else ""

        memory = float(said("ours transient")) / float(said("peer transient"))
        cells = [said(f"{side} iteration") for side in ("peer", "ours", "pure", "zero3", "zero3_two_ranks")]
        body.append([name, *cells, said("ratio"), f"{memory:.2f}", said("floor")])
    heads = ["", "TRL, s", "destruct, s", "pure bf16, s", "ZeRO-3, s", "two ranks, s", "ratio", "memory", "floor, s"]
    return table(heads, body)


def growth(table: Any) -> list[str]:
    """The lines of every axis."""
    axes = json.loads(GROWTH.read_text(encoding="utf-8"))["axes"]
    lines: list[str] = []
    for axis, measured in axes.items():
        base = next(line for line in measured if line["at"] == BASE[axis])
        body = [
            [
                f"{line['at']:,.0f}",
                f"{line['s']:.3g} ({line['s_p20']:.3g} to {line['s_p80']:.3g})",
                f"{line['plan_s'] / base['plan_s'] * base['s']:.3g}",
                f"{line['mib']:,.0f}",
                f"{line['plan_mib']:,.0f}",
                f"{line['plan_mib'] / line['mib'] - 1:+.1%}",
            ]
            for line in measured
        ]
        heads = [axis, "seconds (p20 to p80)", "the plan's growth", "MiB", "plan's MiB", "off"]
        lines += ["", f"### {AXIS[axis]}", "", *table(heads, body), ""]
        for figure, unit in (("s", "seconds"), ("mib", "MiB")):
            constant, slope, off = fit(axis, measured, figure)
            term = {1: axis, 2: f"{axis}^2", -1: f"/ {axis}"}[POWERS.get(axis, 1)]
            lines.append(f"- {unit} = {constant:.3g} {'+' if slope >= 0 else '-'} {abs(slope):.3g} {term}, "
                         f"the worst point {off:.0%} off")  # fmt: skip
    return lines


def performance_page(note: str, table: Any) -> str:
    """docs/performance.md; arguments as those of `scaling_page`."""
    assert set(AXIS) == set(AXES)
    machine = json.loads(GROWTH.read_text(encoding="utf-8"))["device"]
    lines = [note, "", "# Performance", "", INTRO.replace("MACHINE", machine), "", "## Beside TRL's PPO", "", TRL, ""]
    lines += [*beside_trl(table), "", READING, "", "## Sampling under ZeRO-3", "", SAMPLING]
    lines += ["", "## How cost grows", "", GROWING, "", "![seconds and memory against each size](performance.png)"]
    return "\n".join([*lines, *growth(table)]) + "\n"


INTRO = """\
What an update costs, measured on MACHINE, without a GPU; `python docs/generate.py` writes this page from
bench/results.csv and bench/cost_growth.json. What it is expected to cost on GPUs is in [scaling.md](scaling.md).
Times on this machine vary by a third from hour to hour: ratios are of processes that ran by turns."""

TRL = """\
`python -m bench.ppo_iteration`: one PPO iteration (sampling, scoring, two epochs on both networks) of destruct and of
TRL 1.12.0 with the same Llamas, prompts, token counts and optimizer steps, 6 layers 256 wide (4 layers 512 wide in
the last row), two threads. A gate comes first: one rollout through both gives the same logprobs, values, advantages,
loss and gradients in float32 (2e-6). *destruct* is `engine.backend: single` with float32 master weights; *pure bf16*
has none, as TRL; *ZeRO-3* is one DeepSpeed rank with two threads, *two ranks* two with one each. *Ratio* is TRL's
time over destruct's; *memory* is what either takes at its peak beside imports, weights, masters, moments and
gradients, destruct's over TRL's. The *floor* is the time of the products alone at the machine's own rate."""

READING = """\
Where the time beyond the floor goes, in the first row: under torch's profiler two thirds of an update are products, at
their rate; 7% multiplications, 6% the batched products of attention, 3% each copies, sums of gradients and the
activation, 2% softmax; the rest is a hundred small operations and their calls in each layer, which transformers makes
one by one. Sampling takes five times its products, as those of a token are small. TRL with its layers compiled
(accelerate's plugin) takes no less time than without. `make profile` tells the same of any config, by phase and
network.

What was asked for beforehand, and missed: twice TRL's speed in the first row, 2.5 times in the last, 1.7 times in
float32, three times where responses end, and twice the floor in the first row. In float32 and where responses end TRL
itself is within 1.6 and 4 times the floor, so that these two would have needed 0.9 and 1.3 times it. What was tried
is in [lab.md](lab.md). What was asked for and holds: at most 0.6 times TRL's memory in the first row and 0.5 times in
the last, and two ranks at 0.8 times the speed of one with two threads.

On models this small DeepSpeed's hooks cost ZeRO-3 2 s an iteration, a fixed cost for
each module, and a large model's products hide them."""

SAMPLING = """\
The policy samples from a whole copy that is gathered once (`rollout.gather: once`), or fetches layer by layer at
every token (`layers`), which needs no room for the copy. `PYTHONPATH=. python bench/gathering.py --mib 1024 --ranks
2`, a Llama of 1031 MiB in bfloat16, 8 tokens after two prompts of 16, on the largest rank:

| two ranks | whole copy, gathered once | layer by layer | |
|---|--:|--:|--:|
| ZeRO-3 | 2013 MiB, 9.6 s | 164 MiB, 9.3 s | 0.97 of the time |
| FSDP | 2111 MiB, 11.2 s | 267 MiB, 12.0 s | 1.07 |

On a CPU in bfloat16 a whole copy is put into oneDNN's order besides, which doubles it; on four ranks, before that was
done, layers took 1.75 and 1.48 times as long ([lab.md](lab.md)). A copy is paid for once in a rollout phase, layers at
every token: the longer the responses, the more they cost."""

GROWING = """\
`python -m bench.cost_growth`: one size moves at a time about P = R = 64, B = 16, V = 8192, 4 layers 256 wide, one
rank of ZeRO-3 with one thread, micro-batches of 4, one epoch; seconds of an update (its four phases), and the peak of
the fullest rank's memory above the imports. The plan's CPU is a round figure, so that its seconds are scaled to the
measured ones at the base: *the plan's growth* is what `destruct plan` foretells from there. Its memory is compared as
it is. The plan takes windows as full; those of the embedded texts are, up to about 128 tokens, and longer ones are
read as far as they go. Four ranks share the two cores, and take turns."""
