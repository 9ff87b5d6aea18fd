"""Reading: numbers as people write them, repeated keys refused, lines remembered, overrides typed."""

from typing import Any

import pytest
import yaml

from destruct.config.reading import apply_overrides, read_yaml


@pytest.mark.parametrize("text", ["1e-3", "1E-3", "3e5", "-2e4", "+1e0", "1.5e3", "2.e-1", "6.02e+23", "0.5", "-1.0"])
def test_an_exponent_makes_a_float_in_the_file_and_on_the_command_line(tmp_path, text):
    (tmp_path / "a.yaml").write_text(f"lr: {text}\n")
    values, _ = read_yaml(tmp_path / "a.yaml")
    overridden: dict[str, Any] = {}
    apply_overrides(overridden, {}, [f"ppo.lr={text}"])
    for got in (values["lr"], overridden["ppo"]["lr"]):
        assert type(got) is float and got == float(text)


@pytest.mark.parametrize("text", ["e5", "1e", "1e-3x", "1e-3.5", "v1e3", "2024-01-01", "2024-13-45", "'1e-3'", "08"])
def test_what_is_no_number_stays_text(tmp_path, text):
    (tmp_path / "a.yaml").write_text(f"name: {text}\n")
    assert read_yaml(tmp_path / "a.yaml")[0] == {"name": text.strip("'")}


def test_each_value_knows_its_line_through_flow_mappings_aliases_and_merges(tmp_path):
    (tmp_path / "a.yaml").write_text(
        "# comment\n"  # 1
        "ppo: {epochs: 2, gamma: 1.0}\n"  # 2
        "model:\n"  # 3
        "  policy: &small\n"  # 4
        "    hidden_size: 8\n"  # 5
        "  value:\n"  # 6
        "    <<: *small\n"  # 7
        "    layers: 1\n"  # 8
        "  other: *small\n"  # 9
        "empty: {}\n"  # 10
        "list: [1,\n"  # 11
        "       2]\n"  # 12
    )
    values, provenance = read_yaml(tmp_path / "a.yaml")
    assert values == yaml.safe_load((tmp_path / "a.yaml").read_text())
    assert provenance == {
        "ppo.epochs": "a.yaml:2",
        "ppo.gamma": "a.yaml:2",
        "model.policy.hidden_size": "a.yaml:5",
        "model.value.hidden_size": "a.yaml:5",
        "model.value.layers": "a.yaml:8",
        "model.other.hidden_size": "a.yaml:5",
        "empty": "a.yaml:10",
        "list": "a.yaml:11",
    }


def test_an_override_of_one_alias_leaves_the_others_alone(tmp_path):
    (tmp_path / "a.yaml").write_text("policy: &shape {width: 8}\nvalue: *shape\n")
    values, provenance = read_yaml(tmp_path / "a.yaml")
    apply_overrides(values, provenance, ["policy.width=16"])
    assert values == {"policy": {"width": 16}, "value": {"width": 8}}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: 2\na: 3\n", "line 3 is not YAML: the key 'a' is set in line 1 already"),
        ("p:\n  a: 1\n  a: 1\n", "line 3 is not YAML: the key 'a' is set in line 2 already"),
        ("p: {a: 1, b: {c: 2, c: 3}}\n", "line 1 is not YAML: the key 'c' is set in line 1 already"),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_both_lines(tmp_path, refusal, text, problem):
    (tmp_path / "a.yaml").write_text(text)
    assert refusal(read_yaml, tmp_path / "a.yaml")[0] == f"{tmp_path}/a.yaml, {problem}"


def test_a_merge_may_be_overruled_and_is_no_repetition(tmp_path):
    """However deep the anchor stands: PyYAML resolves merges in an order of its own."""
    text = "a: {b: {c: &deep {<<: &base {x: 1, y: 1}, x: 2}}}\nd: {<<: *deep, y: 3}\n"
    (tmp_path / "a.yaml").write_text(text)
    values, _ = read_yaml(tmp_path / "a.yaml")
    assert values["d"] == {"x": 2, "y": 3} and values["a"]["b"]["c"] == {"x": 2, "y": 1}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", " is not a mapping of sections"),
        (b"# nothing\n", " is not a mapping of sections"),
        (b"- a\n- b\n", " is not a mapping of sections"),
        (b"ppo: [1\n", ", line 2 is not YAML: expected ',' or ']', but got '<stream end>'"),
        (b"ppo:\n\tepochs: 1\n", ", line 2 is not YAML: found character '\\t' that cannot start any token"),
        (b"a: 1\n---\nb: 2\n", ", line 2 is not YAML: but found another document"),
        (b"a: *missing\n", ", line 1 is not YAML: found undefined alias 'missing'"),
        (b"a: !!python/name:os.system ''\n", ", line 1 is not YAML: could not determine a constructor for the tag"),
        (b"a: 0b_\n", " is not YAML: invalid literal for int() with base 2: ''"),
        (b"a: \x00\n", " is not YAML: unacceptable character #x0000"),
        (b"a: &a {b: *a}\n", " is not YAML: maximum recursion depth exceeded"),
        (b"a: \xff\n", " is not UTF-8 text: invalid start byte at byte 3"),
    ],
)
def test_a_file_that_is_no_yaml_mapping_is_refused_with_its_line(tmp_path, refusal, content, problem):
    (tmp_path / "a.yaml").write_bytes(content)
    assert refusal(read_yaml, tmp_path / "a.yaml")[0].startswith(f"{tmp_path}/a.yaml{problem}")


def test_a_missing_file_and_a_folder_are_refused(tmp_path, refusal):
    assert (
        refusal(read_yaml, tmp_path / "no.yaml")[0] == f"{tmp_path}/no.yaml cannot be read: No such file or directory"
    )
    assert refusal(read_yaml, tmp_path)[0] == f"{tmp_path} cannot be read: Is a directory"


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xef\xbb\xbfrun: 1\n")
    assert read_yaml(tmp_path / "a.yaml") == ({"run": 1}, {"run": "a.yaml:1"})


def test_overrides_are_typed_nested_and_in_order():
    values: dict[str, Any] = {"ppo": {"epochs": 1, "gamma": 1.0}, "warmup": None}
    overrides = [
        "ppo.epochs=2",
        "ppo.epochs=3",
        "kl.in_reward=false",
        "run.name=a=b",
        "run.resume=",
        "warmup.lm_updates=5",
        "data.sources.new={embedded: prose, learnable: false}",
        "data.sources.new.prior=0.5",
    ]
    apply_overrides(values, {}, overrides)
    assert values == {
        "ppo": {"epochs": 3, "gamma": 1.0},
        "kl": {"in_reward": False},
        "run": {"name": "a=b", "resume": None},
        "warmup": {"lm_updates": 5},
        "data": {"sources": {"new": {"embedded": "prose", "learnable": False, "prior": 0.5}}},
    }


def test_an_override_replaces_what_was_known_of_the_origin_of_its_values():
    values: dict[str, Any] = {"terms": {"eos": 1.0, "length": 1.0}, "term": {"eos": 2}}
    provenance = {"terms.eos": "a.yaml:1", "terms.length": "a.yaml:1", "term.eos": "a.yaml:2"}
    apply_overrides(values, provenance, ["terms={repetition: 2.0}", "run.seed=3"])
    assert values["terms"] == {"repetition": 2.0}
    assert provenance == {
        "terms.repetition": "command line",
        "term.eos": "a.yaml:2",
        "run.seed": "command line",
    }


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("ppo.epochs", "override 'ppo.epochs' is not of the form key.sub=value"),
        ("=3", "override '=3' is not of the form key.sub=value"),
        ("ppo..epochs=3", "override 'ppo..epochs=3' is not of the form key.sub=value"),
        ("ppo.=3", "override 'ppo.=3' is not of the form key.sub=value"),
        ("ppo.epochs.more=3", "override 'ppo.epochs.more=3': epochs is not a section"),
        ("ppo.epochs=[1", "override 'ppo.epochs=[1', line 1 is not YAML: expected ',' or ']', but got '<stream end>'"),
        ("ppo={a: 1, a: 2}", "override 'ppo={a: 1, a: 2}', line 1 is not YAML: the key 'a' is set in line 1 already"),
        ("ppo.epochs=\x00", "override 'ppo.epochs=\\x00' is not YAML: unacceptable character #x0000"),
    ],
)
def test_a_broken_override_is_refused(refusal, override, problem):
    assert refusal(apply_overrides, {"ppo": {"epochs": 2}}, {}, [override])[0].startswith(problem)
