"""Bad input through the real door: exit code 2, two lines on stderr, nothing on disk, and no model built."""

import json
import shlex
import sys
from pathlib import Path

import pytest

from destruct.config.settings import load
from destruct.train import main, parse, read

ROOT = Path(__file__).resolve().parents[1]
LOCAL = ROOT / "configs" / "local.yaml"
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "MASTER_ADDR", "MASTER_PORT")

# No machine has the memory of this layer (8 x 2**46 weights): whoever builds the policy fails, and not with code 2.
TRIPWIRE = f"model.policy.intermediate_size={2**46}"


@pytest.fixture
def alone(tmp_path, monkeypatch):
    """An empty working folder with an older run in it, and the environment of one rank without a launcher."""
    for name in LAUNCHER:
        monkeypatch.setenv(name, "")  # so that what a run sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "local").mkdir(parents=True)
    (tmp_path / "runs" / "local" / "summary.json").write_text("older")
    return tmp_path


LAUNCHED = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_PORT": "29500"}


def contents(folder: Path) -> dict[str, str | None]:
    """Path -> text of all that lies in a folder, but for a run's lock; None for a folder."""
    paths = (path for path in sorted(folder.rglob("*")) if path.suffix != ".lock")
    return {str(path): path.read_text() if path.is_file() else None for path in paths}


def refused(folder: Path, capsys, *arguments: str, config: Path = LOCAL) -> tuple[str, str]:
    """Problem and remedy of a run that must end with exit code 2 and leave the disk as it was."""
    before = contents(folder)
    assert main(["--config", str(config), *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2, lines
    assert lines[0].startswith("destruct: ") and lines[1].startswith("  remedy: ")
    assert contents(folder) == before
    return lines[0].removeprefix("destruct: "), lines[1].removeprefix("  remedy: ")


@pytest.mark.parametrize(
    ("argument", "problem", "remedy"),
    [
        ("ppo.epoch=1", "command line: unknown key 'ppo.epoch'", "did you mean 'ppo.epochs'?"),
        ("ppo.epochs=two", 'command line: ppo.epochs = "two" should be a valid integer', "change ppo.epochs"),
        ("ppo=3", "command line: ppo = 3 should be a section with keys of its own", "write keys below ppo"),
        (
            "ppo.policy_lr=-1e-3",
            "command line: ppo.policy_lr = -0.001 should be greater than 0",
            "change ppo.policy_lr",
        ),
        ("ppo.epochs", "override 'ppo.epochs' is not of the form key.sub=value", "write e.g. ppo.epochs=2"),
        ("ppo.epochs=[", "override 'ppo.epochs=[', line 1 is not YAML", "fix the line"),
        (
            "rollout.batch_size=66",
            "rollout.batch_size=66 does not divide into gradient_accumulation_steps=2 (zero3.json) x 1 ranks",
            "set rollout.batch_size to 64 or 68",
        ),
        (
            "rollout.prompt_tokens=500",
            f"{LOCAL}: rollout.prompt_tokens=500 + rollout.response_tokens=32 = 532",
            "shorten a part or raise it",
        ),
        (
            "reward.terms={spelling: 1}",
            "command line: reward.terms: no reward term 'spelling'",
            "take one of repetition",
        ),
        ("PPO.epochs=1", "command line: unknown key 'PPO'", "did you mean 'ppo'?"),
        (
            "data.sources.prosee.learnable=false",
            "command line: data.sources.prosee: a source takes exactly one of `embedded`, `path` and `hub`",
            "give one of them, or correct the source's name",
        ),
        ("data.sources.mean.embedded=prose", "command line: data.sources.mean", "rename"),
        (
            "engine.deepspeed=absent.json",
            "engine.deepspeed: absent.json exists neither in",
            "give engine.deepspeed the",
        ),
    ],
)
def test_bad_configuration_ends_before_anything_is_made(alone, capsys, argument, problem, remedy):
    got = refused(alone, capsys, argument)
    assert got[0].startswith(problem) and got[1].startswith(remedy)


def test_a_config_file_that_is_missing_or_empty_is_refused(alone, capsys):
    problem, _ = refused(alone, capsys, config=alone / "absent.yaml")
    assert problem == f"{alone}/absent.yaml cannot be read: No such file or directory"
    (alone / "empty.yaml").write_text("")
    problem, _ = refused(alone, capsys, config=alone / "empty.yaml")
    assert problem == f"{alone}/empty.yaml is not a mapping of sections"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"train_batch_sise": 32}, "unknown key 'train_batch_sise'"),
        ({"gradient_clipping": "1.0"}, 'gradient_clipping = "1.0" is a string, not a number'),
        ({"gradient_clipping": 0.5}, f"gradient_clipping = 0.5 contradicts {LOCAL}: ppo.max_grad_norm gives 1.0"),
        ({"data_types": {}}, "'data_types.grad_accum_dtype' is missing"),
    ],
)
def test_a_fault_in_the_deepspeed_json_is_refused(alone, capsys, change, problem):
    shipped = json.loads((ROOT / "ds_configs" / "zero3.json").read_text())
    (alone / "mine.json").write_text(json.dumps(shipped | change))
    assert refused(alone, capsys, "engine.deepspeed=mine.json")[0] == f"mine.json: {problem}"


@pytest.mark.parametrize(
    ("world_size", "argument", "problem"),
    [
        (
            "3",
            "run.seed=0",
            "rollout.batch_size=64 does not divide into gradient_accumulation_steps=2 (zero3.json) x 3",
        ),
        ("2", "engine.backend=single", "engine.backend=single runs in one process, but 2 ranks were started"),
    ],
)
def test_a_world_size_that_does_not_fit_is_refused(alone, capsys, monkeypatch, world_size, argument, problem):
    for name, value in {**LAUNCHED, "WORLD_SIZE": world_size}.items():
        monkeypatch.setenv(name, value)
    assert refused(alone, capsys, argument)[0].startswith(problem)


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE=2 do not describe a rank among others"),
        ({"RANK": "1"}, "RANK=1 do not describe a rank among others"),
        ({"WORLD_SIZE": "0", "RANK": "0"}, "WORLD_SIZE=0 RANK=0 do not describe a rank among others"),
        ({"RANK": "abc"}, "RANK='abc' is not a number"),
        ({"WORLD_SIZE": "²"}, "WORLD_SIZE='²' is not a number"),
        ({"MASTER_PORT": "-1"}, "MASTER_PORT='-1' is not a number"),
    ],
)
def test_variables_that_a_launcher_left_behind_are_named(alone, capsys, monkeypatch, variables, problem):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["--config", str(LOCAL)]) == 3
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2 and said[0].startswith(f"destruct: {problem}") and said[1].startswith("  remedy: unset ")


@pytest.mark.parametrize(
    ("argument", "problem"),
    [("run.name=3", "run.name = 3 should be a valid string"), ("ppo.epochs='2'", 'ppo.epochs = "2" is a string')],
)
def test_the_quotes_that_a_remedy_shows_are_right_for_a_shell(alone, capsys, argument, problem):
    """What the remedy says is given to a shell, whose words are the next command line."""
    got, remedy = refused(alone, capsys, argument)
    assert got.startswith(f"command line: {problem}")
    (word,) = shlex.split(remedy.partition(": ")[2] or remedy.removeprefix("write "))
    settings = load(LOCAL, [word], 1)
    assert (settings.config.run.name, settings.config.ppo.epochs) in (("3", 2), ("local", 2))


@pytest.mark.slow  # the other ranks give the first one time to speak
def test_only_the_first_rank_speaks(alone, capsys, monkeypatch):
    for name, value in {**LAUNCHED, "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert main(["--config", str(LOCAL), "ppo.epoch=1"]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


@pytest.mark.parametrize("place", ["never", "auto", "runs/other", "/ü: 'a' \"b\" #{1}/best", "3", "null"])
def test_resume_is_another_way_to_write_the_key_whatever_the_path_looks_like(alone, place):
    key = f"run.resume={json.dumps(place)}"
    for arguments in (["--resume", place], [f"--resume={place}"], ["--resume", place, key]):
        settings = read(parse(["--config", str(LOCAL), *arguments, "run.seed=4"]), 1)
        assert (settings.config.run.resume, settings.config.run.seed) == (place, 4)
        assert settings.provenance["run.resume"] == "command line"


def test_resume_wins_over_the_file_and_not_over_the_command_line(alone, capsys):
    text = LOCAL.read_text().replace("seed: 17", "seed: 17\n  resume: runs/old")
    (alone / "mine.yaml").write_text(text.replace("ds_configs/", f"{ROOT}/ds_configs/"))
    config = ["--config", str(alone / "mine.yaml")]
    assert read(parse(config), 1).config.run.resume == "runs/old"
    assert read(parse([*config, "--resume", "auto"]), 1).config.run.resume == "auto"
    got = refused(alone, capsys, "--resume", "auto", "run.resume=never")
    assert got == ("--resume auto and run.resume=never differ", "give one of them")


def test_resume_without_a_place_is_refused(alone, capsys):
    assert refused(alone, capsys, "--resume")[0] == "argument --resume: expected one argument"
    assert refused(alone, capsys, "--resume", "")[0].startswith('command line: run.resume = "" should have at least 1')


DOCUMENTS = [f"one short document, number {number}" for number in range(400)]


def arguments_for(source: str, *more: str) -> list[str]:
    """A run of one source in one process, whose policy no machine could hold."""
    return ["engine.backend=single", f"data.sources={{notes: {source}}}", TRIPWIRE, *more]


@pytest.fixture
def data(alone, monkeypatch, tmp_path_factory):
    """Files of four kinds in the working folder; the cache of `datasets` lies outside it."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    (alone / "good.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    (alone / "empty.txt").write_text("\n \n")
    (alone / "short.txt").write_text("a\nb\n")
    (alone / "one.txt").write_text("the same line\nthe same line\n")
    (alone / "thin").mkdir()
    (alone / "thin" / "train.txt").write_text("\n".join(DOCUMENTS))
    (alone / "thin" / "validation.txt").write_text("\n".join(DOCUMENTS[:3]))
    return alone


@pytest.mark.slow  # the first of them imports torch and datasets
@pytest.mark.parametrize(
    ("source", "more", "problem", "remedy"),
    [
        ("{path: absent.txt}", (), "source 'notes': absent.txt does not exist", "set data.sources.notes.path to"),
        (
            "{path: good.jsonl, column: body}",
            (),
            "source 'notes': line 1 of good.jsonl has no column 'body'; it has 'text'",
            "set data.sources.notes.column: text",
        ),
        ("{path: empty.txt}", (), "source 'notes': empty.txt holds no non-empty document", "give data.sources.notes"),
        ("{path: one.txt}", (), "source 'notes' has 1 different document; it takes 2", "give it more documents"),
        (
            "{path: short.txt}",
            (),
            "source 'notes' (training) has 2 tokens, which fill 0 window(s) of 64",
            "give it more text",
        ),
        (
            "{path: thin}",
            ("rollout.prompt_tokens=8", "rollout.response_tokens=8"),
            "source 'notes' (held out) has 24 tokens, which fill 1 window(s) of 16; it takes 2",
            "give it more text",
        ),
        (
            "{path: good.jsonl}",
            ("curriculum.eta=1000",),
            "the sampling weights would oscillate without end: eta=1000",
            "",
        ),
        ("{path: good.jsonl}", ("reward.terms={absent.module:score: 1}",), "reward term 'absent.module:score'", "put"),
        (
            "{path: good.jsonl}",
            ("reward.terms={rewards:hasty: 1}",),
            "reward term 'rewards:hasty' raised KeyError",
            "fix",
        ),
        ("{path: good.jsonl}", ("reward.terms={rewards:LIST: 1}",), "reward term 'rewards:LIST' is [1], not a", "name"),
    ],
)
def test_bad_data_ends_before_a_folder_or_a_model_is_made(data, capsys, monkeypatch, source, more, problem, remedy):
    (data / "rewards.py").write_text(
        "LIST = [1]\ndef hasty(prompts, responses, continuations):\n    return {}['oops']\n"
    )
    monkeypatch.syspath_prepend(data)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    got = refused(data, capsys, *arguments_for(source, *more))
    assert got[0].startswith(problem) and got[1].startswith(remedy)


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "warned"), [("second_order", True), ("uniform", False)])
def test_weights_without_damping_are_warned_of(data, capsys, strategy, warned):
    arguments = arguments_for("{path: absent.txt}", "curriculum.lam=0", f"curriculum.strategy={strategy}")
    assert main(["--config", str(LOCAL), *arguments]) == 2
    assert ("warning: curriculum.lam=0" in capsys.readouterr().out) is warned


@pytest.mark.slow
def test_the_process_group_is_left_after_a_refusal(data, capsys):
    import torch

    refused(data, capsys, *arguments_for("{path: absent.txt}"))
    assert not torch.distributed.is_initialized()


@pytest.mark.slow
def test_the_tripwire_goes_off_when_the_data_is_good(data):
    """Without this, the tests above would prove nothing about models."""
    with pytest.raises(RuntimeError, match="allocate memory"):
        main(["--config", str(LOCAL), *arguments_for("{path: good.jsonl}")])
