"""The mixture: shares under live weights, epochs, resume, and one order however the draw is cut."""

import json

import numpy as np
import pytest

from destruct.data.mixture import AHEAD, Mixture
from destruct.data.order import Shuffled


def mixture(*sizes: int, seed: int = 0) -> Mixture:
    return Mixture([Shuffled(f"source{number}", size, seed) for number, size in enumerate(sizes)])


def tokens_of(index: np.ndarray) -> np.ndarray:
    """Sizes from 1/64 to 1 of a window, by the window's number."""
    return (index * 37 % 64 + 1) / 64


def adversarial_weights(rng: np.random.Generator, sources: int) -> np.ndarray:
    """Any point of the simplex, corners and faces included."""
    kind = rng.integers(4)
    if kind == 0:
        return np.eye(sources)[rng.integers(sources)]
    if kind == 1:
        share = rng.random(sources) * (rng.random(sources) < 0.5)
        return share / share.sum() if share.sum() else np.full(sources, 1 / sources)
    if kind == 2:
        return np.full(sources, 1 / sources)
    return rng.dirichlet(np.full(sources, 0.3))


def test_the_deficit_rule_worked_by_hand():
    """w = (1/2, 1/4, 1/4).  Deficits before each choice: (.5, .25, .25) -> 0; (0, .5, .5) -> 1, the first of equals;
    (.5, -.25, .75) -> 2; (1, 0, 0) -> 0; and all are 0 again."""
    assert mixture(9, 9, 9).draw(8, [0.5, 0.25, 0.25]).source.tolist() == [0, 1, 2, 0, 0, 1, 2, 0]


@pytest.mark.parametrize("sources", [1, 2, 3, 7, 20])
def test_shares_keep_their_bounds_under_random_live_weights(sources):
    rng = np.random.default_rng(sources)
    behind = sum(1 / i for i in range(2, sources + 1))
    mix, owed, drawn = mixture(*[11] * sources), np.zeros(sources), np.zeros(sources)
    for _ in range(1500):
        weights = adversarial_weights(rng, sources)
        owed += weights
        drawn += np.bincount(mix.draw(1, weights).source, minlength=sources)
        assert (drawn - owed).max() < 1 - 1e-9 if sources > 1 else (drawn - owed).max() < 1e-9
        assert (owed - drawn).max() <= behind + 1e-9


def test_the_bound_behind_is_reached_by_an_adversary():
    """Share the weight over the sources not yet drawn: of three, the last is behind by 1/3 + 1/2 after two draws."""
    mix = mixture(9, 9, 9)
    first = mix.draw(1, [1 / 3] * 3).source[0]
    others = np.array([0.0 if source == first else 0.5 for source in range(3)])
    second = mix.draw(1, others).source[0]
    last = 3 - first - second
    assert mix.state_dict()["deficits"][f"source{last}"] == pytest.approx(1 / 3 + 1 / 2)


def test_a_new_weight_acts_on_the_very_next_batch():
    mix = mixture(50, 50)
    assert set(mix.draw(20, [1.0, 0.0]).source) == {0}
    assert set(mix.draw(20, [0.0, 1.0]).source) == {1}
    assert set(mix.draw(20, [1.0, 0.0]).source) == {0}


def test_each_epoch_visits_every_window_once_in_an_order_of_its_own():
    mix = mixture(13, 5)
    drawn = [mix.draw(6, [0.75, 0.25]) for _ in range(40)]
    source, index = np.concatenate([d.source for d in drawn]), np.concatenate([d.index for d in drawn])
    for number, size in enumerate((13, 5)):
        mine = index[source == number]
        epochs = [mine[start : start + size].tolist() for start in range(0, len(mine) // size * size, size)]
        assert len(epochs) >= 10 and all(sorted(epoch) == list(range(size)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) >= len(epochs) - 2  # of 120 orders of five, few come twice
        assert mix.epochs[number] == len(mine) / size


def test_the_order_is_one_however_the_draw_is_cut():
    """Samples 0..59 are the same as 60 batches of 1, as 12 of 5 and as one of 60."""
    orders = []
    for batch_size in (1, 5, 60):
        mix = mixture(7, 31, 4)
        drawn = [mix.draw(batch_size, [0.2, 0.5, 0.3]) for _ in range(60 // batch_size)]
        assert [d.number for d in drawn] == list(range(60 // batch_size))
        orders.append(
            [np.concatenate([getattr(d, field) for d in drawn]).tolist() for field in ("source", "index", "sample")]
        )
    assert orders[0] == orders[1] == orders[2]
    assert orders[0][2] == list(range(60))


def test_a_source_keeps_its_order_whatever_stands_beside_it():
    def windows_of(names, sizes, name, weights):
        drawn = Mixture([Shuffled(*each, 3) for each in zip(names, sizes, strict=True)]).draw(80, weights)
        return drawn.index[drawn.source == names.index(name)][:20].tolist()

    alone = windows_of(["a"], [17], "a", [1.0])
    assert windows_of(["b", "a"], [9, 17], "a", [0.5, 0.5]) == alone
    assert windows_of(["b"], [17], "b", [1.0]) != alone


def test_resume_at_any_draw_equals_the_uninterrupted_order():
    rng = np.random.default_rng(1)
    sizes, weights = (5, 3, 19), [adversarial_weights(rng, 3) for _ in range(25)]
    mix = mixture(*sizes, seed=8)
    states, whole = [], []
    for weight in weights:
        states.append(json.loads(json.dumps(mix.state_dict(), sort_keys=True)))
        whole.append(mix.draw(7, weight))
    for start, state in list(enumerate(states))[::4]:
        resumed = mixture(*sizes, seed=8)
        resumed.load_state_dict(state)
        for weight, want in zip(weights[start:], whole[start:], strict=True):
            got = resumed.draw(7, weight)
            assert got.number == want.number
            for field in ("source", "index", "sample"):
                np.testing.assert_array_equal(getattr(got, field), getattr(want, field))
        assert resumed.state_dict() == mix.state_dict()


def test_the_state_is_a_copy():
    mix = mixture(5, 5)
    before = mix.state_dict()
    mix.draw(3, [0.5, 0.5])
    assert before == mixture(5, 5).state_dict() != mix.state_dict()


@pytest.mark.parametrize(
    "weights",
    [
        [1.0],
        [0.5, 0.3, 0.2],
        [1.1, -0.1],
        [0.5, 0.5001],
        [0.0, 0.0],
        [float("nan"), 1.0],
        [float("inf"), 0.0],
        [[1.0, 0.0]],
    ],
)
def test_bad_weights_are_refused_and_nothing_is_drawn(weights):
    mix = mixture(5, 5)
    with pytest.raises(ValueError, match="weights"):
        mix.draw(4, weights)
    assert mix.state_dict() == mixture(5, 5).state_dict()


def test_weights_that_sum_to_one_within_rounding_never_drift():
    """A sum of 1 + 9e-7 over 20,000 samples would otherwise leave deficits of .018 that nobody owes."""
    mix = mixture(5000, 5000)
    for _ in range(20):
        mix.draw(1000, [0.5 + 9e-7, 0.5])
    assert sum(mix.state_dict()["deficits"].values()) == pytest.approx(0, abs=1e-9)


def test_bad_sources_are_refused():
    for names in ([], ["a", "a"]):
        with pytest.raises(ValueError, match="Mixture"):
            Mixture([Shuffled(name, 3, 0) for name in names])
    with pytest.raises(ValueError, match="'a' has 0 windows"):
        Shuffled("a", 0, 0)
    with pytest.raises(ValueError, match="batch_size"):
        mixture(5).draw(0, [1.0])


@pytest.mark.parametrize("sources", [2, 3, 7, 20])
def test_shares_of_tokens_keep_the_same_bounds_where_windows_are_not_whole(sources):
    """What is owed after a window of s is s times the weights: ahead by less than a window, behind by the harmonic."""
    rng = np.random.default_rng(sources)
    behind = sum(1 / i for i in range(2, sources + 1))
    mix = Mixture([Shuffled(f"source{number}", 11, 0, tokens_of) for number in range(sources)])
    owed, drawn = np.zeros(sources), np.zeros(sources)
    for _ in range(1500):
        weights = adversarial_weights(rng, sources)
        got = mix.draw(1, weights)
        size = tokens_of(got.index)[0]
        owed += size * weights
        drawn[got.source[0]] += size
        assert (drawn - owed).max() < 1 - 1e-9 and (owed - drawn).max() <= behind + 1e-9


def test_a_source_of_short_windows_is_drawn_more_often_for_the_same_share_of_tokens():
    short, whole = Shuffled("short", 50, 0, lambda index: np.full(len(index), 0.125)), Shuffled("whole", 50, 0)
    source = Mixture([short, whole]).draw(900, [0.5, 0.5]).source
    assert abs((source == 0).sum() - 800) <= 8


def test_the_order_crosses_the_edge_of_what_is_looked_up_at_once():
    one, cut = mixture(1000), mixture(1000)
    whole = one.draw(3 * AHEAD, [1.0]).index
    parts = [cut.draw(size, [1.0]).index for size in (AHEAD - 1, 2, AHEAD - 1, AHEAD)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(whole, Shuffled("source0", 1000, 0).windows(0, 3 * AHEAD))


def test_a_thousand_million_windows_take_the_memory_and_the_state_of_ten():
    import tracemalloc

    def peak(size: int) -> tuple[int, int]:
        tracemalloc.start()
        mix = mixture(size, size, size)
        for _ in range(20):
            mix.draw(64, [0.2, 0.3, 0.5])
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most, len(json.dumps(mix.state_dict()))

    peak(10)  # what numpy keeps from its first call
    (small, _), (large, state) = peak(10), peak(10**9)
    assert large < 2 * small and large < 1 << 20
    assert state < 1000
