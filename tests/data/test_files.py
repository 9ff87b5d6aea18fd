"""Local files: real ones, among them those that nobody would write on purpose."""

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from destruct.errors import DestructError
from destruct.exits import Exit
from tests.data.corpora import TEXTS, fault, load, opened, texts_of, write

SKIP = {"on_bad_row": "skip"}


def test_lines_end_with_lf_or_crlf_and_every_other_character_is_text(tmp_path):
    """NUL, a vertical tab, Unicode's own line separator and a lone CR are part of a document; a BOM is of none."""
    odd = ["nul \0 and \x07", "tab \v feed \f", "line \u2028 separator", "lone \r return", "\ufeff in the midst"]
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(odd).encode() + b"\n")
    assert sorted(texts_of(tmp_path / "a.txt")) == sorted(odd)
    lines = b"\r\n".join(json.dumps({"text": text}).encode() for text in odd)
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + lines)
    assert sorted(texts_of(tmp_path / "a.jsonl")) == sorted(odd)
    (tmp_path / "b.jsonl").write_bytes(b"\n".join(b'{"text": "%s"}' % text.encode() for text in odd))
    assert sorted(texts_of(tmp_path / "b.jsonl")) == sorted(odd), "nor need they be escaped"
    pq.write_table(pa.table({"text": odd}), tmp_path / "a.parquet")
    assert sorted(texts_of(tmp_path / "a.parquet")) == sorted(odd)


@settings(deadline=None)
@given(st.data())
def test_whatever_bytes_a_file_is_made_of_it_gives_documents_or_names_itself(tmp_path_factory, data):
    """Whole files with some bytes changed or taken out."""
    suffix, options = data.draw(st.sampled_from([".jsonl", ".txt", ".parquet"])), data.draw(st.sampled_from([{}, SKIP]))
    file = write(tmp_path_factory.mktemp("damaged") / f"a{suffix}", [f"text {n} \u00fc" for n in range(20)])
    content = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place : place + data.draw(st.integers(1, 4))] = data.draw(st.binary(max_size=4))
    file.write_bytes(content)
    try:
        for document in opened(file, **options).documents():
            document.text.encode()
    except DestructError as error:
        assert str(file) in error.problem or "1 different document" in error.problem


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".txt"])
def test_a_row_of_50_mb_is_a_document_like_any_other(tmp_path, suffix):
    large = "0123456789 words " * (50_000_000 // 17)
    got = texts_of(write(tmp_path / f"a{suffix}", ["small", large, "another"]))
    assert sorted(map(len, got)) == [5, 7, len(large)] and large in got


def test_a_list_or_a_dictionary_of_nulls_and_an_empty_one_are_rows_without_text(tmp_path):
    lines = ['{"dialog": []}', '{"dialog": null}', '{"dialog": ["a"]}', '{"dialog": ["b"]}']
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    assert sorted(texts_of(tmp_path / "a.jsonl", format="dialog")) == ["a", "b"]


def test_a_parquet_column_of_nulls_has_no_text_and_one_of_an_unknown_type_hides_no_other(tmp_path):
    pq.write_table(pa.table({"text": pa.nulls(3)}), tmp_path / "a.parquet")
    assert "holds no non-empty document" in fault(tmp_path / "a.parquet").problem
    mapped = pa.array([[("k", "v")]] * 2, pa.map_(pa.string(), pa.string()))
    pq.write_table(pa.table({"map": mapped, "text": ["a", "b"], "a.b": ["c", "d"]}), tmp_path / "b.parquet")
    assert sorted(texts_of(tmp_path / "b.parquet")) == ["a", "b"]
    assert sorted(texts_of(tmp_path / "b.parquet", column="a.b")) == ["c", "d"]
    assert "is map<string, string" in fault(tmp_path / "b.parquet", column="map").problem


@pytest.mark.parametrize("content", [b"", b"PAR1 and nothing of it"])
def test_a_parquet_file_that_is_none_is_refused_when_it_is_opened(tmp_path, content):
    (tmp_path / "a.parquet").write_bytes(content)
    assert f"{tmp_path / 'a.parquet'} cannot be read as parquet" in fault(tmp_path / "a.parquet", **SKIP).problem


def parquet_of_many_pages(path: Path, **options) -> bytes:
    rng = random.Random(0)
    texts = [rng.randbytes(300).hex() for _ in range(2000)]
    pq.write_table(pa.table({"text": texts}), path, data_page_size=20_000, use_dictionary=False, **options)
    return path.read_bytes()


def test_a_parquet_file_cut_short_is_refused_when_it_is_opened(tmp_path):
    whole = parquet_of_many_pages(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Exception, match="'mine': .*a.parquet cannot be read as parquet"):
        opened(tmp_path / "a.parquet")


CHECKED = {"write_page_checksum": True, "compression": "none"}


@pytest.mark.parametrize(("damage", "options"), [(b"0" * 64, CHECKED), (b"\xff" * 30_000, {})])
@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_a_damaged_page_is_an_error_whatever_is_done_with_bad_rows(tmp_path, damage, options, on_bad_row):
    """A few letters for others in a page that carries its checksum; all of a page that has none."""
    whole = bytearray(parquet_of_many_pages(tmp_path / "a.parquet", **options))
    middle = len(whole) // 2
    whole[middle : middle + len(damage)] = damage
    (tmp_path / "a.parquet").write_bytes(whole)
    problem = fault(tmp_path / "a.parquet", on_bad_row=on_bad_row).problem
    assert problem.startswith(f"source 'mine': {tmp_path / 'a.parquet'} cannot be read as parquet: ")


def test_a_parquet_file_whose_columns_have_broken_names_is_refused(tmp_path):
    """A footer has no checksum."""
    whole = write(tmp_path / "a.parquet", TEXTS, column="ordinary").read_bytes()
    (tmp_path / "a.parquet").write_bytes(whole.replace(b"ordinary", b"ordi\xffary"))
    assert f"{tmp_path / 'a.parquet'} cannot be read as parquet: " in fault(tmp_path / "a.parquet").problem


def test_compressed_lines_are_read_and_a_file_cut_short_is_refused(tmp_path):
    plain = write(tmp_path / "a.jsonl", TEXTS).read_bytes()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(plain))
    assert texts_of(tmp_path / "b.jsonl.gz") == texts_of(tmp_path / "a.jsonl")
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"one\ntwo\n"))
    assert sorted(texts_of(tmp_path / "c.txt.gz")) == ["one", "two"]
    (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(plain)[:-20])
    assert "d.jsonl.gz cannot be read as jsonl.gz: Compressed file ended" in fault(tmp_path / "d.jsonl.gz").problem
    (tmp_path / "e.txt.gz").write_bytes(b"not compressed")
    assert "e.txt.gz cannot be read as txt.gz: Not a gzipped file" in fault(tmp_path / "e.txt.gz").problem


def test_shards_are_read_in_the_order_of_their_names(tmp_path):
    for place, suffix in ((0, "00000-of-00003"), (1, "00001-of-00003"), (2, "00002-of-00003")):
        write(tmp_path / f"train-{suffix}.parquet", TEXTS[10 * place : 10 * place + 10])
    for place, part in ((3, "a"), (4, "b")):
        write(tmp_path / f"validation-{part}.jsonl", [f"held out {place} {n}" for n in range(5)])
    (tmp_path / "trained.parquet").write_text("another matter")
    got = load(tmp_path)
    assert got.train == TEXTS[:30] and got.validation == [f"held out {place} {n}" for place in (3, 4) for n in range(5)]
    assert load(tmp_path, max_documents=12).train == TEXTS[:12]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["train-0.jsonl", "train-1.txt"], "holds train-*.jsonl and train-*.txt"),
        (["train.jsonl", "train-1.jsonl"], "holds train-*.jsonl and train.jsonl"),
        (["train-00000-of-00003.jsonl", "train-00002-of-00003.jsonl"], "holds 2 train files, numbered of 3"),
        (["train-0-of-1.jsonl", "train-old.jsonl"], "holds 2 train files, numbered of 1"),
        (["train-0-of-2.jsonl", "train-1-of-3.jsonl"], "holds 2 train files, numbered of 2 and 3"),
        (["train-1-of-2.jsonl", "train-01-of-02.jsonl"], "holds 2 train files, numbered of 2"),
    ],
)
def test_a_folder_that_leaves_open_what_is_meant_is_refused(tmp_path, names, problem):
    for name in names:
        write(tmp_path / name, ["one", "two"])
    assert fault(tmp_path).problem == f"source 'mine': {tmp_path} {problem}"


def test_a_fault_in_the_second_shard_names_it(tmp_path):
    write(tmp_path / "train-0.jsonl", TEXTS)
    (tmp_path / "train-1.jsonl").write_text('{"text": "a"}\n{"text"\n')
    assert f"line 2 of {tmp_path / 'train-1.jsonl'}: not JSON" in fault(tmp_path).problem
    (
        write(tmp_path / "train-0.parquet", TEXTS),
        (tmp_path / "train-0.jsonl").unlink(),
        (tmp_path / "train-1.jsonl").unlink(),
    )
    write(tmp_path / "train-1.parquet", TEXTS, column="body")
    assert f"{tmp_path / 'train-1.parquet'} has no column 'text'" in fault(tmp_path).problem


@pytest.fixture
def closed(tmp_path):
    """A folder and a file that nobody but root may read, and somebody who is not root."""
    user = os.geteuid()
    write(tmp_path / "train.jsonl", TEXTS), write(tmp_path / "b.jsonl", TEXTS)
    os.chmod(tmp_path / "b.jsonl", 0)
    os.chmod(tmp_path, 0)
    if user == 0:
        os.seteuid(65534)
    yield tmp_path
    if user == 0:
        os.seteuid(0)
    os.chmod(tmp_path, 0o700)


def test_a_folder_that_may_not_be_read_is_named(closed):
    error = fault(closed)
    assert error.problem == f"source 'mine': {closed} cannot be read: Permission denied"
    assert error.remedy == "look after its permissions and its disk, or name another path"
    assert error.exit_code == Exit.ENVIRONMENT
    assert "b.jsonl cannot be read: Permission denied" in fault(closed / "b.jsonl").problem


def test_a_name_that_no_file_can_have_is_told_as_the_system_says(tmp_path):
    assert "cannot be read: File name too long" in fault(tmp_path / ("x" * 300 + ".txt")).problem


def test_a_file_that_is_gone_between_opening_and_reading_is_named(tmp_path):
    source = opened(write(tmp_path / "a.jsonl", TEXTS))
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(Exception, match="'mine': .*a.jsonl cannot be read"):
        next(source.documents())


@pytest.mark.parametrize("options", [{}, {"max_documents": 5}])
def test_a_file_that_is_written_to_while_it_is_read_is_an_error_and_no_other_data_set(tmp_path, options):
    """A line at the end, when all that is asked for has been read before it."""
    source = opened(write(tmp_path / "a.jsonl", TEXTS), **options)
    documents = source.documents()
    next(documents)
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write('{"text": "one more"}\n')
    with pytest.raises(DestructError, match="'mine': .*a.jsonl changed while it was read") as caught:
        list(documents)
    assert caught.value.exit_code == Exit.ENVIRONMENT and source.tally is None


MEASURED = """
import sys
from pathlib import Path
from tests.data.corpora import opened
from tests.data.peak import peak_mib

def read(file):
    count = sum(len(document.text) for document in opened(Path(file)).documents())
    return count, peak_mib()

(_, before), (count, after) = read(sys.argv[1]), read(sys.argv[2])
print(count, after - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_a_file_of_150_mb_is_read_in_a_few_mb_more_than_one_of_15(tmp_path, suffix):
    """One row group, as those have that are written by a line of pandas."""
    for name, rows in (("small", 1500), ("large", 15_000)):
        write(tmp_path / f"{name}{suffix}", [os.urandom(5000).hex() for _ in range(rows)])
    files = [str(tmp_path / f"{name}{suffix}") for name in ("small", "large")]
    done = subprocess.run([sys.executable, "-c", MEASURED, *files], capture_output=True, text=True, check=True)
    count, grown = map(int, done.stdout.split())
    assert count == 150_000_000 and grown < 40
