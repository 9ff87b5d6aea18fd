"""`destruct generate`: what it says, how, and what it refuses to speak from."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from destruct import export, generate
from tests.exported import complaint
from tests.test_export import trained

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rounded(tmp_path_factory) -> dict:
    """A run in bfloat16."""
    return trained(tmp_path_factory.mktemp("rounded"))


@pytest.fixture(scope="module")
def folder(rounded, tmp_path_factory) -> Path:
    """Its export."""
    to: Path = tmp_path_factory.mktemp("exported") / "out"
    assert export.main([str(rounded["run"]), "--to", str(to)]) == 0
    return to


def said(capfd, *arguments: str) -> str:
    """What is written to stdout."""
    capfd.readouterr()
    assert generate.main(list(arguments)) == 0
    out, err = capfd.readouterr()
    assert err == "" and out.endswith("\n")
    return out


def refused(capfd, *arguments: str) -> str:
    """What is said on two lines of a call that does not end well."""
    capfd.readouterr()
    assert generate.main(list(arguments)) in (2, 3)
    out, err = capfd.readouterr()
    assert out == "" and err.count("\n") == 2, err
    return err


def test_a_prompt_is_continued_alike_from_the_run_and_from_its_folder(rounded, folder, capfd):
    short = ["1 + 1 =", "--max-tokens", "24", "--seed"]
    texts = [said(capfd, "--model", str(model), *short, "1") for model in (rounded["run"], folder)]
    assert texts[0] == texts[1] != said(capfd, "--model", str(folder), *short, "2")
    assert texts[0].startswith("1 + 1 =")


@torch.no_grad()
def test_a_temperature_of_0_takes_the_likeliest_token_each_time(folder, capfd):
    model, tokenizer = (auto.from_pretrained(folder) for auto in (AutoModelForCausalLM, AutoTokenizer))
    tokens = tokenizer("1 + 1 =", return_tensors="pt").input_ids
    for _ in range(12):
        tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], 1)
    want = tokenizer.decode(tokens[0].tolist()).partition(tokenizer.eos_token)[0] + "\n"
    for seed in ("1", "2"):
        cold = ["--max-tokens", "12", "--temperature", "0", "--seed", seed]
        assert said(capfd, "--model", str(folder), "1 + 1 =", *cold) == want


def test_without_a_number_as_many_tokens_follow_as_there_is_room_for(folder, tmp_path, capfd):
    small = Path(shutil.copytree(folder, tmp_path / "small"))
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 32}))
    assert said(capfd, "--model", str(small), "1 + 1 =").startswith("1 + 1 =")
    assert "the model holds 32" in refused(capfd, "--model", str(small), "1 + 1 =", "--max-tokens", "32")
    assert "the model holds 32" in refused(capfd, "--model", str(small), "1 + 1 = " * 20)


@pytest.mark.parametrize("lost", ["a weight", "its size"])
def test_nothing_is_said_from_weights_that_would_be_random(folder, tmp_path, capfd, lost):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    tensors[name] = tensors[name][:-1].clone()
    if lost == "a weight":
        del tensors[name]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    assert f"lacks 1 weight(s) of its LlamaForCausalLM, such as {name}" in refused(capfd, "--model", str(copy), "a")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ([""], "the prompt has 0 tokens"),
        (["a", "--max-tokens", "600"], "the model holds 512"),
        (["a", "--max-tokens", "0"], "is no number of tokens"),
        (["a", "--temperature", "-1"], "is no temperature"),
        (["a", "--temperature", "1e-39"], "write 0, or more than 0.01"),
        (["a", "--temperature", "nan"], "is no temperature"),
        ([os.fsdecode(b"caf\xe9")], "the prompt is not UTF-8 text"),
    ],
)
def test_what_cannot_be_continued_is_told(folder, capfd, arguments, problem):
    assert problem in refused(capfd, "--model", str(folder), *arguments)


def test_a_damaged_or_unnamed_checkpoint_is_told_in_words_that_fit_this_command(rounded, tmp_path, capfd):
    run = Path(shutil.copytree(rounded["run"], tmp_path / "run"))
    newest = run / "checkpoints" / "step-00000002"
    with (newest / "policy" / "state.pt").open("r+b") as file:
        file.write(b"\0\0\0\0")
    assert "name an older one: step-00000001" in refused(capfd, "--model", str(run), "a")
    (newest / "manifest.json").unlink()
    assert refused(capfd, "--model", str(run), "a").count("manifest.json") == 1
    shutil.rmtree(newest)
    (run / "tokenizer" / "tokenizer.json").unlink()
    assert "tokenizer.json is missing" in refused(capfd, "--model", str(run), "a")


def test_a_process_whose_onednn_refuses_bfloat16_speaks_through_float32(folder):
    code = (
        "import sys, torch; torch.ops.mkldnn._is_mkldnn_bf16_supported = lambda: False\n"
        "from destruct import generate; generate.main(sys.argv[1:])\n"
        "from tests.ops.test_bfloat16_cpu import casts_in; print(casts_in('mm'))"
    )
    command = [sys.executable, "-c", code, "--model", str(folder), "1 + 1 =", "--max-tokens", "8"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120)
    assert done.stdout.startswith("1 + 1 =") and done.stdout.endswith("\nTrue\n"), done.stdout


def spoken(*command: str, **about) -> subprocess.Popen:
    """The door as a process of its own."""
    door = [sys.executable, "-m", "destruct.generate", *command]
    return subprocess.Popen(door, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **about)


class Pipe(io.RawIOBase):
    """It keeps what each system call would write."""

    def __init__(self):
        self.pieces = []

    def writable(self) -> bool:
        return True

    def write(self, content) -> int:
        self.pieces.append(bytes(content))
        return len(content)


LONG = ["1 + 1 =", "--max-tokens", "490", "--temperature", "1.5"]


def test_the_text_comes_word_by_word_and_the_prompt_before_all_that_is_sampled(folder, monkeypatch, capfd):
    written = []
    for seed in "12345":
        pipe = Pipe()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", io.TextIOWrapper(io.BufferedWriter(pipe), encoding="utf-8"))
            assert generate.main(["--model", str(folder), *LONG, "--seed", seed]) == 0
        assert pipe.pieces[0] == b"1 + 1 "
        assert b"".join(pipe.pieces).decode() == said(capfd, "--model", str(folder), *LONG, "--seed", seed)
        written.append(len(pipe.pieces))
    print(written)
    assert max(written) > 3, written


def test_a_reader_may_leave(folder):
    process = spoken("--model", str(folder), *LONG)
    process.stdout.read(1)
    process.stdout.close()
    assert (process.wait(timeout=60), process.stderr.read()) == (0, b"")


def test_a_full_disk_behind_stdout_is_told_with_a_remedy_for_it(rounded, folder, tmp_path):
    for door in (
        ["generate", "--model", str(folder), "1 + 1 ="],
        ["export", str(rounded["run"]), "--to", str(tmp_path / "out")],
    ):
        with Path("/dev/full").open("w") as full:
            command = [sys.executable, "-m", "destruct.doors", *door]
            done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
        assert done.returncode == 3
        said = complaint(done.stderr)
        assert said == "destruct: [Errno 28] No space left on device\n  remedy: make room on that disk\n"
