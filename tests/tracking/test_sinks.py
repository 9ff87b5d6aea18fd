"""What a run leaves: lines of JSON and TensorBoard events that hold what was logged, also after a resume."""

import dataclasses
import json
import logging
import math
import warnings
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from destruct.errors import DestructError
from destruct.exits import Exit
from destruct.tracking.board import TensorBoard
from destruct.tracking.board_protos import EDGES
from destruct.tracking.facts import Facts
from destruct.tracking.json_lines import JsonLines
from destruct.tracking.sinks import Continuation, Sample, Sinks, log_to_file
from tests.checkpoint.test_store import disk_full_after

SAMPLE = Sample("prose", "Once", " upon", " a time", True, reward=0.5, kl=0.25, terms={"eos": 1.0})
FACTS = Facts("mine", ("prose",), kl_bound=0.5, config={}, hyper_parameters={"ppo.policy_lr": 0.1})


ALL = {"before": 1, "warmup": 9, "value_warmup": 9, "after_warmup": 9}
"""Of the warm-up all steps that are written here."""


def files(folder: Path, done: dict[str, int] | None = None) -> Sinks:
    """Those of a run's folder."""
    return Sinks(JsonLines(folder, done or {}), TensorBoard(folder, done or {}, FACTS))


def strictly(line: str) -> dict[str, Any]:
    """Parse JSON as its standard has it: Python's own NaN and Infinity are refused."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON: {line}")

    return json.loads(line, parse_constant=refuse)


def lines(path: Path) -> list[dict[str, Any]]:
    return [strictly(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of each tag, as TensorBoard reads them."""
    board = EventAccumulator(str(folder))
    board.Reload()
    tags = [tag for tag in board.Tags()["scalars"] if not tag.startswith(EDGES)]
    curves = {tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in tags}
    return {tag: curve for tag, curve in curves.items() if curve}


def test_a_line_holds_what_was_logged_bit_for_bit(tmp_path):
    sinks = files(tmp_path)
    sinks.scalars("ppo", 4, {"ppo/entropy": 0.1 + 0.2, "curriculum/weight/prose": 1e-310})
    sinks.close()
    assert lines(tmp_path / "metrics.jsonl") == [
        {"phase": "ppo", "step": 4, "ppo/entropy": 0.1 + 0.2, "curriculum/weight/prose": 1e-310}
    ]


def test_every_line_is_json_whatever_the_figures_are(tmp_path):
    """Not a number and both infinities have no JSON and become null."""
    sinks = files(tmp_path)
    figures = {"ppo/entropy": math.nan, "ppo/ratio_max": math.inf, "ppo/policy_loss": -math.inf, "kl/coef": 0.5}
    sinks.scalars("ppo", 0, figures)
    sinks.close()
    (line,) = lines(tmp_path / "metrics.jsonl")
    assert [line[name] for name in figures] == [None, None, None, 0.5]


def test_an_unknown_metric_is_refused_and_leaves_no_line(tmp_path):
    sinks = files(tmp_path)
    with pytest.raises(KeyError, match="ppo/entorpy"):
        sinks.scalars("ppo", 0, {"kl/coef": 0.5, "ppo/entorpy": 1.0})
    sinks.close()
    assert lines(tmp_path / "metrics.jsonl") == []


def earlier_life(folder: Path) -> None:
    """Three warm-up steps, five updates and the last validation, killed while the last lines were being written."""
    sinks = files(folder)
    sinks.scalars("before", 0, {"validation/mean": 4.0})
    for step in range(3):
        sinks.scalars("warmup", step, {"warmup/lm_loss": 3.0 - step})
    sinks.scalars("value_warmup", 2, {"warmup/value_loss": 0.25})
    sinks.scalars("after_warmup", 3, {"validation/mean": 3.0})
    for update in range(5):
        sinks.scalars("ppo", update, {"kl/to_reference": update / 8})
        sinks.samples(update, [dataclasses.replace(SAMPLE, prompt=f"update {update}:\u2028\u0085 naïve")])
    sinks.scalars("ppo", 4, {"validation/mean": 2.0})
    sinks.close()
    for name in ("metrics.jsonl", "samples.jsonl"):
        with (folder / name).open("ab") as file:
            file.write('{"step": 4, "prompt": "naï'.encode()[:-1])
    # An earlier second, as of another process: TensorBoard reads files by name, within a second "100" before "99".
    for events in [*(folder / "logs").rglob("events.*")]:
        events.rename(events.with_name("events.out.tfevents.0000000001.earlier"))


def test_a_resumed_run_keeps_the_warm_up_and_the_updates_before_its_checkpoint(tmp_path):
    """Resumed after two updates: lines 2, 3, 4, the last validation and the broken one go; 2, 3 and 4 come again."""
    earlier_life(tmp_path)
    before = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8", errors="replace").split("\n")
    sinks = files(tmp_path, ALL | {"ppo": 2})
    assert (tmp_path / "metrics.jsonl").read_text().split("\n")[:-1] == before[:8], "kept lines are kept as they were"
    for update in range(2, 5):
        sinks.scalars("ppo", update, {"kl/to_reference": update / 4})
        sinks.samples(update, [dataclasses.replace(SAMPLE, prompt="again")])
    sinks.close()
    got = lines(tmp_path / "metrics.jsonl")
    assert [(line["phase"], line["step"]) for line in got] == [
        ("before", 0),
        *(("warmup", step) for step in range(3)),
        ("value_warmup", 2),
        ("after_warmup", 3),
        *(("ppo", update) for update in range(5)),
    ]
    assert [line["kl/to_reference"] for line in got[6:]] == [0.0, 0.125, 0.5, 0.75, 1.0]
    samples = lines(tmp_path / "samples.jsonl")
    assert [line["update"] for line in samples] == [0, 1, 2, 3, 4]
    assert [line["prompt"] for line in samples[1:3]] == ["update 1:\u2028\u0085 naïve", "again"]


def test_a_last_line_that_only_lacks_its_end_is_kept_apart_from_the_next(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"phase": "ppo", "step": 0, "kl/coef": 1.0}')
    sinks = files(tmp_path, ALL | {"ppo": 1})
    sinks.scalars("ppo", 1, {"kl/coef": 2.0})
    sinks.close()
    assert [line["kl/coef"] for line in lines(tmp_path / "metrics.jsonl")] == [1.0, 2.0]


def test_tensorboard_shows_what_was_logged_and_each_update_once_after_a_resume(tmp_path):
    earlier_life(tmp_path)
    losses = [(0, 3.0), (1, 2.0), (2, 1.0)]
    figures = {"kl/to_reference": [(u, u / 8) for u in range(5)], "validation/mean": [(4, 2.0)]}
    assert scalars(tmp_path / "logs") == figures
    warmup = {"warmup/lm_loss": losses, "warmup/value_loss": [(2, 0.25)], "validation/mean": [(0, 4.0), (3, 3.0)]}
    assert scalars(tmp_path / "logs" / "warmup") == warmup
    sinks = files(tmp_path, ALL | {"ppo": 2})
    for update in range(2, 5):
        sinks.scalars("ppo", update, {"kl/to_reference": update / 4})
    sinks.close()
    curve = [(0, 0.0), (1, 0.125), (2, 0.5), (3, 0.75), (4, 1.0)]
    assert scalars(tmp_path / "logs") == {"kl/to_reference": curve}, "the last validation is to come again"
    assert scalars(tmp_path / "logs" / "warmup") == warmup, "the purge leaves the warm-up alone"


def test_a_sample_is_readable_in_both_places(tmp_path):
    sinks = files(tmp_path)
    sinks.samples(7, [dataclasses.replace(SAMPLE, response=" über\n<|eos|>"), SAMPLE])
    sinks.close()
    line, _ = lines(tmp_path / "samples.jsonl")
    assert line == {"update": 7, **dataclasses.asdict(SAMPLE), "response": " über\n<|eos|>"}
    board = EventAccumulator(str(tmp_path / "logs"))
    board.Reload()
    (event,) = board.Tensors("samples/prose/text_summary")
    shown = event.tensor_proto.string_val[0].decode()
    assert event.step == 7
    for part in ("Once", "über", "upon", "0.5000", "0.25000", "<th>eos</th>"):
        assert part in shown


def test_a_figure_that_is_not_finite_is_null_in_a_sample_too(tmp_path):
    sinks = files(tmp_path)
    sinks.samples(0, [dataclasses.replace(SAMPLE, reward=math.nan, terms={"mine": math.inf})])
    sinks.close()
    (line,) = lines(tmp_path / "samples.jsonl")
    assert (line["reward"], line["kl"], line["terms"]) == (None, 0.25, {"mine": None})


def test_no_secret_of_the_environment_is_in_a_text(tmp_path, monkeypatch):
    """What a model saw in its training data, or a person wrote into a prompt."""
    monkeypatch.setenv("MY_TOKEN", "hf_canary_12345")
    sinks = files(tmp_path)
    sinks.samples(0, [dataclasses.replace(SAMPLE, response="it is hf_canary_12345")])
    sinks.continuation("ppo", 0, Continuation("keys", "my key is", " hf_canary_12345"))
    sinks.text("curriculum/reasons", "hf_canary_12345", 0)
    sinks.close()
    assert [line["response"] for line in lines(tmp_path / "samples.jsonl")] == ["it is <secret>", " <secret>"]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"canary" in path.read_bytes()]


def test_a_ranks_log_takes_warnings_and_library_records_off_the_screen(tmp_path, capsys):
    names = (None, "DeepSpeed", "transformers", "torch", "datasets", "py.warnings")
    before = {name: (list(logging.getLogger(name).handlers), logging.getLogger(name).propagate) for name in names}
    try:
        log_to_file(tmp_path, 3)
        logging.getLogger("DeepSpeed").warning("a shard was late")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(False)
            logging.captureWarnings(True)
            warnings.warn("an old argument", stacklevel=1)
    finally:
        logging.captureWarnings(False)
        for handler in logging.getLogger().handlers:
            handler.close()
        for name, (handlers, propagate) in before.items():
            logging.getLogger(name).handlers, logging.getLogger(name).propagate = handlers, propagate
    text = (tmp_path / "logs" / "rank-3.log").read_text()
    assert "WARNING DeepSpeed: a shard was late" in text
    assert "an old argument" in text
    assert capsys.readouterr() == ("", "")


def test_a_full_disk_is_told_in_words_and_keeps_every_line_that_came_before_it(tmp_path):
    """The kernel refuses what goes beyond 4 KiB of a file; a resume then drops the line that broke off."""
    sinks = files(tmp_path)
    written = 0
    with disk_full_after(4096):
        with pytest.raises(DestructError) as caught:
            for step in range(1000):
                sinks.scalars("ppo", step, {"kl/coef": 0.1})
                written = step + 1
        sinks.close()
    assert caught.value.exit_code == Exit.ENVIRONMENT
    assert caught.value.problem == f"{tmp_path} cannot be written: File too large"
    files(tmp_path, {"ppo": written}).close()
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == list(range(written)) and written > 9
