"""Reads streams of the hub in a process of its own, whose environment says where the hub is.

JSON on standard input: {"sources": name of a case -> its source, "cache": a folder, "tokenizer": its text}; JSON on
standard output, name -> texts, fingerprint, digests of the shards, shape of the first, or fault.  With the argument
`impatient`, nobody waits between two tries.
"""

import json
import sys
from pathlib import Path
from typing import Any

from destruct.config.data import DataConfig
from destruct.data.sources import open_source
from destruct.data.stream import StreamSource
from destruct.data.tokenizing import Tokenizer
from destruct.errors import DestructError
from tests.data.corpora import collect
from tests.data.streams import shards_of, unwatched
from tests.hub import impatient


def outcome(source: dict[str, Any], cache: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """What is read of it, or what the error says."""
    config = DataConfig.model_validate({"sources": {"mine": source}})
    digests: list[str] = []
    try:
        opened = open_source("mine", config.sources["mine"], config, seed=0)
        if "shards" in sys.argv:
            assert isinstance(opened, StreamSource)
            shards = shards_of(cache, opened, tokenizer)
            while (digest := shards.open(len(digests), lambda stores: stores.digest, unwatched)) is not None:
                digests.append(digest)
            return {"digests": digests}
        got = collect(opened)
    except DestructError as error:
        return {"problem": error.problem, "remedy": error.remedy, "exit_code": error.exit_code, "digests": digests}
    kind = type(opened).__name__
    return {"train": got.train, "validation": got.validation, "fingerprint": opened.fingerprint, "kind": kind}


if __name__ == "__main__":
    if "impatient" in sys.argv:
        impatient()
    asked = json.load(sys.stdin)
    made = Tokenizer.trained(asked["tokenizer"])
    json.dump(
        {name: outcome(source, Path(asked["cache"]), made) for name, source in asked["sources"].items()}, sys.stdout
    )
