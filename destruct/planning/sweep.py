"""One job over many numbers of devices: a table, JSON, and a chart."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from destruct.errors import DestructError
from destruct.exits import Exit
from destruct.planning.hardware import GIB
from destruct.planning.report import PIPED, Plan


def rows(plans: list[Plan]) -> list[dict[str, Any]]:
    """A summary of each plan; the efficiency is tokens a second and device over the first plan's."""
    first = plans[0].tokens_per_second / plans[0].job.world
    found = []
    for plan in plans:
        job = plan.job
        memory = {room.place: room.asked for room in plan.rooms}
        found.append(
            {
                "devices": job.world,
                "nodes": job.nodes,
                "rollouts": job.settings.config.rollout.batch_size,
                "device_bytes": memory.get("device"),
                "host_bytes": memory["host"],
                "fits": plan.fits,
                "sent_bytes": sum(call.sent(job.world) for call in plan.collectives),
                "seconds_per_update": plan.seconds,
                "tokens_per_second": plan.tokens_per_second,
                "efficiency": plan.tokens_per_second / job.world / first,
                "longest_phase": plan.longest.name,
                "bound": plan.longest.bound,
            }
        )
    return found


def show(plans: list[Plan]) -> None:
    """Print a row for each number of devices."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPED)
    table = Table(box=None, pad_edge=False)
    table.add_column("devices", justify="right")
    table.add_column("fits")
    for name in ("rollouts", "device GiB", "host GiB", "sent GiB", "s/update", "tokens/s", "efficiency"):
        table.add_column(name, justify="right")
    table.add_column("most of the time")
    for row in rows(plans):
        table.add_row(
            f"{row['devices']:,}",
            "yes" if row["fits"] else "no",
            f"{row['rollouts']:,}",
            ""
            if row["device_bytes"] is None
            else f"{row['device_bytes'] / GIB:.1f}{'' if row['fits'] else ' too much'}",
            f"{row['host_bytes'] / GIB:.1f}",
            f"{row['sent_bytes'] / GIB:.1f}",
            f"{row['seconds_per_update']:.3g}",
            f"{row['tokens_per_second']:,.0f}",
            f"{row['efficiency']:.2f}",
            f"{row['longest_phase']}, by {row['bound']}",
        )
    console.print(table)


def _gib(size: int | None) -> str:
    return "" if size is None else f"{size / GIB:,.1f}"


def check_drawing(path: Path) -> None:
    """Refuse a chart before anything is planned for it.

    Raises:
        DestructError: matplotlib is not installed, or the file is no PNG.
    """
    if path.suffix != ".png" or path.is_dir():
        raise DestructError(f"--png {path} is no name of a PNG file", "name one that ends in .png")
    if find_spec("matplotlib") is None:
        raise DestructError(
            "--png draws with matplotlib, which is not installed", "pip install matplotlib", Exit.ENVIRONMENT
        )


def draw(plans: list[Plan], path: Path) -> None:
    """Memory of a rank and seconds of an update, over the number of devices, as a PNG.

    Raises:
        DestructError: the file cannot be written.
    """
    import matplotlib  # a second that only a chart needs

    matplotlib.use("Agg")
    from matplotlib import pyplot

    devices = [plan.job.world for plan in plans]
    figure, (memory, time) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    place = plans[0].rooms[0].place
    networks = list(dict.fromkeys(part.network for plan in plans for part in plan.memory.parts))
    stacks = [[_at_peak(plan, network) for plan in plans] for network in networks]
    shown = [(name, stack) for name, stack in zip(networks, stacks, strict=True) if max(stack) > 0]
    memory.stackplot(devices, [stack for _, stack in shown], labels=[name for name, _ in shown])
    memory.axhline(given_to_a_rank(plans[0]) / GIB, color="black", linestyle="--", label="there is")
    memory.set(title=f"{place} memory of a rank at its fullest moment", ylabel="GiB", xlabel="devices")
    phases = [phase.name for phase in plans[0].phases]
    seconds = [[plan.phases[i].seconds for plan in plans] for i in range(len(phases))]
    time.stackplot(devices, seconds, labels=phases)
    time.set(title="an update", ylabel="seconds", xlabel="devices")
    for axes in (memory, time):
        axes.set_xscale("log", base=2)
        axes.set_xticks(devices, [str(count) for count in devices])
        axes.legend(fontsize="small")
    try:
        figure.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise DestructError(f"{path} cannot be written: {error}", "name a .png in a folder that exists") from None
    finally:
        pyplot.close(figure)


def given_to_a_rank(plan: Plan) -> float:
    """Bytes that there are of what the chart shows: a device, or on CPUs the host, which its ranks share."""
    room, job = plan.rooms[0], plan.job
    return room.given / min(job.world, job.per_node) if room.place == "host" else room.given


def _at_peak(plan: Plan, network: str) -> float:
    room = plan.rooms[0]
    return sum(part.bytes for part in plan.memory.at(room.place, room.moment) if part.network == network) / GIB
