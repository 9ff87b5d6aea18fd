"""The curriculum's keys: what a strategy reads must be there and fit it, and each rule has a value that is none."""

import pytest

TWO = "data.sources={prose: {embedded: prose}, code: {embedded: code}}"


def test_doremi_names_the_first_source_without_a_reference_loss(files, refusal):
    given = ["curriculum.strategy=doremi", "curriculum.reference_loss={prose: 2.5}"]
    problem, remedy = refusal(files.load, TWO, *given)
    assert "curriculum.strategy=doremi has no reference loss of source 'code'" in problem
    assert remedy == "set curriculum.reference_loss.code to what a reference model has there, in nats"
    assert refusal(files.load, TWO, *given, "curriculum.unit=bits_per_byte")[1].endswith("in bits_per_byte")
    losses = {"prose": 2.5, "code": 1.25}
    loaded = files.load(TWO, given[0], "curriculum.reference_loss={prose: 2.5, code: 1.25}")
    assert loaded.config.curriculum.reference_loss == losses


@pytest.mark.parametrize("strategy", ["doremi", "second_order"])
def test_a_reference_loss_of_no_source_is_named(files, refusal, strategy):
    losses = "curriculum.reference_loss={prose: 2.5, code: 1.0, cod: 1.0}"
    problem, remedy = refusal(files.load, TWO, losses, f"curriculum.strategy={strategy}")
    assert "curriculum.reference_loss.cod is of no source" in problem
    assert remedy == "name one of data.sources: code, prose"


def test_temperature_needs_sizes_and_a_stream_has_none(files, refusal):
    sources = "data.sources={prose: {embedded: prose}, web: {hub: a/b, streaming: true}}"
    problem, remedy = refusal(files.load, sources, "curriculum.strategy=temperature", "run.updates_per_epoch=5")
    assert "curriculum.strategy=temperature weighs sources by size, and web is streaming" in problem
    assert remedy == "take static, with a data.sources.<name>.prior for each"
    assert files.load(TWO, "curriculum.strategy=temperature").config.curriculum.temperature == 1
    assert files.load(sources, "curriculum.strategy=static", "run.updates_per_epoch=5").config.data.streams == ["web"]


def test_second_order_follows_no_level_of_the_loss(files, refusal):
    problem, remedy = refusal(files.load, "curriculum.signal=metric")
    assert "curriculum.signal=metric is no evidence of progress, which second_order asks for" in problem
    assert remedy == "take progress, advantage or reward_variance, or curriculum.strategy: literal"
    assert files.load("curriculum.signal=metric", "curriculum.strategy=literal").config.curriculum.signal == "metric"
    for signal in ("progress", "advantage", "reward_variance", "null"):
        loaded = files.load(f"curriculum.signal={signal}").config.curriculum.signal
        assert loaded == (None if signal == "null" else signal)


@pytest.mark.parametrize(
    ("key", "value", "bound"),
    [
        ("probe_budget", 0, "greater than 0"),
        ("probe_budget", ".inf", "finite"),
        ("credit", 1.5, "less than or equal to 1"),
        ("rescue", -0.1, "greater than or equal to 0"),
        ("repetition_epochs", 0, "greater than 0"),
        ("exploration_rounds", 0, "greater than 0"),
        ("temperature", 0.5, "greater than or equal to 1"),
    ],
)
def test_a_figure_out_of_its_bounds_is_refused_by_its_key(files, refusal, key, value, bound):
    problem, _ = refusal(files.load, f"curriculum.{key}={value}")
    assert f"curriculum.{key}" in problem and bound in problem


def test_each_rule_of_the_target_can_be_switched_off(files):
    off = {"z": 0.0, "credit": 0.0, "rescue": 0.0, "repetition_epochs": None, "exploration_rounds": None}
    overrides = [f"curriculum.{key}={'null' if value is None else value}" for key, value in off.items()]
    curriculum = files.load(*overrides).config.curriculum
    assert {key: getattr(curriculum, key) for key in off} == off
