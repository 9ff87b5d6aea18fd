"""What the comparison of two lives finds: what is changed in a copy of a checkpoint is named, and nothing else."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from destruct.checkpoint import manifest
from destruct.checkpoint.comparing import Comparison, Difference
from destruct.loop import train
from tests.distributed.differences import differences
from tests.tiny import tiny_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def life(tmp_path_factory) -> Path:
    """A run of two updates in one process; its checkpoint is step-00000002."""
    folder = tmp_path_factory.mktemp("life")
    with tiny_run(folder, "run.num_epochs=1", "run.updates_per_epoch=2", "kl.reference=initial") as run:
        train(run)
    return folder / "tiny"


@pytest.fixture
def pair(life, tmp_path) -> tuple[Path, Path]:
    """Its checkpoint and a copy."""
    original = life / "checkpoints" / "step-00000002"
    return original, Path(shutil.copytree(original, tmp_path / "copy"))


def reseal(checkpoint: Path) -> None:
    facts = json.loads((checkpoint / manifest.NAME).read_text())
    del facts[manifest.FILES]
    (checkpoint / manifest.NAME).unlink()
    (checkpoint / manifest.CHECK).unlink()
    manifest.seal(checkpoint, facts)


def compared(a: Path, b: Path) -> Comparison:
    comparison = Comparison()
    comparison.checkpoints(a, b)
    return comparison


def changed_saved(checkpoint: Path, role: str, change: Callable[[Any], None]) -> None:
    path = checkpoint / role / "state.pt"
    saved = torch.load(path, weights_only=True)
    change(saved)
    torch.save(saved, path)
    reseal(checkpoint)


def changed_copy(checkpoint: Path, folder: str, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    path = checkpoint / folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)
    reseal(checkpoint)


def changed_state(checkpoint: Path, change: Callable[[Any], None]) -> None:
    path = checkpoint / "state.json"
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state, indent=2))
    reseal(checkpoint)


def test_a_copy_is_equal_and_every_tensor_of_it_is_counted_by_its_kind(pair):
    """Nine weights in each of the policy's two layers, the embeddings, which are the head too, and a norm make 20; the
    value network has one layer and a head with a bias.  Adam keeps two moments and a count of steps for each."""
    comparison = compared(*pair)
    assert comparison.differences == []
    assert {name: part.tensors for name, part in comparison.parts.items() if part.tensors} == {
        "policy master weights": 20,
        "policy moments": 60,
        "value master weights": 13,
        "value moments": 39,
        "frozen model": 20,
        "initial model": 20,
    }
    assert comparison.tensors == 172
    state = json.loads((pair[0] / "state.json").read_text())
    mixtures = [state[key] for key in ("mixture", "language_mixture", "value_mixture")]
    assert comparison.parts["mixture cursors"].others == sum(
        2 if isinstance(item, dict) else 1 for mixture in mixtures for item in mixture.values()
    ), "a cursor and a deficit of each of two sources, and the counts"


def test_one_element_of_one_moment_is_named_with_how_far_it_is(pair):
    def change(saved):
        saved["optimizer"]["state"][3]["exp_avg_sq"][1, 2] = 0.5

    before = torch.load(pair[0] / "policy/state.pt")["optimizer"]["state"][3]["exp_avg_sq"]
    changed_saved(pair[1], "policy", change)
    (found,) = compared(*pair).differences
    gap = 0.5 - float(before[1, 2])
    name = "policy/state.pt: optimizer.state.3.exp_avg_sq"
    what = f"1 of 1,024 elements differ, by {gap:.3g} at most"
    assert found == Difference("policy moments", name, what, elements=1, largest=gap)


def test_a_weight_a_cursor_and_an_early_reward_are_told_the_policys_first(pair):
    def change(state):
        state["mixture"]["cursors"]["noise"] += 1
        state["rewards"][0][1][1] += 1.0

    before = json.loads((pair[0] / "state.json").read_text())
    changed_state(pair[1], change)
    changed_saved(pair[1], "value", lambda saved: saved["masters"][0][7:9].add_(1.0))
    changed_saved(pair[1], "policy", lambda saved: saved["masters"][2].neg_())
    found = compared(*pair).differences
    assert [(difference.part, difference.name) for difference in found] == [
        ("policy master weights", "policy/state.pt: masters[2]"),
        ("value master weights", "value/state.pt: masters[0]"),
        ("mixture cursors", "state.json: mixture.cursors.noise"),
        ("counters", "state.json: rewards[0][1][1]"),
    ]
    assert [difference.elements for difference in found] == [32 * 32, 2 * 16, None, None]
    cursor = before["mixture"]["cursors"]["noise"]
    assert found[2].what == f"{cursor} against {cursor + 1}"


def test_the_sign_of_a_zero_differs_and_a_nan_equals_itself(pair):
    def to(value: float) -> Callable[[dict[str, torch.Tensor]], None]:
        def change(tensors: dict[str, torch.Tensor]) -> None:
            next(iter(tensors.values())).view(-1)[5] = value

        return change

    a, b = (Path(shutil.copytree(pair[0], pair[1].with_name(name))) for name in ("a", "b"))
    for folder in ("frozen", "initial"):
        changed_copy(a, folder, to(0.0 if folder == "frozen" else math.nan))
        changed_copy(b, folder, to(-0.0 if folder == "frozen" else math.nan))
    (zero,) = compared(a, b).differences
    assert (zero.part, zero.elements, zero.largest) == ("frozen model", 1, 0.0)
    both = compared(pair[0], b).differences
    assert [(difference.part, difference.elements) for difference in both] == [
        ("frozen model", 1),
        ("initial model", 1),
    ]
    assert both[1].largest is None and both[1].what.endswith("by what is not finite")


def test_what_is_missing_or_of_another_shape_or_dtype_is_told(pair):
    embeddings, attention = "lm.model.embed_tokens.weight", "lm.model.layers.1.self_attn"
    query, key = f"{attention}.q_proj.weight", f"{attention}.k_proj.weight"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[embeddings]
        tensors[query] = tensors[query].flatten()
        tensors[key] = tensors[key].double()
        tensors["another"] = torch.zeros(1)

    changed_copy(pair[1], "frozen", change)
    shutil.rmtree(pair[1] / "initial")
    reseal(pair[1])
    comparison = compared(*pair)
    found = {each.name.rpartition(": ")[2]: each.what for each in comparison.differences if "frozen" in each.name}
    assert found == {
        embeddings: "it is in the first one alone",
        "another": "it is in the second one alone",
        query: "(32, 32) torch.bfloat16 against (1024,) torch.bfloat16",
        key: "(32, 32) torch.bfloat16 against (32, 32) torch.float64",
    }
    assert comparison.parts["initial model"].different == 20


def test_seconds_and_bytes_that_say_the_same_make_no_difference(pair):
    changed_state(pair[1], lambda state: state.update(seconds=state["seconds"] + 1))
    changed_saved(pair[1], "policy", lambda saved: saved.update(masters=tuple(saved.pop("masters"))))
    files = [json.loads((checkpoint / manifest.NAME).read_text())[manifest.FILES] for checkpoint in pair]
    assert {name for name in files[0] if files[0][name] != files[1][name]} == {"state.json", "policy/state.pt"}
    assert compared(*pair).differences == []
    saved = [torch.load(checkpoint / "policy/state.pt") for checkpoint in pair]
    assert not differences(saved[0]["optimizer"], saved[1]["optimizer"])


def test_a_file_that_is_not_what_was_saved_is_refused_before_it_is_read(pair):
    (pair[1] / "policy/state.pt").write_bytes(b"no pickle")
    with pytest.raises(manifest.Damaged, match=r"policy/state\.pt is not the file that was saved"):
        compared(*pair)


def test_figures_count_from_the_resume_on_but_for_time_and_memory(life, tmp_path):
    lines = [json.loads(line) for line in (life / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["phase"] == "ppo" and "ppo/steps" in line:
            line["time/update"], line["memory/peak_mib"] = 1e9, 1e9
            line["ppo/steps"] += line["step"] == 1
            line["rollout/reward"] += line["step"] == 0
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    comparison = Comparison()
    comparison.figures(life / "metrics.jsonl", tmp_path / "metrics.jsonl", after=1)
    (found,) = comparison.differences
    assert found.name == "metrics.jsonl: update 2.ppo/steps" and found.part == "figures after the resume"
    comparison.figures(life / "metrics.jsonl", tmp_path / "metrics.jsonl", after=0)
    assert {each.name for each in comparison.differences} == {found.name, "metrics.jsonl: update 1.rollout/reward"}
