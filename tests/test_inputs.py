"""What a run reads, where a tokenizer's chat template has a part in it."""

import itertools
import json
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from destruct.config.settings import load
from destruct.data.sources import open_sources
from destruct.data.tokenizing import Tokenizer
from destruct.engine.topology import Topology
from destruct.errors import DestructError
from destruct.inputs import _chat, read_inputs
from tests.pretrained import write_tokenizer
from tests.tiny import write_config

ALONE = Topology(0, 1, torch.device("cpu"))
TEMPLATE = "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}<|eos|>{% endfor %}"


def chats(folder: Path, *overrides: str):
    """The settings of a run on 60 conversations, and the conversations."""
    talks = [
        [{"role": "user", "content": f"{n}+{n}=?"}, {"role": "assistant", "content": f"{n}+{n}={2 * n}, of course"}]
        for n in range(60)
    ]
    (folder / "talks.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    source = f"data.sources={{talks: {{path: {folder / 'talks.jsonl'}, format: chat}}}}"
    return load(write_config(folder), ["engine.backend=single", source, *overrides], 1), talks


def test_a_chat_is_trained_on_as_its_tokenizer_itself_writes_it(tmp_path):
    """The windows end to end against transformers' own tokenizing of each conversation, its last eos included."""
    write_tokenizer(tmp_path / "tokenizer", template=TEMPLATE)
    settings, talks = chats(tmp_path, f"data.tokenizer.path={tmp_path / 'tokenizer'}", "data.tokenizer.vocab_size=1024")
    inputs = read_inputs(settings, ALONE, None)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    whole = {tuple(theirs.apply_chat_template(talk)["input_ids"]) for talk in talks}
    stream = inputs.train[0].flatten().tolist()
    starts = [place for place, token in enumerate(stream) if token == theirs.bos_token_id]
    read = [tuple(stream[start:end]) for start, end in itertools.pairwise(starts)]
    assert len(read) > 40 and set(read) <= whole


def test_the_prompt_of_a_chat_is_what_its_tokenizer_writes_before_it_answers(tmp_path):
    """A template as pretrained models bring them, with words of its own that begin the assistant's turn."""
    template = TEMPLATE + "{% if add_generation_prompt %}<assistant>{% endif %}"
    write_tokenizer(tmp_path / "tokenizer", template=template)
    settings, talks = chats(tmp_path, f"data.tokenizer.path={tmp_path / 'tokenizer'}", "data.tokenizer.vocab_size=1024")
    chat = _chat(Tokenizer.pretrained("data.tokenizer.path", str(tmp_path / "tokenizer")))
    (source,) = open_sources(settings.config.data, 0, chat)
    documents = list(source.documents())
    theirs = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    prompts = [theirs.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True) for talk in talks]
    assert [document.text[: document.prompt_end] for document in documents] == prompts
    wholes = [theirs.apply_chat_template(talk, tokenize=False) for talk in talks]
    assert [document.text for document in documents] == wholes


def test_a_trained_tokenizer_has_no_chat_template_and_says_what_to_do(tmp_path):
    settings, _ = chats(tmp_path)
    with pytest.raises(DestructError, match="format: chat needs a chat template") as error:
        read_inputs(settings, ALONE, None)
    assert "data.tokenizer.path" in error.value.remedy
