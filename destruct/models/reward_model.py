"""The reward model: a sequence classifier of transformers with one label, whose logit is the score of a text."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from destruct.errors import DestructError
from destruct.models.pretrained import faults_of, load_weights

KEY = "reward.model.path"


class RewardModel(nn.Module):
    """Scores texts."""

    def __init__(self, classifier: PreTrainedModel):
        super().__init__()
        self.classifier = classifier

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The logit of each text.

        Args:
            tokens: (n, L) int64, each text from the left on; what lies behind it is not read.
            mask: (n, L) bool, True on the text's tokens, at least one in each row.

        Returns:
            (n,) float32.
        """
        # transformers scores the last token that is not the pad token, which is often eos and then ends the text too:
        # so the pad token is one that no text here holds.
        candidates = torch.arange(int(mask.sum()) + 1, device=tokens.device)
        pad = int(candidates[~torch.isin(candidates, tokens[mask])][0])
        self.classifier.config.get_text_config().pad_token_id = pad
        padded = torch.where(mask, tokens, pad)
        return self.classifier(input_ids=padded, attention_mask=mask.long()).logits.squeeze(-1).float()


@dataclass(frozen=True, slots=True)
class Reader:
    """How a reward model reads texts: by its own tokenizer, with the special tokens that it was trained with."""

    tokenizer: PreTrainedTokenizerBase  # cuts long texts at their beginning
    context: int  # most tokens of a text

    def __call__(self, texts: list[str]) -> list[list[int]]:
        """Tokens of each text; of one that is too long the end, between its special tokens."""
        return self.tokenizer(texts, truncation=True, max_length=self.context)["input_ids"] if texts else []


def reward_model_config(path: str, revision: str | None) -> PreTrainedConfig:
    """Its config.

    Raises:
        DestructError: it cannot be had, is no classifier of sequences, or has another number of labels than one.
    """
    with faults_of(KEY, path, revision):
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise DestructError(f"{KEY}: {path} is a {config.model_type}, no sequence classifier", "name another model")
    if config.num_labels != 1:
        raise DestructError(
            f"{KEY}: {path} has {config.num_labels} labels; a reward model has one, whose logit is the score",
            "name a model with num_labels 1 (a language model without such a head counts as 2)",
        )
    return config


def reward_model_reader(path: str, revision: str | None) -> Reader:
    """Its tokenizer and context.

    Raises:
        DestructError: as `reward_model_config` does, and where it has no tokenizer.
    """
    config = reward_model_config(path, revision)
    with faults_of(KEY, path, revision):
        tokenizer = AutoTokenizer.from_pretrained(
            path, revision=revision, truncation_side="left", trust_remote_code=False
        )
    positions = getattr(config, "max_position_embeddings", None) or 2**30
    # RoBERTa counts positions from the one after its pad token's.
    offset = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    return Reader(tokenizer, min(tokenizer.model_max_length, positions - offset))


def build_reward_model(path: str, revision: str | None, dtype: torch.dtype, fsdp_ranks: int = 1) -> RewardModel:
    """The network with its weights, for inference.

    Args:
        fsdp_ranks: as in `load_weights`.

    Raises:
        DestructError: as `reward_model_config` does, and where weights cannot be had or are not all there.
    """
    config = reward_model_config(path, revision)
    classifier = load_weights(AutoModelForSequenceClassification, KEY, path, revision, config, dtype, fsdp_ranks)
    return RewardModel(classifier).requires_grad_(False).eval()
