"""Makes shards of a stream of local files in a process of its own.

    python -m tests.data.stream_worker FILES CACHE TOKENIZER [--shards N] [--die-in SHARD] [--slow SECONDS]

Prints a line per shard, `number built digest`, then this process's peak memory in MiB.
"""

import argparse
import os
import signal
import time
from pathlib import Path

from destruct.data.tokenizing import Tokenizer
from tests.data.peak import peak_mib
from tests.data.streams import shards_of, stream_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("files", "cache", "tokenizer"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--shards", type=int, default=1 << 30)
    parser.add_argument("--shard-mib", type=float, default=1.5)
    parser.add_argument("--die-in", type=int)
    parser.add_argument("--slow", type=float, default=0.0)
    options = parser.parse_args()
    number = built = 0

    def watch(documents: int, tokens: int) -> None:
        nonlocal built
        built = 1
        time.sleep(options.slow)
        if number == options.die_in:
            os.kill(os.getpid(), signal.SIGKILL)

    tokenizer = Tokenizer.trained(options.tokenizer.read_text(encoding="utf-8"))
    shards = shards_of(options.cache, stream_of(options.files, options.shard_mib), tokenizer)
    for number in range(options.shards):
        digest = shards.open(number, lambda stores: stores.digest, watch)
        if digest is None:
            break
        print(number, built, digest.replace(" ", "-"))
        built = 0
    print(peak_mib())


if __name__ == "__main__":
    main()
