"""Loads sources in a process of its own, whose environment says where the hub is.

JSON on standard input, name of a case -> its source; JSON on standard output, name -> documents and fingerprint, or
fault.  With the argument `impatient`, the client does not wait between its tries; with `open`, nothing is read.
"""

import json
import sys
from typing import Any

from destruct.config.data import DataConfig
from destruct.data.sources import open_source
from destruct.errors import DestructError
from tests.data.corpora import collect
from tests.hub import impatient


def outcome(source: dict[str, Any]) -> dict[str, Any]:
    """Texts of both sides and the fingerprint, or what the error says."""
    config = DataConfig.model_validate({"sources": {"mine": source}})
    try:
        opened = open_source("mine", config.sources["mine"], config, seed=0)
        if "open" in sys.argv:
            return {"fingerprint": opened.fingerprint}
        got = collect(opened)
    except DestructError as error:
        return {"problem": error.problem, "remedy": error.remedy, "exit_code": error.exit_code}
    return {"train": got.train, "validation": got.validation, "fingerprint": opened.fingerprint}


if __name__ == "__main__":
    if "impatient" in sys.argv:
        impatient()
    sources = json.load(sys.stdin)
    json.dump({name: outcome(source) for name, source in sources.items()}, sys.stdout)
