"""Which texts are trained on, and how they are tokenized and split."""

import os
import re
import string
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, field_validator, model_validator

from destruct.config.base import Section
from destruct.config.rollout import USER_TERM

COLUMNS = {"text": "text", "dialog": "dialog", "translation": "translation", "chat": "messages"}
"""Format that reads one column -> the column's name where none is given."""
FORMATS = (*COLUMNS, "fields")
ORIGINS = ("embedded", "path", "hub")
"""Keys of which a source has exactly one."""


def _not_the_mean(name: str) -> str:
    if name == "mean":
        raise ValueError("`mean` is the name of the average over the sources; rename the source")
    return name


# A source's name becomes part of metric names and of dotted overrides, so it holds no dot and no slash; `mean` stands
# beside the sources in every table.
SourceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$"), AfterValidator(_not_the_mean)]


def _has_an_owner(hub: str) -> str:
    # The hub's libraries no longer load the old ids of one word.
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", hub):
        raise ValueError(f"{hub!r} is not owner/name; take the id from the data set's page, as in Salesforce/wikitext")
    return hub


def _has_origin(key: str) -> dict[str, Any]:
    """A JSON schema; null, as resolved.yaml has it, is none."""
    return {"title": f"a source with {key}", "required": [key], "properties": {key: {"type": "string"}}}


def template_columns(template: str) -> list[str]:
    """Columns that a template of `format: fields` names, in their order, each once.

    Raises:
        ValueError: "problem; remedy", where it is not a text with plain {column} in it.
    """
    remedy = "write columns as in 'Question: {question}', and {{ }} for braces themselves"
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"it is no template: {error}; {remedy}") from None
    columns: list[str] = []
    for _, column, spec, conversion in parts:
        if column is None:  # text after the last column
            continue
        if spec or conversion or not column or column.isdecimal() or set(".[]") & set(column):
            written = "".join(["{", column, f"!{conversion}" if conversion else "", f":{spec}" if spec else "", "}"])
            raise ValueError(f"{written} is not the name of a column alone; {remedy}")
        columns.append(column)
    if not columns:
        raise ValueError(f"it names no column; {remedy}")
    return list(dict.fromkeys(columns))


class SourceConfig(Section):
    """One data set of the mixture: an embedded text, local files, or a data set of the Hugging Face hub."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [_has_origin(key) for key in ORIGINS]})

    embedded: Literal["prose", "code", "dialogue", "arithmetic", "markov", "noise"] | None = None
    """A text that needs no download (destruct/data/embedded.py); give this, `path` or `hub`."""
    path: str | None = Field(None, min_length=1)
    """A .parquet, .jsonl or .txt file (.txt: one document a line; the last two may end in .gz too), or a folder with
    train.* and, if it has its own held-out split, validation.*; each may be shards, such as
    train-00000-of-00003.parquet, which are read in the order of their names.  Give this, `embedded` or `hub`."""
    hub: Annotated[str, AfterValidator(_has_an_owner)] | None = None
    """Id of a data set of the Hugging Face hub, owner/name, which is downloaded into the cache below HF_HOME; give
    this, `embedded` or `path`.  `data.root` replaces the download by local files."""
    config: str | None = Field(None, min_length=1)
    """Configuration of the `hub` data set, where it has several, such as en-fr or "3.0.0"."""
    revision: str | None = Field(None, min_length=1)
    """Branch, tag or commit of the `hub` data set, by default main; refs/convert/parquet is the hub's own conversion
    of a data set that is still a loading script."""
    split: str = Field("train", min_length=1)
    """Split of the `hub` data set to train on; slices such as train[:50%] work too."""
    validation_split: str | None = Field(None, min_length=1)
    """Split of the `hub` data set to hold out; by default `data.validation_fraction` of `split` is held out."""
    streaming: bool = False
    """Read the `hub` data set while the run goes on, and keep no more of it on the disk than a few shards of tokens:
    for what does not fit there.  Its windows are shuffled within a shard; held-out windows come from the first shard
    alone.  It needs `run.updates_per_epoch`; under `data.root` it is not looked at."""
    shard_mib: float = Field(64, gt=0)
    """Text of a shard of a `streaming` source in MiB, of which the disk takes about as much for each of six shards at
    most; another size is another order of the windows.  Of a `validation_split` as much is held out."""
    format: str = Field(
        "text", json_schema_extra={"oneOf": [{"enum": [*FORMATS]}, {"pattern": f"^{USER_TERM.pattern}$"}]}
    )
    """How a row becomes a text: `text`; `dialog`, a list of turns joined by line breaks; `translation`, the text in
    `language`; `chat`, messages in the tokenizer's chat template, of which the last one is the continuation if the
    assistant speaks it, and what stands before it the prompt (all of them where somebody else has the last word);
    `fields`, by `template` and `continuation`; or the user's own `module:function`, called with the row as a
    dictionary: it returns the text, a pair (prompt, continuation), or None to leave the row out."""
    column: str | None = Field(None, min_length=1)
    """Column that the format reads, by default the format's name, and `messages` for `chat`; not for `fields` and
    `module:function`, which read whole rows."""
    language: str = Field("en", min_length=1)
    """The language that `format: translation` takes."""
    template: str | None = None
    """The text of a row under `format: fields`, which needs it: columns stand in braces, as in
    "Question: {question}\\nAnswer: {answer}"; rows in which one of them is null are left out."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What becomes of a row that is broken: bytes that are not UTF-8, a line that is not a JSON object, a column of it
    that is missing or of another type, a value that the format or the user's function cannot make a text of.  `error`
    ends the run with its file and line; `skip` leaves it out and counts it.  A damaged Parquet file is an error
    always."""
    min_characters: int = Field(1, ge=1)
    """Leave out texts of fewer characters, white space around them not counted.  The filters come in this order: bad
    rows, empty and shorter texts, texts that stand in the source's own held-out file or split too (always left out of
    training), `deduplicate`, `max_documents`."""
    deduplicate: bool = False
    """Leave out texts that came before in the same file or split, by a hash of 128 bits; about 100 bytes of memory for
    each text that stays."""
    continuation: str | None = None
    """A template of what follows under `format: fields`: the text of `template` is then the prompt, as in
    {template: "{prompt}", continuation: "{completion}"}."""
    learnable: bool = True
    """False leaves the source out of the mean validation loss (noise, for one, can never be learnt)."""
    prior: float | None = Field(None, gt=0)
    """Share of the source in the initial mixture relative to the other sources; a source without one counts 1."""
    max_documents: int | None = Field(None, ge=2)
    """Take at most this many documents for training, and as many of a held-out file or split, in their order, of those
    that pass the other filters; where a share of them is held out, it is taken of these.  By default all of them."""

    on_exhausted: Literal["repeat", "drop", "stop"] = "repeat"
    """What follows the last of `max_epochs`: `drop` leaves the source's weight to the others, `stop` ends the run with
    the last whole batch; `repeat` goes through the source for ever, each time in another order."""
    max_epochs: int | None = Field(None, ge=1)
    """Times the source is gone through under `on_exhausted: drop` or `stop`, by default once."""

    @field_validator("format")
    @classmethod
    def _known_format(cls, format: str) -> str:
        if format not in FORMATS and not USER_TERM.fullmatch(format):
            raise ValueError(f"no format {format!r}; take one of {', '.join(FORMATS)} or module:function")
        return format

    @field_validator("template", "continuation")
    @classmethod
    def _readable_template(cls, template: str | None) -> str | None:
        if template is not None:
            template_columns(template)
        return template

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        given = [key for key in ORIGINS if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(
                "a source takes exactly one of `embedded`, `path` and `hub`, and it has "
                f"{' and '.join(given) or 'none'}; give one of them, or correct the source's name"
            )
        return self

    @model_validator(mode="after")
    def _every_key_is_read(self) -> Self:
        if self.format == "fields" and self.template is None:
            raise ValueError("format: fields needs a template; give one, such as 'Question: {question}'")
        readers: dict[str, str] = {}  # of the keys that this source does not read
        if self.on_exhausted == "repeat":
            readers["max_epochs"] = "on_exhausted: drop or stop"
        if self.format != "fields":
            readers |= dict.fromkeys(("template", "continuation"), "format: fields")
        if self.format != "translation":
            readers["language"] = "format: translation"
        if self.format not in COLUMNS:
            readers["column"] = f"format: {', '.join(COLUMNS)}"
        if self.hub is None:
            readers |= dict.fromkeys(("config", "revision", "split", "validation_split", "streaming"), "a hub source")
        if not self.streaming:
            readers["shard_mib"] = "a source with streaming: true"
        if self.embedded is not None:
            of_rows = ("format", "column", "language", "template", "continuation", "on_bad_row")
            readers |= dict.fromkeys(of_rows, "a source of rows (path or hub)")
        for key, reader in readers.items():
            if self.changed(key):
                raise ValueError(f"{key} is read by {reader} alone; remove {key}")
        return self

    @model_validator(mode="after")
    def _a_stream_is_read_in_constant_memory(self) -> Self:
        if self.streaming and self.deduplicate:
            raise ValueError(
                "deduplicate would keep a hash of every text of a stream; leave deduplicate or streaming out"
            )
        for key in ("split", "validation_split"):
            if self.streaming and "[" in (getattr(self, key) or ""):
                raise ValueError(
                    f"{key}={getattr(self, key)} is a slice, which streaming cannot take; name whole splits, as in "
                    "train+test, and cut with max_documents"
                )
        return self

    @property
    def most_epochs(self) -> int | None:
        """Times the source is gone through; None for ever."""
        return None if self.on_exhausted == "repeat" else self.max_epochs or 1

    @property
    def columns(self) -> list[str] | None:
        """Columns that the format reads; None where it reads whole rows."""
        if self.format in COLUMNS:
            return [self.column or COLUMNS[self.format]]
        return None if self.template is None else template_columns(self.template + (self.continuation or ""))


class TokenizerConfig(Section):
    """The one tokenizer: that of a pretrained policy, another pretrained one, or a byte-level BPE trained on the
    sources' training text."""

    path: str | None = Field(None, min_length=1)
    """Hub id or local folder of a pretrained tokenizer; by default that of `model.policy.path`, and without one a
    tokenizer is trained."""
    vocab_size: int = Field(1024, ge=258)
    """Maximum size of the vocabulary, the 256 bytes, <|eos|> and <|pad|> included; a small text may fill less."""

    @model_validator(mode="after")
    def _trained_or_pretrained(self) -> Self:
        if self.path is not None and self.changed("vocab_size"):
            raise ValueError(f"path={self.path} has a vocabulary of its own; leave vocab_size or path out")
        return self


class DataConfig(Section):
    """The sources of the mixture, their tokenizer and their held-out share."""

    sources: dict[SourceName, SourceConfig] = Field(
        min_length=1, json_schema_extra={"propertyNames": {"not": {"const": "mean"}}}
    )
    """Source name -> where its text comes from.  Their order does not matter: the run goes by their names, in the order
    of the alphabet."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """The one tokenizer that all sources share."""
    root: str | None = Field(None, min_length=1)
    """A folder that stands in for the hub, so that nothing is downloaded: a `hub` source is read from the folder of
    the source's name in it, with train.* and, if there, validation.* in the columns of that data set (its `config`,
    `revision` and splits are not looked at), and a relative `path` is looked up from here.  By default hub sources are
    downloaded and paths start at the working folder."""
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the documents held out from training, for sources without a held-out file or split of their own."""
    cache: str | None = Field(None, min_length=1)
    """A folder for the tokens of the sources, which are made once for all runs and all ranks that see it, by default
    that of the variable DESTRUCT_CACHE, else ~/.cache/destruct; it may be removed whenever nothing runs."""
    cache_wait_s: float = Field(600, gt=0)
    """How long a rank waits, in seconds, for another process that builds a source's cache and does not go on."""
    embedded_bytes: int = Field(400_000, ge=10_000)
    """Size in bytes of the text of each embedded source."""

    @field_validator("sources")
    @classmethod
    def _in_the_order_of_names(cls, sources: dict[str, SourceConfig]) -> dict[str, SourceConfig]:
        # Ties between sources and the order of sums over them decide last digits: both follow from this one.
        return dict(sorted(sources.items()))

    @property
    def cache_folder(self) -> Path:
        """`cache`, or what stands for it."""
        return Path(self.cache or os.environ.get("DESTRUCT_CACHE") or "~/.cache/destruct").expanduser()

    @property
    def streams(self) -> list[str]:
        """Names of the sources that are streamed."""
        return [name for name, source in self.sources.items() if source.streaming and self.root is None]

    @property
    def prior(self) -> dict[str, float]:
        """w0: share of each source in the initial mixture; they sum to 1."""
        shares = {name: source.prior or 1.0 for name, source in self.sources.items()}
        return {name: share / sum(shares.values()) for name, share in shares.items()}
