"""Whose checkpoint a run may continue: sources may come and go, what is in both must be the same."""

import json

import pytest

from destruct.checkpoint import manifest
from destruct.checkpoint.identity import DATA, check_data, check_identity, identity
from destruct.config.settings import load
from destruct.errors import DestructError
from tests.tiny import write_config

ARITHMETIC, NOISE = "arithmetic: {embedded: arithmetic%s}", "noise: {embedded: noise, learnable: false}"
MARKOV = "markov: {embedded: markov}"


@pytest.fixture
def facts(tmp_path):
    """What a run of some sources would write into a manifest."""

    def of(*sources: str) -> dict:
        config = load(write_config(tmp_path), [f"data.sources={{{', '.join(sources)}}}"], 1)
        return json.loads(json.dumps(identity(config)))

    return of


def test_sources_may_come_go_and_change_places(facts, tmp_path):
    both = facts(ARITHMETIC % "", NOISE)
    for now in (
        [NOISE, ARITHMETIC % ""],
        [ARITHMETIC % "", NOISE, MARKOV],
        [NOISE],
        [MARKOV, NOISE],
        [ARITHMETIC % ", on_exhausted: drop", NOISE],
    ):
        check_identity(tmp_path, both, facts(*now))


def test_a_prior_may_change_only_with_the_set_of_sources(facts, tmp_path):
    """Every prior is a share beside the others', so a source that comes or goes changes them all."""
    both, twice = facts(ARITHMETIC % "", NOISE), ARITHMETIC % ", prior: 2.0"
    check_identity(tmp_path, both, facts(twice, NOISE, MARKOV))
    check_identity(tmp_path, both, facts(twice))
    with pytest.raises(DestructError, match=r"data\.sources\.arithmetic\.prior = None; this is 2\.0"):
        check_identity(tmp_path, both, facts(twice, NOISE))


def test_another_source_under_the_name_of_one_is_refused_whatever_came_and_went(facts, tmp_path):
    both, other = facts(ARITHMETIC % "", NOISE), "arithmetic: {embedded: prose}"
    for now in ([other, NOISE], [other, MARKOV], [other, NOISE, MARKOV]):
        with pytest.raises(DestructError, match="arithmetic.embedded = arithmetic; this is prose"):
            check_identity(tmp_path, both, facts(*now))


def test_a_run_of_none_of_the_sources_is_another_run(facts, tmp_path):
    with pytest.raises(DestructError, match="was trained on arithmetic, noise, and data.sources has none") as error:
        check_identity(tmp_path, facts(ARITHMETIC % "", NOISE), facts(MARKOV))
    assert error.value.remedy.startswith("keep at least one of them under its name")


def test_a_checkpoint_of_an_older_format_is_refused_in_words(facts, tmp_path):
    now = facts(NOISE)
    older = {key: value for key, value in now.items() if key != "format of the state"}
    with pytest.raises(DestructError, match="format of the state = None; this is 3"):
        check_identity(tmp_path, older, now)


def test_texts_are_compared_for_the_sources_that_are_in_both(tmp_path):
    (tmp_path / manifest.NAME).write_text(json.dumps({DATA: {"a": "1", "b": "2", "gone": "3"}}))
    check_data(tmp_path, {"a": "1", "b": "2", "new": "4"})
    check_data(tmp_path, {"b": "2"})
    with pytest.raises(DestructError, match="other texts than 'b' holds now"):
        check_data(tmp_path, {"a": "1", "b": "5", "new": "4"})
