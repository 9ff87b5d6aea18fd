"""A model that continues a person's prompt, by transformers' own `generate`, on the GPU where there is one."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, TextStreamer
from transformers.initialization import no_init_weights

from destruct.data.tokenizing import Tokenizer
from destruct.engine.topology import own_device
from destruct.errors import DestructError
from destruct.exporting.network import (
    PREFIX,
    buffers_of,
    config_of,
    empty_model,
    speaking_config,
)
from destruct.exporting.source import Source
from destruct.exporting.weights import reader
from destruct.models.pretrained import load_weights, read_config
from destruct.progress import Tell

DEFAULT_TOKENS = 128
"""That follow a prompt, where the model's context has room for them."""


@dataclass(frozen=True, slots=True)
class Speaker:
    """A model, and the tokenizer that it was trained with."""

    model: PreTrainedModel
    tokenizer: Tokenizer

    def speak(self, prompt: str, most: int | None, temperature: float | None, seed: int) -> None:
        """Write the prompt and its continuation to stdout, word by word.

        Args:
            most: tokens that follow; None for 128 or what there is room for.
            temperature: 0 for the likeliest token each time; None for that of the model's generation config.

        Raises:
            DestructError: the prompt is empty, or leaves too little room in the model's context.
        """
        (ids,) = self.tokenizer.encode([prompt], ends=False)
        context = getattr(self.model.config, "max_position_embeddings", None) or 2**30
        most = max(1, min(DEFAULT_TOKENS, context - len(ids))) if most is None else most
        if not 0 < len(ids) <= context - most:
            raise DestructError(
                f"the prompt has {len(ids)} tokens and {most} are to follow; the model holds {context}",
                "shorten the prompt or --max-tokens" if len(ids) else "write a prompt",
            )
        how: dict[str, Any] = {} if temperature is None else {"do_sample": temperature > 0}
        if temperature:
            how["temperature"] = temperature
        tokens = torch.from_numpy(ids).long()[None].to(self.model.device)
        torch.manual_seed(seed)
        with contextlib.suppress(BrokenPipeError):
            self.model.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                max_new_tokens=most,
                streamer=TextStreamer(self.tokenizer.fast, skip_special_tokens=True),
                **how,
            )


def of_folder(folder: Path) -> Speaker:
    """What `from_pretrained` makes of a folder, in its own dtype; no code of it is run.

    Raises:
        DestructError: it cannot be read, or some of the weights are not there.
    """
    tokenizer = Tokenizer.pretrained("--model", str(folder))
    config = read_config("--model", str(folder), None, with_head=False)
    dtype = config.dtype or torch.float32
    model = load_weights(AutoModelForCausalLM, "--model", str(folder), None, config, dtype)
    return Speaker(_placed(model), tokenizer)


def of_checkpoint(source: Source, tell: Tell) -> Speaker:
    """The policy of a verified checkpoint, in the dtype of its run.

    Raises:
        DestructError: the checkpoint does not fit its run.
    """
    tokenizer = Tokenizer.pretrained("the run's tokenizer", str(source.run / "tokenizer"))
    config, dtype = config_of(source, tokenizer), getattr(torch, source.dtype)
    with no_init_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.tie_weights()
    parameters = dict(model.named_parameters())
    read = reader(source, {PREFIX + name: p.shape for name, p in parameters.items()})
    empty = empty_model(config, dtype)
    with torch.no_grad():
        tell(0, len(parameters))
        for name, p in parameters.items():
            p.copy_(read(PREFIX + name))
            tell()
        for name, tensor in buffers_of(empty, source.config.model.policy).items():
            model.get_buffer(name).copy_(tensor)
    model.generation_config = speaking_config(source, config, tokenizer)
    return Speaker(_placed(model), tokenizer)


def _placed(model: PreTrainedModel) -> PreTrainedModel:
    return model.to(own_device()).eval()
