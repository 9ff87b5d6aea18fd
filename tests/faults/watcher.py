"""A user's reward function in whose module a thread tells, from inside the first rank, which phase the run is in."""

import os
import sys
import threading
import time
from pathlib import Path

PHASES = {
    "resume": {"_resume"},
    "policy warm-up": {"teach_language"},
    "value warm-up": {"teach_value"},
    "round": {"one_update", "round"},
    "generate": {"one_update", "generate"},
    "score": {"one_update", "pack_and_score"},
    "update": {"one_update", "ppo_update"},
    "evaluate": {"one_update", "evaluate"},
    "save": {"one_update", "save"},
}
"""Functions that are all on the stack of the main thread in a phase."""

PHASE, ANNOUNCED = "FAULTS_PHASE", "FAULTS_ANNOUNCED"
"""Variables: the phase that is looked for, and the file that is made when the run is in it."""


def _watch(wanted: set[str], announced: Path) -> None:
    main = threading.main_thread().ident
    while not announced.exists():
        frame, names = sys._current_frames().get(main), set()
        while frame is not None:
            names.add(frame.f_code.co_name)
            frame = frame.f_back
        if wanted <= names:
            announced.touch()
        time.sleep(0.001)


if os.environ.get("RANK") == "0" and PHASE in os.environ:
    watched = PHASES[os.environ[PHASE]], Path(os.environ[ANNOUNCED])
    threading.Thread(target=_watch, args=watched, daemon=True).start()


def vowels(prompts: list[str], responses: list[str], continuations: list[str]) -> list[float]:
    """The reward term: the share of vowels in a response."""
    return [sum(letter in "aeiou" for letter in response) / max(len(response), 1) for response in responses]
