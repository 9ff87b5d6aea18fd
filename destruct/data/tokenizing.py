"""The one tokenizer of a run: a pretrained one, or a byte-level BPE trained on the run's sources."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import tokenizers
from numpy.typing import NDArray
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from destruct.errors import DestructError
from destruct.models.pretrained import faults_of

CHAT_DATE = "26 Jul 2024"  # what Llama 3's template says by itself where it cannot know the day
EOS, PAD = "<|eos|>", "<|pad|>"
SMALLEST_VOCABULARY = 256 + 2  # every byte, and the two special tokens
# Encoding objects take about 50 times the memory of the ids: 6 GB for a book of 50 MB.
_LONGEST = 1 << 20  # characters tokenized as one text
_AT_ONCE = 1 << 22  # characters tokenized at once
_SEAM = re.compile(r"(?<=\S\n)(?=\S)|(?<=\S)(?= \S)")  # between words, where no tokenizer of words joins the two sides


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
    """A tokenizer as the rest of the project sees it: ids in int32, sizes in bytes.

    Args:
        fast: transformers' tokenizer; it names the eos and pad tokens, and renders chats.
        text: the text of its tokenizer.json, to the byte.

    Raises:
        DestructError: it names no eos token.
    """

    def __init__(self, fast: PreTrainedTokenizerFast, text: str):
        self.fast, self.text = fast, text
        self._marked, self._plain = (tokenizers.Tokenizer.from_str(text) for _ in range(2))
        for backend in (self._marked, self._plain):
            # Some tokenizer.json files cut and pad every text as their author's training did.
            backend.no_truncation()
            backend.no_padding()
        # "<|eos|>" inside a document is seven characters of text and must not end it.
        self._plain.encode_special_tokens = True
        # Merges never make a special token out of characters; other models look for whole pieces in their vocabulary.
        added = self._plain.get_added_tokens_decoder().items()
        self._special = {number: token.content for number, token in added if token.special}
        self._may_spell_specials = json.loads(text)["model"].get("type") != "BPE"
        if fast.eos_token_id is None:
            raise DestructError(
                "the tokenizer names no eos token, which ends documents and responses",
                "set eos_token in its tokenizer_config.json",
            )
        self.eos_id: int = fast.eos_token_id
        # Masks come from lengths, so a pad token equal to eos, or none at all, is as good as one of its own.
        self.pad_id: int = fast.eos_token_id if fast.pad_token_id is None else fast.pad_token_id
        self.vocab_size: int = max(self._plain.get_vocab(with_added_tokens=True).values()) + 1
        self.token_bytes = self._count_bytes()
        """(V,) int64: bytes of UTF-8 that each token stands for, 0 for special tokens."""

    @classmethod
    def trained(cls, text: str) -> Self:
        """What `train_tokenizer` made.

        Raises:
            DestructError: it lacks `<|eos|>` or `<|pad|>`.
        """
        backend = tokenizers.Tokenizer.from_str(text)
        for token in (EOS, PAD):
            if backend.token_to_id(token) is None:
                raise DestructError(f"the tokenizer lacks {token}", "use one made by train_tokenizer")
        fast = PreTrainedTokenizerFast(
            tokenizer_object=backend, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
        )
        return cls(fast, text)

    @classmethod
    def pretrained(cls, key: str, path: str, revision: str | None = None) -> Self:
        """That of a model on the hub or in a local folder.

        Args:
            key: of the config that names it, for errors.

        Raises:
            DestructError: it cannot be had, or has no tokenizer.json nor what one can be made from.
        """
        with faults_of(key, path, revision):
            fast = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
        if not fast.is_fast:
            raise DestructError(f"{key}: the tokenizer of {path} has no tokenizer.json", "name one that has")
        return cls(fast, fast.backend_tokenizer.to_str())

    def encode(
        self, texts: Sequence[str], marked_up: bool = False, begins: bool = True, ends: bool = True
    ) -> list[NDArray[np.int32]]:
        """Tokenize texts, on all cores: one (n_i,) int32 array each.

        Args:
            marked_up: special tokens stand in the texts as such, as a chat template writes them, bos included.
            begins: the texts begin documents: plain ones get the bos that a pretrained tokenizer begins with.
            ends: the texts end documents, which are to be without the eos, and white space behind it, at their end.
        """
        backend = self._marked if marked_up else self._plain
        if marked_up and ends:  # a template may put a line break after its last eos
            texts = [text.rstrip() for text in texts]
        parts = [_in_parts(text) for text in texts]
        heads = [head for head, *_ in parts]
        firsts = _ids(backend, heads, not marked_up) if begins else _ids_within(backend, heads)
        whole = [
            np.concatenate([self._without_eos(ids), *_ids_within(backend, others)]) if others else ids
            for ids, (_, *others) in zip(firsts, parts, strict=True)
        ]
        if not marked_up and self._may_spell_specials:
            whole = [self._unspelt(text, ids, begins) for text, ids in zip(texts, whole, strict=True)]
        return [self._without_eos(ids) for ids in whole] if ends or not marked_up else whole

    def _unspelt(self, text: str, ids: NDArray[np.int32], begins: bool) -> NDArray[np.int32]:
        """The ids of a plain text without the special tokens that its characters spell: those are cut in two."""
        literals = [content for content in self._special.values() if content in text]
        if not literals or not np.isin(ids[1:], list(self._special)).any():
            return ids
        cut = re.compile("|".join(f"(?<={re.escape(word[:1])})(?={re.escape(word[1:])})" for word in literals))
        head, *others = cut.split(text)
        first = _ids(self._plain, [head], True) if begins else _ids_within(self._plain, [head])
        return np.concatenate([self._without_eos(first[0]), *_ids_within(self._plain, others)])

    def _without_eos(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        return ids[:-1] if len(ids) and ids[-1] == self.eos_id else ids

    def decode(self, ids: Sequence[int] | NDArray[np.integer]) -> str:
        """The text of (n,) ids, special tokens left out; bytes that are not UTF-8 become U+FFFD."""
        return self._plain.decode([int(token) for token in ids], skip_special_tokens=True)

    @property
    def has_chat_template(self) -> bool:
        """Whether `render_chat` can be called."""
        return self.fast.chat_template is not None

    def render_chat(self, messages: list[dict[str, str]], answer_next: bool = False) -> str:
        """A conversation, messages of `role` and `content`, in the words of the tokenizer's chat template.

        Args:
            answer_next: end with the words that begin the assistant's turn.
        """
        # Templates that name the day would make other texts of the same rows tomorrow.
        template = f"{{% macro strftime_now(format) %}}{CHAT_DATE}{{% endmacro %}}{self.fast.get_chat_template()}"
        return self.fast.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=False,
            add_generation_prompt=answer_next,
            date_string=CHAT_DATE,
        )

    def save(self, folder: Path) -> None:
        """Write Hugging Face tokenizer files into `folder` (made if missing) for `AutoTokenizer.from_pretrained`."""
        try:
            self.fast.save_pretrained(str(folder))
        except OSError:
            raise
        except Exception as error:  # the Rust library has no other type for a full disk
            raise OSError(str(error)) from error
        # transformers writes its own rendering of it; a resumed run compares the text to the byte.
        (folder / "tokenizer.json").write_text(self.text, encoding="utf-8")

    def _count_bytes(self) -> NDArray[np.int64]:
        special = {token for token, added in self._plain.get_added_tokens_decoder().items() if added.special}
        # Byte-level BPE spells each byte as one character; SentencePiece a space as U+2581 and a lone byte as <0x0A>.
        by_byte = '"ByteLevel"' in json.dumps(json.loads(self.text).get("decoder"))
        sizes = np.zeros(self.vocab_size, dtype=np.int64)
        for token, number in self._plain.get_vocab(with_added_tokens=True).items():
            spelt = 1 if _BYTE.fullmatch(token) else len(token.replace("\u2581", " ").encode())
            sizes[number] = 0 if number in special else len(token) if by_byte else spelt
        sizes.flags.writeable = False
        return sizes


_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def _ids(backend: tokenizers.Tokenizer, texts: list[str], specials: bool) -> list[NDArray[np.int32]]:
    return [
        np.array(encoding.ids, dtype=np.int32)
        for batch in _batches(texts)
        for encoding in backend.encode_batch_fast(batch, add_special_tokens=specials)
    ]


def _ids_within(backend: tokenizers.Tokenizer, texts: list[str]) -> list[NDArray[np.int32]]:
    """Ids of texts that go on after others: many tokenizers put a space before whatever they are given.

    A character that merges with neither kind of beginning stands before each text; its tokens are left out.
    """
    anchors = ["a" if text[:1].isspace() else "\n" for text in texts]
    behind = _ids(backend, [anchor + text for anchor, text in zip(anchors, texts, strict=True)], False)
    lengths = {anchor: _ids(backend, [anchor], False)[0] for anchor in ("a", "\n")}
    plain = _ids(backend, texts, False)
    return [
        ids[len(start) :] if np.array_equal(ids[: len(start)], start) else alone
        for ids, start, alone in zip(behind, map(lengths.__getitem__, anchors), plain, strict=True)
    ]


def _batches(texts: list[str]) -> Iterator[list[str]]:
    """The texts in their order, so many at a time as have _AT_ONCE characters."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= _AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _in_parts(text: str) -> list[str]:
    """A text as parts of at most _LONGEST characters, cut between words where it has any."""
    parts = []
    start = 0
    while len(text) - start > _LONGEST:
        end = start + _LONGEST
        seam = None
        for found in _SEAM.finditer(text, end - 1000, end):
            seam = found
        end = seam.start() if seam is not None else end
        parts.append(text[start:end])
        start = end
    return [*parts, text[start:]]
