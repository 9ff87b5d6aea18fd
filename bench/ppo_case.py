"""The work of bench/ppo_iteration.py on a disk: three models, a tokenizer, prompts, and the config of our side."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

EOS = "<|eos|>"
EOS_ID = 0
SPARE_DOCUMENTS = 8  # held out, which no side trains on


@dataclass(frozen=True)
class Work:
    """One PPO iteration: sizes of the models and of the batch."""

    dtype: str  # "bfloat16" or "float32"
    vocab: int
    hidden: int
    layers: int
    prompt: int
    response: int
    batch: int
    micro: int
    epochs: int
    mean_length: float | None = None  # of the responses, by an eos that is as likely everywhere; None: none ends early

    @property
    def torch_dtype(self) -> torch.dtype:
        """Of the weights."""
        return getattr(torch, self.dtype)

    @property
    def accumulation(self) -> int:
        """Micro-batches of a step."""
        return self.batch // self.micro


def write(work: Work, folder: Path) -> None:
    """Policy, value network and reward model as transformers saves them, each with the tokenizer; the documents."""
    from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

    config = LlamaConfig(
        vocab_size=work.vocab,
        hidden_size=work.hidden,
        intermediate_size=4 * work.hidden,
        num_hidden_layers=work.layers,
        num_attention_heads=work.hidden // 64,
        max_position_embeddings=work.prompt + work.response,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        pad_token_id=None,
        num_labels=1,
    )
    torch.manual_seed(0)
    lm = LlamaForCausalLM(config)
    if work.mean_length is not None:
        make_eos_likely(lm, 1 / work.mean_length)
    lm.to(work.torch_dtype).save_pretrained(folder / "policy")
    for name in ("value", "reward"):
        scorer = LlamaForSequenceClassification(config)
        nn.init.normal_(scorer.score.weight, std=0.1)
        scorer.to(work.torch_dtype).save_pretrained(folder / name)
    for name in ("policy", "value", "reward"):
        write_tokenizer(work.vocab, folder / name)
    write_documents(work, folder / "texts")


@torch.no_grad()
def make_eos_likely(lm: Any, probability: float) -> None:
    """Give every embedding a common direction, which the last norm passes on, and eos's row more of it."""
    rows = lm.get_input_embeddings().weight
    rows[:, 0] = 50 * rows.std()
    hidden = lm.model(torch.arange(1, min(65, len(rows)))[None]).last_hidden_state
    rest = torch.logsumexp(hidden @ rows[1:].T, -1)
    common = hidden[..., 0]
    wanted = torch.logit(torch.tensor(probability)) + rest
    rows[EOS_ID] = 0
    rows[EOS_ID, 0] = (wanted / common).mean()


def write_tokenizer(vocab: int, folder: Path) -> None:
    """One token for each word of a text, so that a text comes back from its tokens as it was."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {EOS: EOS_ID} | {f"w{number}": number for number in range(1, vocab)}
    backend = Tokenizer(models.WordLevel(words, unk_token=EOS))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=EOS).save_pretrained(folder)


def write_documents(work: Work, folder: Path) -> None:
    """As many documents as a batch has rollouts, each with its eos as long as a prompt and its continuation."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    numbers = torch.Generator().manual_seed(1)
    for split, count in (("train", work.batch), ("validation", SPARE_DOCUMENTS)):
        rows = torch.randint(1, work.vocab, (count, work.prompt + work.response - 1), generator=numbers).tolist()
        pq.write_table(pa.table({"text": [text_of(row) for row in rows]}), folder / f"{split}.parquet")


def text_of(tokens: list[int]) -> str:
    """The words of tokens."""
    return " ".join(f"w{token}" for token in tokens)


def prompts(work: Work, folder: Path) -> list[list[int]]:
    """Of the training documents, in their order."""
    import pyarrow.parquet as pq

    texts = pq.read_table(folder / "texts" / "train.parquet")["text"].to_pylist()
    return [[int(word[1:]) for word in text.split()[: work.prompt]] for text in texts]


def write_config(work: Work, folder: Path, backend: str, updates: int) -> Path:
    """The YAML of our side and its JSON: as the other side's PPO, in the same number of steps."""
    shipped = Path(__file__).resolve().parents[1] / "ds_configs"
    training = json.loads((shipped / "zero3.json").read_text(encoding="utf-8"))
    training |= {"gradient_accumulation_steps": work.accumulation, "bf16": {"enabled": work.dtype == "bfloat16"}}
    training["optimizer"]["params"] |= {"betas": [0.9, 0.999], "eps": 1e-8}
    (folder / "training.json").write_text(json.dumps(training), encoding="utf-8")
    path = {name: {"path": str(folder / name)} for name in ("policy", "value", "reward")}
    config = {
        "run": {
            "folder": str(folder / "runs"),
            "name": backend,
            "num_epochs": 1,
            "updates_per_epoch": updates + 1,  # the last one would validate and save, and is never made
            "checkpoint_every": 0,
            "validation_windows": 1,
        },
        "engine": {
            "backend": backend,
            "deepspeed": str(folder / "training.json"),
            "frozen": str(shipped / "frozen_cpu_offload.json"),
        },
        "model": {"policy": path["policy"], "value": path["value"]},
        "data": {"sources": {"texts": {"path": str(folder / "texts")}}, "cache": str(folder / "cache")},
        "rollout": {
            "batch_size": work.batch,
            "prompt_tokens": work.prompt,
            "response_tokens": work.response,
        },
        "reward": {"terms": {"reward_model": 1.0}, "model": path["reward"]},
        "kl": {"coef": 0.05, "bound": 1e6},
        "ppo": {
            "epochs": work.epochs,
            "minibatches": 1,
            "ptx_coef": 0.0,
            "max_grad_norm": 1e9,
            "policy_lr": LEARNING_RATE,
            "value_lr": LEARNING_RATE,
        },
        "frozen": {"refresh_every": 10**6},
        "curriculum": {"strategy": "uniform", "difficulty_sample_size": 2},
    }
    written = folder / f"{backend}.yaml"
    written.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    return written


LEARNING_RATE = 3e-6
"""The other side's default; both networks step by it."""
