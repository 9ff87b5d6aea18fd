"""The policy as transformers makes it: the config, a model without weights, and how it is to speak."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedConfig, PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file

from destruct.config.model import PolicyShape
from destruct.data.tokenizing import Tokenizer
from destruct.errors import DestructError
from destruct.exporting.source import Source
from destruct.models.kept import generation_config, kept
from destruct.models.policy import llama_config
from destruct.models.pretrained import faults_of, read_config

PREFIX = "lm."
"""Of the names of a `PolicyNetwork`'s parameters: before what transformers calls them."""


def config_of(source: Source, tokenizer: Tokenizer) -> PreTrainedConfig:
    """The config of the policy's network: of a pretrained one as it was when the run began.

    Raises:
        DestructError: that of a pretrained model cannot be had.
    """
    shape = source.config.model.policy
    if shape.path is not None:
        return _kept_config(source, shape.path)
    config = llama_config(shape, tokenizer.vocab_size)
    # The pad token is the generation config's alone: here its embedding would get no gradient in a later training.
    config.bos_token_id, config.eos_token_id = tokenizer.fast.bos_token_id, tokenizer.eos_id
    return config


def _kept_config(source: Source, path: str) -> PreTrainedConfig:
    if (folder := kept(source.run)) is not None:
        return read_config("the run's policy", str(folder), None)
    try:
        return read_config("model.policy.path", path, source.config.model.policy.revision)
    except DestructError as error:
        raise DestructError(
            f"{error.problem}, and {source.run} is of a version that kept no config of it",
            "put back the model that the run began with",
            error.exit_code,
        ) from None


def speaking_config(source: Source, config: PreTrainedConfig, tokenizer: Tokenizer) -> GenerationConfig:
    """How a person's prompts are continued: as rollouts were sampled, of the whole distribution.

    They ended with the eos of the run's tokenizer; a pretrained model may have further ones, with which it ends, too.

    Args:
        config: of the network.
    """
    shape, found = source.config.model.policy, None
    if (folder := kept(source.run)) is not None:
        found = generation_config("the run's policy", str(folder), None)
    elif shape.path is not None:
        found = generation_config("model.policy.path", shape.path, shape.revision)
    theirs = GenerationConfig.from_model_config(config) if found is None else found
    eos, bos = theirs.eos_token_id, theirs.bos_token_id
    ends = {tokenizer.eos_id, *(eos if isinstance(eos, list) else [] if eos is None else [eos])}
    return GenerationConfig(
        do_sample=True,
        temperature=source.config.rollout.temperature,
        top_k=0,
        top_p=1.0,
        eos_token_id=min(ends) if len(ends) == 1 else sorted(ends),
        pad_token_id=tokenizer.pad_id if theirs.pad_token_id is None else theirs.pad_token_id,
        bos_token_id=tokenizer.fast.bos_token_id if bos is None else bos,
    )


def empty_model(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model whose tensors have shapes and no memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    return model.eval()


def persistent_buffers(model: PreTrainedModel) -> dict[str, Tensor]:
    """What a model keeps besides its parameters, and no run trains: DeepSeek-V3 has biases of its experts so."""
    buffers = dict(model.named_buffers())
    return {name: tensor for name, tensor in model.state_dict().items() if name in buffers}


def buffers_of(model: PreTrainedModel, shape: PolicyShape) -> dict[str, Tensor]:
    """These as the run had them: of the pretrained model, since no checkpoint holds them.

    Raises:
        DestructError: they cannot be read any more.
    """
    empty = persistent_buffers(model)
    if not empty:
        return {}
    assert shape.path is not None, f"a Llama from scratch keeps no buffers: {sorted(empty)}"
    theirs = {name: next(iter(revert_weight_conversion(model, {name: tensor}))) for name, tensor in empty.items()}
    found = _read_tensors(shape.path, shape.revision, theirs.values())
    return {name: found[theirs[name]] for name in empty}


def _read_tensors(path: str, revision: str | None, names: Iterable[str]) -> dict[str, Tensor]:
    """Some of the tensors of a pretrained model, from its safetensors files.

    Args:
        path: local folder or hub id.
        names: in these files.

    Raises:
        DestructError: it has no such files, or not these tensors.
    """
    with faults_of("model.policy.path", path, revision):
        index = cached_file(
            path, SAFE_WEIGHTS_INDEX_NAME, revision=revision, _raise_exceptions_for_missing_entries=False
        )
        places = {} if index is None else json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
        files = {name: cached_file(path, places.get(name, SAFE_WEIGHTS_NAME), revision=revision) for name in names}
        found = {}
        for name, file in files.items():
            tensors = safe_open(file, "pt")
            if name not in tensors.keys():  # noqa: SIM118
                raise DestructError(f"model.policy.path: {path} has no {name}", "put back the model of the run")
            found[name] = tensors.get_tensor(name)
    return found
