"""Sizes of decoders, from their config alone: what memory, traffic and arithmetic follow from.

Legend: V vocabulary, H hidden width.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from destruct.config.model import LlamaShape, PolicyShape
from destruct.errors import DestructError
from destruct.exits import Exit


@dataclass(frozen=True, slots=True)
class Decoder:
    """A network of Llama's form: gated feed-forward layers, RMS norms, grouped key/value heads."""

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    head: Literal["tied", "untied", "scalar"]  # scalar: a value network's, or a classifier's
    qkv_bias: bool = False
    output_bias: bool = False  # of the attention's output product
    mlp_bias: bool = False
    qk_norm: bool = False

    @property
    def kv_width(self) -> int:
        """Elements of one token's keys, and of its values, in one layer."""
        return self.kv_heads * self.head_dim

    @property
    def q_width(self) -> int:
        """Elements of one token's queries in one layer."""
        return self.heads * self.head_dim

    @property
    def layer_tensors(self) -> tuple[int, ...]:
        """Elements of each parameter of one layer."""
        h, i, q, kv = self.hidden, self.intermediate, self.q_width, self.kv_width
        biases = [q, kv, kv] * self.qkv_bias + [h] * self.output_bias + [i, i, h] * self.mlp_bias
        return (h * q, h * kv, h * kv, q * h, h * i, h * i, i * h, h, h, *biases, *[self.head_dim] * 2 * self.qk_norm)

    @property
    def embedding(self) -> int:
        """Elements of the embeddings, (V, H)."""
        return self.vocab * self.hidden

    @property
    def tensors(self) -> tuple[int, ...]:
        """Elements of every parameter, a tied one once."""
        head = {"tied": (), "untied": (self.embedding,), "scalar": (self.hidden, 1)}[self.head]
        return (self.embedding, *self.layer_tensors * self.layers, self.hidden, *head)

    @property
    def parameters(self) -> int:
        """Elements of all parameters."""
        return sum(self.tensors)

    @property
    def multiplied(self) -> int:
        """Elements of the matrices that hidden states are multiplied with, a language model's head among them."""
        h, layer = self.hidden, 2 * self.q_width + 2 * self.kv_width + 3 * self.intermediate
        return self.layers * h * layer + (0 if self.head == "scalar" else self.embedding)

    @property
    def layer(self) -> int:
        """Elements of one layer's parameters."""
        return sum(self.layer_tensors)

    def flops_per_token(self, context: float) -> float:
        """Of one forward of the layers, a multiplication and an addition counting two; the head is not in it.

        Args:
            context: tokens that a token sees on average.
        """
        return self.layers * (2 * self.layer + 4 * self.q_width * context)

    @property
    def head_flops(self) -> float:
        """Of one row of logits, (V,)."""
        return 2 * self.embedding


def from_shape(shape: LlamaShape, vocab: int) -> Decoder:
    """The decoder that a shape of the YAML makes from scratch."""
    head: Literal["tied", "untied", "scalar"] = "scalar"
    if isinstance(shape, PolicyShape):
        head = "tied" if shape.tie_word_embeddings else "untied"
    heads = shape.num_attention_heads
    return Decoder(
        vocab,
        shape.hidden_size,
        shape.intermediate_size,
        shape.num_hidden_layers,
        heads,
        shape.num_key_value_heads or heads,
        shape.hidden_size // heads,
        head,
    )


def from_config(key: str, path: str, config: dict[str, Any], scalar: bool) -> Decoder:
    """The decoder of a config.json as transformers writes it.

    Args:
        key, path: the key of the YAML and what it names, for the error.
        scalar: the head is one number wide, whatever the model's own is.

    Raises:
        DestructError: a family whose layers are not known here, or a size is missing.
    """
    family = str(config.get("model_type") or "model of no stated type")
    if family not in FAMILIES:
        raise DestructError(
            f"{key}={path} is a {family}, and the plan knows the layers of {', '.join(FAMILIES)}",
            "plan with a model of about that size from one of these families",
        )
    for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"):
        if not isinstance(config.get(name), int) or config[name] < 1:
            raise DestructError(f"{key}={path}: its config.json has no usable {name}", "name a complete model")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    tied, bias = config.get("tie_word_embeddings", False), bool(config.get("attention_bias", False))
    return Decoder(
        config["vocab_size"],
        hidden,
        config["intermediate_size"],
        config["num_hidden_layers"],
        heads,
        config.get("num_key_value_heads") or heads,
        config.get("head_dim") or hidden // heads,
        "scalar" if scalar else "tied" if tied else "untied",
        qkv_bias=bias or FAMILIES[family].get("qkv_bias", False),
        output_bias=bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=FAMILIES[family].get("qk_norm", False),
    )


def read_model_config(key: str, path: str, revision: str | None) -> dict[str, Any]:
    """The config.json of a model: of a local folder, of those listed here, or of the hub.

    Raises:
        DestructError: there is none, or the hub does not give it.
    """
    if path in KNOWN and revision is None and not Path(path).is_dir():
        return KNOWN[path]
    return _read(key, path, revision, "config.json")


def read_vocabulary(key: str, path: str) -> int:
    """Entries of a pretrained tokenizer, added tokens included.

    Raises:
        DestructError: there is none, or the hub does not give it.
    """
    file = "tokenizer.json"
    content = _read(key, path, None, file)
    try:
        vocabulary, added = content["model"]["vocab"], content.get("added_tokens", [])
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        return 1 + max([*ids, *(token["id"] for token in added)])
    except (KeyError, TypeError, ValueError) as error:
        raise DestructError(f"{key}={path}: its {file} has no vocabulary: {error}", "name another tokenizer") from None


def _read(key: str, path: str, revision: str | None, name: str) -> dict[str, Any]:
    """A JSON file of a local folder or of the hub."""
    local = Path(path)
    if local.is_dir():
        file = local / name
        if not file.is_file():
            raise DestructError(f"{key}={path} has no {name}", "name a folder that has one")
    elif local.is_absolute() or path.startswith(".") or path.count("/") != 1:
        raise DestructError(f"{key}={path}: there is no such folder", "name a model's folder, or an id of the hub")
    else:
        file = _from_hub(key, path, revision, name)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DestructError(f"{key}={path}: its {name} cannot be read: {error}", "fetch it again") from None
    if not isinstance(content, dict):
        raise DestructError(f"{key}={path}: its {name} is no JSON object", "fetch it again")
    return content


def _from_hub(key: str, path: str, revision: str | None, name: str) -> Path:
    from huggingface_hub import hf_hub_download  # half a second that a local model does not need
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(path, name, revision=revision))
    except (HfHubHTTPError, LocalEntryNotFoundError, ValueError, OSError) as error:
        raise DestructError(
            f"{key}={path}: neither a folder nor to be had from the hub: {str(error).partition(chr(10))[0]}",
            "name a local folder, log in with `hf auth login`, or give the shape in the YAML",
            Exit.ENVIRONMENT,
        ) from None


FAMILIES: dict[str, dict[str, bool]] = {
    "llama": {},
    "mistral": {},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"qk_norm": True},
}
"""`model_type` -> what its layers have beside Llama's."""

_LLAMA_8B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
_LLAMA_1B: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}

KNOWN: dict[str, dict[str, Any]] = {
    "meta-llama/Llama-3.2-1B": _LLAMA_1B,
    "meta-llama/Llama-3.2-1B-Instruct": _LLAMA_1B,
    "meta-llama/Meta-Llama-3-8B": _LLAMA_8B,
    "meta-llama/Llama-3.1-8B": _LLAMA_8B,
    "meta-llama/Llama-3.1-8B-Instruct": _LLAMA_8B,
}
"""Gated models of the hub that the shipped configs name: their sizes, so that a plan needs no login."""
