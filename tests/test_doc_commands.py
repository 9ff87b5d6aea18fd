"""Every command of README, CONTRIBUTING and docs/ is run here, or parsed where the page says that it takes more.

`make docs-full` runs the others; tests/docs_commands/blocks.py says how a page marks them.
"""

import contextlib
import io
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

from destruct import doors
from tests.docs_commands.blocks import ROOT, Block, PageFault, blocks_of, missing, pages
from tests.docs_commands.dry_run import check, simple_commands
from tests.docs_commands.outputs import PAGE as OUTPUTS
from tests.docs_commands.outputs import Record, read, render
from tests.docs_commands.parsers import Refused
from tests.docs_commands.session import Said, copy_checkout, environment, run

SMALL = [
    "engine.backend=single",
    "run.num_epochs=2",
    "run.updates_per_epoch=2",
    "run.validation_windows=8",
    "run.checkpoint_every=1",
    "warmup.lm_updates=6",
    "warmup.value_updates=1",
    "rollout.batch_size=16",
    "curriculum.difficulty_sample_size=12",
    "frozen.refresh_every=1",
    "data.embedded_bytes=30000",
    "data.tokenizer.vocab_size=400",
]
"""What makes of configs/local.yaml a run of ten seconds that leaves what a whole one leaves."""

BLOCKS = {
    path.relative_to(ROOT).as_posix(): blocks_of(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())
    for path in pages()
    if path != OUTPUTS
}
RUN = [page for page, blocks in BLOCKS.items() if any(block.commands and not block.needs for block in blocks)]
PARSED = [block for blocks in BLOCKS.values() for block in blocks if block.commands and block.needs]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A copy of the checkout in which a small run stands for those that the pages make, runs/local and runs/mine."""
    copy = copy_checkout(tmp_path_factory.mktemp("docs") / "checkout")
    command = [sys.executable, "-m", "destruct.train", "--config", "configs/local.yaml", *SMALL]
    done = subprocess.run(command, cwd=copy, env=environment(copy), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    shutil.copytree(copy / "runs" / "local", copy / "runs" / "mine")
    return copy


def with_files(checkout: Path, page: str, to: Path) -> Path:
    """A copy of the copy for one page, with the files that the page has its reader write."""
    copy = shutil.copytree(checkout, to / "checkout", symlinks=True)
    for block in BLOCKS[page]:
        if block.file is not None:
            (copy / block.file).write_text("\n".join(block.lines) + "\n", encoding="utf-8")
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_do_what_it_says(page, checkout, tmp_path):
    here = with_files(checkout, page, tmp_path)
    blocks = [block for block in BLOCKS[page] if block.commands and not block.needs]
    answers = iter(run(blocks, here, timeout_s=600))
    for block in blocks:
        said = [next(answers) for _ in block.commands]
        codes = [0] * (len(said) - 1) + [block.exit_code]
        for answer, code in zip(said, codes, strict=True):
            tail = "\n".join(answer.lines[-12:])
            assert answer.code == code, f"{block.place}: {answer.command} ended with {answer.code}\n{tail}"
        lost = missing(block.quoted, [line for answer in said for line in answer.lines])
        assert not lost, f"{block.place}: the page quotes {lost}, which did not come"


@pytest.mark.slow
@pytest.mark.parametrize("block", PARSED, ids=lambda block: block.place)
def test_the_commands_that_take_more_would_be_read(block: Block, checkout, tmp_path):
    page = with_files(checkout, block.page, tmp_path) if any(b.file for b in BLOCKS[block.page]) else checkout
    for command in block.commands:
        check(command, page)


def test_what_a_page_quotes_of_a_long_command_is_of_the_shape_that_was_last_taken_down():
    records = {page: {said.command: said for said in record.said} for page, record in read(OUTPUTS).items()}
    for block in PARSED:
        taken = [records.get(block.page, {}).get(command) for command in block.commands]
        lines = [line for said in taken if said is not None for line in said.lines]
        if None in taken or "..." in lines:  # not run; or cut, and held against the quote when it was run
            continue
        assert not (lost := missing(block.quoted, lines)), f"{block.place}: {lost}: run make docs-full"


INLINE = re.compile(r"`((?:destruct|make|python -m) [^`]*)`")


@cache
def help_of(door: str, way: str) -> str:
    """What `--help` of a command says, or of its sub-command if it has that one."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        doors.main([door, *([way] if re.match(r"[a-z]+$", way) and door in ("config", "launch") else []), "--help"])
    return said.getvalue()


def faults_of(command: str, targets: set[str]) -> Iterator[str]:
    """What a command in a sentence, such as `destruct plan --config ...`, names that there is not."""
    program, name, *rest = command.split()
    if program == "destruct" and re.match(r"[a-z_]+$", name):
        options = [word.partition("=")[0] for word in rest if re.match(r"--[a-z]", word)]
        if name not in doors.DOORS:
            yield f"no command {name}"
        elif lost := [option for option in options if not re.search(rf"{option}\b(?!-)", help_of(name, rest[0]))]:
            yield f"no option {lost[0]}"
    elif program == "make" and re.match(r"[a-z-]+$", name) and name not in targets:
        yield f"no target {name}"
    elif program == "python" and "<" not in rest[0] and find_spec(rest[0]) is None:
        yield f"no module {rest[0]}"


def test_commands_in_running_text_name_what_there_is():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for path in pages():
        if path.name in ("outputs.md", "lab.md", "specification.md"):  # what was run, tried, and asked for
            continue
        for command in INLINE.findall(path.read_text(encoding="utf-8").replace("\n", " ")):
            assert not list(faults_of(command, targets)), f"{path.name}: {command}"


@pytest.mark.parametrize("command", ["destruct pln x", "destruct plan --gpu 8", "make trian", "python -m bench.none"])
def test_a_command_in_a_sentence_that_there_is_not_is_found(command):
    assert len(list(faults_of(command, {"train"}))) == 1


def one(text: str) -> Block:
    (block,) = [block for block in blocks_of(text, "page.md") if block.commands]
    return block


def test_a_block_knows_what_stands_above_and_below_it():
    block = one(
        "<!-- full: 4 min, hub; exit: 75 -->\n```bash\n# first\nmake \\\n  train\n\ncd x\n```\n\n```text\nppo 3\n```\n"
    )
    assert block.commands == ["make train", "cd x"]
    assert (block.needs, block.seconds, block.exit_code, block.quoted) == (("4 min", "hub"), 240, 75, ("ppo 3",))
    assert one("```bash\nls\n```\ntext\n\n```text\nno\n```\n").quoted == ()
    (file,) = blocks_of("<!-- file: a.py -->\n```python\nx = 1\n```\n", "page.md")
    assert (file.file, file.lines, file.commands) == ("a.py", ("x = 1",), [])


@pytest.mark.parametrize("text", ["```bash\nls\n", "<!-- full: soon -->\n```bash\nls\n```\n"])
def test_a_page_that_cannot_be_read_is_a_fault(text):
    with pytest.raises(PageFault, match="page.md:"):
        blocks_of(text, "page.md")


def test_a_quote_is_compared_by_the_first_words_of_its_lines_in_their_order():
    said = ["[rank 1] ppo   3/36  reward 0.3", "┃ source ┃ before ┃", "│ prose │ 6.9 │", "done"]
    assert missing(["[rank 0] ppo 36/36", "...", "│ prose │ 5.1 │", "└──┘"], said) == []
    assert missing(["│ prose │ 5.1 │", "┃ source ┃ before ┃"], said) == ["┃ source ┃ before ┃"]
    assert missing(["[rank 0] finished"], said) == ["[rank 0] finished"]


def test_the_words_of_a_line_are_taken_apart_as_a_shell_does():
    line = 'A=1 make train ARGS="x=1 y=2" > out.txt 2>&1 && ls | head  # and more'
    assert list(simple_commands(line)) == [["make", "train", "ARGS=x=1 y=2", "2"], ["ls"], ["head"]]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("frobnicate now", "nobody here knows"),
        ("destruct trian --config configs/local.yaml", "is not a command"),
        ("destruct plan --config configs/none.yaml", "configs/none.yaml"),
        ("destruct plan --config configs/base.yaml --gpu-count 8", "gpu-count"),
        ("destruct config show --config configs/local.yaml ppo.clip=0.1", "ppo.clip"),
        ("destruct launch slurm --nodes 3 --config configs/local.yaml --submit", "does not divide"),
        ("deepspeed --num_gpus 7 -m destruct.train --config configs/local.yaml", "does not divide"),
        ("deepspeed --gpus 2 -m destruct.train --config configs/local.yaml", "--gpus"),
        ("torchrun --nproc-per-node 2 -m destruct.train --config configs/local.yaml rnu.seed=1", "rnu"),
        ("sbatch --nodes=3 launch/slurm_multi_node.sbatch configs/local.yaml", "does not divide"),
        ("sbatch launch/slurm_none.sbatch", "no script"),
        ("sbatch --node=3 launch/slurm_multi_node.sbatch", "--node=3"),
        ("make trian", "trian"),
        ("pip install 'destruct[wanda]'", "no extra wanda"),
        ("make train CONFIG=configs/none.yaml", "configs/none.yaml"),
        ("python -m bench.curriculum --fully", "--fully"),
        ("timeout -s INT 60 destruct launch local --config configs/local.yaml kl.bound=-1", "kl.bound"),
        ("if true; then", "syntax error"),
    ],
)
def test_a_command_that_would_not_be_read_is_refused_with_the_reason(command, reason):
    with pytest.raises(Refused, match=re.escape(reason)):
        check(command, ROOT)


def test_what_was_taken_down_is_read_back():
    said = (Said("make train", 0, 198.2, ("ppo 36/36", "done")), Said("ls x", None, 0.0, ()))
    record = Record("README.md", "2026-11-27", "2 cores", said, (("sbatch x", "needs a Slurm cluster"),))
    text = render({"README.md": record})
    path = ROOT / "docs" / "none.md"
    assert read(path) == {} and "198.2 s, exit code 0" in text


def test_a_session_stops_at_the_first_command_that_ends_otherwise(checkout):
    blocks = blocks_of(
        "<!-- exit: 3 -->\n```bash\nX=5\n(exit 3)\n```\n```bash\necho $X\n(exit 4)\necho no\n```\n", "p.md"
    )
    codes = [(said.code, said.lines) for said in run(blocks, checkout, timeout_s=60)]
    assert codes == [(0, ()), (3, ()), (0, ("5",)), (4, ()), (None, ())]
