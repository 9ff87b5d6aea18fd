"""Models that transformers has pretrained weights of: their configs, and the faults of getting at them in words."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import errors as hub
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from destruct.errors import DestructError
from destruct.exits import Exit

HEAD_ARITHMETIC = {
    "final_logit_softcapping": None,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "lm_head_multiplier": 1.0,
}
"""Keys of transformers' configs by which a model does more than hidden states times head, and what leaves them off."""

_DROPOUT = re.compile(r"(dropout|pdrop|layerdrop)(_prob)?$")


def read_config(key: str, path: str, revision: str | None) -> PreTrainedConfig:
    """The config of a causal language model, with every dropout off: noise between the old policy and the new one.

    Args:
        key: of our config that names the model, for errors.
        path: local folder or hub id.

    Raises:
        DestructError: it cannot be had, is no causal language model that transformers itself knows, or its head does
            arithmetic of its own.
    """
    with faults_of(key, path):
        config = AutoConfig.from_pretrained(path, revision=revision)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise DestructError(f"{key}: {path} is a {config.model_type}, no causal language model", "name another model")
    for name, harmless in HEAD_ARITHMETIC.items():
        if (value := getattr(config, name, harmless)) not in (None, harmless):
            raise DestructError(
                f"{key}: {path} computes its logits with {name}={value}; the fused loss is of hidden states times head",
                "name a model without it",
            )
    for name, value in config.to_dict().items():
        if isinstance(value, float) and _DROPOUT.search(name):
            setattr(config, name, 0.0)
    return config


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


@contextmanager
def faults_of(key: str, path: str) -> Iterator[None]:
    """Put what transformers and the hub raise about `path`, the value of the config's `key`, into words.

    Raises:
        DestructError: in place of their OSError, ValueError or ImportError.
    """
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        kinds = {type(cause) for cause in _causes(error)}
        for kind, (problem, remedy, code) in HUB_FAULTS.items():
            if any(issubclass(found, kind) for found in kinds):
                raise DestructError(f"{key}: {path} {problem}", remedy.format(key=key, path=path), code) from error
        if isinstance(error, ValueError) and "trust_remote_code" in str(error):
            problem, remedy = (
                "brings code of its own, which is never run",
                "name a model that transformers itself knows",
            )
        else:
            problem, remedy = (
                f"cannot be read: {str(error).strip().splitlines()[0]}",
                "name a model that transformers can read",
            )
        raise DestructError(f"{key}: {path} {problem}", remedy) from error


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


_DOWNLOAD = "fetch it where there is network (hf download {path}), or let {key} name a local folder"

HUB_FAULTS: dict[type[Exception], tuple[str, str, Exit]] = {
    hub.GatedRepoError: (
        "is gated, and this account has no access",
        "accept its terms at https://huggingface.co/{path}, then `hf auth login` or set HF_TOKEN",
        Exit.ENVIRONMENT,
    ),
    hub.RevisionNotFoundError: ("has no such revision", "correct the revision", Exit.CONFIG),
    hub.RepositoryNotFoundError: (
        "is not on the hub, or is private",
        "correct {key}, or `hf auth login` if it is private",
        Exit.CONFIG,
    ),
    hub.HFValidationError: ("is neither a folder nor a hub id", "correct {key}", Exit.CONFIG),
    hub.OfflineModeIsEnabled: ("is not in the cache, and the hub is switched off", _DOWNLOAD, Exit.ENVIRONMENT),
    hub.LocalEntryNotFoundError: ("is not in the cache, and the hub cannot be reached", _DOWNLOAD, Exit.ENVIRONMENT),
}
"""What the hub raises -> problem, remedy and exit code; the first that fits counts."""
