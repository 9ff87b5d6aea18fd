"""The byte-level tokenizer."""

import hashlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tokenizers
from transformers import PreTrainedTokenizerFast

from destruct.data.embedded import EMBEDDED
from destruct.data.tokenizing import EOS, PAD, Tokenizer, train_tokenizer
from destruct.errors import DestructError
from tests.pretrained import BOS, write_tokenizer

AWKWARD = [
    "",
    " ",
    "  two  spaces\tand\r\n\nlines ",
    "naïve Ünïcödé — “quotes”, 漢字かな, العربية, 👩‍👩‍👧",
    "\x00\x01\x7f control",
    f"a text that says {EOS} and {PAD} inside",
    "e\u0301 is not é, and ﬁ is not fi",
    "12345 + 67890 = 80235",
]


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [text for name in ("prose", "dialogue", "arithmetic") for text in EMBEDDED[name](40_000, 0)]


@pytest.fixture(scope="module")
def tokenizer(texts: list[str]) -> Tokenizer:
    return Tokenizer.trained(train_tokenizer(texts, 600))


def test_any_text_comes_back(tokenizer, texts):
    rng = np.random.default_rng(0)
    random_text = ["".join(map(chr, rng.integers(1, 0xD7FF, 50))) for _ in range(50)]
    for text in AWKWARD + random_text + texts[:50]:
        (ids,) = tokenizer.encode([text])
        assert ids.dtype == np.int32 and tokenizer.decode(ids) == text


def test_bytes_of_the_tokens_sum_to_the_bytes_of_the_text(tokenizer, texts):
    for text, ids in zip(AWKWARD + texts, tokenizer.encode(AWKWARD + texts), strict=True):
        assert tokenizer.token_bytes[ids].sum() == len(text.encode())
    assert tokenizer.token_bytes.shape == (600,) and tokenizer.token_bytes.dtype == np.int64
    assert tokenizer.token_bytes[[tokenizer.eos_id, tokenizer.pad_id]].tolist() == [0, 0]
    assert sorted(tokenizer.token_bytes)[2] == 1  # no other token is empty


def test_special_tokens_are_distinct_unwritten_by_text_and_unread_by_decode(tokenizer):
    assert len({tokenizer.eos_id, tokenizer.pad_id}) == 2 and tokenizer.vocab_size == 600
    for ids in tokenizer.encode(AWKWARD):
        assert not {tokenizer.eos_id, tokenizer.pad_id} & set(ids.tolist())
    (ids,) = tokenizer.encode(["one two"])
    assert tokenizer.decode([*ids, tokenizer.eos_id, tokenizer.pad_id]) == "one two"


def test_digits_stand_alone_and_words_are_merged(tokenizer):
    (ids,) = tokenizer.encode(["120+345=465"])
    assert len(ids) == 11
    (ids,) = tokenizer.encode([" the"])
    assert len(ids) == 1


def test_half_a_character_decodes_to_the_replacement_sign(tokenizer):
    (ids,) = tokenizer.encode(["漢"])
    assert len(ids) == 3 and tokenizer.decode(ids[:2]) == "\ufffd"


@pytest.mark.slow
def test_training_depends_on_the_texts_and_not_on_their_order_nor_on_the_process(tokenizer, texts):
    assert train_tokenizer(reversed(texts), 600) == tokenizer.text
    program = (
        "import hashlib\n"
        "from destruct.data.embedded import EMBEDDED\n"
        "from destruct.data.tokenizing import train_tokenizer\n"
        "texts = [text for name in ('prose', 'dialogue', 'arithmetic') for text in EMBEDDED[name](40_000, 0)]\n"
        "print(hashlib.sha256(train_tokenizer(texts, 600).encode()).hexdigest())"
    )
    for threads in ("1", "3"):
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={"RAYON_NUM_THREADS": threads, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == hashlib.sha256(tokenizer.text.encode()).hexdigest()


def test_the_text_makes_an_equal_tokenizer(tokenizer, texts):
    again = Tokenizer.trained(tokenizer.text)
    for one, other in zip(tokenizer.encode(texts), again.encode(texts), strict=True):
        np.testing.assert_array_equal(one, other)


def test_transformers_reads_what_is_saved(tokenizer, texts, tmp_path):
    from transformers import AutoTokenizer

    tokenizer.save(tmp_path / "tokenizer")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eos_id, tokenizer.pad_id)
    assert len(theirs) == tokenizer.vocab_size
    plain = [text for text in AWKWARD + texts[:50] if EOS not in text]
    for text, ids in zip(plain, tokenizer.encode(plain), strict=True):
        assert theirs(text)["input_ids"] == ids.tolist()
        assert theirs.decode(ids) == text


def test_a_vocabulary_smaller_than_the_bytes_is_refused():
    assert Tokenizer.trained(train_tokenizer(["abc abc"], 258)).vocab_size == 258
    with pytest.raises(DestructError, match="vocab_size is 257"):
        train_tokenizer(["abc abc"], 257)


def test_little_text_fills_fewer_entries_than_asked():
    """'ab' is the one pair there is to merge."""
    assert Tokenizer.trained(train_tokenizer(["ab ab"], 5000)).vocab_size in (259, 260)


def test_a_trained_tokenizer_without_its_special_tokens_is_refused(tokenizer):
    with pytest.raises(DestructError, match=re.escape(f"lacks {EOS}")):
        Tokenizer.trained(tokenizer.text.replace(EOS, "<|end|>"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Tokenizer:
    """As Llama 3 has it: a bos before each text, eos but no pad token, a chat template."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(
        folder, template="{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}<|eos|>{% endfor %}"
    )
    return Tokenizer.pretrained("data.tokenizer.path", str(folder))


def test_a_pretrained_tokenizer_begins_each_text_as_its_author_wished_and_pads_with_eos(llama):
    bos = llama.fast.bos_token_id
    (ids,) = llama.encode(["12+34=46"])
    assert ids[0] == bos and bos not in ids[1:] and llama.decode(ids) == "12+34=46"
    assert llama.fast.pad_token_id is None and llama.pad_id == llama.eos_id
    assert llama.token_bytes[bos] == 0 and llama.token_bytes[ids].sum() == 8
    assert len(llama.token_bytes) == llama.vocab_size == len(llama.fast)


def test_a_chat_keeps_its_special_tokens_but_for_the_eos_at_its_end(llama):
    """Packing puts an eos after each document."""
    text = llama.render_chat([{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}])
    assert llama.has_chat_template and text == f"{BOS}<user>1+1?<|eos|><assistant>2<|eos|>"
    (ids,) = llama.encode([text], marked_up=True)
    assert ids.tolist().count(llama.fast.bos_token_id) == 1 and ids[0] == llama.fast.bos_token_id
    assert ids.tolist().count(llama.eos_id) == 1 and ids[-1] != llama.eos_id
    (plain,) = llama.encode([text])
    assert llama.eos_id not in plain and llama.decode(plain) == text, "in a plain text they are seven characters"


def test_the_bytes_of_a_sentencepiece_vocabulary_are_those_of_the_text():
    """A space is spelt U+2581 and what no piece spells falls back to bytes, as in Llama 2."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "\u2581ab", "é"]
    vocabulary = [(piece, -float(len(pieces) - number)) for number, piece in enumerate(pieces)]
    backend = tokenizers.Tokenizer(tokenizers.models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme="never")
    replace = tokenizers.decoders.Replace("\u2581", " ")
    decoders = [replace, tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()]
    backend.decoder = tokenizers.decoders.Sequence(decoders)
    backend.add_special_tokens(["</s>"])
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"), backend.to_str())
    for text in ("ab ab", "é漢 a", "zzz"):
        (ids,) = tokenizer.encode([text])
        assert tokenizer.token_bytes[ids].sum() == len(text.encode()) and tokenizer.decode(ids) == text


def test_a_tokenizer_without_eos_is_refused():
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}, unk_token="a"))
    with pytest.raises(DestructError, match="names no eos token"):
        Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend), backend.to_str())


def test_a_folder_without_a_tokenizer_is_named_with_its_key(tmp_path):
    with pytest.raises(DestructError, match=f"data.tokenizer.path: {tmp_path} has no tokenizer that can be read"):
        Tokenizer.pretrained("data.tokenizer.path", str(tmp_path))


def test_what_a_tokenizers_author_cut_and_padded_is_whole_here(tmp_path):
    write_tokenizer(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    backend.enable_truncation(16)
    backend.enable_padding(length=16)
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.pretrained("data.tokenizer.path", str(tmp_path))
    long, short = "9" * 100, "12"
    assert [len(ids) for ids in tokenizer.encode([long, short])] == [101, 3], "and a bos"


def test_a_chat_template_that_tells_the_day_makes_one_text_on_every_day(tmp_path):
    template = "{{ strftime_now('%d %b %Y') }}|{{ date_string }}|{% for m in messages %}{{ m.content }}{% endfor %}"
    write_tokenizer(tmp_path, template=template)
    tokenizer = Tokenizer.pretrained("data.tokenizer.path", str(tmp_path))
    assert tokenizer.render_chat([{"role": "user", "content": "hello"}]) == "26 Jul 2024|26 Jul 2024|hello"


def test_a_line_break_behind_a_templates_last_eos_is_no_text(llama):
    ended, broken = llama.encode([f"{BOS}12<|eos|>", f"{BOS}12<|eos|>\n"], marked_up=True)
    assert ended.tolist() == broken.tolist() and ended[-1] != llama.eos_id
