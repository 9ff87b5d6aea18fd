"""The store: documents come back as they were written, and a folder that is not whole is not one."""

import json
import subprocess
import sys

import numpy as np
import pytest

from destruct.data.store import ANYWHERE, FACTS, StoreWriter, TokenStore
from tests.data.stores import BOS, random_documents, store_of


@pytest.mark.parametrize(("vocab_size", "dtype"), [(600, "uint16"), (1 << 16, "uint16"), ((1 << 16) + 1, "int32")])
def test_documents_come_back_token_for_token_in_the_narrowest_type(tmp_path, vocab_size, dtype):
    documents = [[vocab_size - 1, 1], [3, 4, 5, 1], [9, 1]]
    store = store_of(tmp_path / "s", documents, [ANYWHERE, 2, 1], vocab_size)
    assert [store.document(number).tolist() for number in range(3)] == documents
    assert store.prompts.tolist() == [ANYWHERE, 2, 1] and store.starts.tolist() == [0, 2, 6, 8]
    assert store.facts.dtype == store.tokens.dtype.name == dtype
    assert (store.facts.documents, store.facts.tokens) == (3, 8)


def test_the_digest_is_of_the_documents_and_not_of_the_batches_they_came_in(tmp_path):
    documents = random_documents(0, 60, 20, bos=False)
    whole = store_of(tmp_path / "whole", documents)
    with StoreWriter(tmp_path / "parts", 600, BOS) as writer:
        for start in range(0, 60, 7):
            part = [np.array(document, np.int32) for document in documents[start : start + 7]]
            writer.add(part, [ANYWHERE] * len(part))
            writer.add([], [])
        assert writer.finish() == whole.facts
    others = [documents[1:], documents[:-1], [documents[0] + documents[1], *documents[2:]], documents[::-1]]
    digests = {store_of(tmp_path / str(number), other).facts.digest for number, other in enumerate(others)}
    assert len(digests | {whole.facts.digest}) == 5
    assert store_of(tmp_path / "prompts", documents, [1] * 60).facts.digest not in digests | {whole.facts.digest}


def test_the_bos_is_one_that_every_document_begins_with(tmp_path):
    assert store_of(tmp_path / "all", random_documents(0, 9, 5, bos=True)).facts.bos_id == BOS
    mixed = [*random_documents(0, 9, 5, bos=True), [10, 11, 1]]
    assert store_of(tmp_path / "mixed", mixed).facts.bos_id is None
    assert store_of(tmp_path / "last", mixed[::-1]).facts.bos_id is None
    assert store_of(tmp_path / "none", []).facts.bos_id is None


@pytest.mark.parametrize("file", ["tokens.bin", "starts.bin", "prompts.bin", FACTS])
def test_a_folder_with_a_file_missing_or_cut_short_is_no_store(tmp_path, file):
    folder = store_of(tmp_path / "s", random_documents(0, 9, 5, bos=True)).folder
    content = (folder / file).read_bytes()
    for fewer in (1, 8):  # in the middle of a number, and between two
        (folder / file).write_bytes(content[:-fewer])
        with pytest.raises(ValueError):
            TokenStore(folder)
    (folder / file).unlink()
    with pytest.raises(OSError):
        TokenStore(folder)


def test_a_writer_that_did_not_finish_leaves_no_store(tmp_path):
    with StoreWriter(tmp_path / "s", 600, None) as writer:
        writer.add([np.array([5, 1], np.int32)], [ANYWHERE])
    with pytest.raises(FileNotFoundError):
        TokenStore(tmp_path / "s")


READER = """
import sys
from pathlib import Path
import numpy as np
from destruct.data.store import TokenStore

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

store = TokenStore(Path(sys.argv[1]))
before = resident()
int(store.tokens[::512].sum())  # a number of every page
touched = resident() - before
store.release()
print(touched, resident() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what is resident")
def test_pages_that_were_read_do_not_stay_in_the_process(tmp_path):
    documents = [np.full(1 << 20, 5, np.int32)] * 32  # 64 MiB as uint16
    with StoreWriter(tmp_path / "s", 600, None) as writer:
        writer.add(documents, [ANYWHERE] * len(documents))
        writer.finish()
    done = subprocess.run([sys.executable, "-c", READER, str(tmp_path / "s")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    touched, left = map(int, done.stdout.split())
    assert touched > 60 << 20 and left < 4 << 20


def test_the_facts_are_json_that_a_person_can_read(tmp_path):
    store = store_of(tmp_path / "s", [[5, 6, 1]])
    facts = json.loads((store.folder / FACTS).read_text())
    assert facts["documents"] == 1 and facts["tokens"] == 3 and len(facts["digest"]) == 32
