"""The page: what is known of runs, put into the templates beside this file."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_context
from jinja2.runtime import Context
from markupsafe import Markup, escape

from destruct.reporting import outcome
from destruct.reporting.comparing import compare
from destruct.reporting.curves import BY_THEMSELVES, by_source, groups
from destruct.reporting.recorded import Recorded
from destruct.reporting.samples import chosen
from destruct.reporting.scales import short
from destruct.reporting.timeline import timeline
from destruct.secrets import masked

MOST_BYTES = 3_000_000
"""Of a page."""

UNSEEN = re.compile(
    "([\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\xad\\u061c\\u180e\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff"
    "\\ufff9-\\ufffb\\ud800-\\udfff]+)"
)
"""Characters that show nothing, or change how others are shown; not line ends and tabs."""

CHARACTERS = (4000, 1000, 250, 60)
"""Most of a text that are shown: the first with which the page is within its bytes, or the last."""


def render(runs: Sequence[Recorded]) -> str:
    """The page of a run, or of several that are compared, as HTML."""
    name, content = ("run.html", _of_one(runs[0])) if len(runs) == 1 else ("several.html", {"all": compare(runs)})
    for most in CHARACTERS:
        page = masked(_pages().get_template(name).render(**content, most_characters=most))
        if len(page.encode()) < MOST_BYTES:
            break
    return page


@cache
def _pages() -> Environment:
    pages = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )

    @pass_context
    def shown(context: Context, text: str) -> Markup:
        return visible(text, context["most_characters"])

    pages.filters |= {"short": short, "plain": plain, "visible": shown}
    return pages


def _of_one(run: Recorded) -> dict[str, object]:
    prompts: dict[str, list[tuple[str, object]]] = {}
    for (topic, text), said in run.samples.prompts.items():
        prompts.setdefault(topic, []).append((text, chosen(said)))
    return {
        "run": run,
        "state": outcome.state(run)[0],
        "sentence": outcome.sentence(run),
        "strip": outcome.strip(run),
        "tiles": outcome.tiles(run),
        "facts": outcome.facts(run),
        "commands": outcome.commands(run),
        "settings": outcome.chosen_settings(run),
        "source_table": outcome.source_table(run),
        "groups": groups(run),
        "by_source": by_source(run),
        "prompts": prompts,
        "rollouts": {name: of.shown() for name, of in sorted(run.samples.sources.items())[:BY_THEMSELVES]},
        "most": BY_THEMSELVES,
        "counts": {name: of.count for name, of in run.samples.sources.items()},
        "timeline": timeline(run),
        "notes": _notes(run),
    }


def _notes(run: Recorded) -> list[str]:
    """What the files lack."""
    notes = []
    for name, part in (("metrics.jsonl", run.log), ("samples.jsonl", run.samples)):
        if part.damaged:
            notes.append(f"{part.damaged:,} damaged line{'s' if part.damaged > 1 else ''} of {name} left out")
        if part.torn:
            notes.append(f"the last line of {name} is not whole")
    if not run.environment:
        notes.append("environment.json is missing or damaged")
    return notes


def visible(text: str, most: int) -> Markup:
    """A text of which every character shows: those that steer a terminal or a line's direction as `\\x1b` or `\\u202e`,
    marked as no part of the text; one that is too long without its middle."""
    if len(text) <= most:
        return _marked(text)
    head, tail = text[: 2 * most // 3], text[-most // 3 :]
    lost = len(text) - len(head) - len(tail)
    between = Markup('<span class="odd"> … {:,} characters are left out … </span>').format(lost)
    return _marked(head) + between + _marked(tail)


def _marked(text: str) -> Markup:
    marked = Markup('<span class="odd">{}</span>')
    parts = UNSEEN.split(text)  # every second one is unseen
    return Markup("").join(marked.format(_escaped(part)) if k % 2 else escape(part) for k, part in enumerate(parts))


def plain(text: str) -> str:
    """The same for where there can be no marks: a name in a chart, or a title."""
    return UNSEEN.sub(lambda found: _escaped(found[0]), text)


def _escaped(characters: str) -> str:
    return ascii(characters)[1:-1]


def write(page: str, path: Path) -> None:
    """Write the page at once: who reads it while it is written anew sees the one before.

    Raises:
        OSError: it cannot be written.
    """
    staged = path.with_name(f".{path.name}.staged")
    try:
        staged.write_text(page, encoding="utf-8")
        os.replace(staged, path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None  # the name that the person knows
    finally:
        with suppress(OSError):
            staged.unlink()
