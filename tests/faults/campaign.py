"""The fault campaign: `python -m tests.faults.campaign [--kills N] [--only PART]`; docs/reliability.md says what for.

Finished trials are lines of results.jsonl, and are not made again on the same code: interrupted campaigns add up.
Progress is on stderr; the last line, on stdout, is JSON.  The table in docs/reliability.md is written anew.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.faults import page
from tests.faults.bare import bare
from tests.faults.cost import cost
from tests.faults.damage import damage
from tests.faults.data import data
from tests.faults.disk import disk
from tests.faults.drift import drift
from tests.faults.kills import kills
from tests.faults.poison import poison
from tests.faults.publishing import publishing
from tests.faults.resume import resume
from tests.faults.signals import signals
from tests.faults.stalls import stalls
from tests.faults.trials import MUST_BE_ZERO, RESULTS, Trials, read


def main(arguments: list[str] | None = None) -> int:
    """Make what is missing; 0 where everything that has to be 0 is."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.campaign", description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=200, help="how many SIGKILLs are wanted; 200 by default")
    parser.add_argument("--only", action="append", choices=PARTS, metavar="PART", help=f"of {', '.join(PARTS)}")
    options = parser.parse_args(arguments)
    folder = Path(tempfile.mkdtemp(prefix="destruct-faults-"))
    os.environ["DESTRUCT_CACHE"] = str(folder / "cache")
    trials = Trials(RESULTS, folder, options.kills)
    for name in options.only or PARTS:
        PARTS[name](trials)
    page.write(read(RESULTS))
    figures = trials.figures()
    print(json.dumps(figures), flush=True)
    broken = any(figures[name] for name in MUST_BE_ZERO) or trials.broken()
    if broken:
        print(f"what the trials left is in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder)
    return int(broken)


PARTS: dict[str, Callable[[Trials], None]] = {
    "damage": damage,
    "publishing": publishing,
    "disk": disk,
    "data": data,
    "resume": resume,
    "signals": signals,
    "stalls": stalls,
    "drift": drift,
    "poison": poison,
    "bare": bare,
    "cost": cost,
    "kills": kills,
}
"""By name, the quick ones first."""

if __name__ == "__main__":
    sys.exit(main())
