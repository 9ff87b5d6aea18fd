"""The user's own prompts: read from a file, refused by name, continued alike at any number of ranks."""

import json

import pytest
import torch

from destruct.config.prompts import read_prompts
from destruct.data.tokenizing import Tokenizer, train_tokenizer
from destruct.engine.topology import Topology
from destruct.errors import DestructError
from destruct.models.policy import build_policy
from destruct.prompting import continue_prompts, encode_prompts
from destruct.rollout.generate import Sampling
from destruct.steps import evaluate
from tests.rollout.test_generate import SHAPE
from tests.tiny import ROOT, tiny_run

ALONE = Topology(0, 1, torch.device("cpu"))
V = 40


@pytest.fixture
def write(tmp_path):
    def write(text: str):
        path = tmp_path / "prompts.yaml"
        path.write_text(text)
        return path

    return write


def test_the_shipped_prompts_cover_what_the_specification_names():
    topics = [prompt.topic for prompt in read_prompts(ROOT / "configs" / "prompts.yaml")]
    assert {"creative writing", "technical", "code"} <= set(topics) and len(set(topics)) >= 3 + 3


def test_a_misspelt_key_is_named_with_its_file_and_the_nearest_one(write):
    path = write("prompts:\n  - {topic: code, text: a}\n  - {topic: code, txt: b}\n")
    with pytest.raises(DestructError, match="unknown key 'prompts.1.txt'") as error:
        read_prompts(path)
    assert "prompts.yaml" in error.value.problem and "did you mean 'prompts.1.text'?" in error.value.remedy


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prompts: []\n", "at least 1 item"),
        ("promts: [{topic: a, text: b}]\n", "unknown key 'promts'"),
        ("prompts: [{topic: a}]\n", "'prompts.0.text' is missing"),
        ("prompts: [{topic: a, text: ''}]\n", "prompts.0.text"),
        ("- a\n", "is not a mapping"),
    ],
)
def test_a_file_that_holds_no_prompts_is_refused(write, text, said):
    with pytest.raises(DestructError, match=said):
        read_prompts(write(text))


def test_a_missing_file_is_named_with_its_key(tmp_path):
    with (
        pytest.raises(DestructError, match="prompts.file: no.yaml exists neither"),
        tiny_run(tmp_path, "prompts.file=no.yaml"),
    ):
        pass


def test_a_prompt_that_leaves_no_room_is_refused(write):
    tokenizer = Tokenizer.trained(train_tokenizer(["a small text"], 258))
    prompts = read_prompts(write("prompts: [{topic: a, text: abcdef}]\n"))
    assert encode_prompts(prompts, tokenizer, longest=6) == [tokenizer.encode(["abcdef"])[0].tolist()]
    with pytest.raises(DestructError, match="the prompt 'abcdef' has 6 tokens; 1 to 5 leave room"):
        encode_prompts(prompts, tokenizer, longest=5)


def test_each_prompt_is_continued_as_if_it_were_alone_whatever_their_lengths():
    """Rows of one length are sampled together; the numbers of a prompt depend on its place alone."""
    replica = build_policy(SHAPE, V, torch.float32, 0, "chunked")
    how = Sampling(1.0, eos_id=3, pad_id=1)
    prompts = [[5, 6, 7], [8, 9], [10, 11, 12], [4]]
    said = continue_prompts(replica, prompts, 9, 0, how, ALONE)
    assert continue_prompts(replica, prompts[:2], 9, 0, how, ALONE) == said[:2]
    assert continue_prompts(replica, prompts, 9, 1, how, ALONE) != said, "another seed"
    for row in said:
        assert len(row) == 9 or row[-1] == 3
    same = continue_prompts(replica, [[5, 6]] * 2, 9, 0, how, ALONE)
    assert same[0] != same[1], "each place has numbers of its own"


def test_an_evaluation_writes_the_continuations_to_samples_and_tensorboard(tmp_path):
    (tmp_path / "mine.yaml").write_text("prompts: [{topic: sums, text: '1+1='}, {topic: letters, text: abc}]\n")
    with tiny_run(tmp_path, f"prompts.file={tmp_path / 'mine.yaml'}", "prompts.response_tokens=5") as run:
        evaluate(run, "before")
        run.sinks.close()
        lines = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
        said = continue_prompts(run.replica, run.prompts, 5, run.config.run.seed, run.sampling, ALONE)
    assert [(line["phase"], line["update"], line["topic"], line["prompt"]) for line in lines] == [
        ("before", 0, "sums", "1+1="),
        ("before", 0, "letters", "abc"),
    ]
    assert [line["response"] for line in lines] == [run.tokenizer.decode(row) for row in said]
    board = "".join(path.read_text(errors="replace") for path in (run.folder / "logs/warmup").glob("events*"))
    assert "prompts/sums/1+1=" in board
