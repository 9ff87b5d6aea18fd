"""`destruct config`: what it shows, explains and compares."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from destruct.config.__main__ import WAYS
from destruct.config.base import dump_with_provenance, sections_in, walk
from destruct.config.schema import json_schema
from destruct.config.settings import Config, read_config
from destruct.doors import main
from tests.json_schema import faults
from tests.test_doors import HEAVY, go

ROOT = Path(__file__).resolve().parents[1]

YAML = f"""\
data:
  sources:
    prose: {{embedded: prose}}
rollout: {{batch_size: 24}}
ppo:
  minibatches: 3
  policy_lr: 1e-4
engine: {{deepspeed: {ROOT}/ds_configs/zero3.json, frozen: {ROOT}/ds_configs/frozen_cpu_offload.json}}
"""


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(YAML)
    return path


@pytest.fixture
def config(capsys: pytest.CaptureFixture[str]):
    """Calls `destruct config ...`: exit code, what it said on stdout, what it said on stderr."""

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = main(["config", *map(str, arguments)])
        return code, *capsys.readouterr()

    return call


# ---- show


def test_show_has_every_key_once_with_the_line_the_override_or_the_default_it_comes_from(config, run):
    code, said, _ = config("show", "--config", run, "ppo.epochs=7")
    assert code == 0
    lines = said.splitlines()
    start = lines.index("ppo:")
    assert lines[start + 1 : start + 4] == [
        "  epochs: 7  # command line",
        "  minibatches: 3  # run.yaml:6",
        "  gamma: 1.0  # default",
    ]
    assert "  batch_size: 24  # run.yaml:4" in lines and "      embedded: prose  # run.yaml:3" in lines
    sections = {path for path, field in walk(Config) if next(sections_in(field.annotation), None)}
    keys = [path.rpartition(".")[2] for path, _ in walk(Config) if path not in sections and path != "reward.terms"]
    shown = [line.strip().partition(":")[0] for line in lines if "  # " in line]
    assert sorted(shown) == sorted([*keys, "repetition", "continuation_overlap"])


def test_what_show_prints_is_the_same_run_when_it_is_read_again(config, run, tmp_path):
    again, override = tmp_path / "again.yaml", 'rollout.stop=["\\n\\n", "  # a"]'
    again.write_text(config("show", "--config", run, override)[1])
    assert read_config(again, [])[0] == read_config(run, [override])[0]


def test_show_fills_the_json_of_each_engine_for_so_many_ranks(config, run):
    """24 rollouts in 3 minibatches are 8 a step; with 2 accumulated on 2 ranks that is 2 a micro-batch."""
    code, said, _ = config("show", "--config", run, "--ranks", 2, "--deepspeed")
    resolved, engines = yaml.safe_load_all(said)
    assert code == 0 and resolved["rollout"]["batch_size"] == 24 and "---  # the engines of 2 ranks\n" in said
    engines = json.loads(said.partition("2 ranks\n")[2])
    assert list(engines) == ["policy", "value", "frozen"]
    batch = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    assert [[engines[role][key] for key in batch] for role in ("policy", "value")] == [[8, 2, 2]] * 2
    assert [engines[role]["optimizer"]["params"]["lr"] for role in ("policy", "value")] == [1e-4, 5e-6]
    assert engines["frozen"]["bf16"] == {"enabled": True} and "optimizer" not in engines["frozen"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["ppo.epoch=1"], "command line: unknown key 'ppo.epoch'"),
        (["--ranks", "5"], "rollout.batch_size=24 does not divide into "),
        (["--ranks", "0"], "--ranks 0 is no number of ranks"),
        (["--rank", "x"], "argument --ranks: invalid int value: 'x'"),
    ],
)
def test_what_a_run_would_refuse_is_told_in_two_lines(config, run, arguments, problem):
    code, said, error = config("show", "--config", run, *arguments)
    first, remedy = error.splitlines()
    assert (code, said) == (2, "") and first.startswith(f"destruct: {problem}") and remedy.startswith("  remedy: ")


# ---- explain


def test_a_key_is_explained_with_type_default_bounds_docstring_and_the_value_of_a_run(config, run):
    assert config("explain", "ppo.policy_lr", "optimizer.params.eps", "--config", run)[1].splitlines() == [
        "ppo.policy_lr  (YAML)",
        "  type     float",
        "  default  1e-06",
        "  takes    > 0",
        "  here     0.0001  # run.yaml:7",
        "  Learning rate of the policy.",
        "",
        "optimizer.params.eps  (JSON of engine.deepspeed)",
        "  type     float",
        "  default  1e-05",
        "  takes    > 0",
        "  here     1e-05  # zero3.json",
        "  Added to the root of the running square.",
    ]


def test_names_that_the_user_chose_are_understood(config, run):
    hub = config("explain", "data.sources.prose.embedded", "--config", run)[1].splitlines()
    assert hub[0] == "data.sources.<name>.embedded  (YAML)" and hub[4].endswith(
        '.prose.embedded: "prose"  # run.yaml:3'
    )
    assert hub[3] == "  takes    prose, code, dialogue, arithmetic, markov, noise"
    assert config("explain", "data.sources.<name>.embedded", "--config", run)[1].splitlines() == hub
    term = config("explain", "reward.terms.eos")[1]
    assert term.startswith("reward.terms  (YAML)\n  type     name: float\n")


def test_a_section_is_explained_by_every_key_in_it(config, run):
    for name, section in (("kl", "kl"), ("data.sources.any", "data.sources.<name>"), ("model", "model")):
        keys = [path for path, field in walk(Config) if path.startswith(f"{section}.")]
        keys = [key for key in keys if not any(other.startswith(f"{key}.") for other in keys)]
        lines = config("explain", name)[1].splitlines()
        told = [line.split()[0] for line in lines if line.startswith(f"  {name}.")]
        assert lines[0] == f"{section}  (YAML)" and told == [key.replace(section, name) for key in keys]
    here = config("explain", "ppo", "--config", run)[1]
    assert re.search(r"ppo.minibatches +int +default 2 +3  # run.yaml:6\n", here)
    assert re.search(r"ppo.epochs +int +default 2 +2  # default\n", here)


@pytest.mark.parametrize(
    ("asked", "remedy"),
    [
        ("ppo.clip_rang", "did you mean 'ppo.clip_range'?"),
        ("lm_updates", "did you mean 'warmup.lm_updates'?"),
        ("kl.lamm", "did you mean 'ppo.lam' or 'curriculum.lam'?"),
        ("curriculum.lamm", "did you mean 'curriculum.lam' or 'ppo.lam'?"),
        ("xyzzy", "sections: run, engine, model, data, rollout, reward, kl, ppo, warmup, frozen, curriculum, guard, "),
    ],
)
def test_a_misspelt_key_is_told_with_those_that_are_near(config, asked, remedy):
    code, said, error = config("explain", asked)
    assert (code, said) == (2, "") and error.startswith(f"destruct: there is no key {asked!r}\n  remedy: {remedy}")


def test_search_finds_a_word_in_names_and_in_docstrings(config):
    found = config("explain", "--search", "InstructGPT")[1].splitlines()
    assert len(found) == 1 and found[0].startswith("ppo.ptx_coef: ") and "InstructGPT" in found[0]
    assert [line.partition(":")[0] for line in config("explain", "--search", "CLIP_RANGE")[1].splitlines()] == [
        "ppo.clip_range",
        "ppo.clip_range_high",
        "ppo.value_clip_range",
    ]
    assert (
        config("explain", "--search", "xyzzy")[0] == config("explain")[0] == config("explain", "--search", "")[0] == 2
    )


# ---- diff


def test_two_files_that_mean_the_same_are_equal_however_they_are_written(config, run, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(YAML.replace("1e-4", "0.0001") + "kl: {coef: 0.05}\n")
    code, said, _ = config("diff", run, other)
    assert code == 0 and re.fullmatch(r"none of \d\d\d keys differ\n", said)


def test_two_files_that_differ_end_with_1_and_both_values_and_where_they_come_from(config, run, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text(YAML.replace("prose: {embedded", "verse: {embedded").replace("minibatches: 3", "minibatches: 2"))
    code, said, _ = config("diff", run, other)
    *lines, count = said.splitlines()
    assert code == 1 and re.fullmatch(r"3 of \d\d\d keys differ", count)
    assert lines == [
        f"--- {run}",
        f"+++ {other}",
        "data.sources.prose.embedded",
        "  - prose  # run.yaml:3",
        "  + absent",
        "ppo.minibatches",
        "  - 3  # run.yaml:6",
        "  + 2  # other.yaml:6",
        "data.sources.verse.embedded",
        "  - absent",
        "  + prose  # other.yaml:3",
    ]


def test_two_runs_are_compared_by_what_they_wrote_down_and_by_what_their_engines_were_given(
    config, run, tmp_path, monkeypatch
):
    """Also where one of them is of a program that had another key."""
    monkeypatch.chdir(tmp_path)
    for name, overrides, stage in (("a", [], 3), ("b", ["ppo.epochs=5"], 2)):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        text = dump_with_provenance(*read_config(run, overrides))
        (folder / "resolved.yaml").write_text(text + "# derived from it:\n#   a: b\n")
        (folder / "deepspeed.json").write_text(json.dumps({"policy": {"zero_optimization": {"stage": stage}}}))
    with (tmp_path / "runs" / "b" / "resolved.yaml").open("a") as file:
        file.write("retired:\n  key: 1  # run.yaml:30\n")
    code, said, _ = config("diff", "a", "runs/b")
    assert code == 1
    assert said.splitlines()[2:-1] == [
        "ppo.epochs",
        "  - 2  # default",
        "  + 5  # command line",
        "deepspeed.json:policy.zero_optimization.stage",
        "  - 3  # deepspeed.json",
        "  + 2  # deepspeed.json",
        "retired.key",
        "  - absent",
        "  + 1  # run.yaml:30",
    ]
    assert config("diff", "a", run)[:2] == (0, config("diff", run, run)[1])


def test_what_cannot_be_compared_ends_with_2(config, run, tmp_path):
    (tmp_path / "empty").mkdir()
    for other in ("no.yaml", "no_such_run", tmp_path / "empty"):
        code, said, error = config("diff", run, other)
        assert (code, said) == (2, "") and len(error.splitlines()) == 2


# ---- schema


def test_resolved_yaml_is_what_the_schema_says(config, run):
    assert faults(yaml.safe_load(config("show", "--config", run)[1]), json_schema("run")) == []


def test_the_command_prints_the_tracked_schema_and_says_its_dialect(config):
    printed = config("schema")[1]
    assert printed == (ROOT / "configs" / "schema.json").read_text()
    assert json.loads(printed)["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    titles = [json.loads(config("schema", *o)[1])["title"] for o in ([], ["--deepspeed"], ["--deepspeed", "frozen"])]
    assert len(set(titles)) == 3 and config("schema", "--deepspeed", "--prompts")[0] == 2


# ---- the command


@pytest.mark.parametrize("arguments", [[], *([way] for way in WAYS)])
def test_help_imports_nothing_that_takes_long(tmp_path, arguments):
    done, modules = go(tmp_path, "config", *arguments, "--help")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("usage: destruct config")
    assert not modules & HEAVY
    assert "diff" not in arguments or "Exit codes: 0 no key differs, 1 some do, 2 " in done.stdout


def test_it_is_also_a_module_and_a_reader_may_go_early(tmp_path):
    """`... | head -1`: no traceback, no complaint."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "destruct.config", "schema"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=closed,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_secrets_of_the_environment_are_masked(config, run, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    assert "name: x_<secret>  # command line" in config("show", "--config", run, "run.name=x_hf_abcdefgh")[1]
