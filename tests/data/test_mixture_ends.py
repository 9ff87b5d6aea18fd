"""Sources that end: who gets their weight, what is still owed, and a batch that cannot be filled."""

import json

import numpy as np
import pytest

from destruct.data.mixture import Mixture, OutOfData
from destruct.data.order import Shuffled
from tests.data.test_mixture import adversarial_weights, tokens_of


def dropping(on_last: str = "drop") -> Mixture:
    orders = [Shuffled("small", 5, 4, max_epochs=2), Shuffled("large", 40, 4, tokens_of), Shuffled("other", 7, 4)]
    return Mixture(orders, ["small"] if on_last == "stop" else [])


def test_a_source_with_epochs_gives_each_window_so_often_and_then_leaves_its_weight_to_the_others():
    mix = dropping()
    drawn = [mix.draw(8, [0.5, 0.2, 0.3]) for _ in range(50)]
    source, index = np.concatenate([d.source for d in drawn]), np.concatenate([d.index for d in drawn])
    assert np.bincount(index[source == 0], minlength=5).tolist() == [2] * 5
    assert mix.exhausted == ["small"] and mix.epochs[0] == 2
    after = np.flatnonzero(source == 0)[-1] + 1
    tokens = np.where(source == 1, tokens_of(index), 1.0)[after:]
    share = tokens[source[after:] == 1].sum() / tokens.sum()
    assert share == pytest.approx(0.4, abs=0.01)


@pytest.mark.parametrize("sources", [5, 20])
def test_shares_keep_their_bounds_when_sources_end(sources):
    """What is owed is counted by the weights that the mixture says it goes by; those that ended are owed nothing."""
    rng = np.random.default_rng(sources)
    behind = sum(1 / i for i in range(2, sources + 1))
    for _ in range(20):
        ends = rng.integers(1, 4, sources)
        mix = Mixture([Shuffled(f"s{n}", int(size), 0, max_epochs=1) for n, size in enumerate(ends)])
        for _ in range(int(ends.sum())):
            mix.draw(1, adversarial_weights(rng, sources))
            deficits = np.array(list(mix.state_dict()["deficits"].values()))
            assert deficits.min() > -1 - 1e-9 and deficits.max() <= behind + 1e-9
            assert deficits.sum() == pytest.approx(0, abs=1e-9) or len(mix.exhausted) >= sources - 1


def test_what_cannot_be_drawn_is_known_without_drawing():
    mix = dropping("stop")
    while not mix.exhausted:
        mix.require(8)
        mix.draw(8, [0.5, 0.2, 0.3])
    before = mix.state_dict()
    with pytest.raises(OutOfData):
        mix.require(8)
    assert mix.state_dict() == before
    np.testing.assert_allclose(mix.shares([0.5, 0.2, 0.3]), [0, 0.4, 0.6])


def test_all_weight_on_an_exhausted_source_falls_to_the_others_equally():
    mix = dropping()
    mix.draw(10, [1.0, 0.0, 0.0])
    assert mix.exhausted == ["small"]
    later = Mixture([Shuffled("small", 5, 4, max_epochs=2), Shuffled("a", 9, 4), Shuffled("b", 9, 4)])
    later.draw(10, [1.0, 0.0, 0.0])
    assert np.bincount(later.draw(20, [1.0, 0.0, 0.0]).source).tolist() == [0, 10, 10]
    wholes = Mixture([Shuffled("small", 5, 4, max_epochs=2), Shuffled("a", 9, 4), Shuffled("b", 9, 4)])
    assert np.bincount(wholes.draw(30, [1.0, 0.0, 0.0]).source).tolist() == [10, 10, 10]


def test_nothing_is_drawn_after_a_source_that_ends_the_run():
    mix = dropping("stop")
    batches = 0
    with pytest.raises(OutOfData) as raised:
        while True:
            mix.draw(8, [0.5, 0.2, 0.3])
            batches += 1
    assert raised.value.names == ["small"] and batches > 2
    assert mix.state_dict()["cursors"]["small"] == 10 and sum(mix.drawn) == 8 * batches


def test_a_batch_that_cannot_be_filled_is_not_begun():
    mix = Mixture([Shuffled("a", 5, 0, max_epochs=1), Shuffled("b", 6, 0, max_epochs=1)])
    mix.draw(8, [0.5, 0.5])
    before = mix.state_dict()
    with pytest.raises(OutOfData):
        mix.draw(4, [0.5, 0.5])
    assert mix.state_dict() == before
    assert sorted(mix.draw(3, [0.5, 0.5]).source.tolist()) == [0, 1, 1]
    assert mix.exhausted == ["a", "b"] and mix.drawn == [5, 6]


def test_resume_across_the_end_of_a_source_is_exact():
    rng = np.random.default_rng(5)
    weights = [adversarial_weights(rng, 3) for _ in range(40)]
    mix = dropping()
    states, whole = [], []
    for weight in weights:
        states.append(json.loads(json.dumps(mix.state_dict())))
        whole.append(mix.draw(3, weight))
    assert mix.exhausted == ["small"]
    for start in range(0, 40, 3):
        resumed = dropping()
        resumed.load_state_dict(states[start])
        for weight, want in zip(weights[start:], whole[start:], strict=True):
            got = resumed.draw(3, weight)
            assert got.index.tolist() == want.index.tolist() and got.source.tolist() == want.source.tolist()
        assert resumed.state_dict() == mix.state_dict()
