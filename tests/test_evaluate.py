"""`destruct evaluate` on runs of one process and on exported folders, against the run's log and plain transformers."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from destruct import evaluate, export
from destruct.data.tokenizing import Tokenizer
from destruct.evaluation import ValidationSet, validate
from destruct.loop import train
from tests.evaluated import told, trained_run
from tests.pretrained import write_llama
from tests.test_export import SHORT
from tests.test_pretrained_run import started
from tests.tiny import tiny_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict:
    """A run in float32 of two updates: its folder and its validation sets."""
    return trained_run(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory) -> Path:
    """The newest checkpoint as a folder of Hugging Face."""
    folder = tmp_path_factory.mktemp("exported") / "out"
    assert export.main([str(trained["run"]), "--to", str(folder)]) == 0
    return folder


def logged(run: Path, update: int) -> dict[str, float]:
    """What the run's log says of its validation in an update."""
    entries = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return next(e for e in entries if e["phase"] == "ppo" and e["step"] == update and "validation/mean" in e)


@torch.no_grad()
def window_nats(folder: Path, source: ValidationSet) -> np.ndarray:
    """Nats of each window, of the logits of whatever transformers makes of a folder, in float64."""
    model, windows = AutoModelForCausalLM.from_pretrained(folder), source.windows
    logits = model(input_ids=windows.tokens, position_ids=windows.positions, use_cache=False).logits.double()
    said = logits[:, :-1].log_softmax(-1).gather(2, windows.tokens[:, 1:, None]).squeeze(2)
    return (-said * windows.predicted).sum(1).numpy()


@pytest.mark.parametrize(("checkpoint", "update"), [("", 1), ("checkpoints/step-00000001", 0), ("checkpoints/best", 1)])
def test_a_checkpoint_has_the_losses_that_its_run_logged_to_the_last_bit(trained, capsys, checkpoint, update):
    got = told(capsys, "--checkpoint", trained["run"] / checkpoint, "--samples", "0")["checkpoints"][0]
    log = logged(trained["run"], update)
    assert got["update"] == update + 1
    for name, source in got["sources"].items():
        assert source["nats_per_token"]["value"] == log[f"validation/nats_per_token/{name}"]
        assert source["bits_per_byte"]["value"] == pytest.approx(log[f"validation/bits_per_byte/{name}"], rel=1e-12)
    assert got["mean"]["nats_per_token"]["value"] == log["validation/mean"]


def test_a_folder_has_the_losses_and_errors_of_plain_transformers(trained, exported, capsys):
    got = told(capsys, "--checkpoint", exported, "--samples", "0")
    assert got["config"] == str(exported / "training" / "resolved.yaml") and got["notes"] == []
    for source in trained["sets"]:
        found, nats = got["checkpoints"][0]["sources"][source.name], window_nats(exported, source)
        sizes = source.windows.target_counts.numpy()
        loss = nats.sum() / sizes.sum()
        error = math.sqrt(4 / 3 * np.sum((nats - loss * sizes) ** 2)) / sizes.sum()
        assert found["windows"] == 4 and found["tokens"] == sizes.sum()
        assert found["nats_per_token"] == {
            "value": pytest.approx(loss, abs=1e-5),
            "se": pytest.approx(error, abs=1e-5),
        }
        assert found["perplexity"]["value"] == pytest.approx(math.exp(loss), rel=1e-5)
        assert found["perplexity"]["se"] == pytest.approx(math.exp(loss) * error, rel=1e-3)


def test_bits_per_byte_are_those_of_the_text_that_is_predicted(trained, exported, capsys):
    """By the tokenizer itself: each predicted token's own bytes, a special token's being none."""
    source, tokenizer = trained["sets"][0], Tokenizer.pretrained("test", str(exported))
    size = 0
    for row, predicted in zip(source.windows.tokens, source.windows.predicted, strict=True):
        pieces = tokenizer.fast.convert_ids_to_tokens(row[1:][predicted].tolist())
        size += sum(len(piece) for piece in pieces if not piece.startswith("<|"))  # byte-level: a character a byte
    found = told(capsys, "--checkpoint", exported, "--samples", "0")["checkpoints"][0]["sources"][source.name]
    assert found["bytes"] == size
    bits = window_nats(exported, source).sum() / math.log(2)
    assert found["bits_per_byte"]["value"] == pytest.approx(bits / size, rel=1e-5)


def test_two_checkpoints_of_a_run_are_paired_and_the_pair_is_numpys(trained, capsys, tmp_path):
    run, folders = trained["run"], {}
    for update in (1, 2):
        folders[update] = tmp_path / str(update)
        checkpoint = run / "checkpoints" / f"step-0000000{update}"
        assert export.main([str(checkpoint), "--to", str(folders[update])]) == 0
    got = told(capsys, "--checkpoint", run, "--against", run / "checkpoints/step-00000001", "--samples", "0")
    for source in trained["sets"]:
        sizes = source.windows.target_counts.numpy()
        apart = window_nats(folders[2], source) - window_nats(folders[1], source)
        value = apart.sum() / sizes.sum()
        error = math.sqrt(4 / 3 * np.sum((apart - value * sizes) ** 2)) / sizes.sum()
        found = got["comparison"]["sources"][source.name]
        assert found["paired"] is True
        nats = found["nats_per_token"]
        assert (nats["value"], nats["se"]) == (pytest.approx(value, abs=2e-6), pytest.approx(error, abs=2e-6))
        assert nats["beyond_two_se"] == (abs(nats["value"]) > 2 * nats["se"])
        assert nats["z"] == nats["value"] / nats["se"]
    arithmetic = got["comparison"]["sources"]["arithmetic"]["nats_per_token"]
    assert got["comparison"]["mean"]["nats_per_token"] == arithmetic, "noise is not learnable"


def test_the_error_of_a_pair_is_much_smaller_than_that_of_two_samples(trained, capsys):
    run = trained["run"]
    asked = ("--checkpoint", run, "--against", run / "checkpoints/step-00000001", "--samples", "0", "--windows", "60")
    got = told(capsys, *asked)
    alone = [each["sources"]["arithmetic"]["nats_per_token"]["se"] for each in got["checkpoints"]]
    paired = got["comparison"]["sources"]["arithmetic"]["nats_per_token"]["se"]
    assert 0 < paired < math.hypot(*alone) / 3, (paired, alone)


def test_a_model_beside_itself_is_nowhere_apart(trained, exported, capsys):
    """From the run and from its folder: the tokenizers are one, and so are windows, prompts and random numbers."""
    got = told(capsys, "--checkpoint", trained["run"], "--against", exported, "--samples", "6")
    assert got["notes"] == []
    assert [row["paired"] for row in got["comparison"]["sources"].values()] == [True, True]
    assert all(row["nats_per_token"]["value"] == 0 for row in got["comparison"]["sources"].values())
    said = [figure["value"] for row in got["comparison"]["responses"].values() for figure in row.values()]
    assert said == [0] * 16
    assert got["prompts"] and all(a == b for a, b in (each["continuations"] for each in got["prompts"]))


def test_the_persons_prompts_are_continued_as_in_the_run(trained, capsys):
    got = told(capsys, "--checkpoint", trained["run"], "--samples", "0")["prompts"]
    entries = map(json.loads, (trained["run"] / "samples.jsonl").read_text().splitlines())
    said = {
        e["prompt"]: e["response"] for e in entries if e.get("phase") == "ppo" and e["update"] == 1 and "topic" in e
    }
    assert {each["text"]: each["continuations"] for each in got} == {text: [words] for text, words in said.items()}
    assert {"creative writing", "technical", "code"} <= {each["topic"] for each in got}


def test_responses_are_sampled_alike_by_one_seed_and_judged_as_rewards_are(trained, capsys):
    """repetition and overlap are in the run's rewards; of 8 tokens a response, none is longer."""
    asked = ("--checkpoint", trained["run"], "--samples", "12")
    one, same, other = (told(capsys, *asked, "--seed", seed) for seed in ("1", "1", "2"))
    assert one == same
    for name, source in one["checkpoints"][0]["sources"].items():
        said = source["responses"]
        assert said["prompts"] == 12 and 0 < said["length"]["value"] <= 8
        assert 0 <= said["repetition"]["value"] <= 1 and 0 < said["distinct-1"]["value"] <= 1
        assert said["distinct-1"]["value"] <= said["distinct-2"]["value"] <= said["distinct-4"]["value"]
        assert list(said)[-2:] == ["eos_rate", "continuation_overlap"]
        assert said != other["checkpoints"][0]["sources"][name]["responses"]


def test_a_reward_function_of_ones_own_is_a_figure(trained, capsys):
    got = told(
        capsys,
        "--checkpoint",
        trained["run"],
        "--samples",
        "3",
        'reward.terms={"tests.tiny:one": 2.0}',
        "prompts.file=",
    )
    assert got["checkpoints"][0]["sources"]["noise"]["responses"]["tests.tiny:one"] == {"value": 1.0, "se": 0.0}


def test_more_windows_than_the_run_had_are_measured_and_the_error_shrinks(trained, capsys):
    asked = ("--checkpoint", trained["run"], "--samples", "0", "--windows")
    few, many = (told(capsys, *asked, n)["checkpoints"][0]["sources"]["arithmetic"] for n in ("4", "90"))
    assert (few["windows"], many["windows"]) == (4, 20), "there are no more"
    assert many["nats_per_token"]["se"] < few["nats_per_token"]["se"]
    alone = told(capsys, *asked, "1")["checkpoints"][0]["sources"]["arithmetic"]
    assert alone["nats_per_token"]["se"] is None


def test_the_page_and_the_screen_hold_the_figures_of_the_json(trained, capsys, tmp_path):
    asked = ["--checkpoint", str(trained["run"]), "--against", str(trained["run"] / "checkpoints/step-00000001")]
    assert evaluate.main([*asked, "--json", str(tmp_path / "e.json"), "--markdown", str(tmp_path / "e.md")]) == 0
    screen, page = capsys.readouterr().out, (tmp_path / "e.md").read_text()
    content = json.loads((tmp_path / "e.json").read_text())
    tables = [[[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()]
              for block in re.findall(r"(?:^\|.*\n)+", page, re.M)]  # fmt: skip
    assert [len(table) for table in tables] == [5, 4, 5, 4, 5, 4]
    for place, each in enumerate(content["checkpoints"]):
        (heading, _, *rows), (spoken, _, *lines) = tables[2 * place], tables[2 * place + 1]
        for row in rows:
            figures = each["sources"].get(row[0], each["mean"])
            for name, cell in zip(heading[3:], row[3:], strict=True):
                check(cell, figures[name.replace("/", "_per_")], screen)
        for row in lines:
            assert row[1] == str(each["sources"][row[0]]["responses"]["prompts"])
            for name, cell in zip(spoken[2:], row[2:], strict=True):
                check(cell, each["sources"][row[0]]["responses"][name], screen)
    for row in tables[4][2:]:
        apart = content["comparison"]["sources"].get(row[0], content["comparison"]["mean"])
        for name, cell in zip(("nats_per_token", "bits_per_byte"), row[2:], strict=True):
            assert cell.endswith("\\*") == apart[name]["beyond_two_se"]
            check(cell.removesuffix(" \\*"), apart[name], screen)
    assert f"### {content['prompts'][0]['topic']}\n" in page and content["prompts"][0]["topic"] in screen


def check(cell: str, figure: dict, screen: str) -> None:
    """A cell is the figure with its error, rounded to the digits that are shown; the screen has it, too."""
    assert cell in screen
    value, _, error = cell.partition(" ± ")
    half = 0.5 * 10.0 ** -len(value.partition(".")[2]) * (1 + 1e-9)
    assert float(value) == pytest.approx(figure["value"], abs=half)
    assert float(error) == pytest.approx(figure["se"], abs=half)


def test_standard_output_is_the_result_alone_and_progress_is_beside_it(trained, capsys, monkeypatch):
    monkeypatch.setattr("destruct.progress.EVERY_S", 0.0)
    assert evaluate.main(["--checkpoint", str(trained["run"]), "--samples", "2", "--markdown", "-"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("# Evaluation\n") and "loss " not in out
    assert all(re.search(rf"^{stage} +2/2  noise( |$)", err, re.M) for stage in ("loss", "sample"))


def test_another_tokenizer_is_compared_in_bits_per_byte_alone(trained, capsys, tmp_path):
    with tiny_run(tmp_path, *SHORT, "data.tokenizer.vocab_size=340", "run.name=other") as run:
        train(run)
    got = told(capsys, "--checkpoint", trained["run"], "--against", run.folder, "--samples", "4")
    assert got["notes"] == [
        f"{run.folder / 'checkpoints/step-00000002'} reads the texts with its own tokenizer; "
        f"{trained['run'] / 'resolved.yaml'} would train one"
    ]
    assert got["comparison"]["responses"] == {} and got["comparison"]["mean"]["nats_per_token"] is None
    for name, row in got["comparison"]["sources"].items():
        a, b = (each["sources"][name]["bits_per_byte"] for each in got["checkpoints"])
        assert row["paired"] is False and row["nats_per_token"] is None
        assert row["bits_per_byte"]["value"] == a["value"] - b["value"]
        assert row["bits_per_byte"]["se"] == pytest.approx(math.hypot(a["se"], b["se"]))


def test_a_run_on_a_pretrained_policy_has_its_losses_though_the_policy_has_moved(capsys, tmp_path):
    write_llama(tmp_path / "llama")
    run = started(tmp_path, {"policy": {"path": str(tmp_path / "llama")}, "value": {"num_hidden_layers": 1}})
    run.save()
    run.settle()
    want = validate(run.policy, run.inputs.validation, run.topology).as_summary()
    run.close()
    (tmp_path / "llama").rename(tmp_path / "moved")
    got = told(capsys, "--checkpoint", run.folder, "--samples", "2")["checkpoints"][0]
    losses = {name: source["nats_per_token"]["value"] for name, source in got["sources"].items()}
    assert losses | {"mean": got["mean"]["nats_per_token"]["value"]} == want
