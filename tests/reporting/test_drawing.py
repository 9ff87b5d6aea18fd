"""What is drawn where, worked by hand, and the tables and words beside it."""

import re

import numpy as np
import pytest

from destruct.reporting.charts import Chart, Line, css
from destruct.reporting.drawing import draw
from destruct.reporting.log import Series
from destruct.reporting.scales import duration, envelope, even, full, short, tick_words, ticks


def series(y: list[float], x: list[float] | None = None) -> Series:
    return Series(np.array(range(len(y)) if x is None else x, dtype=float), np.array(y, dtype=float))


def points(d: str) -> list[tuple[int, int]]:
    return [(int(x), int(y)) for x, y in re.findall(r"(\d+) (\d+)", d)]


def test_a_stretch_keeps_its_mean_its_least_and_its_largest():
    got = envelope(series([1, 5, 3, np.nan, 7, 9]), 2)
    assert got.reduced and got.x.tolist() == [1, 4]
    assert (got.mean.tolist(), got.low.tolist(), got.high.tolist()) == ([3, 8], [1, 7], [5, 9])
    same = envelope(series([1, 5]), 2)
    assert not same.reduced and same.mean.tolist() == same.low.tolist() == [1, 5]


def test_a_stretch_of_which_nothing_is_known_is_a_gap_and_errors_widen_the_band():
    got = envelope(series([np.nan, np.nan, 4, 6]), 2, error=np.array([1, 1, 1, np.inf]))
    np.testing.assert_equal([got.mean, got.low, got.high], [[np.nan, 5], [np.nan, 3], [np.nan, 6]])


@pytest.mark.parametrize("count", [7, 3000])
def test_no_spike_is_lost_however_many_points_there_are(count):
    y = np.sin(np.arange(count))
    y[count // 3] = 50
    got = envelope(series(y.tolist()), 300)
    assert (got.low.min(), got.high.max(), len(got.x)) == (y.min(), 50, min(count, 300))


def test_ticks_are_round_and_inside():
    assert ticks(0, 36, 5) == [0, 10, 20, 30]
    assert ticks(-0.013, 0.021, 4) == pytest.approx([-0.01, 0, 0.01, 0.02])
    assert tick_words([0.0, 0.025, 0.05]) == ["0.000", "0.025", "0.050"]
    assert tick_words([0.0, 20000.0]) == ["0", "20,000"]
    assert tick_words([1e-5, 2e-5]) == ["1e-5", "2e-5"]


def test_numbers_in_words():
    assert [short(x) for x in (0.0, 0.0123456, 1234.5, 831051.0, np.nan)] == ["0", "0.01235", "1,234.5", "831,051", "–"]
    assert [even(x) for x in (2.03, 0.0001, np.inf)] == ["2.030", "0.0001", "–"]
    assert full(1 / 3) == "0.333333"
    assert [duration(s) for s in (4.25, 198, 7300, 200000)] == ["4.25 s", "3 min 18 s", "2 h 1 min", "2 d 7 h"]


def test_a_line_goes_through_its_points_from_edge_to_edge_and_breaks_where_a_figure_is_missing():
    drawing = draw(Chart("t", "u", "m", [Line("a", series([0, 1, np.nan, 1, 0]))]))
    first, second = [points(path.d) for path in drawing.paths if path.css.startswith("line")]
    assert [x for x, _ in first] == [0, 500] and [x for x, _ in second] == [1500, 2000]
    assert first[0][1] > first[1][1] == second[0][1]  # y grows downwards


def test_a_lone_point_is_drawn():
    (line, dots) = draw(Chart("t", "u", "m", [Line("a", series([3.0]))])).paths
    assert line.d == dots.d == "M1000 500h1"


def test_stacked_shares_fill_the_chart_at_every_step_also_when_sources_come_and_go():
    a, b, c = series([0.25, 0.5, 0.5]), series([0.75, 0.5], [0, 1]), series([0.5], [2])
    lines = [Line(name, one, kind=k) for k, (name, one) in enumerate({"a": a, "b": b, "c": c}.items())]
    paths = draw(Chart("t", "share", "m", lines, stacked=True, steps=True, until=4.0)).paths
    assert len(paths) == 3
    # Each staircase: at steps 0, 1 and 2, which goes on to 4; the upper edge, then the lower one backwards.
    heights = []
    for path in paths:
        edge = points(path.d)
        assert [x for x, _ in edge[:6]] == [0, 500, 500, 1000, 1000, 2000]
        upper, lower = [y for _, y in edge[:6:2]], [y for _, y in edge[:5:-1]][::2]
        heights.append([below - above for above, below in zip(upper, lower, strict=True)])
    assert heights == [[250, 500, 500], [750, 500, 0], [0, 0, 500]]


def test_a_long_stack_of_uneven_series_still_adds_up_to_one():
    rng = np.random.default_rng(0)
    shares = rng.dirichlet([1, 1, 1], 2000)
    shares[1200:, 2] = 0
    shares /= shares.sum(1, keepdims=True)
    late = series(shares[:1200, 2].tolist())
    lines = [Line("a", series(shares[:, 0].tolist())), Line("b", series(shares[:, 1].tolist())), Line("c", late)]
    top = points(draw(Chart("t", "share", "m", lines, stacked=True)).paths[-1].d)
    assert {y for _, y in top[: len(top) // 2]} <= {0, 1}


def test_a_bound_is_drawn_where_it_is_near_and_told_where_it_is_far():
    line = [Line("KL", series([0.02, 0.04]))]
    near = draw(Chart("t", "u", "m", line, bound=("kl.bound", 0.05)))
    assert near.level is not None and 0 < near.level < 20 and not near.notes
    far = draw(Chart("t", "u", "m", line, bound=("kl.bound", 5.0)))
    assert far.level is None and far.notes == ["kl.bound 5 lies outside of the chart."]


def test_what_lies_below_the_bottom_is_told_with_its_least():
    drawing = draw(Chart("t", "u", "m", [Line("a", series([-900, 0, 0.5]))], bottom=-1.0))
    assert drawing.notes == ["Values below -1 are drawn at the lower edge; the least is -900."]
    assert max(y for path in drawing.paths for _, y in points(path.d)) == 1000


def test_names_at_the_ends_do_not_stand_on_one_another():
    lines = [Line(f"n{k}", series([0, 1 + k / 1000]), kind=k) for k in range(12)]
    ys = [label.y for label in draw(Chart("t", "u", "m", lines)).ends]
    assert len(ys) == 12 and min(np.diff(ys)) >= 12.99 and ys[0] >= 0 and ys[-1] <= 190


def test_the_first_thirty_two_lines_differ_in_colour_or_dashes():
    assert len({css(kind) for kind in range(32)}) == 32
