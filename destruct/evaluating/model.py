"""Makes a model that is evaluated: the network with the loss and the attention of a run, and the model's tokenizer."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.initialization import no_init_weights
from transformers.utils import is_flash_attn_2_available

from destruct.checkpoint import contents
from destruct.config.settings import Config
from destruct.data.tokenizing import Tokenizer
from destruct.errors import DestructError
from destruct.evaluating.subject import Subject
from destruct.exporting.network import buffers_of, config_of, empty_model
from destruct.exporting.source import Source
from destruct.exporting.weights import reader
from destruct.models.attention import SDPA
from destruct.models.documents import check_documents
from destruct.models.policy import PolicyNetwork, check_head
from destruct.models.pretrained import check_fit, load_weights, read_config
from destruct.ops.dispatch import fastest, implementation
from destruct.progress import progress
from destruct.tracking.console import Screen


@dataclass(frozen=True, slots=True)
class Model:
    """What is known of a model before its weights are read."""

    subject: Subject
    tokenizer: Tokenizer
    architecture: PreTrainedConfig
    dtype: torch.dtype

    @property
    def context(self) -> int:
        """Most tokens that it holds."""
        return getattr(self.architecture, "max_position_embeddings", None) or 2**30


def open_model(subject: Subject, config: Config, float32: bool) -> Model:
    """Read a model's tokenizer and config.

    Raises:
        DestructError: they cannot be had, are of no model that can be measured, or do not fit the windows.
    """
    source, tokenizer = subject.source, _tokenizer_of(subject)
    if source is None:
        architecture = read_config(subject.key, subject.name, None)
        own = architecture.dtype if architecture.dtype == torch.bfloat16 else torch.float32
    else:
        architecture, own = config_of(source, tokenizer), getattr(torch, source.dtype)
    check_fit(subject.key, architecture, tokenizer.vocab_size, config.window_tokens)
    return Model(subject, tokenizer, architecture, torch.float32 if float32 else own)


def _tokenizer_of(subject: Subject) -> Tokenizer:
    if subject.config is None:
        return Tokenizer.pretrained(subject.key, subject.name)
    folder = Path(subject.name) if subject.source is None else subject.source.run / "tokenizer"
    fast = Tokenizer.pretrained(subject.key, str(folder)).fast
    # To the byte that of the run, by which the token cache knows its texts.
    return Tokenizer(fast, (folder / contents.TOKENIZER).read_text(encoding="utf-8"))


def load_network(model: Model, config: Config, device: torch.device, screen: Screen) -> PolicyNetwork:
    """The network with its weights, on a device.

    Raises:
        DestructError: the weights cannot be read, or are of a model that cannot be measured.
    """
    subject, architecture, loss = model.subject, model.architecture, _loss_of(config, device)
    rows = implementation(loss).rows_per_chunk(architecture.vocab_size, model.dtype, config.engine.loss_chunk_mib)
    architecture._attn_implementation = _attention_of(config, model.dtype, device)
    screen.say(f"loading {subject.name}")
    if subject.source is not None:
        return _of_checkpoint(model, subject.source, loss, rows, screen).to(device)
    lm = load_weights(AutoModelForCausalLM, subject.key, subject.name, None, architecture, model.dtype)
    try:
        network = PolicyNetwork(lm, loss, rows).requires_grad_(False).eval().to(device)
        _check(network, subject.key, device)
    except DestructError as error:
        problem = error.problem.removeprefix(f"{subject.key}.path: ")
        raise DestructError(f"{subject.key} {subject.name}: {problem}", "name another model") from None
    return network


def _check(network: PolicyNetwork, key: str, device: torch.device) -> None:
    """Refuse what a run refuses to train.

    Raises:
        DestructError: its logits are not hidden states times head, or it lets documents see each other.
    """

    def logits(tokens: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
        return network(tokens, rows, None, positions)

    check_head(network)
    check_documents(key, network, logits, device)


def _loss_of(config: Config, device: torch.device) -> str:
    """The implementation of the loss that the run has, where it runs here."""
    asked = config.engine.loss
    return fastest(device) if asked == "auto" or (asked == "triton" and device.type != "cuda") else asked


def _attention_of(config: Config, dtype: torch.dtype, device: torch.device) -> str:
    """The attention that the run has, where it runs here."""
    asked = config.model.attention
    flash = device.type == "cuda" and dtype == torch.bfloat16 and is_flash_attn_2_available()
    return SDPA if asked == "sdpa" or (asked == "flash_attention_2" and not flash) else asked


@torch.no_grad()
def _of_checkpoint(model: Model, source: Source, loss: str, rows: int, screen: Screen) -> PolicyNetwork:
    empty = empty_model(model.architecture, model.dtype)
    with no_init_weights():
        lm = AutoModelForCausalLM.from_config(model.architecture, dtype=model.dtype)
    lm.tie_weights()
    network = PolicyNetwork(lm, loss, rows).requires_grad_(False).eval()
    parameters = dict(network.named_parameters())
    read = reader(source, {name: p.shape for name, p in parameters.items()})
    with progress("load", len(parameters), "tensors", console=screen.console) as tell:
        for name, p in parameters.items():
            p.copy_(read(name))
            tell()
    for name, tensor in buffers_of(empty, source.config.model.policy).items():
        lm.get_buffer(name).copy_(tensor)
    return network
