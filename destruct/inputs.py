"""What a run reads: its texts, its tokenizer, and the windows made of them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from destruct.checkpoint import contents
from destruct.checkpoint.identity import check_data
from destruct.config.settings import Settings
from destruct.data.formatters import Chat
from destruct.data.sources import Documents, load_sources
from destruct.data.tokenizing import CHAT_DATE, Tokenizer, train_tokenizer
from destruct.data.windows import SourceData, pack_sources
from destruct.engine.topology import Topology
from destruct.errors import DestructError
from destruct.evaluation import ValidationSet
from destruct.exits import Exit
from destruct.seeding import derive, permuted


@dataclass(frozen=True, slots=True)
class Inputs:
    """Texts as the run uses them, equal on every rank; lists are in the order of the sources."""

    tokenizer: Tokenizer
    train: list[Tensor]  # per source (n_k, T) int32
    held_out: list[Tensor]  # per source (m_k, T) int64, in a fixed random order
    validation: list[ValidationSet]
    digest: str  # SHA-256 of all windows
    report: str  # a line for the screen


def read_inputs(settings: Settings, topology: Topology, checkpoint: Path | None) -> Inputs:
    """Read, tokenize and pack, each rank for itself (a file may be missing on one machine alone).

    Args:
        checkpoint: that the run continues, whose tokenizer and texts it must have.

    Raises:
        DestructError: a source, the tokenizer or the texts are not what they should be.
    """
    config = settings.config
    ready = topology.together(lambda: _pretrained_tokenizer(settings))
    documents = topology.together(lambda: load_sources(config.data, config.run.seed, _chat(ready)))
    tokenizer = ready or Tokenizer.trained(
        topology.first_rank_makes(lambda: _tokenizer_text(settings, documents, checkpoint))
    )
    sources = topology.together(lambda: pack_sources(documents, config.data, config.window_tokens, tokenizer))
    digest = _equal_data(sources, topology)
    if checkpoint is not None:
        check_data(checkpoint, digest)
    held_out = topology.together(lambda: [_shuffled_held_out(source, config.run.seed) for source in sources])
    return Inputs(
        tokenizer=tokenizer,
        train=[torch.from_numpy(source.train.tokens) for source in sources],
        held_out=held_out,
        validation=_validation_sets(sources, held_out, config.run.validation_windows, tokenizer),
        digest=digest,
        report=_windows_line(sources, config.window_tokens),
    )


def _pretrained_tokenizer(settings: Settings) -> Tokenizer | None:
    """The tokenizer that the config names, else the policy's own; None where one is trained."""
    policy, path = settings.config.model.policy, settings.config.data.tokenizer.path
    if path is not None:
        return Tokenizer.pretrained("data.tokenizer.path", path)
    return None if policy.path is None else Tokenizer.pretrained("model.policy.path", policy.path, policy.revision)


def _chat(tokenizer: Tokenizer | None) -> Chat | None:
    """How conversations are written; None where the tokenizer has no template, as one that is trained here."""
    if tokenizer is None or not tokenizer.has_chat_template:
        return None
    fast = tokenizer.fast
    return Chat(f"{fast.get_chat_template()}{fast.special_tokens_map}{CHAT_DATE}", tokenizer.render_chat)


def _tokenizer_text(settings: Settings, documents: list[Documents], checkpoint: Path | None) -> str:
    if checkpoint is not None:
        return (checkpoint / contents.TOKENIZER).read_text(encoding="utf-8")
    texts = (text for source in documents for text in source.train)
    return train_tokenizer(texts, settings.config.data.tokenizer.vocab_size)


def _equal_data(sources: list[SourceData], topology: Topology) -> str:
    """SHA-256 of all windows.  Every rank draws from the windows that it read itself, so all must have read the same.

    Raises:
        DestructError: they have not.
    """
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.train.tokens.tobytes() + source.validation.tokens.tobytes())
    others = topology.unlike_the_first(digest.digest())
    if others:
        raise DestructError(
            f"rank {others[0]} read other texts than rank 0",
            "give every machine the same files and the same Python version",
            Exit.ENVIRONMENT,
        )
    return digest.hexdigest()


def _shuffled_held_out(source: SourceData, seed: int) -> Tensor:
    """A source's held-out windows (n, T) int64 in a fixed random order, so that the first n of them are a sample.

    Neighbours come from one document: a panel of them had three times the error that its variance claims.

    Raises:
        DestructError: there is one window, so its difficulty has no error bar and no progress would ever count.
    """
    windows = source.validation.tokens
    if len(windows) < 2:
        raise DestructError(
            f"source {source.name!r} has {len(windows)} held-out window; difficulty needs at least 2",
            "give it more text, raise data.validation_fraction, or shorten the window",
        )
    order = permuted(np.arange(len(windows)), len(windows), derive(seed, "held out order", source.name))
    return torch.from_numpy(windows[order]).long()


def _validation_sets(
    sources: list[SourceData], held_out: list[Tensor], size: int, tokenizer: Tokenizer
) -> list[ValidationSet]:
    """Up to `size` held-out windows of each source; a window's first token is context only: its bytes do not count."""
    sets = []
    for source, windows in zip(sources, held_out, strict=True):
        scored = windows[:size, 1:].numpy()
        count = int(tokenizer.token_bytes[scored].sum())
        sets.append(ValidationSet(source.name, windows[:size], count, source.learnable))
    return sets


def _windows_line(sources: list[SourceData], window_tokens: int) -> str:
    train = sum(len(source.train.tokens) for source in sources)
    held = sum(len(source.validation.tokens) for source in sources)
    over = sum(source.train.dropped for source in sources)
    return (
        f"{len(sources)} sources: {train:,} windows of {window_tokens} tokens to train on, {held:,} held out; "
        f"{over:,} tokens left over"
    )
