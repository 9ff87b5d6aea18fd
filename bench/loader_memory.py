"""How much memory drawing batches takes, and how much more from a store that is 16 times as large.

    python -m bench.loader_memory FOLDER --batch 64 --window 512 --batches 2000

draws from the store in FOLDER and prints the peak of this process's resident set above what it held after the imports,
pages of mapped files included, in MiB.  The peak is the kernel's (VmHWM), begun anew after the imports.
"""

import argparse
import itertools
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

from bench.loader_ours import packed_batches, rollout_batches
from destruct.data.store import ANYWHERE, StoreWriter, TokenStore
from destruct.progress import tracked

SEED, TIMES = 11, 16
_VOCABULARY, _MEAN_DOCUMENT, _AT_ONCE = 8192, 400, 1 << 12


def write_store(folder: Path, mib: float) -> None:
    """Made-up documents, 400 tokens long on average, so many as fill the size with tokens of two bytes."""
    rng = np.random.default_rng(SEED)
    with StoreWriter(folder, _VOCABULARY, None) as writer:
        while writer.tokens < mib * 2**19:
            lengths = rng.geometric(1 / _MEAN_DOCUMENT, _AT_ONCE) + 1
            tokens = rng.integers(0, _VOCABULARY, int(lengths.sum()), np.int32)
            writer.add(np.split(tokens, lengths.cumsum()[:-1]), [ANYWHERE] * _AT_ONCE)
        writer.finish()


def growth(folder: Path, mib: float, batch: int, window: int, batches: int) -> dict[str, float]:
    """Peaks of fresh processes, MiB: of a store of that size, of one 16 times as large, and the difference."""
    peaks = []
    for size in tracked((mib, mib * TIMES), "memory", "stores"):
        store = folder / f"{size:.0f}"
        write_store(store, size)
        sizes = ["--batch", str(batch), "--window", str(window), "--batches", str(batches)]
        command = [sys.executable, "-m", "bench.loader_memory", str(store), *sizes]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        peaks.append(float(done.stdout))
        print(f"memory: {peaks[-1]:.1f} MiB above the imports, of a store of {size:.0f} MiB", file=sys.stderr)
    return {"rss_small_mib": peaks[0], "rss_large_mib": peaks[1], "rss_growth_mib": peaks[1] - peaks[0]}


def resident_mib(name: str) -> float:
    """VmRSS, what this process holds, or VmHWM, the most that it held."""
    match = re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--batches", type=int, default=2000, help="of packed windows, and as many of pieces")
    options = parser.parse_args()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM falls to VmRSS
    before = resident_mib("VmRSS")
    stores = {"made_up": TokenStore(options.folder)}
    for batches in (packed_batches, rollout_batches):
        drawn = batches(stores, options.batch, options.window)
        for _ in itertools.islice(drawn, options.batches):
            pass
    print(resident_mib("VmHWM") - before)


if __name__ == "__main__":
    main()
