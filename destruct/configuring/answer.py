"""How these commands say what they found."""

from contextlib import suppress

from destruct.secrets import masked


def say(text: str) -> None:
    """Print lines without the environment's secrets; a reader that has enough of them, such as `head`, may go."""
    with suppress(BrokenPipeError):
        print(masked(text), flush=True)
