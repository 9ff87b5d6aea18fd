"""The board of a terminal: its figures, and how it fits."""

import math

import pytest
from rich.console import Console

from destruct.heartbeat import HEART
from destruct.progress import Work
from destruct.tracking.live import Board, Standing, steps, weights

SIX = {"arithmetic": 0.147, "code": 0.291, "dialogue": 0.132, "markov": 0.146, "noise": 0.141, "prose": 0.143}
MANY = {f"source-{number}-of-a-long-name": (number + 1) / 820 for number in range(40)}


def standing(**changes) -> Standing:
    figures = {
        "reward": 0.3621,
        "reward_first": 0.2893,
        "reward_last": 0.3403,
        "kl": 0.0466,
        "kl_bound": 0.1,
        "ptx_loss": 3.552,
        "entropy": 3.56,
        "tokens_per_s": 4120.4,
        "weights": SIX,
        "validation": 3.8388,
        "best": 3.8201,
        "best_update": 12,
    }
    return Standing(**figures | changes)


def drawn(status: Standing | str, columns: int, rows: int = 24, encoding: str = "utf-8") -> list[str]:
    """Lines of the board after 12 of 36 steps of 6 s each, without its colours."""
    console = Console(width=columns, height=rows, highlight=False, markup=False, color_system=None)
    board = Board(Work("ppo", 36))
    board.work.began -= 72
    board.work.advance(12, board.work.began + 72)
    for reward in (0.30, 0.32, 0.31):
        board.take(standing(reward=reward))
    board.take(status)
    options = console.options
    options.encoding = encoding
    return ["".join(segment.text for segment in line).rstrip() for line in console.render_lines(board, options)]


def test_the_line_of_an_update():
    assert str(standing()) == "reward 0.362  KL 0.0466 of 0.1  ptx 3.552  entropy 3.56  val 3.839  4,120 tok/s"
    assert str(standing(validation=None)).endswith("entropy 3.56  4,120 tok/s")


@pytest.mark.parametrize("columns", [20, 40, 80, 99, 100, 140, 300])
@pytest.mark.parametrize("sources", [SIX, MANY, {"one": 1.0}])
def test_it_fits_any_width_and_tells_everything(columns, sources):
    lines = drawn(standing(weights=sources), columns)
    assert max(map(len, lines)) <= columns
    text = "\n".join(lines)
    if columns < 40:
        return
    assert "12/36" in text and next(iter(sources))[:1] in text
    for label in ("now", "reward", "KL", "validation"[:10], "speed", "weights"):
        assert label in text, label
    if columns >= 80:
        for words in ("1:12, 2:24 left", "0.362, from 0.289 to 0.340", "0.0466 of 0.1", "3.8388, best 3.8201", "4,120"):
            assert words in text, words


@pytest.mark.parametrize("rows", [10, 16, 24, 60])
def test_it_is_no_higher_than_the_terminal(rows):
    assert len(drawn(standing(weights=MANY), 80, rows)) <= rows


def test_of_many_sources_the_largest_are_shown_and_the_others_are_counted():
    """At 80 columns 6 rows of 2: the largest 12, sources 28 to 39, have (29 + ... + 40) / 820 of all."""
    lines = drawn(standing(weights=MANY), 80)
    assert f"and 28 more: {1 - sum(range(29, 41)) / 820:.3f} together" in lines[-1]
    shown = "\n".join(lines)
    assert "source-39-of-a-lo" in shown and "source-28-of-a-lo" in shown and "source-27-" not in shown


def test_of_few_sources_all_are_shown_in_their_own_order_and_bars_are_as_long_as_their_shares():
    console = Console(width=60, height=24, color_system=None)
    with console.capture() as capture:
        console.print(*weights({"a": 0.2, "b": 0.4, "c": 0.4}, 40, 20))
    lines = capture.get().splitlines()
    assert [line.split()[-3 if number == 0 else -2 :][-2] for number, line in enumerate(lines)] == [
        "0.200",
        "0.400",
        "0.400",
    ]
    full = lines[1].count("━")
    assert abs(lines[0].count("━") + lines[0].count("╸") - full / 2) <= 1 and lines[2].count("━") == full


@pytest.mark.parametrize(
    ("kl", "words"), [(0.1, ""), (0.1001, "OUTSIDE"), (math.inf, "OUTSIDE"), (math.nan, "OUTSIDE")]
)
def test_a_kl_beyond_its_bound_is_shouted(kl, words):
    line = next(line for line in drawn(standing(kl=kl), 80) if line.startswith("KL"))
    assert ("OUTSIDE" in line) == bool(words)


def test_the_phase_is_shown_and_how_far_it_is_where_that_is_counted():
    assert drawn(standing(), 80)[1].split() == ["now"]
    with HEART.during("evaluate"):
        assert drawn(standing(), 80)[1].split() == ["now", "evaluate"]
        HEART.expect(96)
        HEART.advance(48)
        assert drawn(standing(), 80)[1].split() == ["now", "evaluate", "50%"]
        with HEART.during("generate"):
            assert drawn(standing(), 80)[1].split() == ["now", "generate"]
        assert drawn(standing(), 80)[1].split() == ["now", "evaluate", "50%"]


def test_other_stretches_have_their_own_words():
    assert drawn("loss 5.661", 80)[2] == "loss 5.661"


def test_a_terminal_of_ascii_gets_no_other_letters():
    assert "\n".join(drawn(standing(), 80, encoding="ascii")).isascii()


@pytest.mark.parametrize(
    ("values", "blocks"),
    [([0.0, 7.0, 3.0], "▁█▄"), ([1.0, 1.0], "▁▁"), ([1.0], ""), ([], ""), ([0.0, math.nan, 7.0, math.inf], "▁█")],
)
def test_a_trend_in_blocks(values, blocks):
    assert steps(values) == blocks
