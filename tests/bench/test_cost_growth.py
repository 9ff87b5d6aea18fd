"""How the benchmark of growing costs fits, draws and names what it measured; the measuring itself is in its file."""

import json

import pytest

from bench.cost_growth import AXES, BASE, FILE, draw, fit, planned


def test_a_line_is_found_and_a_point_off_it_is_told():
    """3 + 2 x exactly; then 10 in the place of 9 at x = 3: the worst point is off by no more than that."""
    for axis, power in (("H", 2), ("ranks", -1)):
        lines = [{"at": x, "s": 3 + 2 * x**power} for x in (1, 2, 4)]
        assert fit(axis, lines, "s") == pytest.approx((3, 2, 0), abs=1e-9)
    lines = [{"at": x, "s": 3 + 2 * x} for x in (1, 2, 3, 4)]
    assert fit("P", lines, "s") == pytest.approx((3, 2, 0), abs=1e-9)
    lines[2]["s"] = 10
    constant, slope, off = fit("P", lines, "s")
    assert 0.02 < off < 0.1
    assert off == pytest.approx(max(abs((constant + slope * line["at"]) / line["s"] - 1) for line in lines))


def test_small_points_count_as_much_as_large_ones():
    """Of 1, 1 and 1000 at 1, 2 and 3 the least squares of shares stay near the two small ones."""
    constant, slope, _ = fit("P", [{"at": 1, "s": 1.0}, {"at": 2, "s": 1.0}, {"at": 3, "s": 1000.0}], "s")
    assert abs(constant + slope - 1) < 2 and abs(constant + 2 * slope - 1) < 2


def test_every_axis_passes_the_base_and_the_plan_grows_along_it():
    for axis, values in AXES.items():
        assert BASE[axis] in values and list(values) == sorted(values)
        seconds, mib = zip(*(planned(BASE | {axis: value}) for value in (values[0], values[-1])), strict=True)
        if axis == "ranks":
            assert seconds[1] < seconds[0] and mib[1] < mib[0]
        else:
            assert seconds[1] > seconds[0] and mib[1] >= mib[0]


def test_the_file_has_every_axis_and_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    found = json.loads(FILE.read_text(encoding="utf-8"))
    assert {axis: tuple(line["at"] for line in lines) for axis, lines in found["axes"].items()} == AXES
    draw(found, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").read_bytes().startswith(b"\x89PNG")
