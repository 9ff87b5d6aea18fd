"""How fast the data layer is, beside its peers, and how much memory it takes; one JSON line on stdout.

    python -m bench.loader                                     # on embedded texts, about three minutes
    python -m bench.loader --texts DIR --append                # on train.parquet in the folders of DIR

cold    texts in Parquet files to token caches on the disk, against the tokenizer alone (`bench/loader_cold.py`)
warm    batches of packed windows and of rollout pieces from those caches, by other weights for each batch
        (`bench/loader_ours.py`), against `datasets.interleave_datasets` and torchdata (`bench/loader_peers.py`)
memory  the peak of a fresh process, of a store and of one 16 times as large (`bench/loader_memory.py`)

Of every peer all settings are tried for a moment, and the fastest is measured.  Then all run in turn, so that a busy
machine slows all of them: ratios are medians of ratios inside a round, their spreads the smallest and the largest.
`interleave` and `torchdata` pack documents as they come; `_bulk` is what else is fast with either, and does less:
windows cut beforehand, or tables copied in Arrow by hundreds of rows.  Beginning a peer anew is left out of its time.
"""

import argparse
import importlib.metadata
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from bench import results
from bench.loader_texts import Corpus, make_corpus
from destruct.batch import PromptBatch
from destruct.data.token_cache import CachedSource
from destruct.progress import tracked

PACKAGES = ("torch", "datasets", "torchdata", "tokenizers", "pyarrow", "numpy")

Batch = Tensor | PromptBatch


def read_options(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=Path, help="folders of configs/five_sources.yaml, each with a train.parquet")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the embedded texts that is made")
    parser.add_argument("--batch", type=int, default=64, help="B")
    parser.add_argument("--window", type=int, default=512, help="T")
    parser.add_argument("--cold-rounds", type=int, default=5)
    parser.add_argument("--warm-rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each contender in a warm round")
    parser.add_argument("--mib", type=float, default=32, help="of tokens in the smaller store of the two")
    parser.add_argument("--batches", type=int, default=2000, help="drawn of each kind while memory is watched")
    results.add_option(parser)
    return parser.parse_args(arguments)


def main() -> None:
    options = read_options()
    from bench import loader_cold, loader_memory

    report = identify(options)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        corpus: Corpus = make_corpus(folder / "texts", options.scale, options.texts)
        cold, caches = loader_cold.measure(corpus, folder / "caches", options.cold_rounds)
        report |= cold | warm(caches, folder / "peers", options)
        report |= loader_memory.growth(folder / "stores", options.mib, options.batch, options.window, options.batches)
    if options.append:
        append(report, options.append)
    print(json.dumps(report))


def identify(options: argparse.Namespace) -> dict[str, Any]:
    """What the run is."""
    return {
        "texts": "embedded" if options.texts is None else options.texts.name,
        "batch": options.batch,
        "window": options.window,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 2),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


class Contender:
    """What gives batches, begun anew where it ends.

    Args:
        start: begins it.
    """

    def __init__(self, start: Callable[[], Iterator[Batch]]):
        self._start = start
        self._running = self._begun()

    def tokens_per_s(self, seconds: float) -> float:
        """Of batches that take so long or a little longer."""
        tokens, spent = 0, 0.0
        while spent < seconds:
            began = time.perf_counter()
            batch = next(self._running, None)
            spent += time.perf_counter() - began
            if batch is None:
                self._running = self._begun()
            else:
                tokens += batch.real_tokens if isinstance(batch, PromptBatch) else batch.numel()
        return tokens / spent

    def _begun(self) -> Iterator[Batch]:
        running = self._start()
        next(running)  # what it takes to begin is not asked for
        return running

    def warmed(self, seconds: float) -> Self:
        """Run so long, until what was made ahead with the first batch is used up."""
        self.tokens_per_s(seconds)
        return self


def warm(caches: list[CachedSource], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens a second of our two kinds of batches and of the peers, each in its best setting."""
    from bench.loader_ours import packed_batches, rollout_batches
    from bench.loader_peers import peers

    stores = {cache.name: cache.train for cache in caches}
    sizes, moment = (options.batch, options.window), options.seconds / 2
    contenders = {
        "warm": Contender(partial(packed_batches, stores, *sizes)).warmed(moment),
        "rollout": Contender(partial(rollout_batches, stores, *sizes)).warmed(moment),
    }
    figures: dict[str, Any] = {}
    for peer, ways in tracked(peers(stores, folder, *sizes).items(), "settings", "peers"):
        tried = {setting: Contender(start).warmed(moment).tokens_per_s(moment) for setting, start in ways.items()}
        for setting, speed in tried.items():
            print(f"{peer}: {setting}: {speed / 1e6:.1f} M tokens/s", file=sys.stderr)
        figures[f"{peer}_setting"] = best = max(tried, key=tried.__getitem__)
        contenders[peer] = Contender(ways[best]).warmed(moment)
    taken = [
        {name: contender.tokens_per_s(options.seconds) for name, contender in contenders.items()}
        for _ in tracked(range(options.warm_rounds), "warm", "rounds")
    ]
    figures |= {f"{name}_tokens_per_s": statistics.median(one[name] for one in taken) for name in contenders}
    for peer in list(contenders)[2:]:
        ratios = sorted(one["warm"] / one[peer] for one in taken)
        name = "warm_ratio" if peer == "interleave" else f"{peer}_ratio"
        figures |= {name: statistics.median(ratios), f"{name}_spread": [ratios[0], ratios[-1]]}
        print(
            f"{peer}: {figures[f'{peer}_tokens_per_s'] / 1e6:.1f} M tokens/s, ours {figures[name]:.2f} times that",
            file=sys.stderr,
        )
    return figures


def append(report: dict[str, Any], path: Path) -> None:
    """Add the report's figures as lines of the results."""
    units = {"_tokens_per_s": "tokens/s", "_mib": "MiB", "": "1"}
    about = f"{report['texts']} texts, {report['documents']} documents, {report['tokens']} tokens"
    about += f"; B {report['batch']}, T {report['window']}; {report['cores']} cores"
    for name, value in report.items():
        if not isinstance(value, float) or name == "load":
            continue
        ending = next(ending for ending in units if name.endswith(ending))
        peer = report.get(f"{name.removesuffix(ending)}_setting", "")
        figure = results.Figure(name.removesuffix(ending).replace("_", " "), units[ending], [value])
        results.append(path, "loader", [figure], f"{about}; {peer}" if peer else about, packages=PACKAGES)


if __name__ == "__main__":
    main()
