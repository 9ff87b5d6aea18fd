"""The tables of docs/reliability.md: of each part the trials on the code that it was last made on."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from destruct.config.guard import GuardConfig
from tests.faults.trials import ROOT, Outcome

PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"
NUMBERS = ("kills", "corruptions", "signals", "calls")
"""How many faults a trial is made of; 1 where it has none of these."""


@dataclass(frozen=True, slots=True)
class Row:
    """Trials of a part that are told together, but for those of an earlier row.

    Args:
        words: that are in the trial's name, one of them.
        bare: trials of the bare loop that stand beside them.
    """

    part: str
    words: tuple[str, ...]
    fault: str
    promise: str
    bare: tuple[str, ...] = ()


WHOLE = "the newest whole checkpoint; the same end, bit for bit"
NAMED = "the file is named, the checkpoint before it taken"
SAVED = "saved, 75, no process left; the same end, bit for bit"
HANGS = "named within twice the time, all stacks written, no process left"
SAME = "the next update is the same, bit for bit"

ROWS = (
    Row("kills", ("",), "SIGKILL of a rank, a launcher, everything", WHOLE, ("SIGKILL, rank", "SIGKILL, launcher")),
    Row("publishing", ("KILL",), "killed before each system call of a save", "it is there whole, or the one before it"),
    Row(
        "publishing",
        ("error",),
        "each such call refused (EIO, ENOSPC, EROFS)",
        "the run goes on, the next save is whole",
    ),
    Row("damage", ("a life after",), "a life over a damaged checkpoint", WHOLE),
    Row("damage", (", a bit flipped",), "a bit flipped in each file", NAMED, ("a bit flipped",)),
    Row("damage", ("cut short",), "each file cut short", NAMED, ("cut short",)),
    Row("damage", ("deleted",), "each file deleted", NAMED, ("deleted",)),
    Row("damage", ("other rank", "other network"), "ranks or networks swapped", NAMED, ("the other rank's",)),
    Row("damage", ("another step",), "files of two steps mixed", NAMED, ("another step's",)),
    Row("damage", ("code", "too many", "link"), "code in a pickle, a file too many, a link", f"{NAMED}; nothing runs"),
    Row(
        "damage",
        ("pointer",),
        "`latest` stale, gone, leading elsewhere",
        "said, and never followed",
        ("no latest", "latest is empty", "latest leads elsewhere"),
    ),
    Row("signals", ("wrapper",), "TERM, INT, USR1 to the launcher", SAVED, ("SIGTERM, command", "SIGUSR1, command")),
    Row("signals", ("rank 1", "all ranks"), "the same past it, to one or all ranks", SAVED, ("SIGUSR1, rank",)),
    Row("disk", ("full",), "a full disk", "goes on, or 3 and words; nothing half is left", ("disk full",)),
    Row("disk", ("read-only",), "a folder that is read-only", "3 and words"),
    Row("data", ("between two lives",), "data changed between two lives", "refused, unless only its place is another"),
    Row("data", ("file", "row", "bytes"), "rows that are broken, slow, huge, gone", "goes on, or 2 and words"),
    Row("data", ("a reward",), "a reward that fails or is slow", "goes on, or 2 and words"),
    Row("stalls", ("",), "a rank that hangs: in a reward, a read, a forward, a collective, a save", HANGS),
    Row("drift", ("slow",), "a rank that samples slowly; none that does", "named; nobody is"),
    Row(
        "drift",
        ("",),
        "a rank that is not what the others are",
        "named by what differs, before a checkpoint is written",
    ),
    Row("poison", ("every life",), "a weight that is NaN in every life", "77 after guard.restarts of them"),
    Row("poison", ("weight",), "a weight that is NaN", "goes back by itself, ends; never published"),
    Row("poison", ("",), "a reward, an advantage or a gradient that is NaN", "dropped, goes on; never published"),
    Row("resume", ("zero3, update",), "ZeRO-3: a resume after each of 20 updates", SAME),
    Row("resume", ("fsdp, update",), "FSDP: a resume after each of 20 updates", SAME),
    Row("resume", ("ranks",), "2 -> 1 -> 4 -> 2 ranks", "the same weights and data; losses to 1e-4"),
)


def newest_of_each_part(lines: list[Outcome]) -> list[Outcome]:
    """Lines on the code that their part was last made on."""
    code = {line["part"]: line["code"] for line in lines}
    return [line for line in lines if line["code"] == code[line["part"]]]


def faults_table(lines: list[Outcome]) -> Iterator[str]:
    """A line for each row of which there are trials."""
    yield "| fault | promised | faults | broken | DeepSpeed alone | commit |"
    yield "|---|---|--:|--:|---|---|"
    said = {line["trial"]: line["said"] for line in lines if line["part"] == "bare"}
    taken: set[tuple[str, str]] = set()
    for row in ROWS:
        mine = [line for line in lines if line["part"] == row.part and any(word in line["trial"] for word in row.words)]
        mine = [line for line in mine if (row.part, line["trial"]) not in taken]
        taken |= {(row.part, line["trial"]) for line in mine}
        if mine:
            number = sum(next((line[name] for name in NUMBERS if line.get(name)), 1) for line in mine)
            beside = "; ".join(dict.fromkeys(f"{name}: {said[name]}" for name in row.bare if name in said))
            broken = sum(len(line["wrong"]) for line in mine)
            yield f"| {row.fault} | {row.promise} | {number} | {broken} | {beside} | {mine[-1]['commit'][:8]} |"


def cost_table(lines: list[Outcome]) -> Iterator[str]:
    """What was measured of the cost; nothing where it was not."""
    cost = {line["trial"]: line for line in lines if line["part"] == "cost"}
    if "verification" in cost:
        c = cost["verification"]
        memory, disk = c["verify_s"] / c["load_s"], c["verify and load from disk_s"] / c["load from disk_s"] - 1
        yield (
            f"- Verifying {c['mib']} MiB takes {c['verify_s']:.2f} s, {memory:.0%} of loading them from memory. "
            f"Loading from disk takes {c['load from disk_s']:.2f} s, {disk:.0%} more where it is verified first."
        )
    if "saving" in cost:
        c = cost["saving"]
        yield (
            f"- An update of the tiny run takes {c['without_s']:.2f} s, and {c['with_s']:.2f} s where each is saved "
            f"({c['with_s'] / c['without_s'] - 1:+.0%})."
        )
    if "comparing" in cost:
        c = cost["comparing"]
        share = c["compare_s"] / c["update_s"] / GuardConfig().compare_every
        yield (
            f"- Holding its two ranks against each other takes {c['compare_s'] * 1e3:.0f} ms: {share:.1%} of its time, "
            f"as it is done after every {GuardConfig().compare_every} updates by default."
        )
    for name, whose in (("a failure every 30 s", "A run"), ("a failure every 30 s, bare", "The bare loop")):
        if name in cost:
            c = cost[name]
            yield (
                f"- {whose} that takes {c['clean_s']:.0f} s takes {c['struck_s']:.0f} s where all of it is killed "
                f"every 30 s: {c['clean_s'] / c['struck_s']:.0%} of its pace."
            )


def rendered(lines: list[Outcome]) -> str:
    """What stands between the two marks."""
    lines = newest_of_each_part(lines)
    return "\n".join([BEGIN, "", *faults_table(lines), "", *cost_table(lines), "", END])


def write(lines: list[Outcome], page: Path = PAGE) -> None:
    """Put the tables into the page."""
    text = page.read_text(encoding="utf-8")
    before, after = text[: text.index(BEGIN)], text[text.index(END) + len(END) :]
    page.write_text(before + rendered(lines) + after, encoding="utf-8")
