"""A folder as Hugging Face has them, from a checkpoint: staged beside its place, synced, renamed once.

At most one shard is in memory, and one parameter besides.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from destruct.data.tokenizing import Tokenizer
from destruct.durable import publish, sync
from destruct.errors import DestructError
from destruct.exits import Exit
from destruct.exporting.card import model_card
from destruct.exporting.network import (
    PREFIX,
    buffers_of,
    config_of,
    empty_model,
    persistent_buffers,
    speaking_config,
)
from destruct.exporting.source import RESOLVED, TRAINING, Source
from destruct.exporting.weights import Read, reader

PATTERN, INDEX = "model{suffix}.safetensors", "model.safetensors.index.json"
SPARE = 2**24
"""Bytes on the disk for all that is no weight."""

Tell = Callable[[int, int], None]  # parameters written, and how many there are


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    parameters: int  # elements; a tied weight counts once
    files: int  # of weights
    size: int  # bytes of them
    dtype: str


def export(source: Source, folder: Path, dtype: str | None, max_shard: str, tell: Tell) -> Exported:
    """Write config, tokenizer, weights and model card.

    Args:
        folder: does not exist, or is empty.
        dtype: of the weights; None for that of the run.
        max_shard: size of a file of weights, such as `5GB`.

    Raises:
        DestructError: the checkpoint does not fit its run, the pretrained model cannot be read, or there is no room.
    """
    tokenizer = Tokenizer.pretrained("the run's tokenizer", str(source.run / "tokenizer"))
    config = config_of(source.config, tokenizer)
    kind = dtype or source.dtype
    model = empty_model(config, getattr(torch, kind))
    shapes = {PREFIX + name: p.shape for name, p in model.named_parameters()}
    weights = _Weights(model, reader(source, shapes), max_shard, source)
    with _staged(folder, weights.size) as stage:
        shutil.copytree(source.run / "tokenizer", stage, dirs_exist_ok=True)
        weights.write(stage, tell)
        config.dtype, config.architectures = kind, [type(model).__name__]
        config.save_pretrained(stage)
        speaking_config(source.config, config, tokenizer).save_pretrained(stage)
        _copy_settings(source.run, stage / TRAINING)
        written = Exported(weights.parameters, weights.files, weights.size, kind)
        card = model_card(source, config.model_type, written.parameters, kind)
        (stage / "README.md").write_text(card, encoding="utf-8")
    return written


class _Weights:
    """The weights of a model, in shards that are known before the first of them is written.

    Args:
        model: without memory; its tensors have the dtype to save.
        read: gives the weights, by the names of the policy's network.

    Raises:
        DestructError: max_shard is no size.
    """

    def __init__(self, model: PreTrainedModel, read: Read, max_shard: str, source: Source):
        self._model, self._read, self._policy = model, read, source.config.model.policy
        self._empty: dict[str, Tensor] = dict(model.named_parameters())
        self._buffers = persistent_buffers(model)
        every = {**self._empty, **self._buffers}
        try:
            split = split_torch_state_dict_into_shards(every, filename_pattern=PATTERN, max_shard_size=max_shard)
        except ValueError as error:
            raise DestructError(f"--max-shard {max_shard}: {error}", "write e.g. 5GB or 500MB") from None
        self._shards = split.filename_to_tensors
        self.files = len(self._shards)
        self.parameters = sum(p.numel() for p in self._empty.values())
        self.size = sum(tensor.numel() * tensor.element_size() for tensor in every.values())
        self._check_conversion(every)

    def write(self, stage: Path, tell: Tell) -> None:
        """Write every shard, and where there are several what is in each of them."""
        places: dict[str, str] = {}
        buffers = buffers_of(self._model, self._policy)
        done = 0
        for file, names in self._shards.items():
            tensors = {}
            for name in names:
                tensors[name] = buffers[name] if name in buffers else self._parameter(name)
                done += 1
                tell(done, len(self._empty) + len(self._buffers))
            tensors = revert_weight_conversion(self._model, tensors)
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, stage / file, {"format": "pt"})
            places |= dict.fromkeys(tensors, file)
        if self.files > 1:
            about = {"total_parameters": self.parameters, "total_size": self.size}
            index = {"metadata": about, "weight_map": dict(sorted(places.items()))}
            (stage / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _parameter(self, name: str) -> Tensor:
        # A copy in any case: what is mapped from the checkpoint shares its memory with its neighbours.
        return self._read(PREFIX + name).to(self._empty[name].dtype, copy=True)

    def _reverted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return revert_weight_conversion(self._model, dict(tensors))

    def _check_conversion(self, every: dict[str, Tensor]) -> None:
        """Refuse where the weights of two shards are one in the files: some families are saved in other pieces."""
        whole = {name: tensor.shape for name, tensor in self._reverted(every).items()}
        parts: dict[str, torch.Size] = {}
        for names in self._shards.values():
            reverted = self._reverted({name: every[name] for name in names})
            parts |= {name: tensor.shape for name, tensor in reverted.items()}
        if parts != whole:
            raise DestructError(
                f"a {self._model.config.model_type} joins weights as it is saved, and they came to lie in two files",
                "write --max-shard with a size that all of the model fits into",
            )


def _copy_settings(run: Path, to: Path) -> None:
    """What a person needs to make the run again; neither logs nor samples."""
    to.mkdir()
    for name in (RESOLVED, "deepspeed.json", "environment.json", "summary.json"):
        if (run / name).is_file():
            shutil.copyfile(run / name, to / name)


@contextmanager
def _staged(folder: Path, size: int) -> Iterator[Path]:
    """A folder to write to, which gets its name where the block ends well, and is gone where it does not.

    Args:
        size: bytes of the weights.

    Raises:
        DestructError: there is no room, or the disk refuses.
    """
    folder = folder.absolute()
    stage = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
        if free < size + SPARE:
            raise DestructError(
                f"{folder} would take {(size + SPARE) / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB are free there",
                "make room, or name another place with --to",
                Exit.ENVIRONMENT,
            )
        stage.mkdir()
        yield stage
        mode = (stage / "README.md").stat().st_mode  # safetensors writes for the owner alone
        for path in stage.rglob("*"):
            if path.is_file():
                path.chmod(mode)
            sync(path)
        publish(stage, folder)
    except OSError as error:
        raise DestructError(
            f"{folder} cannot be written: {error.strerror or error}", "name another place with --to", Exit.ENVIRONMENT
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)
