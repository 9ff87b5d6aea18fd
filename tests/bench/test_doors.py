"""What times the helps asks every command there is."""

from bench.doors import commands, once
from destruct.doors import DOORS


def test_the_help_of_every_command_is_asked_for_and_answers():
    asked = list(commands())
    assert [command[0] for command in asked if len(command) == 1] == list(DOORS)
    assert ["launch", "slurm"] in asked and ["config", "diff"] in asked and len(asked) == len({*map(tuple, asked)})
    clock, busy = once(["config", "diff"])
    assert clock > 0 and busy >= 0
