"""What a run reads: where a tokenizer's chat template has a part in it, and how much a tokenizer is trained on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from destruct import inputs
from destruct.config.settings import load
from destruct.data.sources import open_sources
from destruct.data.tokenizing import Tokenizer
from destruct.engine.topology import Topology
from destruct.errors import DestructError
from destruct.inputs import _chat, _training_texts, read_inputs
from destruct.tracking.console import Screen
from tests.data.streams import stream_of, write_files
from tests.pretrained import write_tokenizer
from tests.tiny import write_config

SILENT = Screen(first_rank=False)
WIDE = ["data.validation_fraction=0.3", "rollout.prompt_tokens=48", "rollout.response_tokens=48"]
ALONE = Topology(0, 1, torch.device("cpu"))
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>\n{{ m.content }}<|eos|>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>\n{% endif %}"
)


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
    """Prompt and continuation against transformers' own tokenizing of each conversation, its last eos included."""
    write_tokenizer(tmp_path / "tokenizer", template=TEMPLATE)
    settings, talks = chats(
        tmp_path, f"data.tokenizer.path={tmp_path / 'tokenizer'}", "data.tokenizer.vocab_size=1024", *WIDE
    )
    read_in = read_inputs(settings, ALONE, SILENT, None)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    written = {tuple(theirs.apply_chat_template(talk)["input_ids"]): talk for talk in talks}
    (pieces,) = read_in.train
    read = pieces.read(np.arange(len(pieces)))
    lengths = zip(read.prompt_lengths, read.continuation_lengths, strict=True)
    rows = [(row[48 - p : 48], row[48 : 48 + c]) for row, (p, c) in zip(read.tokens.tolist(), lengths, strict=True)]
    assert len(rows) > 30
    for prompt, continuation in rows:
        talk = written.pop((*prompt, *continuation))
        asked = theirs.apply_chat_template(talk[:1], add_generation_prompt=True)["input_ids"]
        assert prompt == asked and continuation


def test_the_prompt_of_a_chat_is_what_its_tokenizer_writes_before_it_answers(tmp_path):
    """A template as pretrained models bring them, with words of its own that begin the assistant's turn."""
    write_tokenizer(tmp_path / "tokenizer", template=TEMPLATE)
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
        read_inputs(settings, ALONE, SILENT, None)
    assert "data.tokenizer.path" in error.value.remedy


def test_a_tokenizer_is_trained_on_the_beginning_of_a_stream(tmp_path, monkeypatch):
    """The last file is gone: who looked at it would be told so."""
    write_files(tmp_path)
    source = stream_of(tmp_path)
    train = [document.text for document in source.documents() if not document.held_out]
    (tmp_path / "train-2.parquet").unlink()
    monkeypatch.setattr(inputs, "TRAINED_ON", 5000)
    read = list(_training_texts(source))
    assert read == train[: len(read)] and sum(map(len, read[:-1])) < 5000 <= sum(map(len, read))


def test_the_screen_says_of_each_source_what_was_left_out_and_how_full_the_windows_are(tmp_path, capsys):
    """P = R = 8 of 300 tokens: documents of two tokens and an eos make pieces of 3 of 16."""
    rows = [{"text": f"{chr(97 + n % 26)}{n % 7}"} for n in range(300)] + [{"text": ""}, {"text": None}, {"other": 1}]
    (tmp_path / "short.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = f"{{path: {tmp_path / 'short.jsonl'}, deduplicate: true, on_bad_row: skip}}"
    settings = load(write_config(tmp_path), ["engine.backend=single", f"data.sources={{short: {source}}}"], 1)
    read_inputs(settings, ALONE, Screen(first_rank=True), None)
    said = capsys.readouterr().out
    assert "short: 303 rows: " in said and "2 empty, 118 duplicate, 1 bad" in said
    assert "19% of their windows" in said
