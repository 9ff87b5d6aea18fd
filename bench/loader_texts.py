"""The texts that the data layer is measured on, in Parquet files, and the one tokenizer trained on them."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow
import pyarrow.parquet
import yaml

from destruct.config.data import DataConfig
from destruct.data.embedded import EMBEDDED
from destruct.data.sources import Source, open_sources
from destruct.data.tokenizing import train_tokenizer

ROOT = Path(__file__).resolve().parents[1]
FIVE_SOURCES = ROOT / "configs" / "five_sources.yaml"
SEED, VOCABULARY = 11, 8192

EMBEDDED_TEXTS = {
    "prose": (600_000, 1),
    "code": (2_000_000, 8),
    "dialogue": (4_000_000, 1),
    "arithmetic": (2_000_000, 2),
    "markov": (4_000_000, 32),
}
"""Embedded source -> bytes of text, and how many of its documents are joined into one, for unequal lengths.  There is
no `noise` among them: its documents are single words of a thousand letters."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """Texts, twice: in the files that `config` names, and in memory."""

    config: DataConfig
    tokenizer: str
    """The text of its tokenizer.json."""
    texts: list[str]
    """All documents, in the order in which they are read."""

    def sources(self, memory: Path) -> list[Source]:
        """Open every source, digests of files kept in that folder."""
        return open_sources(self.config, SEED, memory=memory)


def make_corpus(folder: Path, scale: float, given: Path | None) -> Corpus:
    """Write the texts, unless they are given, read them back, and train the tokenizer on all of them.

    Args:
        folder: empty; for files of texts.
        scale: share of the bytes of `EMBEDDED_TEXTS` that is made.
        given: the folder of `configs/five_sources.yaml` (`data.root`) to read in their place.

    Raises:
        DestructError: the texts cannot be made or read.
    """
    config = _embedded(folder, scale) if given is None else _five_sources(given)
    texts = [document.text for source in open_sources(config, SEED) for document in source.documents()]
    return Corpus(config, train_tokenizer(texts, VOCABULARY), texts)


def _embedded(folder: Path, scale: float) -> DataConfig:
    for name, (size, joined) in EMBEDDED_TEXTS.items():
        documents = EMBEDDED[name](int(size * scale), SEED)
        texts = ["\n\n".join(documents[first : first + joined]) for first in range(0, len(documents), joined)]
        (folder / name).mkdir(parents=True)
        pyarrow.parquet.write_table(pyarrow.table({"text": texts}), folder / name / "train.parquet")
    return DataConfig.model_validate(
        {"root": str(folder), "sources": {name: {"path": name} for name in EMBEDDED_TEXTS}}
    )


def _five_sources(given: Path) -> DataConfig:
    data = yaml.safe_load(FIVE_SOURCES.read_text(encoding="utf-8"))["data"]
    return DataConfig.model_validate(data | {"root": str(given)})
