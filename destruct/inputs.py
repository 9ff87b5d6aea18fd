"""What a run reads: its tokenizer, its texts as tokens on the disk, and the windows cut from them."""

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from destruct.batch import PromptBatch
from destruct.checkpoint import contents
from destruct.checkpoint.identity import check_data, data_digests
from destruct.config.settings import Config, Settings
from destruct.data.formatters import Chat
from destruct.data.loader import LanguageWindows, prompt_batch
from destruct.data.sources import AnySource, open_sources
from destruct.data.store import TokenStore
from destruct.data.stream import StreamSource
from destruct.data.stream_pieces import StreamPieces
from destruct.data.stream_shards import CachedStream, StreamShards
from destruct.data.token_cache import CachedSource, TokenCache
from destruct.data.tokenizing import CHAT_DATE, Tokenizer, train_tokenizer
from destruct.data.windows import PackedWindows, Pieces
from destruct.engine.topology import Topology
from destruct.errors import DestructError
from destruct.evaluation import ValidationSet
from destruct.exits import Exit
from destruct.heartbeat import HEART
from destruct.seeding import derive, permuted
from destruct.tracking.console import Screen

TRAINED_ON = 1 << 26
"""Characters of each source that a tokenizer is trained on at most."""
HEAD_START_S = 1.0
"""How long the other ranks leave it to the first one, whose screen shows it, to begin building a token cache."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """Texts as the run uses them, equal on every rank; lists are in the order of the sources."""

    tokenizer: Tokenizer
    train: list[Pieces | StreamPieces]  # what rollouts begin from
    language: list[LanguageWindows]  # the same documents for cross-entropy; of a stream those of its first shard
    held_out: list[LanguageWindows]
    held_out_prompts: list[PromptBatch]  # a sample of the pieces of each source's held-out documents
    validation: list[ValidationSet]
    digests: dict[str, str]  # source -> what tells its tokens from others


def read_inputs(settings: Settings, topology: Topology, screen: Screen, checkpoint: Path | None) -> Inputs:
    """Read and tokenize what is not cached, and cut windows; each rank for itself, since a file may be missing on one
    machine alone.

    Args:
        checkpoint: that the run continues, whose tokenizer and texts it must have.

    Raises:
        DestructError: a source, the tokenizer or the texts are not what they should be.
    """
    config = settings.config
    screen.say("reading and tokenizing the sources")
    ready = topology.together(lambda: _pretrained_tokenizer(settings))
    folder = config.data.cache_folder
    sources = topology.together(lambda: open_sources(config.data, config.run.seed, _chat(ready), folder))
    tokenizer = ready or Tokenizer.trained(
        topology.first_rank_makes(lambda: _tokenizer_text(settings, sources, checkpoint))
    )
    before = [] if checkpoint is None else list(data_digests(checkpoint))
    cached = topology.together(lambda: _cached(config, sources, tokenizer, topology, screen, before))
    digests = _equal_data(cached, topology)
    if checkpoint is not None:
        check_data(checkpoint, digests)
    inputs = topology.together(lambda: _windows(config, cached, tokenizer, digests, topology, screen))
    for source, train, held_out in zip(cached, inputs.train, inputs.held_out, strict=True):
        screen.say(_line(source, train, held_out))
    return inputs


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What any model can be measured on of one source, in the tokens of its tokenizer."""

    name: str
    windows: LanguageWindows
    prompts: PromptBatch | None  # the first of those that the run keeps at hand; None where none were asked for
    learnable: bool
    digest: str  # what tells the source's tokens from others


def read_held_out(
    config: Config, tokenizer: Tokenizer, prompts: int, topology: Topology, screen: Screen
) -> list[HeldOut]:
    """The held-out windows and prompts that a run of this config has, of each source; all ranks call it.

    Args:
        tokenizer: of the model that is measured.
        prompts: most of each source; 0 for none.

    Raises:
        DestructError: a source is not what it should be, or its held-out text fills no window.
    """
    folder = config.data.cache_folder
    sources = topology.together(lambda: open_sources(config.data, config.run.seed, _chat(tokenizer), folder))
    cached = topology.together(lambda: _cached(config, sources, tokenizer, topology, screen, ()))
    digests = _equal_data(cached, topology)

    def of(source: CachedSource) -> HeldOut:
        name, store, seed = source.name, source.held_out, config.run.seed
        windows = _packed(name, "held out", store, config, least=1)
        pieces = _pieces(name, "held out", store, config, tokenizer) if prompts else None
        batch = None if pieces is None else _some_prompts(name, pieces, seed, prompts)
        return HeldOut(name, windows, batch, config.data.sources[name].learnable, digests[name])

    return topology.together(lambda: [of(source) for source in cached])


def _pretrained_tokenizer(settings: Settings) -> Tokenizer | None:
    """The tokenizer that the config names, else the policy's own; None where one is trained."""
    policy, path = settings.config.model.policy, settings.config.data.tokenizer.path
    if path is not None:
        return Tokenizer.pretrained("data.tokenizer.path", path)
    return None if policy.path is None else Tokenizer.pretrained("model.policy.path", policy.path, policy.revision)


def _chat(tokenizer: Tokenizer | None) -> Chat | None:
    """How it writes conversations; None where it has no template."""
    if tokenizer is None or not tokenizer.has_chat_template:
        return None
    fast = tokenizer.fast
    return Chat(f"{fast.get_chat_template()}{fast.special_tokens_map}{CHAT_DATE}", tokenizer.render_chat)


def _tokenizer_text(settings: Settings, sources: list[AnySource], checkpoint: Path | None) -> str:
    if checkpoint is not None:
        return (checkpoint / contents.TOKENIZER).read_text(encoding="utf-8")
    with HEART.during("training the tokenizer"):
        texts = itertools.chain.from_iterable(map(_training_texts, sources))
        return train_tokenizer(texts, settings.config.data.tokenizer.vocab_size)


def _training_texts(source: AnySource) -> Iterator[str]:
    characters = 0
    for document in source.documents():
        if not document.held_out:
            yield document.text
            characters += len(document.text)
        if characters >= TRAINED_ON:
            return


def _cached(
    config: Config,
    sources: list[AnySource],
    tokenizer: Tokenizer,
    topology: Topology,
    screen: Screen,
    before: Collection[str],
) -> list[CachedSource]:
    """Tokens of each source; `before` are those that a resumed run has drawn from."""
    cache = TokenCache(config.data.cache_folder, config.data.cache_wait_s)
    head_start = 0.0 if topology.is_first else HEAD_START_S
    cached: list[CachedSource] = []
    for source in sources:
        with screen.count("tokenize", source.name) as tell:
            if isinstance(source, StreamSource):
                shards = StreamShards(cache.folder, source, tokenizer, cache.patience_s)
                _say_if_lost(shards, source.name in before, screen)
                cached.append(shards.cached(tell, head_start))
            else:
                cached.append(cache.open(source, tokenizer, tell, head_start))
    return cached


def _say_if_lost(shards: StreamShards, drawn_from: bool, screen: Screen) -> None:
    if drawn_from and shards.is_new:
        screen.say(f"{shards.name}: its cache is gone; the stream is read again up to where the run was")


def _equal_data(cached: list[CachedSource], topology: Topology) -> dict[str, str]:
    """Digests of the sources.  Every rank draws from the caches that it opened itself, so all must hold the same.

    Raises:
        DestructError: they do not.
    """
    digests = {source.name: source.digest for source in cached}
    others = topology.unlike_the_first(digests)
    if others:
        raise DestructError(
            f"rank {others[0]} read other texts than rank 0",
            "give every machine the same files and the same Python version",
            Exit.ENVIRONMENT,
        )
    return digests


def _windows(
    config: Config,
    cached: list[CachedSource],
    tokenizer: Tokenizer,
    digests: dict[str, str],
    topology: Topology,
    screen: Screen,
) -> Inputs:
    language = [_packed(source.name, "training", source.train, config, least=1) for source in cached]
    # A panel of one window has no error bar, and no progress would ever count.
    held_out = [_packed(source.name, "held out", source.held_out, config, least=2) for source in cached]
    train = [_training_pieces(source, config, tokenizer, topology, screen) for source in cached]
    prompts = [_pieces(source.name, "held out", source.held_out, config, tokenizer) for source in cached]
    return Inputs(
        tokenizer=tokenizer,
        train=train,
        language=language,
        held_out=held_out,
        held_out_prompts=[
            _some_prompts(source.name, pieces, config.run.seed, PROMPTS)
            for source, pieces in zip(cached, prompts, strict=True)
        ],
        validation=_validation_sets(config, held_out, tokenizer),
        digests=digests,
    )


def _packed(name: str, split: str, store: TokenStore, config: Config, least: int) -> LanguageWindows:
    packed = PackedWindows(store, config.window_tokens)
    if len(packed) < least:
        raise DestructError(
            f"source {name!r} ({split}) has {store.facts.tokens} tokens, which fill {len(packed)} window(s) of "
            f"{config.window_tokens}; it takes {least}",
            "give it more text, raise data.validation_fraction for what is held out, or shorten the window "
            "(rollout.prompt_tokens + rollout.response_tokens)",
        )
    return LanguageWindows(packed, derive(config.run.seed, f"{split} order", name))


def _pieces(name: str, split: str, store: TokenStore, config: Config, tokenizer: Tokenizer) -> Pieces:
    rollout = config.rollout
    own_prompts = rollout.mode == "generate"
    pieces = Pieces(store, rollout.prompt_tokens, rollout.response_tokens, tokenizer.pad_id, own_prompts)
    if not len(pieces):
        raise DestructError(
            f"source {name!r} ({split}): the prompts of all {store.facts.documents} documents are longer than "
            f"rollout.prompt_tokens={rollout.prompt_tokens}",
            "raise rollout.prompt_tokens",
        )
    return pieces


def _training_pieces(
    source: CachedSource, config: Config, tokenizer: Tokenizer, topology: Topology, screen: Screen
) -> Pieces | StreamPieces:
    first = _pieces(source.name, "training", source.train, config, tokenizer)
    if not isinstance(source, CachedStream):
        return first
    head_start = 0.0 if topology.is_first else HEAD_START_S
    return StreamPieces(source.shards, first, head_start, screen.say)


def _some_prompts(name: str, pieces: Pieces, seed: int, most: int) -> PromptBatch:
    """A sample of a source's pieces; the first ones may all be of one document."""
    number = np.arange(min(most, len(pieces)))
    sample = permuted(number, len(pieces), derive(seed, "held out prompts", name))
    return prompt_batch(pieces.read(sample), 0, number, number, pieces.prompt_tokens, torch.device("cpu"))


def _validation_sets(config: Config, held_out: Sequence[LanguageWindows], tokenizer: Tokenizer) -> list[ValidationSet]:
    """The first windows of each source; the bytes are those of the tokens that are predicted."""
    sets = []
    for (name, source), windows in zip(config.data.sources.items(), held_out, strict=True):
        first = windows.select(np.arange(min(config.run.validation_windows, len(windows))))
        count = int(tokenizer.token_bytes[first.targets.numpy()].sum())
        sets.append(ValidationSet(name, first, count, source.learnable))
    return sets


def _line(source: CachedSource, train: Pieces | StreamPieces, held_out: LanguageWindows) -> str:
    """What became of a source, waste included; of a stream, what became of its first shard."""
    name = f"{source.name} (streaming, first shard)" if isinstance(source, CachedStream) else source.name
    left_out = f"; {train.left_out:,} prompts too long" if train.left_out else ""
    return (
        f"{name}: {source.tally}; {source.train.facts.tokens:,} tokens in {len(train):,} pieces, which fill "
        f"{train.mean_size:.0%} of their windows{left_out}; {len(held_out):,} held-out windows"
    )


PROMPTS = 32
"""Held-out pieces of each source that are kept at hand, for the probe and to try the rewards on."""
