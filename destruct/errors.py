"""The one exception a person is meant to read."""

from destruct.exits import Exit


class DestructError(Exception):
    """A mistake the user can put right.

    Args:
        problem: one line saying what is wrong, with names and figures.
        remedy: one line saying what to do about it.
        exit_code: `Exit.CONFIG`, or `Exit.ENVIRONMENT` where the machine and not the config is at fault.
    """

    def __init__(self, problem: str, remedy: str, exit_code: Exit = Exit.CONFIG):
        # All of them, or the exception does not unpickle in another process.
        # What others raised, and is quoted here, may be of many lines.
        problem, remedy = (" ".join(map(str.strip, text.splitlines())) for text in (problem, remedy))
        super().__init__(problem, remedy, exit_code)
        self.problem, self.remedy, self.exit_code = problem, remedy, exit_code

    def __str__(self) -> str:
        return f"{self.problem}\n  remedy: {self.remedy}"


class Diverged(Exception):
    """Training cannot go on from what it has become.

    Args:
        problem: one line that says what is not finite.
        remedy: one line that says what happens, or is to be done, now.
        exit_code: `Exit.RANK_FAILED` where the run is to start again from its last checkpoint, else `Exit.DIVERGED`.
    """

    def __init__(self, problem: str, remedy: str, exit_code: Exit):
        super().__init__(f"{problem}\n  remedy: {remedy}")
        self.exit_code = exit_code


class Drifted(Exception):
    """A rank is not what the others are."""

    exit_code = Exit.RANK_FAILED
