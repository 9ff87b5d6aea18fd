"""The reward model: the score of a text is what transformers gives it alone, whatever lies beside it."""

import pytest
import tokenizers
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from destruct.engine.single import SingleFrozen
from destruct.errors import DestructError
from destruct.models.reward_model import Reader, build_reward_model, reward_model_config, reward_model_reader
from destruct.rollout.reward_model import reward_model
from tests.pretrained import write_llama, write_reward_model
from tests.rollout.test_rewards import batch, rewarded


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reward")
    write_reward_model(folder)
    return folder


@torch.no_grad()
def alone(folder, text: str, keep: int = 10_000) -> float:
    """One text at a time, so that there is no padding; of a long one the end, after its first special token."""
    classifier = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    bos, *ids = AutoTokenizer.from_pretrained(folder)(text)["input_ids"]
    return classifier(torch.tensor([[bos, *ids[-keep:]]])).logits.item()


def term(folder, context: int | None = None):
    network, reader = build_reward_model(str(folder), None, torch.float32), reward_model_reader(str(folder), None)
    reader = reader if context is None else Reader(reader.tokenizer, context)
    return reward_model(SingleFrozen(network), reader)


def rollouts():
    """Texts of different lengths: "uv" and some letters."""
    return batch([[1, 2, 3, 1, 2], [4], [5, 1, 20]], [[0] * 5] * 3, [False] * 3)


def test_each_text_is_scored_as_if_it_were_alone_although_the_pad_token_is_eos(folder):
    got = rewarded({"reward_model": 2.0}, {}, rollouts(), {"reward_model": term(folder)})
    want = [alone(folder, text) for text in ("uvbcdbc", "uve", "uvfbu")]
    assert got.terms[:, 0].tolist() == pytest.approx(want, abs=1e-5)
    assert len(set(want)) == 3
    assert got.rewards[1].tolist() == pytest.approx([2 * want[1], 0, 0, 0, 0], abs=1e-5), "paid with the last token"


def test_a_text_that_ends_with_the_pad_token_is_scored_at_its_end(folder):
    """The last token of the second text is the tokenizer's pad token; transformers would score the one before."""
    network = build_reward_model(str(folder), None, torch.float32)
    eos = AutoTokenizer.from_pretrained(folder).eos_token_id
    tokens = torch.tensor([[5, 6, 7, 8], [5, 6, eos, 0]])
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    hidden = network.classifier.model(torch.tensor([[5, 6, eos]])).last_hidden_state[0, -1]
    want = network.classifier.score(hidden).item()
    assert network(tokens, mask)[1].item() == pytest.approx(want, abs=1e-5)


def test_of_a_text_beyond_the_context_the_end_is_read(folder):
    got = rewarded({"reward_model": 1.0}, {}, rollouts(), {"reward_model": term(folder, context=4)})
    assert got.score[0].item() == pytest.approx(alone(folder, "uvbcdbc", keep=3), abs=1e-5)


def test_an_encoder_reads_between_the_special_tokens_that_it_was_trained_with(tmp_path):
    """RoBERTa, whose tokenizer has no eos of a language model and whose positions begin after its pad token's."""
    vocabulary = {token: number for number, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *"abcdefghuv"])}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    backend.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    specials = {"bos_token": "<s>", "cls_token": "<s>", "sep_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=backend, **specials).save_pretrained(tmp_path)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = RobertaConfig(vocab_size=14, max_position_embeddings=10, num_labels=1, pad_token_id=1, **small)
    torch.manual_seed(0)
    RobertaForSequenceClassification(config).save_pretrained(tmp_path)
    reader = reward_model_reader(str(tmp_path), None)
    assert reader.context == 8, "of ten positions two lie at and before the pad token's"
    assert reader(["abc", "abcdefgh"]) == [[0, 4, 5, 6, 2], [0, *range(6, 12), 2]]
    got = rewarded({"reward_model": 1.0}, {}, rollouts(), {"reward_model": term(tmp_path)})
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        want = [classifier(torch.tensor([ids])).logits.item() for ids in reader(["uvbcdbc", "uve", "uvfbu"])]
    assert got.score.tolist() == pytest.approx(want, abs=1e-5)


def test_an_empty_micro_batch_runs_the_model_all_the_same(folder):
    """On other ranks there may be rollouts, and a sharded model is gathered by all."""
    network = build_reward_model(str(folder), None, torch.float32)
    calls = []
    network.register_forward_hook(lambda *_: calls.append(1))
    term = reward_model(SingleFrozen(network), reward_model_reader(str(folder), None))
    nothing = rollouts().select(torch.zeros(0, dtype=torch.int64))
    assert rewarded({"reward_model": 1.0}, {}, nothing, {"reward_model": term}).score.tolist() == []
    assert calls == [1]


def test_two_labels_are_refused(tmp_path):
    write_reward_model(tmp_path, labels=2)
    with pytest.raises(DestructError, match=r"reward.model.path: .* has 2 labels; a reward model has one"):
        reward_model_config(str(tmp_path), None)


def test_a_language_model_without_a_scoring_head_is_refused(tmp_path):
    write_llama(tmp_path)
    with pytest.raises(DestructError, match="has 2 labels") as error:
        reward_model_config(str(tmp_path), None)
    assert "a language model without such a head counts as 2" in error.value.remedy
