"""TensorBoard's files of a whole run, read back by TensorBoard: every figure is that of metrics.jsonl."""

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator as Served
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import metadata
from tensorboard.util.tensor_util import make_ndarray

from destruct.loop import train
from destruct.ppo.histograms import Histogram
from destruct.run import Run
from destruct.summarizing import summarize
from destruct.tracking.board import FINALS, TensorBoard
from destruct.tracking.board_protos import EDGES, charts
from destruct.tracking.facts import facts_of
from tests.tiny import tiny_run
from tests.tracking.test_sinks import FACTS, SAMPLE

pytestmark = pytest.mark.slow
ALL_OF_THEM = {"tensors": 0, "scalars": 0, "histograms": 0}


def board_of(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder), size_guidance=ALL_OF_THEM).Reload()


def curve(board: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in board.Scalars(tag)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Iterator[Run]:
    """Six updates of two epochs each, of which all rollouts are written as samples."""
    folder = tmp_path_factory.mktemp("board")
    (folder / "mine.yaml").write_text("prompts: [{topic: sums, text: '1+1='}]\n")
    prompts = [f"prompts.file={folder / 'mine.yaml'}", "prompts.response_tokens=3"]
    with tiny_run(folder, "run.samples_per_update=16", "frozen.refresh_every=2", *prompts) as run:
        train(run)
        run.sinks.finish(run.state.update, summarize(run).finals)
    yield run


@pytest.fixture(scope="module")
def logged(finished) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def samples(finished) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (finished.folder / "samples.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def board(finished) -> EventAccumulator:
    return board_of(finished.folder / "logs")


def figures(logged: list[dict[str, Any]], of_warmup: bool) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each name in metrics.jsonl."""
    lines = [line for line in logged if (line["phase"] != "ppo") == of_warmup]
    names = {name for line in lines for name in line} - {"phase", "step"}
    there = {name: [line for line in lines if name in line] for name in names}
    return {
        name: [(line["step"], math.nan if line[name] is None else line[name]) for line in lines]
        for name, lines in there.items()
    }


@pytest.mark.parametrize(("place", "of_warmup"), [("logs", False), ("logs/warmup", True)])
def test_every_figure_is_that_of_metrics_jsonl_and_there_is_no_other(finished, logged, place, of_warmup):
    """In float32, as TensorBoard has them; null there is no number here."""
    shown, wanted = board_of(finished.folder / place), figures(logged, of_warmup)
    tags = {tag for tag in shown.Tags()["scalars"] if not tag.startswith((EDGES, FINALS))}
    assert tags == set(wanted) and len(tags) >= 4
    for tag in tags:
        np.testing.assert_array_equal(np.array(curve(shown, tag)), np.float32(wanted[tag]), err_msg=tag)


def test_the_bands_are_a_standard_error_on_each_side_and_the_bound_is_the_configs(finished, logged, board):
    for figure in ("difficulty", "progress"):
        for source in finished.names:
            lower, upper = (curve(board, f"{EDGES}/{figure}_{edge}/{source}") for edge in ("lower", "upper"))
            rounds = [line for line in logged if "curriculum/round" in line]
            middles = [line[f"curriculum/{figure}/{source}"] for line in rounds]
            errors = [line[f"curriculum/{figure}_se/{source}"] or math.nan for line in rounds]
            np.testing.assert_allclose([x for _, x in lower], np.subtract(middles, errors), rtol=1e-6)
            np.testing.assert_allclose([x for _, x in upper], np.add(middles, errors), rtol=1e-6)
            assert [step for step, _ in lower] == [line["step"] for line in rounds]
    assert curve(board, f"{EDGES}/kl_bound") == [(update, 1.0) for update in range(6)]


def test_every_chart_of_the_layout_has_curves(finished, board):
    (event,) = board.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert layout == charts(tuple(finished.names))
    tags = board.Tags()["scalars"]
    lines: dict[str, int] = {}
    for chart in (chart for category in layout.category for chart in category.chart):
        for series in chart.margin.series:
            assert {series.value, series.lower, series.upper} <= set(tags)
        for pattern in chart.multiline.tag:
            assert any(re.match(pattern, tag) for tag in tags), pattern
        matches = [tag for tag in tags if any(re.match(pattern, tag) for pattern in chart.multiline.tag)]
        lines[chart.title] = len(matches) + len(chart.margin.series)
    assert lines["sampling weights of the sources"] == lines["rewards of the sources"] == 2
    assert lines["KL to the reference and its bound, nats per token"] == 2
    assert lines["seconds of the phases"] >= 7


def test_histograms_hold_every_response_token_once_in_each_epoch(logged, samples, board):
    updates = [line for line in logged if "ppo/steps" in line]
    for tag in ("ppo/ratio", "ppo/advantage"):
        events = board.Histograms(tag)
        assert [event.step for event in events] == list(range(6))
        for event, line in zip(events, updates, strict=True):
            tokens = round(line["rollout/response_tokens"] * 16)
            epochs = line["ppo/epochs"] if tag == "ppo/ratio" else 1
            held = event.histogram_value
            assert held.num == sum(held.bucket) == tokens * epochs


def test_the_histogram_of_the_ratios_agrees_with_their_mean_and_their_ends(logged, board):
    """The bins' middles are within a twentieth of what is in them; the ends lie in the outer bins."""
    updates = [line for line in logged if "ppo/steps" in line]
    for event, line in zip(board.Histograms("ppo/ratio"), updates, strict=True):
        held = event.histogram_value
        assert held.sum / held.num == pytest.approx(line["ppo/ratio_mean"], abs=0.02)
        first, last = held.bucket_limit[:2], held.bucket_limit[-2:]
        assert first[0] <= line["ppo/ratio_min"] <= first[1] and last[0] <= line["ppo/ratio_max"] <= last[1]


def test_the_advantages_are_whitened(board):
    """Mean 0 and variance 1 over the update's tokens, as far as bins tell."""
    for event in board.Histograms("ppo/advantage"):
        held = event.histogram_value
        mean = held.sum / held.num
        assert abs(mean) < 0.05 and held.sum_squares / held.num - mean**2 == pytest.approx(1, abs=0.05)


def test_samples_are_texts_of_their_source_with_reward_and_kl(finished, samples, board):
    rollouts = [sample for sample in samples if "topic" not in sample]
    assert len(rollouts) == 6 * 16
    for source in finished.names:
        events = board.Tensors(f"samples/{source}/text_summary")
        assert [event.step for event in events] == sorted({s["update"] for s in rollouts if s["source"] == source})
        for event in events:
            text = event.tensor_proto.string_val[0].decode()
            of_it = [s for s in rollouts if (s["update"], s["source"]) == (event.step, source)]
            cells = re.findall(rf"<td>{source}</td><td>(.*?)</td><td>(.*?)</td>", text)
            assert cells == [(f"{s['reward']:.4f}", f"{s['kl']:.5f}") for s in of_it]


def test_the_kl_of_the_samples_is_that_of_the_batch(samples, logged):
    """Where no response ended by itself, all are equally long, and 16 rollouts are all of an update."""
    found = 0
    for line in (line for line in logged if "ppo/steps" in line and line["rollout/eos_rate"] == 0):
        of_it = [sample["kl"] for sample in samples if sample["update"] == line["step"] and "topic" not in sample]
        assert len(of_it) == 16 and np.mean(of_it) == pytest.approx(line["kl/sampled"], abs=1e-9)
        found += len(set(of_it)) > 8
    assert found, "where the frozen model is not the policy any more, they differ"


def test_prompts_stand_on_the_board_of_their_phase(finished, board):
    assert [event.step for event in board.Tensors("prompts/sums/1+1=/text_summary")] == [2, 5]
    warmup = board_of(finished.folder / "logs/warmup")
    assert [event.step for event in warmup.Tensors("prompts/sums/1+1=/text_summary")] == [0, 4]


def test_a_run_is_a_line_among_the_runs_with_its_settings_and_its_outcome(finished, board):
    start, end = (
        metadata.parse_session_start_info_plugin_data(board.SummaryMetadata(tag).plugin_data.content)
        if tag == metadata.SESSION_START_INFO_TAG
        else metadata.parse_session_end_info_plugin_data(board.SummaryMetadata(tag).plugin_data.content)
        for tag in (metadata.SESSION_START_INFO_TAG, metadata.SESSION_END_INFO_TAG)
    )
    told = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
    assert told["ppo.policy_lr"] == 1e-3 and told["kl.bound"] == 1.0 and told["data.sources"] == "arithmetic, noise"
    assert told["rollout.response_tokens"] == 8, "no default"
    assert told["ppo.clip_range"] == 0.2, "a default, and telling"
    assert not {"run.name", "run.folder", "ppo.lam", "wandb.mode"} & set(told)
    assert end.status == 1 and end.end_time_secs >= start.start_time_secs
    summary = summarize(finished)
    for name, value in summary.finals.items():
        ((step, got),) = curve(board, f"{FINALS}/{name}")
        assert step == 6 and got == pytest.approx(value)
    assert summary.finals["validation_loss"] == finished.state.validation["after"]["mean"]
    assert len(summary.finals) == 5, "as many as the tab shows by itself"


def test_the_facts_of_a_run_hold_every_value_of_its_config(finished):
    facts = facts_of(finished.settings)
    assert facts.config == finished.config.model_dump(mode="json") and facts.kl_bound == 1.0
    assert all(isinstance(value, bool | int | float | str) for value in facts.hyper_parameters.values())


def one_life(folder: Path, updates: range, done: dict[str, int]) -> None:
    board = TensorBoard(folder, done, FACTS)
    for update in updates:
        board.scalars("ppo", update, {"kl/to_reference": update + 10.0 * len(done)})
        board.histogram("ppo/ratio", update, Histogram((0.0, 1.0, 2.0), (1, 1 + 10 * len(done))))
        board.samples(update, [SAMPLE])
        board.text("curriculum/reasons", f"life {len(done)}", update)
    board.finish(updates.stop, {"reward": float(len(done))})
    board.close()
    # TensorBoard reads files by name, and these two would be of one second.
    for events in (folder / "logs").glob("events.*"):
        if "earlier" not in events.name:
            events.rename(events.with_name(f"events.out.tfevents.000000000{len(done)}.earlier"))


def test_after_a_resume_every_kind_has_each_update_once(tmp_path):
    """Five updates, then from the second one on again; the outcome is that of the life that came last."""
    one_life(tmp_path, range(5), {})
    one_life(tmp_path, range(2, 6), {"ppo": 2})
    # As the server reads them: what the other reader of events calls Tensors it does not purge.
    board = Served(str(tmp_path / "logs"), size_guidance={"tensors": 0}).Reload()
    shown = {
        tag: [(e.step, make_ndarray(e.tensor_proto)) for e in board.Tensors(tag)] for tag in board.Tags()["tensors"]
    }
    steps = list(range(6))
    assert shown["kl/to_reference"] == [(0, 0), (1, 1), (2, 12), (3, 13), (4, 14), (5, 15)]
    counts = [(step, round(bins[:, 2].sum())) for step, bins in shown["ppo/ratio"]]
    assert counts == [(update, 2 if update < 2 else 12) for update in steps]
    assert [text[0].decode() for _, text in shown["curriculum/reasons/text_summary"]] == ["life 0"] * 2 + ["life 1"] * 4
    for tag in (f"{EDGES}/kl_bound", "samples/prose/text_summary", "curriculum/reasons/text_summary"):
        assert [step for step, _ in shown[tag]] == steps, tag
    assert shown[f"{FINALS}/reward"] == [(6, 1)]


def test_a_histogram_without_values_is_not_drawn_and_one_is_cut_to_what_is_filled(tmp_path):
    board = TensorBoard(tmp_path, {}, FACTS)
    board.histogram("ppo/ratio", 0, Histogram((0.0, 1.0, 2.0), (0, 0)))
    board.histogram("ppo/ratio", 1, Histogram((0.0, 1.0, 2.0, 4.0, 9.0), (0, 3, 1, 0)))
    board.close()
    (event,) = board_of(tmp_path / "logs").Histograms("ppo/ratio")
    held = event.histogram_value
    assert (event.step, held.bucket_limit, held.bucket) == (1, [1.0, 2.0, 4.0], [0.0, 3.0, 1.0])
    assert (held.min, held.max, held.num, held.sum, held.sum_squares) == (1, 4, 4, 7.5, 15.75)
