"""Values of the environment that nobody should read in a log."""

import json
import logging
import os
import re

WORDS = r"TOKEN(?!IZ)|SECRET|PASSW|PASSPHRASE|CREDENTIAL|PRIVATE|API_?KEY|ACCESS_?KEY|AUTH(?!OR)"
NAMES = re.compile(rf"(?:{WORDS})(?!.*_(?:PATH|FILE|DIR|SOCK)$)", re.IGNORECASE)
"""What the name of a variable with a secret has in it; not that of a place where one lies."""

WARNINGS = "py.warnings"
"""The logger of Python's warnings."""

SHORTEST = 8
"""Characters of a value from which on it is masked: shorter ones stand in texts by chance."""

MASK = "<secret>"


def masked(text: str) -> str:
    """The text without the values of variables whose names look like those of secrets."""
    found = [value for name, value in os.environ.items() if NAMES.search(name) and len(value) >= SHORTEST]
    for value in sorted(found, key=len, reverse=True):  # one may be the beginning of another
        for written in (value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]):
            text = text.replace(written, MASK)
    return text


class Masking(logging.Formatter):
    """Lines of a log, tracebacks included, without the environment's secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """As logging does, and masked."""
        return masked(super().format(record))


def mask_stderr() -> None:
    """Let what is logged, and warned of, before anyone has said where to, be masked as it goes to stderr."""
    logging.captureWarnings(True)
    on_stderr = logging.StreamHandler()
    on_stderr.setFormatter(Masking("%(message)s"))
    logging.getLogger(WARNINGS).addHandler(on_stderr)
    if logging.lastResort is not None:
        logging.lastResort.setFormatter(Masking("%(message)s"))
