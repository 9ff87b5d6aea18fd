"""The configuration of a run: `destruct config show|explain|schema|diff ...`."""

import sys

from destruct.doors import through
from destruct.exits import leave

WAYS = {
    "show": "every value that a run would have, and where each comes from",
    "explain": "what keys mean, and what they take",
    "schema": "a JSON schema of the files that people write, for editors",
    "diff": "the keys in which two files or two runs differ (exit code 0 none, 1 some)",
}
"""Sub-commands -> what they do; each is the module of its name in `configuring/`, with `main(arguments) -> exit code`.

These modules import nothing that takes long before they have read the command line.
"""


def main(arguments: list[str] | None = None) -> int:
    """Answer a question about configurations; returns the exit code."""
    return through("destruct config", "destruct.configuring", WAYS, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    leave(main())
