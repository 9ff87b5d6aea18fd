"""Write the generated pages of docs/, and the schemas of configs/, from the code: `python docs/generate.py`.

With `--check` they are only compared.
"""

import argparse
import difflib
import itertools
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_origin

import yaml

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))  # the code beside these pages, whatever else is installed

from destruct.config.base import Section, sections_in, walk  # noqa: E402
from destruct.config.deepspeed import FrozenJSON, FrozenZero, TrainingJSON  # noqa: E402
from destruct.config.schema import schema_text  # noqa: E402
from destruct.config.settings import Config  # noqa: E402
from destruct.config.words import bounds_of, default_of, meaning_of, sentence, type_of  # noqa: E402
from destruct.data.embedded import EMBEDDED, NOISE_ENTROPY, markov_entropy_rate  # noqa: E402
from destruct.tracking.metrics import METRICS  # noqa: E402
from docs.performance_page import performance_page  # noqa: E402
from docs.scaling_page import scaling_page  # noqa: E402

NOTE = "<!-- Made by `python docs/generate.py`; change the code instead. -->"

CONFIG_INTRO = """\
A run is one YAML file (`configs/local.yaml` is a complete one) and the two DeepSpeed JSON files that it names.
Every key is below, with the value it has when it is left out. The YAML stays sparse: `resolved.yaml` in the run's
folder has every value, with the file and line, `command line` or `default` it came from.

`destruct config explain ppo.clip_range` says what stands here, `destruct config show --config FILE` what a run would
have, `destruct config diff A B` in what two files or two runs differ. An editor with `yaml-language-server` (the YAML
extension of VS Code, for one) completes and checks keys by the first line of each file in configs/, which names
`configs/schema.json`; `destruct config schema --deepspeed` is that of the JSON files.

`key.sub=value` after `--config FILE` overrides one value, e.g. `ppo.epochs=1 reward.terms.eos=0.5`; the value is read
as YAML. Unknown keys, wrong types (`"3"` or `true` for a number) and values out of bounds end the run with exit code
2 before torch is imported, and the message names the nearest key or the bound."""

JSON_INTRO = """\
Accumulation, precision, optimizer and schedule are set in DeepSpeed's own JSON, typed key by key: DeepSpeed itself lets
misspelt keys and numbers in quotes pass. `"auto"` is filled from the YAML; a number that contradicts the YAML is
refused. Whole numbers may be written as `5e8`. A key that is `null` here is left to DeepSpeed's own default."""

METRICS_INTRO = """\
The names that a run can log, in TensorBoard (`tensorboard --logdir=./logs`), in `metrics.jsonl` and, where it is asked
for, on Weights & Biases; no other name can be logged, and [tracking.md](tracking.md) says what is where. A line of
`metrics.jsonl` has a `phase` (`before`, `warmup`, `after_warmup`, `value_warmup`, `ppo`) and a `step`, which counts
updates in `ppo` and steps of the warm-up before. `<source>` stands for a name in `data.sources`, `<term>` for one in
`reward.terms`. Log-probabilities, KL and losses are in nats; bits per byte do not depend on the tokenizer."""

SOURCES_INTRO = """\
A source is a data set of the Hugging Face hub, local files, or an embedded text. To add one, write it into the
YAML:

```yaml
data:
  sources:
    stories: {hub: roneneldan/TinyStories, validation_split: validation}
    manuals: {path: ~/texts/manuals}
    support: {path: support.jsonl, format: chat, on_bad_row: skip, deduplicate: true}
    answers: {path: answers.parquet, format: fields, template: "{prompt}", continuation: "{completion}"}
```

`path` names a `.parquet`, `.jsonl` or `.txt` file (the last two perhaps with `.gz`), or a folder of `train.*`, or
of its shards `train-*.*`, and perhaps `validation.*`. Without a validation file or split a share of the documents
is held out, by a hash of their text or, if they have one, their prompt; of one source no text and no prompt is ever
on both sides. `format` says how a row becomes a text, and where its prompt ends; [config.md](config.md) has every
key. A fault of the data ends the run before a model exists, with the file and the line.

A source is tokenized once, into `data.cache`, and read from there by every run and rank: 2 bytes a token (4 for
vocabularies above 65,536). What is not the same any more (a file, a revision, a filter, the tokenizer) has a cache
of its own, and a run that is resumed on other texts than it was trained on is refused. `on_exhausted` says what
follows the last of `max_epochs`. Sources may come and go between two lives of a run: a new one starts at its prior
share, the share of one that is gone falls to the others, and the run says so.

What does not fit the disk is streamed (`streaming: true`): read from the hub while the run goes on, tokenized shard
by shard (`shard_mib` of text each), the next one while the last one is drawn from. Each shard is shuffled by
itself. The first one stays, for warm-up, validation and panels, and with it the four that were used last; where the
others began is remembered, so that a resume is exact whatever is gone. Of the rows that later shards would hold out
none is trained on. A run that resumes, or goes through the stream again, downloads the file that a shard begins in
from its beginning.

**Prompts** are cut at the beginnings of documents: a document of at most P + R tokens is one piece, cut in the
proportion of P to R; a longer one makes whole windows and a rest (the last two are equal where that is less than
the half of one), each begun by the tokenizer's bos if it has one. Chats, `fields` with a `continuation` and
`module:function` name their prompts themselves. A special token that stands in a message of a chat is one: its
contents are trusted. Shares of the mixture are shares of these tokens. **Windows** of warm-up, validation and
panels are cut from the stream of documents, which do not see each other there. While it starts, a run says of each
source how many rows were left out and why, and how full the windows are."""

EMBEDDED_NOTES = {
    "prose": ("paragraphs of the language reference and of docstrings of this Python", "PSF-2.0"),
    "code": ("functions, methods and classes of this Python's standard library", "PSF-2.0"),
    "dialogue": ("conversations from a grammar", "none needed"),
    "arithmetic": ("sums, differences and products with their working", "none needed"),
    "markov": (f"an order-2 chain of {markov_entropy_rate():.4f} nats per byte", "none needed"),
    "noise": (f"64 symbols, each as likely: {NOISE_ENTROPY:.4f} nats per byte", "none needed"),
}


@dataclass(frozen=True)
class Known:
    """What the card of a data set of the hub says of it."""

    what: str
    licence: str
    size: str


KNOWN = {
    "Salesforce/wikitext": Known(
        "good and featured articles of Wikipedia", "CC BY-SA 3.0, GFDL", "1.8 M lines, 0.55 GB"
    ),
    "lucadiliello/bookcorpusopen": Known("self-published books", "none stated", "17,868 books, 6.6 GB"),
    "abisee/cnn_dailymail": Known("news articles with highlights", "Apache-2.0", "287 k articles, 1.3 GB"),
    "li2017dailydialog/daily_dialog": Known("everyday conversations", "CC BY-NC-SA 4.0", "11 k dialogues, 7 MB"),
    "Helsinki-NLP/europarl": Known("proceedings of the European Parliament", "none stated", "2.0 M pairs, 0.6 GB"),
}
"""The data sets that the shipped configurations name; sizes are of the training split, as text."""


def table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """A GitHub table whose columns also line up in a terminal; the last column runs free."""
    cells = [list(heads), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in list(zip(*cells, strict=True))[:-1]]
    lines = []
    for *row, last in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append(f"| {' | '.join([*padded, last])} |")
    rule = "|".join(["", *("-" * (width + 2) for width in widths), "---", ""])
    return [lines[0], rule, *lines[1:]]


def keys(section: type[Section], prefix: str, names: Iterable[str] | None = None) -> list[str]:
    """The table of a section's keys."""
    schemas = section.model_json_schema()["properties"]
    rows = []
    for name in names or section.model_fields:
        field, schema = section.model_fields[name], schemas[name]
        bounds = ", ".join(bounds_of(schema))
        rows.append([f"`{prefix}{name}`", type_of(schema), default_of(field), bounds, meaning_of(field)])
    return table(["Key", "Type", "Default", "Bounds", "Meaning"], rows)


def sections_of(root: type[Section]) -> dict[type[Section], list[str]]:
    """Every section below a root, with the paths it stands at."""
    places: dict[type[Section], list[str]] = {}
    for path, field in walk(root):
        chosen = ".<name>" if get_origin(field.annotation) is dict else ""
        for section in sections_in(field.annotation):
            places.setdefault(section, []).append(path + chosen)
    return places


def blocks(root: type[Section]) -> list[str]:
    """A heading, the docstring and the table of each section below a root."""
    lines = []
    for section, (first, *others) in sections_of(root).items():
        lines += ["", f"### `{first}`", "", sentence(section.__doc__)]
        if others:
            lines.append(f"The same keys under {', '.join(f'`{path}`' for path in others)}.")
        lines += ["", *keys(section, f"{first}.")]
    return lines


def config_page() -> str:
    """docs/config.md."""
    roots = [
        [f"`{name}`", sentence(next(sections_in(field.annotation)).__doc__)]
        for name, field in Config.model_fields.items()
    ]
    lines = [NOTE, "", "# Configuration", "", CONFIG_INTRO, "", "## The YAML file", ""]
    lines += [*table(["Section", "Meaning"], roots), *blocks(Config)]
    lines += ["", "## The DeepSpeed JSON of the training engines", "", "`engine.deepspeed`.", JSON_INTRO, ""]
    lines += [*keys(TrainingJSON, ""), *blocks(TrainingJSON)]
    lines += ["", "## The DeepSpeed JSON of the frozen engine", "", "`engine.frozen`. " + sentence(FrozenJSON.__doc__)]
    lines += ["`zero_optimization` takes the keys of the training engines' block; two of them are tied here.", ""]
    lines += [*keys(FrozenJSON, ""), "", *keys(FrozenZero, "zero_optimization.", FrozenZero.__annotations__)]
    return "\n".join(lines) + "\n"


def metrics_page() -> str:
    """docs/metrics.md."""
    lines = [NOTE, "", "# Metrics", "", METRICS_INTRO]
    for family, names in itertools.groupby(METRICS, key=lambda name: name.partition("/")[0]):
        rows = [[f"`{name}`", METRICS[name].unit, METRICS[name].meaning] for name in names]
        lines += ["", f"## {family}", "", *table(["Name", "Unit", "Meaning"], rows)]
    return "\n".join(lines) + "\n"


def shipped_sources() -> dict[str, dict[str, Any]]:
    """The hub's data sets in the shipped configurations: name -> section, without what only bounds its size."""
    sections: dict[str, dict[str, Any]] = {}
    for path in sorted((DOCS.parent / "configs").glob("*.yaml")):
        sources = (yaml.safe_load(path.read_text(encoding="utf-8")).get("data") or {}).get("sources") or {}
        for name, section in sources.items():
            if "hub" in section:
                sections[name] = {key: value for key, value in section.items() if key != "max_documents"}
    return sections


def sources_page() -> str:
    """docs/sources.md."""
    rows = []
    for name, section in shipped_sources().items():
        known, keys_ = KNOWN[section["hub"]], ", ".join(f"{key}: {value}" for key, value in section.items())
        rows.append([f"`{name}`", known.what, known.licence, known.size, f"`{{{keys_}}}`"])
    texts = [[f"`{{embedded: {name}}}`", *EMBEDDED_NOTES[name]] for name in EMBEDDED]
    lines = [NOTE, "", "# Sources", "", SOURCES_INTRO, "", "## On the hub", ""]
    lines += ["Those of the shipped configurations. Read the card of a data set before you train on it.", ""]
    lines += [*table(["Name", "What", "Licence", "Training text", "Section"], rows), "", "## Embedded", ""]
    lines += ["`data.embedded_bytes` of each, made when the run starts.", ""]
    lines += table(["Section", "What", "Licence"], texts)
    return "\n".join(lines) + "\n"


PAGES = {
    "config.md": config_page,
    "metrics.md": metrics_page,
    "performance.md": lambda: performance_page(NOTE, table),
    "scaling.md": lambda: scaling_page(NOTE, table),
    "sources.md": sources_page,
}

SCHEMAS = {
    "schema.json": lambda: schema_text("run"),
    "prompts_schema.json": lambda: schema_text("prompts"),
}
"""Files that the first lines of configs/*.yaml name to editors."""


def places(folder: Path | None) -> dict[Path, str]:
    """Each generated file and its text.

    Args:
        folder: where all of them are; None for docs/ and configs/.
    """
    pages = {(folder or DOCS) / name: page() for name, page in PAGES.items()}
    return pages | {(folder or DOCS.parent / "configs") / name: schema() for name, schema in SCHEMAS.items()}


def differences(folder: Path | None) -> list[str]:
    """One line for each generated file that is not what the code says."""
    found = []
    for path, text in places(folder).items():
        old = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        changes = list(difflib.unified_diff(old, text.splitlines(), n=0, lineterm=""))[2:]
        lines = [line for line in changes if not line.startswith("@@")]
        if lines:
            gone = sum(line.startswith("-") for line in lines)
            found.append(
                f"{path.parent.name}/{path.name}: {gone} lines out of date, {len(lines) - gone} missing, the first: "
                f"{lines[0][:80]!r}; run python docs/generate.py"
            )
    return found


def main(arguments: list[str] | None = None) -> int:
    """Write or compare the pages; returns the exit code."""
    parser = argparse.ArgumentParser(prog="docs/generate.py", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when a file is out of date")
    parser.add_argument("--folder", type=Path, help="where all of them are (default: docs/ and configs/)")
    options = parser.parse_args(arguments)
    if options.check:
        found = differences(options.folder)
        for line in found:
            print(line, file=sys.stderr)
        return int(bool(found))
    for path, text in places(options.folder).items():
        path.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
