"""Sources that come and go between two lives of a mixture: who goes on, what is owed, and the bounds."""

import json

import numpy as np
import pytest

from destruct.data.mixture import Mixture, OutOfData
from destruct.data.order import Shuffled
from tests.data.test_mixture import adversarial_weights, tokens_of

STATE = {
    "cursors": {"a": 4, "b": 6, "c": 2},
    "deficits": {"a": 0.5, "b": -0.375, "c": -0.125},
    "draws": 3,
    "samples": 12,
}


def mixture(*names: str, sizes=None) -> Mixture:
    """Sources z... end after nine windows, the others never."""
    return Mixture([Shuffled(name, 9, 5, sizes, 1 if name.startswith("z") else None) for name in names])


def resumed(state: dict, *names: str, sizes=None) -> Mixture:
    mix = mixture(*names, sizes=sizes)
    mix.load_state_dict(json.loads(json.dumps(state)))
    return mix


@pytest.mark.parametrize(
    ("names", "cursors", "deficits"),
    [
        (["a", "b", "c", "n"], [4, 6, 2, 0], [0.5, -0.375, -0.125, 0.0]),
        (["n", "c", "a", "b"], [0, 2, 4, 6], [0.0, -0.125, 0.5, -0.375]),
        (["b", "c"], [6, 2], [0.0, 0.0]),
        (["a", "b"], [4, 6], [0.375, -0.375]),
        (["n", "a", "c"], [0, 4, 2], [0.0, 0.125, -0.125]),
        (["a", "n"], [4, 0], [0.0, 0.0]),
    ],
)
def test_what_goes_on_and_what_is_owed_worked_by_hand(names, cursors, deficits):
    """a was owed 1/2, three quarters of it by b.  Without c, a waits for 1/8 less; without a, nobody is ahead."""
    mix = resumed(STATE, *names)
    state = mix.state_dict()
    assert mix.drawn == cursors
    assert list(state["deficits"].items()) == list(zip(names, deficits, strict=True))
    assert (state["draws"], state["samples"]) == (3, 12)


def test_two_that_go_at_once_leave_what_they_were_owed_together():
    """d and e go with 1/2 - 1/4: the ahead of f falls from 3/4 to 1/2, and g keeps its 1/2."""
    deficits = {"d": 0.5, "e": -0.25, "f": -0.75, "g": 0.5}
    state = STATE | {"cursors": dict.fromkeys(deficits, 1), "deficits": deficits}
    assert resumed(state, "f", "g").state_dict()["deficits"] == {"f": -0.5, "g": 0.5}


def test_a_state_that_shares_no_source_is_refused():
    with pytest.raises(ValueError, match=r"\['a', 'b', 'c'\], not \['n', 'm'\]"):
        mixture("n", "m").load_state_dict(STATE)
    with pytest.raises(ValueError, match="Mixture"):
        mixture("a").load_state_dict(STATE | {"deficits": {"a": 0.0}})


def test_a_draw_after_a_source_went_has_the_addresses_that_follow():
    """Samples are counted over all sources that there ever were: a random number of a token is used once."""
    mix = resumed(STATE, "b", "n")
    drawn = mix.draw(4, [0.5, 0.5])
    assert (drawn.number, drawn.sample.tolist()) == (3, [12, 13, 14, 15])
    assert drawn.ordinal[drawn.source == 0].tolist() == list(range(6, 6 + (drawn.source == 0).sum()))
    assert drawn.ordinal[drawn.source == 1].tolist() == list(range((drawn.source == 1).sum()))


def test_a_source_that_may_be_gone_through_no_more_leaves_as_one_that_ends():
    mix = Mixture([Shuffled("a", 4, 5, max_epochs=1), Shuffled("b", 9, 5), Shuffled("c", 9, 5)])
    mix.load_state_dict(STATE)
    assert mix.exhausted == ["a"]
    assert mix.state_dict()["deficits"] == {"a": 0.0, "b": 0.0, "c": 0.0}


def levelling_weights(rng: np.random.Generator, deficits: np.ndarray) -> np.ndarray:
    """All weight on some sources, so that they are owed alike: what leaves the others of them furthest behind."""
    some = rng.permutation(len(deficits))[: rng.integers(1, len(deficits) + 1)]
    share = np.zeros(len(deficits))
    share[some] = ((1 + deficits[some].sum()) / len(some) - deficits[some]).clip(0)
    return share / share.sum()


@pytest.mark.parametrize("sizes", [None, tokens_of])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.slow
def test_the_bounds_hold_however_sources_come_and_go(seed, sizes):
    """Eight lives of 1 to 7 sources, some of which end: never a whole window ahead, and behind by at most the sum of
    1/i up to the most sources that there were at once."""
    rng = np.random.default_rng(seed)
    pool = [f"s{number}" for number in range(6)] + [f"z{number}" for number in range(3)]
    names = list(rng.permutation(pool)[:3])
    mix, most, deficits = mixture(*names, sizes=sizes), 3, np.zeros(3)
    for _ in range(8):
        for _ in range(120):
            level = levelling_weights(rng, deficits)
            try:
                mix.draw(1, level if rng.integers(2) else adversarial_weights(rng, len(names)))
            except OutOfData:
                break
            deficits = np.array(list(mix.state_dict()["deficits"].values()))
            behind = sum(1 / i for i in range(2, most + 1))
            assert deficits.min() > -1 - 1e-9 and deficits.max() <= behind + 1e-9
            assert deficits.sum() == pytest.approx(0, abs=1e-9)
        stays = rng.choice(names)
        others = [name for name in pool if name != stays]
        names = list(rng.permutation([stays, *rng.permutation(others)[: rng.integers(0, 7)]]))
        mix, most = resumed(mix.state_dict(), *names, sizes=sizes), max(most, len(names))
        deficits = np.array(list(mix.state_dict()["deficits"].values()))


@pytest.mark.parametrize("names", [["a", "b", "c"], ["c", "a", "b"]])
def test_a_state_is_taken_over_by_name_in_whatever_order(names):
    """Weights that no tie can come from: both orders give the windows of each source in the same order."""
    weights = {"a": 0.41, "b": 0.27, "c": 0.32}
    mix = resumed(STATE, *names)
    drawn = mix.draw(60, [weights[name] for name in names])
    got = [(names[source], index) for source, index in zip(drawn.source, drawn.index, strict=True)]
    plain = resumed(STATE, "a", "b", "c").draw(60, [0.41, 0.27, 0.32])
    assert got == [("abc"[source], index) for source, index in zip(plain.source, plain.index, strict=True)]
