"""Small pretrained models as Hugging Face saves them, for the real `from_pretrained`."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from destruct.data.embedded import EMBEDDED
from destruct.data.tokenizing import EOS, train_tokenizer

BOS = "<|begin|>"
SHAPE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.1,
}


def write_tokenizer(folder: Path, vocab_size: int = 400, pad: bool = False, template: str | None = None) -> int:
    """A tokenizer as Llama 3 has it: a bos before each text, no pad token unless asked; returns its size."""
    import tokenizers
    from tokenizers.processors import TemplateProcessing

    texts = [text for name in ("prose", "dialogue", "arithmetic") for text in EMBEDDED[name](20_000, 0)]
    backend = tokenizers.Tokenizer.from_str(train_tokenizer(texts, vocab_size))
    backend.add_special_tokens([BOS])
    number = backend.token_to_id(BOS)
    backend.post_processor = TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, number)])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=BOS, eos_token=EOS)
    if pad:
        fast.pad_token = EOS
    fast.chat_template = template
    fast.save_pretrained(folder)
    return len(fast)


def write_llama(folder: Path, seed: int = 0, spare: int = 24, shard: str = "60KB", **changes) -> LlamaForCausalLM:
    """A Llama in bfloat16 with tied embeddings and some more of them than tokens, in several safetensors files."""
    shape = {"vocab_size": write_tokenizer(folder) + spare, **SHAPE, **changes}
    config = LlamaConfig(tie_word_embeddings=True, **shape)
    torch.manual_seed(seed)
    lm = LlamaForCausalLM._from_config(config, dtype=torch.bfloat16)
    lm.save_pretrained(folder, max_shard_size=shard)
    return lm


def write_reward_model(folder: Path, labels: int = 1) -> LlamaForSequenceClassification:
    """A Llama with a scoring head, and a tokenizer of its own whose pad token is its eos."""
    size = write_tokenizer(folder, vocab_size=320, pad=True)
    config = LlamaConfig(vocab_size=size, num_labels=labels, **SHAPE)
    torch.manual_seed(7)
    classifier = LlamaForSequenceClassification._from_config(config, dtype=torch.float32)
    classifier.save_pretrained(folder)
    return classifier
