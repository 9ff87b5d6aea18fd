"""Projections by their optimality conditions, stability by the eigenvalues of the step itself."""

import math

import numpy as np
import pytest

from destruct.curriculum.dynamics import (
    PROJECTIONS,
    NotProjectable,
    check_stability,
    clip_renorm,
    momentum_step,
    project_to_floor,
)
from destruct.curriculum.estimates import Floats
from destruct.errors import DestructError


def test_projection_of_three_weights_worked_by_hand():
    """Mass .7 above a floor of .1: the two largest share the excess, theta = .4 - .15 = .25 above the floor."""
    got = project_to_floor(np.array([0.9, 0.5, -0.2]), floor=0.1)
    np.testing.assert_allclose(got, [0.65, 0.25, 0.1], atol=1e-15)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e20, 1e300])
def test_projection_meets_the_optimality_conditions(scale):
    """KKT: one theta with p = w - theta off the floor and w - theta <= floor on it; p >= floor exactly, sum p = 1."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        size = int(rng.integers(1, 9))
        floor = float(rng.choice([0, 0.25 / size, rng.uniform(0, 1 / size), 1 / size]))
        w = rng.normal(0.2, scale, size)
        p = project_to_floor(w, floor)
        assert p.min() >= floor and abs(p.sum() - 1) < 1e-14
        off = p > floor
        theta = (w - p)[off]
        if not off.any():
            continue
        np.testing.assert_allclose(theta, theta[0], atol=1e-13 * scale + 1e-14)
        assert np.all(w[~off] - theta[0] <= floor + 1e-13 * scale + 1e-14)


def test_no_other_point_of_the_simplex_is_nearer():
    rng = np.random.default_rng(1)
    w = rng.normal(0.3, 0.5, 4)
    p = project_to_floor(w, floor=0.05)
    others = 0.05 + 0.8 * rng.dirichlet(np.ones(4) * 0.5, 20_000)
    nearest = np.min(np.linalg.norm(others - w, axis=1))
    assert np.linalg.norm(p - w) <= nearest < np.linalg.norm(p - w) + 0.05


def test_projection_moves_with_a_permutation_and_leaves_what_is_inside():
    w = np.array([0.5, -0.1, 0.9, 0.2])
    order = [2, 0, 3, 1]
    assert project_to_floor(w[order], 0.02).tobytes() == project_to_floor(w, 0.02)[order].tobytes()
    inside = np.array([0.2, 0.3, 0.5])
    np.testing.assert_allclose(project_to_floor(inside, 0.1), inside, rtol=0, atol=1e-16)


def test_a_floor_that_cannot_be_is_refused_and_so_are_weights_that_are_none():
    with pytest.raises(DestructError, match="0.4 for each of 3 sources"):
        project_to_floor(np.ones(3), floor=0.4)
    for project in PROJECTIONS.values():
        with pytest.raises(NotProjectable):
            project(np.array([0.5, math.nan]), 0.0)
        with pytest.raises(NotProjectable):
            project(np.array([0.5, math.inf]), 0.0)


def test_clip_renorm_by_hand_and_with_nothing_left():
    assert clip_renorm(np.array([0.75, -3.0, 0.25, 1.0])).tolist() == [0.375, 0, 0.125, 0.5]
    for hopeless in ([0.0, -1.0], [0.0, 0.0], [1e308, 1e308]):
        with np.errstate(over="ignore"), pytest.raises(NotProjectable):
            clip_renorm(np.array(hopeless))


def test_momentum_step_worked_by_hand():
    """v = .5 * .1 + .5 * .4 * (.2 - 1 * (.7 - .5)) = .05 for the first source; the prior pulls the second back up."""
    v, w = momentum_step(
        np.array([0.7, 0.3]), np.array([0.1, -0.1]), np.array([0.2, -0.1]), np.array([0.5, 0.5]), eta=0.4, mu=0.5, lam=1
    )
    np.testing.assert_allclose(v, [0.05, -0.05 + 0.2 * 0.1], rtol=1e-13)
    np.testing.assert_allclose(w, [0.75, 0.27], rtol=1e-13)


def largest_eigenvalue(eta: float, mu: float, lam: float, response: float = 0.0) -> float:
    """Growth per round of (w, v, y) about rest, read off `momentum_step`; the signal y loses response * w a round."""

    def advance(state: Floats) -> list[float]:
        w, v, y = state.reshape(3, 1)
        v_next, w_next = momentum_step(w, v, y, np.zeros(1), eta, mu, lam)
        return [w_next.item(), v_next.item(), (y - response * w).item()]

    step = np.array([advance(unit) for unit in np.eye(3)]).T
    return float(np.max(np.abs(np.linalg.eigvals(step))))


def test_stability_is_refused_exactly_where_the_step_has_a_growing_mode():
    """A constant signal keeps its own mode at 1; a dial is refused when another mode passes it."""
    rng = np.random.default_rng(2)
    refused = 0
    for _ in range(1000):
        eta, mu, lam = rng.uniform(0.01, 10), rng.uniform(0, 0.99), rng.uniform(0, 4)
        grows = largest_eigenvalue(eta, mu, lam) > 1 + 1e-9
        try:
            check_stability(eta, mu, lam)
        except DestructError:
            assert grows, (eta, mu, lam)
            refused += 1
        else:
            assert not grows, (eta, mu, lam)
    assert 100 < refused < 900


def test_the_refusal_names_the_values_and_an_eta_that_works():
    with pytest.raises(DestructError, match=r"eta=6, lam=1, mu=0.25 .* = 4.5, .* = 2.5") as refusal:
        check_stability(eta=6.0, mu=0.25, lam=1.0)
    assert refusal.value.remedy.startswith("set curriculum.eta: 1.7, ")
    check_stability(eta=1.7, mu=0.25, lam=1.0)
    with pytest.raises(DestructError):
        check_stability(eta=2.0, mu=0.0, lam=1.0)
    check_stability(eta=0.5, mu=0.5, lam=1.0)
    check_stability(eta=1e9, mu=0.0, lam=0.0)


def test_a_signal_that_answers_the_weights_needs_damping():
    """Undamped, the closed loop grows by sqrt(1 + b) a round, b the response; with the usual dials it dies out."""
    assert largest_eigenvalue(1.0, 0.0, 0.0, response=0.05) == pytest.approx(math.sqrt(1.05), rel=1e-12)
    # lam * (1 - mu) > response: the bound is .5.
    assert largest_eigenvalue(0.5, 0.5, 1.0, response=0.49) < 1 < largest_eigenvalue(0.5, 0.5, 1.0, response=0.51)
