"""Fingerprints: they change with whatever decides the documents, with nothing else, and cost no second reading."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import xxhash

from destruct.config.data import DataConfig
from destruct.data import fingerprints
from destruct.data.fingerprints import CODE, FileDigests, code_digest
from destruct.data.formatters import Chat
from destruct.data.sources import open_sources
from tests.data.corpora import TEXTS, opened, write


def of(path: Path, **options) -> str:
    return opened(path, **options).fingerprint


def test_it_is_of_the_content_and_not_of_the_place(tmp_path):
    (tmp_path / "other").mkdir()
    one = of(write(tmp_path / "a.jsonl", TEXTS))
    assert one == of(write(tmp_path / "other" / "b.jsonl", TEXTS)) and len(bytes.fromhex(one)) == 16
    assert one != of(write(tmp_path / "a.jsonl", [*TEXTS[:-1], TEXTS[-1] + "."]))
    shutil.copy(tmp_path / "a.jsonl", tmp_path / "a.txt")
    assert of(tmp_path / "a.jsonl") != of(tmp_path / "a.txt"), "the same bytes, read otherwise"


@pytest.mark.parametrize(
    "options",
    [
        {"column": "body"},
        {"format": "fields", "template": "{text}"},
        {"format": "fields", "template": "{text}."},
        {"min_characters": 2},
        {"deduplicate": True},
        {"max_documents": 9},
        {"on_bad_row": "skip"},
        {"seed": 1},
        {"fraction": 0.2},
    ],
)
def test_every_key_that_decides_a_document_changes_it(tmp_path, options):
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps({"text": text, "body": text}) + "\n" for text in TEXTS))
    assert of(file, **options) != of(file)


def test_keys_that_decide_no_document_do_not_change_it(tmp_path):
    file = write(tmp_path / "a.jsonl", TEXTS)
    assert of(file, learnable=False, prior=3) == of(file)


def test_seed_and_share_count_only_where_they_hold_documents_out(tmp_path):
    write(tmp_path / "train.jsonl", TEXTS[:30])
    alone = of(tmp_path)
    write(tmp_path / "validation.jsonl", TEXTS[30:])
    assert of(tmp_path) == of(tmp_path, seed=1, fraction=0.5) != alone
    before = of(tmp_path)
    write(tmp_path / "validation.jsonl", TEXTS[31:])
    assert of(tmp_path) != before, "the held-out file counts too"


def test_the_chat_template_counts_where_it_is_used(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"messages": [{"role": "user", "content": "a"}], "text": "a"}) + "\n")
    one, other = (Chat(template, lambda messages, answer: "") for template in ("{{ a }}", "{{ b }}"))
    assert of(file, chat=one, format="chat") != of(file, chat=other, format="chat")
    assert of(file, chat=one) == of(file, chat=other) == of(file)


def test_the_module_of_the_users_function_counts(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two versions within one second would look the same
    file, module = write(tmp_path / "a.jsonl", TEXTS), tmp_path / "changing_formats.py"
    seen = []
    for body in ("row['text']", "row['text'] + '.'", "row['text']"):
        module.write_text(f"def own(row):\n    return {body}\n")
        sys.modules.pop("changing_formats", None)
        seen.append(of(file, format="changing_formats:own"))
    sys.modules.pop("changing_formats", None)
    assert seen[0] == seen[2] != seen[1]


def test_an_embedded_source_is_known_by_its_texts():
    def prints(seed: int, size: int) -> list[str]:
        sources = {"a": {"embedded": "markov"}, "b": {"embedded": "markov"}}
        config = DataConfig.model_validate({"sources": sources, "embedded_bytes": size})
        return [source.fingerprint for source in open_sources(config, seed)]

    assert prints(0, 10_000) == prints(0, 10_000)
    assert len({*prints(0, 10_000), *prints(1, 10_000), *prints(0, 20_000)}) == 6


def test_the_code_that_makes_documents_is_in_it(tmp_path, monkeypatch):
    """Every module of `data/` that `sources.py` reaches, but those that name, check or tokenize and make no text."""
    package = Path(fingerprints.__file__).parents[1]
    assert all((package / file).is_file() for file in CODE)
    others = {"columns.py", "hub_faults.py", "fingerprints.py"}  # they refuse, and digest
    others |= {"embedded.py", "grammars.py", "stdlib_text.py"}  # the digest of what they make is in it
    reached, found = {"sources.py"}, {"sources.py"}
    while found:
        texts = [(package / "data" / file).read_text() for file in found]
        found = {file.name for file in (package / "data").glob("*.py") for text in texts if imports(text, file.stem)}
        found -= reached
        reached |= found
    assert {file.removeprefix("data/") for file in CODE} == reached - others | {"seeding.py"}
    file, digest = write(tmp_path / "a.txt", ["one", "two"]), code_digest()
    before = of(file)
    monkeypatch.setattr(fingerprints, "CODE", CODE[1:])
    assert code_digest() != digest and of(file) != before


def imports(text: str, module: str) -> bool:
    return f"from destruct.data.{module} import" in text


@pytest.fixture
def settled(monkeypatch):
    """Files count as settled at once, which else takes two seconds."""
    monkeypatch.setattr(fingerprints, "_SETTLED_NS", -(10**12))


def test_a_digest_is_that_of_xxh3(tmp_path):
    (tmp_path / "a").write_bytes(content := os.urandom(9_000_000))
    assert FileDigests()("mine", tmp_path / "a") == xxhash.xxh3_128_hexdigest(content)


def test_an_unchanged_file_is_not_read_again_and_a_changed_one_is(tmp_path, settled):
    """What is remembered is falsified, so that an answer tells where it came from."""
    file, memory = write(tmp_path / "a.txt", ["one", "two"]), tmp_path / "memory"
    true = FileDigests(memory)("mine", file)
    remembered = json.loads((memory / "files.json").read_text())
    assert list(remembered) == [str(file)] and remembered[str(file)][-1] == true
    remembered[str(file)][-1] = "falsified"
    (memory / "files.json").write_text(json.dumps(remembered))
    assert FileDigests(memory)("mine", file) == "falsified"
    stat = file.stat()
    file.write_text("one\ntWo")  # of the same size, and its old time put back
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_size == stat.st_size and file.stat().st_mtime_ns == stat.st_mtime_ns
    assert FileDigests(memory)("mine", file) == FileDigests()("mine", file) not in ("falsified", true)
    other = write(tmp_path / "b.txt", ["three"])
    FileDigests(memory)("mine", other)
    assert set(json.loads((memory / "files.json").read_text())) == {str(file), str(other)}
    assert [path.name for path in memory.iterdir()] == ["files.json"]


def test_a_file_of_this_moment_is_not_remembered_since_it_may_change_within_a_tick(tmp_path, monkeypatch):
    monkeypatch.setattr("destruct.data.fingerprints._SETTLED_NS", 10**12)
    FileDigests(tmp_path / "memory")("mine", write(tmp_path / "a.txt", ["one", "two"]))
    assert not (tmp_path / "memory").exists()


def test_a_memory_that_is_broken_or_cannot_be_written_costs_no_more_than_time(tmp_path, settled):
    file, memory = write(tmp_path / "a.txt", ["one", "two"]), tmp_path / "memory"
    true = FileDigests()("mine", file)
    memory.mkdir()
    for content in ("", "[]", '{"cut', json.dumps({str(file): 3}), json.dumps({str(file): []})):
        (memory / "files.json").write_text(content)
        assert FileDigests(memory)("mine", file) == true
    assert FileDigests(file / "in the way")("mine", file) == true
