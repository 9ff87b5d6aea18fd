"""Time, memory and error of the fused loss, beside other ways of computing it; one JSON line on stdout.

    python -m bench.fused_loss --device cpu --dtype bf16 --rows 1024 --hidden 1024 --vocab 32000

Forward and backward of the clipped loss with k2 KL and entropy bonus, every row in use.  After one warm-up each, all
contenders run once per repetition, in turn, so that a busy machine slows all of them: ratios are medians of ratios
inside a repetition.  Legend: N rows, H hidden width, V vocabulary.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import results
from destruct.progress import tracked

if TYPE_CHECKING:
    from bench.fused_loss_case import Case

OTHERS = ("three_gemms", "full_logits", "linear_cross_entropy", "unfused_cross_entropy", "liger", "trl", "verl")
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"
"""With 1 torch's CPU allocator asks for huge pages; it is read at the first allocation."""
Samples = dict[str, list[float]]  # figure -> of each repetition


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("bf16", "fp32"), default="bf16")
    parser.add_argument("--rows", type=int, default=1024, help="N")
    parser.add_argument("--hidden", type=int, default=1024, help="H")
    parser.add_argument("--vocab", type=int, default=32000, help="V")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="all cores unless given")
    parser.add_argument("--implementation", help="of the fused loss; chunked on the CPU, triton on CUDA unless given")
    parser.add_argument("--chunk-rows", type=int, help="rows of a chunk; the implementation's own choice unless given")
    parser.add_argument("--no-huge-pages", action="store_true", help="leave the CPU's memory in small pages")
    parser.add_argument("--without", choices=OTHERS, nargs="+", default=[], help="contenders to leave out")
    results.add_option(parser)
    parser.add_argument("--only-memory", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.implementation = options.implementation or ("triton" if options.device == "cuda" else "chunked")
    return options


def main() -> None:
    options = read_options()
    if options.no_huge_pages:
        os.environ[HUGE_PAGES] = "0"
    os.environ.setdefault(HUGE_PAGES, "1")
    import torch

    torch.set_num_threads(options.threads)
    if options.only_memory:
        print(json.dumps(own_memory(options)))
        return
    report, samples = measure(options)
    report = identify(options) | memory(options) | report
    if options.append:
        append(report, samples, options.append)
    summarise(report)
    print(json.dumps(report))


def identify(options: argparse.Namespace) -> dict[str, Any]:
    """What the run is, as far as the options and the machine say."""
    import torch

    names = ("device", "dtype", "rows", "hidden", "vocab", "threads", "implementation", "repeats")
    return {name: getattr(options, name) for name in names} | {
        "device_name": torch.cuda.get_device_name() if options.device == "cuda" else results.here(),
        "torch": torch.__version__,
        "chunk_rows": chunk_rows(options),
        "huge_pages": options.device == "cpu" and os.environ[HUGE_PAGES] == "1",
    }


def chunk_rows(options: argparse.Namespace) -> int:
    """Rows of a chunk: as asked for, or as the implementation chooses."""
    from bench.fused_loss_case import DTYPES
    from destruct.ops.dispatch import implementation

    choice = implementation(options.implementation).rows_per_chunk
    return options.chunk_rows or choice(options.vocab, DTYPES[options.dtype])


def memory(options: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of the fused loss, in a fresh process on the CPU, where earlier work leaves freed memory behind."""
    if options.device == "cuda":
        return own_memory(options)
    command = [sys.executable, "-m", "bench.fused_loss", *sys.argv[1:], "--only-memory"]
    # Freed memory goes back to the system at once, so that the next use of it counts again.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def own_memory(options: argparse.Namespace) -> dict[str, Any]:
    """The figures of this process."""
    from bench.fused_loss_case import DTYPES, make_case
    from bench.fused_loss_contenders import fused
    from bench.fused_loss_memory import memory_figures
    from destruct.ops.dispatch import implementation

    shape = options.rows, options.hidden, options.vocab
    case = make_case(options.device, DTYPES[options.dtype], shape, exact=False)
    step = fused(case, implementation(options.implementation).policy_loss, options.chunk_rows)
    figures = memory_figures(case, step, chunk_rows(options))
    return {**figures, "full_logits_bytes": options.rows * options.vocab * 4}


def measure(options: argparse.Namespace) -> tuple[dict[str, Any], Samples]:
    """Errors and times, and the seconds of every repetition."""
    from bench.fused_loss_case import DTYPES, make_case

    case = make_case(options.device, DTYPES[options.dtype], (options.rows, options.hidden, options.vocab))
    figures, samples = times(case, options)
    return errors(case, options) | figures, samples


def errors(case: "Case", options: argparse.Namespace) -> dict[str, Any]:
    """Against float64 on the same inputs: logprobs of all rows, gradients of the first `grad_error_rows`."""
    from bench.fused_loss_case import CHECKED_ROWS, gradient_errors, plain_logprobs
    from bench.fused_loss_contenders import FullLogits, fused
    from destruct.ops.dispatch import implementation
    from destruct.ops.rows import row_dtype

    policy_loss, rows = implementation(options.implementation).policy_loss, min(options.rows, CHECKED_ROWS)
    logprobs = fused(case, policy_loss, options.chunk_rows)()
    case.hidden.grad = case.weight.grad = None
    part = case.first(rows)
    full = FullLogits(part, row_dtype(part.hidden.dtype))
    full.step()
    fused(part, policy_loss, options.chunk_rows)()
    of_fused, of_full = gradient_errors(part, [(part.hidden.grad, part.weight.grad), (full.d_hidden, full.d_weight)])
    return {
        "logprob_error": float((logprobs - case.exact_logprobs).abs().max()),
        "full_logits_logprob_error": float((plain_logprobs(case) - case.exact_logprobs).abs().max()),
        "grad_error": of_fused,
        "full_logits_grad_error": of_full,
        "grad_error_rows": rows,
    }


def times(case: "Case", options: argparse.Namespace) -> tuple[dict[str, Any], Samples]:
    """Median seconds of each contender, None where it cannot run, and the ratios; the seconds of every repetition."""
    from bench import fused_loss_contenders as plain
    from bench.fused_loss_peers import PEERS
    from destruct.ops.dispatch import implementation

    policy_loss = implementation(options.implementation).policy_loss
    makers = {
        "fused": lambda: (plain.fused(case, policy_loss, options.chunk_rows), ""),
        "three_gemms": lambda: plain.three_gemms(case),
        "full_logits": lambda: plain.full_logits(case),
        "linear_cross_entropy": lambda: plain.linear_cross_entropy(case),
        "unfused_cross_entropy": lambda: plain.unfused_cross_entropy(case),
        **{name: lambda make=make: make(case) for name, make in PEERS.items()},
    }
    steps, notes = {}, {f"{name}_note": "left out by --without" for name in options.without}
    for name in tracked([name for name in makers if name not in options.without], "contenders"):
        try:
            step, notes[f"{name}_note"] = makers[name]()
            step()
            steps[name] = step
        except Exception as error:  # a peer may fail in any way of its own; the others are still worth timing
            if name in ("fused", "three_gemms", "full_logits"):
                raise
            notes[f"{name}_note"] = f"{type(error).__name__}: {error}"
    taken = [
        {name: plain.seconds(step, options.device) for name, step in steps.items()}
        for _ in tracked(range(options.repeats), "timing", "rounds")
    ]

    def median(over: str, under: str | None = None) -> float | None:
        if not {over, under or over} <= set(steps):
            return None
        return statistics.median(one[over] / (one[under] if under else 1) for one in taken)

    figures: dict[str, Any] = {f"{name}_s": median(name) for name in makers}
    figures["ratio_to_gemms"] = median("fused", "three_gemms")
    figures |= {f"speedup_vs_{name}": median(name, "fused") for name in OTHERS[1:]}
    samples = {f"{name}_s": [one[name] for one in taken] for name in steps}
    return figures | {name: note for name, note in notes.items() if note}, samples


def append(report: dict[str, Any], samples: Samples, path: Path) -> None:
    """Add the report's figures as lines of the results.

    Args:
        samples: of the figures that have repetitions.
    """
    units = {"_s": ("s", 1), "_bytes": ("MiB", 2**20), "logprob_error": ("nats", 1), "": ("1", 1)}
    about = "{dtype}; N {rows}, H {hidden}, V {vocab}; {threads} threads; {implementation}, {chunk_rows} rows a chunk"
    about += "; huge pages {huge_pages}"
    figures = []
    for name, value in report.items():
        if not isinstance(value, float) and (value is None or not name.endswith("_bytes")):
            continue
        unit, divisor = next(units[ending] for ending in units if name.endswith(ending))
        words = name.removesuffix("_s").replace("_bytes", " memory").replace("_", " ")
        taken = [sample / divisor for sample in samples.get(name, [value])]
        figures.append(results.Figure(words, unit, taken))
    device = report["device_name"] if report["device"] == "cuda" else None
    results.append(path, "fused_loss", figures, about.format(**report), device, ("torch",))


def summarise(report: dict[str, Any]) -> None:
    """The same for people, on stderr."""
    for name in ("fused", *OTHERS):
        value, note = report[f"{name}_s"], report.get(f"{name}_note", "")
        times_fused = "" if value is None else f"{value * 1e3:9.1f} ms {value / report['fused_s']:6.2f} x fused"
        print(f"{name:22}{times_fused or 'not run':>28}  {note}", file=sys.stderr)
    print(
        f"extra memory {report['extra_bytes'] / 2**20:.1f} MiB; full logits {report['full_logits_bytes'] / 2**20:.1f}"
        f" MiB; logprob error {report['logprob_error']:.2g} nats; gradient error {report['grad_error']:.2g}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
