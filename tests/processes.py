"""Processes of this machine, any of which may end while one looks at it: then it says nothing."""

import psutil


def runs(process: psutil.Process) -> bool:
    """Whether it runs; one that has ended and that nobody has waited for does not."""
    try:
        return process.is_running() and process.status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False


def words(process: psutil.Process) -> str:
    """Its command."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def variables(process: psutil.Process) -> dict[str, str]:
    """Its environment."""
    try:
        return process.environ()
    except psutil.Error:
        return {}


def below(pid: int) -> list[psutil.Process]:
    """All that it started, and that those started."""
    return psutil.Process(pid).children(recursive=True)


def at(pid: int) -> psutil.Process | None:
    """The one of this number, if it runs."""
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None
    return process if runs(process) else None
