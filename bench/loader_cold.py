"""Cold: texts in files to token caches on the disk, against the tokenizer alone on the same texts in memory."""

import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import tokenizers

from bench.loader_texts import Corpus
from destruct.data.token_cache import CachedSource, TokenCache
from destruct.data.tokenizing import Tokenizer
from destruct.progress import tracked

BATCHES = (64, 256, 1024, 1 << 30)
"""Documents a call of the tokenizer; the last is all of them."""


def build(corpus: Corpus, folder: Path) -> tuple[float, list[CachedSource]]:
    """Open the sources and build all their caches in a folder that does not exist; seconds, and the caches."""
    tokenizer = Tokenizer.trained(corpus.tokenizer)
    began = time.perf_counter()
    cache = TokenCache(folder, patience_s=60)
    caches = [cache.open(source, tokenizer, lambda documents, tokens: None) for source in corpus.sources(folder)]
    return time.perf_counter() - began, caches


def tokenize(corpus: Corpus, batch: int) -> tuple[float, int]:
    """`encode_batch_fast` over all texts, on all cores, no result kept; seconds, and tokens.

    The tokenizer is a new one each time, as in `build`, since it remembers the words that it has seen.
    """
    tokenizer = tokenizers.Tokenizer.from_str(corpus.tokenizer)
    tokens = 0
    began = time.perf_counter()
    for first in range(0, len(corpus.texts), batch):
        encodings = tokenizer.encode_batch_fast(corpus.texts[first : first + batch], add_special_tokens=False)
        tokens += sum(map(len, encodings))
    return time.perf_counter() - began, tokens


def measure(corpus: Corpus, folder: Path, rounds: int) -> tuple[dict[str, Any], list[CachedSource]]:
    """Both in turn, so that a busy machine slows both; the figures, and the last round's caches."""
    tried = {batch: tokenize(corpus, batch)[0] for batch in BATCHES}
    batch = min(tried, key=tried.__getitem__)
    ours, alone, caches, tokens = [], [], [], 0
    for number in tracked(range(rounds), "cold", "rounds"):
        shutil.rmtree(folder / f"{number - 1}", ignore_errors=True)
        seconds, caches = build(corpus, folder / f"{number}")
        ours.append(seconds)
        seconds, tokens = tokenize(corpus, batch)
        alone.append(seconds)
        print(f"cold: {ours[-1]:.2f} s, the tokenizer {alone[-1]:.2f} s", file=sys.stderr)
    ratios = sorted(mine / its for mine, its in zip(ours, alone, strict=True))
    figures = {
        "cold_tokens_per_s": tokens / statistics.median(ours),
        "tokenizer_tokens_per_s": tokens / statistics.median(alone),
        "cold_ratio_to_tokenizer": statistics.median(ratios),
        "cold_ratio_spread": [ratios[0], ratios[-1]],
        "tokenizer_batch": min(batch, len(corpus.texts)),
        "documents": len(corpus.texts),
        "tokens": tokens,
        "bytes": sum(len(text.encode()) for text in corpus.texts),
    }
    return figures, caches
