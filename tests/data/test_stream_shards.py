"""Shards on the disk: what they hold, which of them stay, and what killed and starved builders leave behind."""

import json
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import filelock
import numpy as np
import pytest

from destruct.data.stream_shards import SHARDS_KEPT, StreamShards
from destruct.data.tokenizing import Tokenizer, train_tokenizer
from destruct.errors import DestructError
from destruct.exits import Exit
from tests.data.streams import shards_of, stream_of, texts, unwatched, write_files

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.trained(train_tokenizer(texts(0, 400), 300))


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


def unheard(documents: int, tokens: int) -> None:
    raise AssertionError("nothing was to be built")


def digests(shards: StreamShards, watch=unwatched) -> list[str]:
    """Of all shards, one after another."""
    found: list[str] = []
    while (digest := shards.open(len(found), lambda stores: stores.digest, watch)) is not None:
        found.append(digest)
    return found


def folders(shards: StreamShards) -> list[str]:
    return sorted(path.name for path in shards.folder.iterdir() if path.is_dir())


def test_the_shards_hold_the_tokens_of_all_documents_in_order_and_of_the_first_ones_what_is_held_out(
    tmp_path, files, tokenizer
):
    source = stream_of(files)
    shards, number, train = shards_of(tmp_path, source, tokenizer), 0, []
    sides: list[list[str]] = [[], []]
    for document in source.documents():
        sides[document.held_out].append(document.text)
    first = shards.cached(unwatched)
    while (stores := shards.open(number, lambda stores: stores, unwatched)) is not None:
        train += [stores.train.document(n).tolist() for n in range(stores.train.facts.documents)]
        assert number == 0 or stores.held_out.facts.documents == 0
        number += 1
    assert number == 8
    assert train == [[*ids.tolist(), tokenizer.eos_id] for ids in tokenizer.encode(sides[0])]
    held = [first.held_out.document(n).tolist() for n in range(first.held_out.facts.documents)]
    assert held == [[*ids.tolist(), tokenizer.eos_id] for ids in tokenizer.encode(sides[1][: len(held)])]
    assert 1 < len(held) < len(sides[1])


def test_few_shards_stay_and_any_other_is_made_again_from_what_stands_beside_it(tmp_path, files, tokenizer):
    shards = shards_of(tmp_path, stream_of(files), tokenizer)
    whole = digests(shards)
    assert len({*whole}) == len(whole) == 8
    assert folders(shards) == ["shard-00000", *[f"shard-{number:05}" for number in range(8 - SHARDS_KEPT, 8)]]
    other = shards_of(tmp_path, stream_of(files), tokenizer)
    for number in (2, 1, 3, 6):
        assert other.open(number, lambda stores: stores.digest, unwatched) == whole[number]
        assert f"shard-{number:05}" in folders(other) and len(folders(other)) == 1 + SHARDS_KEPT
    assert digests(shards_of(tmp_path, stream_of(files), tokenizer)) == whole, "whoever made them"
    shutil.rmtree(tmp_path)
    assert digests(shards_of(tmp_path, stream_of(files), tokenizer)) == whole, "and from nothing"


def test_a_shard_far_into_the_stream_is_reached_from_the_last_one_that_is_known(tmp_path, files, tokenizer):
    whole = digests(shards_of(tmp_path / "a", stream_of(files), tokenizer))
    shards = shards_of(tmp_path / "b", stream_of(files), tokenizer)
    assert shards.is_new
    assert shards.open(6, lambda stores: stores.digest, unwatched) == whole[6]
    assert not shards.is_new and shards.after(6) is not None and shards.after(7) is None
    assert shards.open(9, lambda stores: stores.digest, unwatched) is None, "behind the end"


def test_what_was_used_last_goes_last(tmp_path, files, tokenizer):
    """Two runs at different places of one stream: each finds what it draws from."""
    shards = shards_of(tmp_path, stream_of(files), tokenizer)
    for number in (1, 2, 3, 4, 1, 2, 5):
        shards.open(number, lambda stores: stores, unwatched)
    assert folders(shards) == [f"shard-{number:05}" for number in (0, 1, 2, 4, 5)]


def test_a_shard_that_somebody_is_making_is_not_removed(tmp_path, files, tokenizer):
    shards = shards_of(tmp_path, stream_of(files), tokenizer)
    shards.open(1, lambda stores: stores, unwatched)
    with filelock.FileLock(shards.path(1, ".lock")):
        for number in (2, 3, 4, 5):
            shards.open(number, lambda stores: stores, unwatched)
        assert "shard-00001" in folders(shards)
    shards.open(6, lambda stores: stores, unwatched)
    assert folders(shards) == [f"shard-{number:05}" for number in (0, 3, 4, 5, 6)]


def test_removed_tokens_are_read_on_by_who_has_them_open(tmp_path, files, tokenizer):
    shards = shards_of(tmp_path, stream_of(files), tokenizer)
    stores = shards.open(1, lambda stores: stores, unwatched)
    assert stores is not None
    before = np.array(stores.train.tokens)
    stores.train.release()
    digests(shards)
    assert "shard-00001" not in folders(shards)
    np.testing.assert_array_equal(stores.train.tokens, before)


@pytest.mark.parametrize("lost", ["shard-00003.json", "shard-00003/train/tokens.bin", "shard-00000/tally.txt"])
def test_a_damaged_shard_is_made_anew(tmp_path, files, tokenizer, lost):
    shards = shards_of(tmp_path, stream_of(files), tokenizer)
    whole = [shards.open(number, lambda stores: stores.digest, unwatched) for number in range(5)]
    (shards.folder / lost).write_text("{")
    if lost.endswith("tally.txt"):
        (shards.folder / lost).unlink()
    again = shards_of(tmp_path, stream_of(files), tokenizer)
    assert [again.open(number, lambda stores: stores.digest, unwatched) for number in range(5)] == whole


@pytest.mark.parametrize(("fraction", "verb"), [(1e-9, "hold out"), (1 - 1e-9, "train on")])
def test_a_first_shard_without_both_sides_is_told_with_its_counts(tmp_path, files, tokenizer, fraction, verb):
    shards = shards_of(tmp_path, stream_of(files, fraction=fraction), tokenizer)
    with pytest.raises(
        DestructError, match=rf"'mine': the first 0\.0039\d* MiB .* nothing to {verb} \(34 rows"
    ) as error:
        shards.cached(unwatched)
    assert "shard_mib" in error.value.remedy and "validation_split" in error.value.remedy
    assert folders(shards) == [] and shards.is_new


def test_a_full_disk_ends_the_build_with_the_folder_named_and_leaves_nothing(tmp_path, files, tokenizer):
    shards = shards_of(tmp_path, stream_of(files, shard_mib=1.0), tokenizer)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        with pytest.raises(DestructError, match="'mine': the token cache in .* cannot be written") as error:
            shards.cached(unwatched)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.exit_code == Exit.ENVIRONMENT and folders(shards) == []
    assert shards.cached(unwatched).train.facts.documents > 100


@pytest.fixture(scope="module")
def large(tmp_path_factory, tokenizer) -> tuple[Path, Path]:
    """Files of 4 MB of text in all, and a tokenizer."""
    folder = tmp_path_factory.mktemp("large")
    write_files(folder, (8_000, 12_000, 4_000))
    (folder / "tokenizer.json").write_text(tokenizer.text)
    return folder, folder / "tokenizer.json"


def worker(large: tuple[Path, Path], cache: Path, *arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.data.stream_worker", large[0], cache, large[1], *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen([str(word) for word in command], cwd=ROOT, stdout=pipe, stderr=pipe, text=True)


def said(process: subprocess.Popen) -> list[list[str]]:
    out, err = process.communicate(timeout=100)
    assert process.returncode == 0, err
    return [line.split() for line in out.splitlines()]


@pytest.mark.slow
def test_a_builder_killed_in_a_shard_leaves_those_before_it_and_the_rest_is_as_it_would_have_been(tmp_path, large):
    *whole, _ = said(worker(large, tmp_path / "a"))
    assert len(whole) == 3
    killed = worker(large, tmp_path / "b", "--die-in", 2)
    killed.communicate(timeout=100)
    assert killed.returncode == -signal.SIGKILL
    (stream,) = (tmp_path / "b").iterdir()
    assert [path.name.split(".")[0] for path in stream.glob("*.tmp")] == ["shard-00002"], "what it had begun"
    *again, _ = said(worker(large, tmp_path / "b"))
    assert [digest for *_, digest in again] == [digest for *_, digest in whole]
    assert not list(stream.glob("*.tmp"))


@pytest.mark.slow
def test_of_two_processes_that_want_a_shard_at_once_one_builds_it_and_both_read_it(tmp_path, large):
    both = [worker(large, tmp_path, "--shards", 3, "--slow", 0.2) for _ in range(2)]
    first, second = ([line for line in said(process) if len(line) == 3] for process in both)
    assert [digest for *_, digest in first] == [digest for *_, digest in second]
    assert [int(one[1]) + int(other[1]) for one, other in zip(first, second, strict=True)] == [1, 1, 1]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_stream(tmp_path, large):
    """Within 40 MiB, of streams of one shard and of three."""
    peaks = [int(said(worker(large, tmp_path / str(count), "--shards", count))[-1][0]) for count in (1, 3)]
    assert peaks[1] - peaks[0] < 40


def test_what_stands_beside_the_shards_counts_all_rows_and_what_later_ones_hold_out_for_nobody(
    tmp_path, files, tokenizer
):
    source = stream_of(files)
    shards = shards_of(tmp_path, source, tokenizer)
    digests(shards)
    facts = [json.loads(shards.path(number, ".json").read_text()) for number in range(8)]
    last = facts[-1]["next"]
    assert last["ended"] and last["taken"] == 227 and last["place"]["rows"] == 241
    assert sum(shard["tally"]["rows"] for shard in facts) == 241
    sides = [document.held_out for document in source.documents()]
    assert sum(shard["tally"]["trained"] for shard in facts) == sides.count(False)
    assert sum(shard["tally"]["held_out"] for shard in facts) == sides.count(True)
