"""Which texts are trained on, and how they are tokenized and split."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from destruct.config.base import Section


def _not_the_mean(name: str) -> str:
    if name == "mean":
        raise ValueError("`mean` is the name of the average over the sources; rename the source")
    return name


# A source's name becomes part of metric names and of dotted overrides, so it holds no dot and no slash; `mean` stands
# beside the sources in every table.
SourceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+$"), AfterValidator(_not_the_mean)]


class SourceConfig(Section):
    """One data set of the mixture: an embedded text or local files."""

    embedded: Literal["prose", "code", "dialogue", "arithmetic", "markov", "noise"] | None = None
    """A text that needs no download (destruct/data/embedded.py); give this or `path`."""
    path: str | None = Field(None, min_length=1)
    """A .parquet, .jsonl or .txt file (.txt: one document a line), or a folder with train.* and, if it has its own
    held-out split, validation.*; give this or `embedded`."""
    text_field: str = Field("text", min_length=1)
    """Column of `path` that holds each document's text."""
    learnable: bool = True
    """False leaves the source out of the mean validation loss (noise, for one, can never be learnt)."""
    prior: float | None = Field(None, gt=0)
    """Share of the source in the initial mixture relative to the other sources; a source without one counts 1."""
    max_documents: int | None = Field(None, ge=2)
    """Read at most this many documents of each file, in file order; by default all of them."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.embedded is None) == (self.path is None):
            given = "neither is" if self.embedded is None else "both are"
            raise ValueError(
                f"a source takes exactly one of `embedded` and `path`, and {given} given; "
                "give one of them, or correct the source's name"
            )
        return self


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

    sources: dict[SourceName, SourceConfig] = Field(min_length=1)
    """Source name -> where its text comes from; the order here is the order of every weight vector."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """The one tokenizer that all sources share."""
    validation_fraction: float = Field(0.1, gt=0, lt=1)
    """Share of the documents held out from training, for sources without a validation file of their own."""
    embedded_bytes: int = Field(400_000, ge=10_000)
    """Size in bytes of the text of each embedded source."""

    @property
    def prior(self) -> dict[str, float]:
        """w0: share of each source in the initial mixture; they sum to 1."""
        shares = {name: source.prior or 1.0 for name, source in self.sources.items()}
        return {name: share / sum(shares.values()) for name, share in shares.items()}
