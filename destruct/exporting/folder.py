"""A folder as Hugging Face has them, from a checkpoint: staged, synced, and only then in its place.

At most one shard is in memory, and one parameter besides: as it is computed with, and in the pieces that are saved.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from destruct.data.tokenizing import Tokenizer
from destruct.errors import DestructError
from destruct.exporting import record
from destruct.exporting.card import model_card
from destruct.exporting.network import (
    PREFIX,
    buffers_of,
    config_of,
    empty_model,
    persistent_buffers,
    speaking_config,
)
from destruct.exporting.place import INDEX, staged
from destruct.exporting.source import Source
from destruct.exporting.weights import Read, reader
from destruct.progress import Tell

PATTERN = "model{suffix}.safetensors"


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
        tell: is told of the tensors that are written.

    Raises:
        DestructError: the checkpoint does not fit its run, the pretrained model cannot be read, or there is no room.
    """
    tokenizer = Tokenizer.pretrained("the run's tokenizer", str(source.run / "tokenizer"))
    config = config_of(source, tokenizer)
    kind = dtype or source.dtype
    model = empty_model(config, getattr(torch, kind))
    shapes = {PREFIX + name: p.shape for name, p in model.named_parameters()}
    weights = Weights(model, reader(source, shapes), max_shard, source)
    config.dtype, config.architectures = kind, [type(model).__name__]
    speaks = speaking_config(source, config, tokenizer)
    # All that is small is read before the first byte is written.
    files = record.tokenizer(source.run) | record.settings(source)
    files["README.md"] = model_card(source, config.model_type, weights.parameters, kind).encode()
    with staged(folder, weights.size) as stage:
        for name, content in files.items():
            (stage / name).parent.mkdir(exist_ok=True)
            (stage / name).write_bytes(content)
        config.save_pretrained(stage)
        speaks.save_pretrained(stage)
        weights.write(stage, tell)
    return Exported(weights.parameters, weights.files, weights.size, kind)


class Weights:
    """The weights of a model, in shards that are known before the first of them is written.

    Args:
        model: without memory; its tensors have the dtype to save.
        read: gives the weights, by the names of the policy's network.

    Raises:
        DestructError: weights that are saved as one came to lie in two shards.
    """

    def __init__(self, model: PreTrainedModel, read: Read, max_shard: str, source: Source):
        self._model, self._read = model, read
        self._empty: dict[str, Tensor] = dict(model.named_parameters())
        self._buffers = buffers_of(model, source.config.model.policy)
        every = {**self._empty, **persistent_buffers(model)}
        split = split_torch_state_dict_into_shards(every, filename_pattern=PATTERN, max_shard_size=max_shard)
        self._shards = split.filename_to_tensors
        self.files = len(self._shards)
        self.parameters = sum(p.numel() for p in self._empty.values())
        self.size = sum(tensor.numel() * tensor.element_size() for tensor in every.values())
        self._alone = self._convert_alone(every)

    def write(self, stage: Path, tell: Tell) -> None:
        """Write every shard, and where there are several what is in each of them."""
        places: dict[str, str] = {}
        tell(0, len(self._empty) + len(self._buffers))
        for file, names in self._shards.items():
            tensors: dict[str, Tensor] = {}
            for name in names:
                tensor = self._buffers[name] if name in self._buffers else self._parameter(name)
                tensors |= self._reverted({name: tensor}) if self._alone else {name: tensor}
                tell()
            if not self._alone:
                tensors = self._reverted(tensors)
            _save(tensors, stage / file)
            places |= dict.fromkeys(tensors, file)
        if self.files > 1:
            about = {"total_parameters": self.parameters, "total_size": self.size}
            index = {"metadata": about, "weight_map": dict(sorted(places.items()))}
            (stage / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def _parameter(self, name: str) -> Tensor:
        # A copy in any case: what is mapped from the checkpoint shares its memory with its neighbours.
        return self._read(PREFIX + name).to(self._empty[name].dtype, copy=True)

    def _reverted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """As this family is saved: some of them in other pieces than they are computed with."""
        pieces = revert_weight_conversion(self._model, dict(tensors))
        return {name: tensor.contiguous() for name, tensor in pieces.items()}

    def _convert_alone(self, every: dict[str, Tensor]) -> bool:
        """Whether each tensor is saved in pieces of its own; else a shard is taken apart as a whole, beside itself.

        Raises:
            DestructError: weights that are saved as one came to lie in two shards.
        """
        whole = self._shapes([list(every)], every)
        if self._shapes([[name] for name in every], every) == whole:
            return True
        if self._shapes(self._shards.values(), every) != whole:
            raise DestructError(
                f"a {self._model.config.model_type} joins weights as it is saved, and they came to lie in two files",
                "write --max-shard with a size that all of the model fits into",
            )
        return False

    def _shapes(self, groups: Iterable[list[str]], every: dict[str, Tensor]) -> dict[str, torch.Size]:
        """Of all pieces, where tensors are taken apart in these groups."""
        found: dict[str, torch.Size] = {}
        for names in groups:
            reverted = self._reverted({name: every[name] for name in names})
            found |= {name: tensor.shape for name, tensor in reverted.items()}
        return found


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path, {"format": "pt"})
    except SafetensorError as error:  # that of a full disk is no OSError
        raise OSError(str(error)) from None
