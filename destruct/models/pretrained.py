"""Models that transformers has pretrained weights of: their configs, and the faults of getting at them in words."""

import math
import re
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import HfApi
from huggingface_hub import errors as hub
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.distributed import DistributedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils.logging import EmptyTqdm

from destruct.errors import DestructError
from destruct.exits import Exit
from destruct.heartbeat import HEART
from destruct.ops.rows import LogitMap

LOGIT_SCALES = {"logit_scale": 1, "lm_head_multiplier": 1, "logits_scaling": -1}
"""Keys of transformers' configs by which a model multiplies its logits (1) or divides them (-1)."""

_DROPOUT = re.compile(r"(dropout|pdrop|layerdrop)(_prob)?$")


def read_config(key: str, path: str, revision: str | None, with_head: bool = True) -> PreTrainedConfig:
    """The config of a causal language model, with every dropout off: noise between the old policy and the new one.

    Args:
        key: of our config that names the model, for errors.
        path: local folder or hub id.
        with_head: its logits are used too, and not its body alone.

    Raises:
        DestructError: it cannot be had, is no causal language model of text alone that transformers itself knows, or
            its logits are scaled by something other than a number.
    """
    with faults_of(key, path, revision):
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise DestructError(f"{key}: {path} is a {config.model_type}, no causal language model", "name another model")
    if config.get_text_config() is not config:
        raise DestructError(
            f"{key}: {path} is a {config.model_type}, a model of more than text", "name the text model of that family"
        )
    for name in (*LOGIT_SCALES, "final_logit_softcapping") if with_head else ():
        value = getattr(config, name, None)
        if value is not None and not (isinstance(value, int | float) and value > 0):
            raise DestructError(
                f"{key}: {path} computes its logits with {name}={value}, which is no positive number",
                "name another model",
            )
    for name, value in config.to_dict().items():
        if isinstance(value, float) and _DROPOUT.search(name):
            setattr(config, name, 0.0)
    return config


def logit_map_of(config: PreTrainedConfig) -> LogitMap:
    """What a model of this config does to the products of its hidden states and head."""
    powers = {name: power for name, power in LOGIT_SCALES.items() if getattr(config, name, None) is not None}
    scale = math.prod(float(getattr(config, name)) ** power for name, power in powers.items())
    return LogitMap(scale, getattr(config, "final_logit_softcapping", None))


def check_fit(key: str, config: PreTrainedConfig, vocab_size: int, window_tokens: int) -> None:
    """Refuse a pretrained model that the run's tokens do not fit.

    Raises:
        DestructError: its vocabulary or its context is too small.
    """
    if config.vocab_size < vocab_size:
        raise DestructError(
            f"{key} embeds {config.vocab_size} tokens, the run uses {vocab_size}",
            "take the model's own tokenizer, and networks of one family",
        )
    context = getattr(config, "max_position_embeddings", None) or window_tokens
    if window_tokens > context:
        raise DestructError(
            f"rollout.prompt_tokens + rollout.response_tokens = {window_tokens} tokens; {key} holds {context}",
            "shorten a part",
        )


def load_weights(
    auto: Any,
    key: str,
    path: str,
    revision: str | None,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    fsdp_ranks: int = 1,
) -> PreTrainedModel:
    """A model of `config` with all of its weights, from a folder or the hub; no code of theirs is run.

    Args:
        auto: the class of transformers that knows which model it is, such as AutoModelForCausalLM.
        fsdp_ranks: with more than one its parameters are DTensors, of which each rank has read its own part alone.

    Raises:
        DestructError: it cannot be had, or some of the weights are not there.
    """
    sharding = {"distributed_config": DistributedConfig(fsdp_size=fsdp_ranks)} if fsdp_ranks > 1 else {}
    with faults_of(key, path, revision), _told():
        model, found = auto.from_pretrained(
            path,
            revision=revision,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below
            **sharding,
        )
    missing = sorted([*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])])
    if missing:
        raise DestructError(
            f"{key}: {path} lacks {len(missing)} weight(s) of its {type(model).__name__}, such as {missing[0]}",
            "name a model of that kind; what is missing would be random",
        )
    return _without_hooks(auto, model, config, dtype) if sharding else model


@contextmanager
def _told() -> Iterator[None]:
    """Within the block a bar of transformers' is one of this process's signs of life."""

    class Told(EmptyTqdm):
        def __iter__(self) -> Iterator[Any]:
            for part in super().__iter__():
                yield part
                HEART.advance()

    def counted(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if arguments and isinstance(arguments[0], Sized):
            HEART.expect(len(arguments[0]))
        return Told(*arguments, **named)

    before = transformers.logging.set_tqdm_hook(counted)
    try:
        yield
    finally:
        transformers.logging.set_tqdm_hook(before)


def _without_hooks(auto: Any, loaded: PreTrainedModel, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The same parameters in a model that transformers has not sharded by its own plan: an engine will, by its own."""
    with torch.device("meta"):
        model = auto.from_config(config, dtype=dtype)
    for kind, tensors in (("_parameters", loaded.named_parameters()), ("_buffers", loaded.named_buffers())):
        for name, tensor in tensors:
            owner, _, leaf = name.rpartition(".")
            tensor = tensor.detach()
            part = nn.Parameter(tensor) if kind == "_parameters" else tensor
            getattr(model.get_submodule(owner), kind)[leaf] = part
    model.tie_weights()
    return model


@contextmanager
def faults_of(key: str, path: str, revision: str | None = None) -> Iterator[None]:
    """Put what transformers and the hub raise about `path`, the value of the config's `key`, into words.

    Raises:
        DestructError: in place of their OSError, ValueError, ImportError, and errors of the network and of safetensors.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError | ValueError | ImportError | SafetensorError) or _is_of_the_network(error):
            raise _fault(key, path, revision, error) from error
        raise


def _fault(key: str, path: str, revision: str | None, error: Exception) -> DestructError:
    causes = list(_causes(error))
    missed = isinstance(error, OSError | ValueError) and any(words in str(error) for words in _MISSED)
    if not Path(path).is_dir() and (missed or any(isinstance(cause, hub.LocalEntryNotFoundError) for cause in causes)):
        causes += _causes(_refusal(path, revision))
    words = {"key": key, "path": path, "revision": revision or "main", "section": key.rpartition(".")[0]}
    words["at"] = "" if revision is None else f" --revision {revision}"
    for mark, problem, remedy, code in FAULTS:
        if any(_fits(mark, cause) for cause in causes):
            return DestructError(f"{key}: {path} {problem.format(**words)}", remedy.format(**words), code)
    disk = next((cause for cause in causes if isinstance(cause, OSError) and cause.errno), None)
    if disk is not None:
        remedy = "make room and permissions there; HF_HOME names the folder of the cache"
        return DestructError(f"{key}: {path} cannot be read or kept: {disk}", remedy, Exit.ENVIRONMENT)
    said = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return DestructError(f"{key}: {path} cannot be read: {said}", "name a model that transformers can read")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_of_the_network(error: BaseException) -> bool:
    return type(error).__module__.startswith("httpx")  # the hub's client brings the first or the second httpx


def _refusal(path: str, revision: str | None) -> Exception | None:
    """Why the hub gives nothing of `path`, or None: transformers goes on without a file that it could not fetch, and
    says later that the model has no such file."""
    try:
        HfApi().model_info(path, revision=revision, timeout=10)
    except Exception as error:
        if not (isinstance(error, OSError | ValueError) or _is_of_the_network(error)):
            raise
        return error
    return None


def _fits(mark: type | str, cause: BaseException) -> bool:
    if isinstance(mark, str):
        return mark in str(cause)
    return isinstance(cause, mark) or (mark is hub.HfHubHTTPError and _is_of_the_network(cause))


_NO_TOKENIZER = "Couldn't instantiate the backend tokenizer"
_MISSED = ("does not appear to have", _NO_TOKENIZER)
"""What transformers says of a file that it has not got, whatever the reason."""

_DOWNLOAD = "fetch it where there is network (hf download {path}{at}), or let {key} name a local folder"
_UNREACHABLE = ("is not all in the cache, and the hub cannot be reached", _DOWNLOAD, Exit.ENVIRONMENT)

FAULTS: list[tuple[type | str, str, str, Exit]] = [
    (
        hub.GatedRepoError,
        "is gated, and this account has no access",
        "accept its terms at https://huggingface.co/{path}, then `hf auth login` or set HF_TOKEN",
        Exit.ENVIRONMENT,
    ),
    (
        "Invalid credentials in Authorization header",
        "is refused by the hub: the token of this machine is not valid",
        "renew it with `hf auth login`, or correct HF_TOKEN",
        Exit.ENVIRONMENT,
    ),
    (
        hub.RevisionNotFoundError,
        "has no revision {revision!r}",
        "set {section}.revision to a branch, tag or commit of it, or leave it out",
        Exit.CONFIG,
    ),
    (
        hub.RepositoryNotFoundError,
        "is not on the hub, or is private",
        "correct {key}; a private one needs `hf auth login` or HF_TOKEN",
        Exit.CONFIG,
    ),
    (hub.HFValidationError, "is neither a folder nor a hub id", "correct {key}", Exit.CONFIG),
    (
        hub.OfflineModeIsEnabled,
        "is not all in the cache, and HF_HUB_OFFLINE switches the hub off",
        f"unset it, or {_DOWNLOAD}",
        Exit.ENVIRONMENT,
    ),
    (hub.LocalEntryNotFoundError, *_UNREACHABLE),
    (hub.HfHubHTTPError, *_UNREACHABLE),
    (
        "trust_remote_code",
        "brings code of its own, which is never run",
        "name a model of transformers' own",
        Exit.CONFIG,
    ),
    (
        "does not support an attention implementation through torch.nn.functional.scaled_dot_product_attention",
        "cannot compute its attention as model.attention=sdpa",
        "set model.attention: eager",
        Exit.CONFIG,
    ),
    (
        _NO_TOKENIZER,
        "has no tokenizer that can be read",
        "let data.tokenizer.path name a model that has one",
        Exit.CONFIG,
    ),
]
"""What an error or one of its causes is or says -> problem, remedy and exit code; the first that fits counts."""
