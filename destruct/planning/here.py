"""Whether a run fits the machine that it starts on."""

import os
from dataclasses import replace

from destruct.config.settings import Settings
from destruct.errors import DestructError
from destruct.planning.fitting import check_fits
from destruct.planning.hardware import HARDWARE
from destruct.planning.job import job_of


def memory_warning(settings: Settings, local_ranks: int, device: tuple[str, int] | None) -> str | None:
    """One line where the plan says that the run does not fit; it is a plan, so that nothing is refused.

    Args:
        local_ranks: of this machine.
        device: name and bytes of a rank's GPU; None where it computes on the CPU.

    Returns:
        None where it fits, and where the sizes of a network are not known.
    """
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / local_ranks
    hardware = replace(HARDWARE["cpu"], title="this machine", host_memory=host)
    if device is not None:
        name, size = device
        hardware = replace(HARDWARE["h100"], title=name, memory=size, host_memory=host)
    try:
        job = job_of(settings, hardware, local_ranks)
    except DestructError:
        return None
    try:
        check_fits(job)
    except DestructError as error:
        return f"warning: {error.problem}; {error.remedy} (destruct plan says more)"
    return None
