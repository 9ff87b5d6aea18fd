"""The screen of a command whose result goes to standard output: all that it says meanwhile goes to standard error."""

import sys

from destruct.tracking.console import Screen


class Aside(Screen):
    """Progress bars where standard error is a terminal, plain lines elsewhere, silence on every rank but the first."""

    def __init__(self, first_rank: bool):
        super().__init__(first_rank)
        self.console.file = sys.stderr  # as it is now: within `quiet` it is nowhere
        self.live = first_rank and self.console.is_terminal
