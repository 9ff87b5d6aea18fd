"""The one tokenizer of a run: a byte-level BPE trained on its sources, in Hugging Face's format."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers

from destruct.errors import DestructError

EOS, PAD = "<|eos|>", "<|pad|>"
SMALLEST_VOCABULARY = 256 + 2  # every byte, and the two special tokens
_BATCH = 256  # documents tokenized at once: their Encoding objects take about 50 times the memory of the ids


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> str:
    """Train a byte-level BPE whose alphabet is all 256 bytes, so that any text encodes and decodes back.

    Digits stay single, as in Llama's tokenizers, so that arithmetic is written digit by digit.

    Args:
        texts: documents; the result is a pure function of their words and the size, in any order.
        vocab_size: most entries, `<|eos|>` (id 0) and `<|pad|>` (id 1) included; little text fills fewer.

    Returns:
        the text of a tokenizer.json.

    Raises:
        DestructError: vocab_size is below 258.

    Source: Sennrich, Haddow and Birch, arXiv:1508.07909; over bytes as in GPT-2.
    """
    if vocab_size < SMALLEST_VOCABULARY:
        raise DestructError(
            f"data.tokenizer.vocab_size is {vocab_size}; 256 bytes and 2 special tokens take {SMALLEST_VOCABULARY}",
            f"set data.tokenizer.vocab_size to at least {SMALLEST_VOCABULARY}",
        )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[EOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer.to_str()


class Tokenizer:
    """A byte-level tokenizer as the rest of the project sees it: ids in int32, sizes in bytes.

    Args:
        text: the text of a tokenizer.json with a byte-level decoder and the tokens `<|eos|>` and `<|pad|>`.

    Raises:
        DestructError: it has another decoder, or lacks one of the two tokens.
    """

    def __init__(self, text: str):
        self._tokenizer = tokenizers.Tokenizer.from_str(text)
        # "<|eos|>" inside a document is seven characters of text and must not end it.
        self._tokenizer.encode_special_tokens = True
        if (json.loads(text).get("decoder") or {}).get("type") != "ByteLevel":
            raise DestructError("the tokenizer is not byte-level", "use one made by train_tokenizer")
        self.text = text
        """Text of the tokenizer.json, from which an equal tokenizer can be made."""
        self.eos_id, self.pad_id = self._id_of(EOS), self._id_of(PAD)
        self.vocab_size: int = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.token_bytes = self._count_bytes()
        """(V,) int64: bytes of UTF-8 that each token stands for, 0 for special tokens."""

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int32]]:
        """Tokenize documents, without special tokens: one (n_i,) int32 array each."""
        encoded: list[NDArray[np.int32]] = []
        for start in range(0, len(texts), _BATCH):
            batch = list(texts[start : start + _BATCH])
            encodings = self._tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            encoded += [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        return encoded

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """The text of (n,) ids, special tokens left out; bytes that are not UTF-8 become U+FFFD."""
        return self._tokenizer.decode([int(token) for token in ids], skip_special_tokens=True)

    def save(self, folder: Path) -> None:
        """Write Hugging Face tokenizer files into `folder` (made if missing) for `AutoTokenizer.from_pretrained`."""
        from transformers import PreTrainedTokenizerFast  # seconds of imports that only saving needs

        fresh = PreTrainedTokenizerFast(
            tokenizer_object=tokenizers.Tokenizer.from_str(self.text),
            eos_token=EOS,
            pad_token=PAD,
            clean_up_tokenization_spaces=False,
        )
        try:
            fresh.save_pretrained(str(folder))
        except OSError:
            raise
        except Exception as error:  # the Rust library has no other type for a full disk
            raise OSError(str(error)) from error
        # transformers writes its own rendering of it; a resumed run compares the text to the byte.
        (folder / "tokenizer.json").write_text(self.text, encoding="utf-8")

    def _id_of(self, token: str) -> int:
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise DestructError(f"the tokenizer lacks {token}", "use one made by train_tokenizer")
        return number

    def _count_bytes(self) -> NDArray[np.int64]:
        special = {token for token, added in self._tokenizer.get_added_tokens_decoder().items() if added.special}
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        for token, number in self._tokenizer.get_vocab(with_added_tokens=True).items():
            # Byte-level BPE spells each byte as one character.
            sizes[number] = 0 if number in special else len(token)
        sizes.flags.writeable = False
        return sizes
