"""The page against the files that it is made of: figures, texts, and runs in every state."""

import json
import math
import re
from pathlib import Path

import pytest

from destruct.errors import DestructError
from destruct.reporting.page import MOST_BYTES, plain, render, visible, write
from destruct.reporting.recorded import read
from tests.reported import HOSTILE, SAMPLES, Page, lines, made, round_of, said, sample, update, validation


def page_of(*folders: Path) -> Page:
    page = Page(render([read(folder) for folder in folders]))
    assert not page.faults
    assert len(page.html.encode()) < MOST_BYTES
    return page


def logged(folder: Path, name: str) -> list[tuple[int, float]]:
    """A figure of the PPO phase, read by nothing of ours."""
    entries = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(entry["step"], entry[name]) for entry in entries if name in entry and entry["phase"] == "ppo"]


def column(page: Page, table: str, name: str) -> list[tuple[int, float]]:
    heads, *rows = page.tables[table]
    return [(int(row[0]), float(row[heads.index(name)].split(" ±")[0])) for row in rows]


CHARTS = {
    "Reward": ("Reward", "rollout/reward"),
    "KL to the reference": ("KL", "kl/to_reference"),
    "Policy loss": ("Policy loss", "ppo/policy_loss"),
    "Value loss": ("Value loss", "ppo/value_loss"),
    "Loss on the data (PTX)": ("Loss on the data (PTX)", "ppo/ptx_loss"),
    "Entropy": ("Entropy", "ppo/entropy"),
    "Explained variance": ("Explained variance", "ppo/explained_variance"),
    "Throughput": ("Throughput", "time/tokens_per_s"),
    "Gradient norms": ("value", "ppo/value_grad_norm"),
    "Reward by source": ("arithmetic", "rollout/reward/arithmetic"),
    "Sampling weights": ("noise", "curriculum/weight/noise"),
    "Difficulty": ("noise", "curriculum/difficulty/noise"),
}


@pytest.mark.parametrize("table", CHARTS)
def test_the_table_of_each_chart_holds_what_the_run_logged(tmp_path, table):
    folder = made(tmp_path, "run", lines(20))
    name, metric = CHARTS[table]
    got, wanted = column(page_of(folder), table, name), logged(folder, metric)
    assert [x for x, _ in got] == [x for x, _ in wanted] and wanted
    assert [y for _, y in got] == pytest.approx([y for _, y in wanted], rel=1e-5)


def test_weights_of_each_round_sum_to_one_and_difficulties_have_their_errors(tmp_path):
    page = page_of(made(tmp_path, "run", lines(20)))
    _, *rows = page.tables["Sampling weights"]
    assert len(rows) == 10
    assert [sum(map(float, row[1:])) for row in rows] == pytest.approx([1.0] * 10, abs=1e-5)
    _, first, *_ = page.tables["Difficulty"]
    assert first == ["0", "5 ± 0.03", "6 ± 0.03"]


def test_a_long_run_shows_means_with_the_least_and_the_largest_of_each_stretch(tmp_path):
    folder = made(tmp_path, "run", lines(1000, every=100))
    _, *rows = page_of(folder).tables["KL to the reference"]
    wanted = logged(folder, "kl/to_reference")
    assert len(rows) == 60
    seen = 0
    for span, cell in rows:
        first, _, last = span.partition(" to ")
        part = [y for x, y in wanted if int(first) <= x <= int(last or first)]
        mean, least, largest = map(float, re.findall(r"[-\d.e]+", cell))
        assert (mean, least, largest) == pytest.approx((sum(part) / len(part), min(part), max(part)), rel=1e-3)
        seen += len(part)
    assert seen == 1000


def test_the_first_sentence_says_what_happened_with_the_figures_of_the_log(tmp_path):
    log = lines(6)
    log[-2] |= {"kl/to_reference": 1.5, "kl/breaches": 1, "ppo/skipped": 2}
    page = page_of(made(tmp_path, "run", log))
    wanted = (
        "run is not done, and no process of this machine is seen at work on it, after 6 of 6 updates on 2 ranks (cpu). "
        "The reward rose from 0.25 to 0.255. The validation loss fell from 5.75 to 5.375 nats per token. "
        "The KL to the reference was at most 1.5, beyond its bound of 1 (1 time). "
        "2 optimizer steps were dropped as not finite."
    )
    assert wanted in page.text
    assert ["6", "KL beyond its bound", "1.5 after the update, bound 1", ""] in page.tables[""]
    assert ["6", "dropped steps", "2 optimizer steps were not finite", ""] in page.tables[""]


def test_best_worst_and_random_rollouts_and_the_prompts_before_and_after(tmp_path):
    page = page_of(made(tmp_path, "run", lines(6), SAMPLES))
    for words in ("best reward 0.5 update 5", "worst reward 0 update 0", "random reward"):
        assert page.text.count(words) == 2  # once for each source
    assert re.search("before training junk after the warm-up words after 6 updates sense", page.text)


def test_texts_are_shown_as_they_are_and_run_nothing(tmp_path):
    page = page_of(made(tmp_path, "run", lines(2), [sample(0, "<b>arithmetic</b>", 1.0)]))
    assert "script" not in page.tags and "b" in page.tags
    assert "</pre><script>alert('x')</script>&amp; \\x1b [31m red \\u202e back \\x00 😀 é \\u2028" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e\u2028]", page.html)


def test_a_surrogate_alone_is_told_and_a_text_that_is_too_long_loses_its_middle():
    assert str(visible("a\ud800b", 9)) == 'a<span class="odd">\\ud800</span>b'
    assert plain("tab\tkept \x7f") == "tab\tkept \\x7f"
    cut = str(visible("x" * 3000 + "<", 30))
    assert cut.startswith("x" * 20 + "<span") and cut.endswith("x" * 9 + "&lt;") and "2,971 characters" in cut


def test_nothing_is_loaded_from_anywhere_and_scripts_are_forbidden(tmp_path):
    page = page_of(made(tmp_path, "run", lines(20), SAMPLES))
    links = [value for _, name, value in page.attributes if name in ("href", "src", "action", "data", "srcset")]
    assert links and all(link.startswith("#") or link == "data:," for link in links)
    assert not re.search(r"url\(|@import|https?:|//", page.html.partition("</style>")[0])
    policy = [value for tag, name, value in page.attributes if tag == "meta" and name == "content"]
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in policy
    assert not {"script", "iframe", "object", "img", "form"} & set(page.tags)
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]


def test_every_picture_has_a_name_and_a_description_in_words(tmp_path):
    page = page_of(made(tmp_path, "run", lines(20), SAMPLES))
    ids = {value for _, name, value in page.attributes if name == "id"}
    named = [value.split() for tag, name, value in page.attributes if name == "aria-labelledby" and tag == "svg"]
    assert len(named) == page.tags.count("desc") > 15
    assert all(set(pair) <= ids for pair in named)
    assert "arithmetic: from 5 to 4.1, between 4.1 and 5." in page.text


@pytest.mark.parametrize(
    "log",
    [
        pytest.param([], id="nothing yet"),
        pytest.param(lines(0), id="warm-up alone"),
        pytest.param(lines(1), id="one update"),
        pytest.param([update(k, **{name: None for name in update(k) if "/" in name}) for k in range(3)], id="nulls"),
        pytest.param([update(k, **{"ppo/entropy": [None, 1e308, -1e308][k % 3]}) for k in range(9)], id="extremes"),
        pytest.param([round_of(0, 0, {"arithmetic": 0.5, "noise": 0.5}, error=None)], id="no error known"),
        pytest.param([update(0), validation("ppo", 0, {"arithmetic": math.nan})], id="a loss that is not finite"),
    ],
)
def test_a_run_in_any_state_has_a_page(tmp_path, log):
    page_of(made(tmp_path, "run", log))


def test_damaged_lines_are_left_out_and_told(tmp_path):
    folder = made(tmp_path, "run", lines(6), SAMPLES)
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (folder / name).open("ab") as file:
            file.write(b'{"phase": "ppo", "st\xff\n[1]\n{"phase": "ppo", "step": "x", "update": {}}\n{"phase": "pp')
    page = page_of(folder)
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert f"3 damaged lines of {name} left out" in page.text
        assert f"the last line of {name} is not whole" in page.text
    assert len(page.tables["Reward"]) == 7


def test_files_that_are_missing_are_done_without(tmp_path):
    folder = made(tmp_path, "run", lines(6))
    for name in ("environment.json", "samples.jsonl", "metrics.jsonl"):
        (folder / name).unlink()
        page_of(folder)
    (folder / "resolved.yaml").write_text("a: [")
    with pytest.raises(DestructError, match="is not YAML"):
        read(folder)


def test_sources_that_come_and_go_have_a_share_only_while_they_are_there(tmp_path):
    log = [round_of(0, 0, {"a": 0.25, "b": 0.75}), update(0), round_of(1, 1, {"b": 0.5, "c": 0.5}), update(1)]
    _, *rows = page_of(made(tmp_path, "run", log)).tables["Sampling weights"]
    assert rows == [["0", "0.25", "0.75", "–"], ["1", "–", "0.5", "0.5"]]


def test_the_summary_of_an_earlier_life_is_not_taken_for_the_end(tmp_path):
    folder = made(tmp_path, "run", lines(6))
    (folder / "summary.json").write_text(json.dumps({"updates": 6, "reward_before": 0.125, "seconds": 75.0}))
    assert "run finished its 6 updates in 1 min 15 s on 2 ranks (cpu)." in page_of(folder).text
    life = {"time": "2026-01-02T03:04:05+00:00", "event": "resumed", "checkpoint": "runs/run/checkpoints/step-00000003"}
    (folder / "events.jsonl").write_text(json.dumps(life) + "\n")
    page = page_of(folder)
    assert "run is not done" in page.text
    (row,) = [row for row in page.tables[""] if row[1:2] == ["resumed"]]
    assert row[0] == "3" and row[3] == "2026-01-02 03:04:05 UTC"


def test_several_runs_are_compared_by_settings_outcomes_and_curves(tmp_path):
    one = made(tmp_path, "one", lines(6), [said("ppo", 5, "first")])
    two = made(tmp_path, "two", lines(4), [said("ppo", 3, "second")], overrides=("kl.coef=0.25",))
    page = page_of(one, two)
    assert page.tables["Names and folders aside"] == [["key", "one", "two"], ["kl.coef", "0.05", "0.25"]]
    assert column(page, "Reward", "one") == logged(one, "rollout/reward")
    assert [row[2] for row in page.tables["Reward"][1:]] == ["0.25", "0.251", "0.252", "0.253", "–", "–"]
    assert "one, after 6 updates first two, after 4 updates second" in page.text
    assert "The highest reward at the end is that of one: 0.255." in page.text


@pytest.mark.slow
def test_hundreds_of_sources_and_long_texts_stay_within_the_bytes(tmp_path):
    names = [f"source-{k:03d}" for k in range(200)]
    log = []
    for step in range(300):
        log.append(round_of(step, step, dict.fromkeys(names, 1 / 200)))
        log.append(update(step, **{f"rollout/reward/{name}": math.sin(step) for name in names}))
    samples = [sample(step, name, step, HOSTILE * 100) for name in names for step in range(3)]
    page_of(made(tmp_path, "run", log, samples))


def test_a_page_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    write("old", tmp_path / "report.html")
    with pytest.raises(UnicodeEncodeError):
        write("\ud800", tmp_path / "report.html")
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "old"
