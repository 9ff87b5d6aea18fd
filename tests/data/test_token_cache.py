"""The token cache: what it holds, when it is made anew, and what killed, hurried and starved builders leave behind."""

import json
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import filelock
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from destruct.config.data import DataConfig
from destruct.data.sources import Source, open_source
from destruct.data.store import ANYWHERE
from destruct.data.token_cache import CachedSource, TokenCache, cache_key
from destruct.data.tokenizing import Tokenizer, train_tokenizer
from destruct.errors import DestructError
from destruct.exits import Exit

ROOT = Path(__file__).parents[2]
TEXTS = [f"text number {number}: " + "words and more " * (number % 40) for number in range(1500)]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.trained(train_tokenizer(TEXTS, 400))


def write(file: Path, texts: list[str] = TEXTS) -> Path:
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


def opened(path: Path, **keys: object) -> Source:
    config = DataConfig.model_validate({"sources": {"mine": {"path": str(path), **keys}}})
    return open_source("mine", config.sources["mine"], config, seed=0)


def unheard(documents: int, tokens: int) -> None:
    raise AssertionError("nothing was to be built")


def quiet(documents: int, tokens: int) -> None:
    """Who builds need not be watched."""


def open_cache(folder: Path, source: Source, tokenizer: Tokenizer, watch=quiet, patience_s: float = 30) -> CachedSource:
    return TokenCache(folder, patience_s).open(source, tokenizer, watch)


def folders(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_dir())


def test_a_cache_holds_every_document_in_order_on_its_side_with_an_eos(tmp_path, tokenizer):
    source = opened(write(tmp_path / "a.jsonl"))
    told: list[tuple[int, int]] = []
    got = open_cache(tmp_path / "cache", source, tokenizer, lambda *numbers: told.append(numbers))
    documents = list(source.documents())
    for store, is_held_out in ((got.train, False), (got.held_out, True)):
        texts = [document.text for document in documents if document.held_out == is_held_out]
        assert store.facts.documents == len(texts) > 100
        for number, text in enumerate(texts):
            *ids, last = store.document(number)
            assert ids == tokenizer.encode([text])[0].tolist() and last == tokenizer.eos_id
        assert set(store.prompts.tolist()) == {ANYWHERE}
    assert told[-1] == (1500, got.train.facts.tokens + got.held_out.facts.tokens)
    assert got.tally == source.tally.line
    assert "1,500 rows" in got.tally


def test_prompts_of_their_own_are_cut_where_they_end_and_get_an_eos_only_after_a_continuation(tmp_path, tokenizer):
    (tmp_path / "prompting_rows.py").write_text("def pair(row):\n    return row['text'], row['answer']\n")
    rows = [{"text": f"ask {n} ", "answer": f"say {n}" if n % 3 else ""} for n in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sys.path.insert(0, str(tmp_path))
    try:
        source = opened(tmp_path / "a.jsonl", format="prompting_rows:pair")
        got = open_cache(tmp_path / "cache", source, tokenizer)
    finally:
        sys.path.remove(str(tmp_path))
    kept = [document for document in source.documents() if not document.held_out]
    for number, document in enumerate(kept):
        asked, said = document.text[: document.prompt_end], document.text[document.prompt_end :]
        want = tokenizer.encode([asked])[0].tolist()
        assert got.train.prompts[number] == len(want)
        if said:
            want += [*tokenizer.encode([said])[0].tolist(), tokenizer.eos_id]
        assert got.train.document(number).tolist() == want
    assert any(document.prompt_end == len(document.text) for document in kept)


def test_a_cache_is_made_once_whatever_runs_want_it(tmp_path, tokenizer):
    path, cache = write(tmp_path / "a.jsonl"), tmp_path / "cache"
    first = open_cache(cache, opened(path), tokenizer)
    moved = path.rename(tmp_path / "b.jsonl")
    again = open_cache(cache, opened(moved), Tokenizer.trained(tokenizer.text), unheard)
    assert again.train.facts == first.train.facts and again.tally == first.tally
    assert len(folders(cache)) == 1


def test_another_text_filter_or_tokenizer_has_a_cache_of_its_own(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl")
    plain = opened(path)
    other = Tokenizer.trained(train_tokenizer(TEXTS, 270))
    keys = {cache_key(plain, tokenizer), cache_key(plain, other), cache_key(opened(path, deduplicate=True), tokenizer)}
    write(path, [*TEXTS[:-1], "another last text"])
    keys.add(cache_key(opened(path), tokenizer))
    assert len(keys) == 4
    assert cache_key(opened(write(path)), tokenizer) == cache_key(plain, tokenizer)


@pytest.mark.parametrize("file", ["train/tokens.bin", "held_out/starts.bin", "train/facts.json", "tally.txt"])
def test_a_damaged_cache_is_made_anew(tmp_path, tokenizer, file):
    source, cache = opened(write(tmp_path / "a.jsonl")), tmp_path / "cache"
    first = open_cache(cache, source, tokenizer).train.facts
    (name,) = folders(cache)
    damaged = cache / name / file
    damaged.unlink()
    if file != "tally.txt":
        damaged.write_bytes(b"{")
    assert open_cache(cache, source, tokenizer).train.facts == first
    open_cache(cache, source, tokenizer, unheard)
    assert folders(cache) == [name]


def test_a_text_longer_than_what_is_tokenized_at_once_has_the_tokens_of_one_that_is_not(tmp_path, tokenizer):
    long = " ".join(TEXTS)[:1_200_000]
    long += " word" * ((1_200_000 - len(long)) // 5) + "\n\nend <|eos|> of it"
    source = opened(write(tmp_path / "a.jsonl", [long, "a short one", "another short one"]))
    got = open_cache(tmp_path / "cache", source, tokenizer)
    texts = [document.text for document in source.documents()]
    stores = [got.train, got.held_out]
    documents = [store.document(number) for store in stores for number in range(store.facts.documents)]
    ids = max(documents, key=len)
    assert len(max(texts, key=len)) > 1 << 20
    assert ids.tolist() == [*tokenizer._plain.encode(long).ids, tokenizer.eos_id]


def worker(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.data.cache_worker", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def files(tmp_path, tokenizer) -> tuple[Path, Path, Path]:
    """A source of several batches, an empty cache, a tokenizer."""
    path = write(tmp_path / "a.jsonl", [f"{number} {text}" for number in range(8) for text in TEXTS])
    (tmp_path / "tokenizer.json").write_text(tokenizer.text)
    return path, tmp_path / "cache", tmp_path / "tokenizer.json"


@pytest.mark.slow
def test_a_killed_builder_leaves_nothing_that_is_taken_for_a_cache(files, tokenizer):
    path, cache, _ = files
    process = worker(*files, "--die-at", 1)
    assert process.wait(timeout=60) == -signal.SIGKILL
    assert [name.rsplit(".", 1)[-1] for name in folders(cache)] == ["tmp"], "what it had begun"
    source = opened(path)
    got = open_cache(cache, source, tokenizer)
    assert got.train.facts.documents + got.held_out.facts.documents == len(list(source.documents()))
    assert len(folders(cache)) == 1 and not folders(cache)[0].endswith(".tmp")


@pytest.mark.slow
def test_of_two_processes_that_want_one_cache_at_once_one_builds_and_both_read_it(files):
    both = [worker(*files, "--slow", 0.3) for _ in range(2)]
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    tokens, built, digests = zip(*(out.split() for out, _ in said), strict=True)
    assert sorted(built) == ["0", "1"] and len(set(tokens)) == len(set(digests)) == 1


@pytest.fixture
def held(tmp_path, tokenizer) -> tuple[Source, Path, filelock.FileLock]:
    """A source, a cache, and the lock that its builder would hold."""
    source, cache = opened(write(tmp_path / "a.jsonl")), tmp_path / "cache"
    cache.mkdir()
    return source, cache, filelock.FileLock(cache / f"mine-{cache_key(source, tokenizer)}.lock")


def test_a_builder_that_stands_still_is_not_waited_for(held, tokenizer):
    source, cache, lock = held
    with (
        lock,
        pytest.raises(DestructError, match=r"'mine': another process holds .* no sign of life") as error,
    ):
        open_cache(cache, source, tokenizer, unheard, patience_s=0.2)
    assert error.value.exit_code == Exit.ENVIRONMENT and "data.cache" in error.value.remedy


@pytest.mark.slow
def test_a_builder_that_reads_nothing_for_long_is_waited_for_while_it_lives(tmp_path, tokenizer, monkeypatch):
    """Its first row takes three times the other's patience: a download may."""
    (tmp_path / "slow_rows.py").write_text(
        "import pathlib, time\n\ndef text(row, slept=[]):\n    if not slept:\n"
        f"        pathlib.Path({str(tmp_path / 'reads')!r}).touch()\n        slept.append(time.sleep(9))\n"
        "    return row['text']\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("destruct.data.made_once._BEAT_S", 0.1)
    source, cache = opened(write(tmp_path / "a.jsonl"), format="slow_rows:text"), tmp_path / "cache"
    with ThreadPoolExecutor(2) as threads:
        builder = threads.submit(open_cache, cache, source, tokenizer)
        while not (tmp_path / "reads").exists():
            assert not builder.done()
            time.sleep(0.01)
        waiting = threads.submit(open_cache, cache, source, tokenizer, unheard, patience_s=3.0)
        assert waiting.result(timeout=30).train.facts == builder.result(timeout=30).train.facts


def test_a_full_disk_ends_the_build_with_the_folder_named_and_leaves_nothing(tmp_path, tokenizer):
    source, cache = opened(write(tmp_path / "a.jsonl")), tmp_path / "cache"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(DestructError, match=rf"'mine': the token cache in {cache} cannot be written") as error:
            open_cache(cache, source, tokenizer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.exit_code == Exit.ENVIRONMENT and "data.cache" in error.value.remedy
    assert folders(cache) == []
    assert open_cache(cache, source, tokenizer).train.facts.documents > 1000


def test_a_folder_that_cannot_be_made_is_told(tmp_path, tokenizer):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(DestructError, match="cannot be written"):
        open_cache(tmp_path / "file" / "cache", opened(write(tmp_path / "a.jsonl")), tokenizer)


def test_a_fault_of_the_source_is_told_as_it_is_and_leaves_nothing(tmp_path, tokenizer):
    path = write(tmp_path / "a.jsonl")
    with path.open("a") as file:
        file.write('{"text": "cut')
    with pytest.raises(DestructError, match=r"line 1501 of .*a\.jsonl") as error:
        open_cache(tmp_path / "cache", opened(path), tokenizer)
    assert error.value.exit_code == Exit.CONFIG and folders(tmp_path / "cache") == []


def test_a_cache_that_cannot_be_read_for_want_of_memory_stays_as_it_is(tmp_path, tokenizer):
    """ENOMEM of mmap is no damage: other runs may be reading it."""
    source, cache = opened(write(tmp_path / "a.jsonl")), tmp_path / "cache"
    open_cache(cache, source, tokenizer)
    (name,) = folders(cache)
    before = (cache / name).stat().st_ino
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("destruct.data.store.mmap.mmap", lambda *_, **__: (_ for _ in ()).throw(OSError(12, "no memory")))
        with pytest.raises(DestructError, match="no memory"):
            open_cache(cache, source, tokenizer, unheard)
    assert (cache / name).stat().st_ino == before and open_cache(cache, source, tokenizer, unheard)


def test_a_tokenizer_that_names_its_bos_otherwise_has_a_cache_of_its_own(tmp_path, tokenizer):
    source, other = opened(write(tmp_path / "a.jsonl")), Tokenizer.trained(tokenizer.text)
    other.fast.bos_token = "<|pad|>"
    assert cache_key(source, other) != cache_key(source, tokenizer)


@pytest.mark.parametrize("prefixed", ["Metaspace", "Prepend"])
def test_an_answer_has_the_tokens_that_it_has_behind_its_prompt(tmp_path, prefixed):
    """SentencePiece tokenizers put a space before whatever they are given: it must not come between the two."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=False))
    if prefixed == "Metaspace":
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    rows = [{"q": f"{n}+{n}=", "a": f"{2 * n} it is" if n % 2 else f" {2 * n}"} for n in range(200)]
    texts = [row["q"] + row["a"] for row in rows]
    trainer = trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>", "</s>"], initial_alphabet=["\n", "a"])
    backend.train_from_iterator(texts, trainer)
    mine = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"), backend.to_str())
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "pairs_of_rows.py").write_text("def pair(row):\n    return row['q'], row['a']\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        got = open_cache(tmp_path / "cache", opened(tmp_path / "a.jsonl", format="pairs_of_rows:pair"), mine).train
    ids = [got.document(number).tolist()[:-1] for number in range(got.facts.documents)]
    stored = {"".join(map(backend.id_to_token, document)).replace("\u2581", " ") for document in ids}
    assert len(stored) > 150 and stored <= {f" {text}" for text in texts}, "one space, and that at the beginning"


def test_special_tokens_in_a_plain_text_are_characters_for_a_unigram_model_too(tmp_path):
    """It looks for the longest pieces of its vocabulary, and "</s>" is one of them."""
    pieces = [("<unk>", 0.0), ("</s>", -1.0), ("\u2581", -2.0), *((letter, -3.0) for letter in "ab</s>\n")]
    backend = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.add_special_tokens(["<unk>", "</s>"])
    mine = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"), backend.to_str())
    assert mine.eos_id in backend.encode("a</s>b").ids, "what it would make of it"
    for text in ("a</s>b", "</s>", "ab</s>", "a</s></s>b"):
        (ids,) = mine.encode([text])
        assert mine.eos_id not in ids and "".join(map(backend.id_to_token, ids.tolist())) == f"\u2581{text}"
