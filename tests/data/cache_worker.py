"""Opens the token cache of one source in a process of its own.

    python -m tests.data.cache_worker SOURCE CACHE TOKENIZER [--die-at TOKENS] [--slow SECONDS]

Prints `tokens built digest`: built is 1 where this process made the cache.
"""

import argparse
import os
import signal
import time
from pathlib import Path

from destruct.config.data import DataConfig
from destruct.data.sources import open_source
from destruct.data.token_cache import TokenCache
from destruct.data.tokenizing import Tokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path)
    parser.add_argument("cache", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--die-at", type=int)
    parser.add_argument("--slow", type=float, default=0.0)
    options = parser.parse_args()
    built = False

    def watch(documents: int, tokens: int) -> None:
        nonlocal built
        built = True
        time.sleep(options.slow)
        if options.die_at is not None and tokens >= options.die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    config = DataConfig.model_validate({"sources": {"mine": {"path": str(options.source)}}})
    source = open_source("mine", config.sources["mine"], config, seed=0)
    tokenizer = Tokenizer.trained(options.tokenizer.read_text(encoding="utf-8"))
    got = TokenCache(options.cache, patience_s=30).open(source, tokenizer, watch)
    print(got.train.facts.tokens + got.held_out.facts.tokens, int(built), got.train.facts.digest)


if __name__ == "__main__":
    main()
