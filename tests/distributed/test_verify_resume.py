"""`destruct verify_resume` on two ranks: real lives under ZeRO-3 and FSDP are equal, and what is changed is named."""

import io
import json
import pickle
import shutil
import warnings
from pathlib import Path

import pytest
import torch

from destruct.checkpoint import manifest
from destruct.verify_resume import compare, live, lives, parse, read_config
from tests.checkpoint.test_comparing import compared, reseal
from tests.distributed.launching import environment
from tests.tiny import write_config

pytestmark = [pytest.mark.distributed, pytest.mark.slow]

LAUNCHERS = {
    "deepspeed": ["deepspeed", "--num_gpus", "2"],
    "fsdp": ["torchrun", "--standalone", "--nproc-per-node", "2"],
}


@pytest.fixture(scope="module", params=LAUNCHERS)
def both(request, tmp_path_factory) -> tuple[str, Path]:
    """Backend, and the folder of both lives, of four updates with a resume after two."""
    folder = tmp_path_factory.mktemp("lives")
    arguments = ["--config", str(write_config(folder)), f"engine.backend={request.param}", "--"]
    options = parse([*arguments, *LAUNCHERS[request.param]])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment().items():
            patch.setenv(name, value)
        for name, command in lives(options, read_config(options.config, options.overrides), folder):
            live(command, folder / name, options.updates)
    return request.param, folder


def last(folder: Path, name: str) -> Path:
    return folder / name / "checkpoints" / "step-00000004"


def test_two_real_lives_are_equal_whatever_the_bytes_of_their_files(both):
    """On two ranks ZeRO-3 has a half of each of 20 and 13 weights and of two moments, and the steps of each network."""
    backend, folder = both
    comparison = compare(folder, updates=4, after=2)
    assert comparison.differences == []
    tensors = {name: part.tensors for name, part in comparison.parts.items() if part.tensors}
    ranks, steps = (2, (2, 2)) if backend == "deepspeed" else (1, (20, 13))
    assert tensors == {
        "policy master weights": ranks * 20,
        "policy moments": ranks * 40 + steps[0],
        "value master weights": ranks * 13,
        "value moments": ranks * 26 + steps[1],
        "frozen model": 20,
    }
    files = [json.loads((last(folder, n) / manifest.NAME).read_text())[manifest.FILES] for n in ("whole", "resumed")]
    unequal = {name for name in files[0] if files[0][name] != files[1][name]}
    assert unequal > {"state.json"}, "pickles of the networks differ"
    assert comparison.parts["figures after the resume"].others > 100
    rounds = json.loads((last(folder, "resumed") / "state.json").read_text())["curriculum"]["progress"]["rounds"]
    assert rounds == 4, "two on either side"


def test_one_element_of_one_rank_is_named_by_its_parameter(both, tmp_path):
    backend, folder = both
    copy = Path(shutil.copytree(last(folder, "whole"), tmp_path / "copy"))
    change = {"deepspeed": change_zero, "fsdp": change_fsdp}[backend]
    name = change(copy / "policy")
    reseal(copy)
    (found,) = compared(last(folder, "whole"), copy).differences
    assert (found.part, found.name, found.elements) == ("policy moments", name, 1)
    (found,) = compared(last(folder, "resumed"), copy).differences
    assert found.name == name


def test_masters_of_two_times_are_told_by_their_parameters(both):
    """After two updates and after four every weight has moved, and no warning is in the way."""
    backend, folder = both
    with warnings.catch_warnings(action="error"):
        found = compared(last(folder, "whole").with_name("step-00000002"), last(folder, "whole")).differences
    masters = [each for each in found if each.part == "policy master weights"]
    assert len(masters) == {"deepspeed": 40, "fsdp": 20}[backend] and found[: len(masters)] == masters
    assert all(each.name.endswith("weight") and each.elements and each.largest for each in masters)


def change_zero(policy: Path) -> str:
    """The first element of the second rank's half of the second weight, worked by hand: the embeddings are 300 x 32."""
    (path,) = policy.glob("*rank_1_*optim_states.pt")
    saved = torch.load(path, weights_only=False)
    saved["optimizer_state_dict"]["optimizer_state_dict"]["state"][0]["exp_avg"][300 * 32 // 2] += 1.0
    torch.save(saved, path)
    inside = "optimizer_state_dict.optimizer_state_dict.state.0.exp_avg"
    return f"policy/{path.name}: {inside}.lm.model.layers.0.self_attn.q_proj.weight"


def change_fsdp(policy: Path) -> str:
    """An element of what the second rank has of a norm's first moment, which DCP writes as torch.save does."""
    name = "adam.lm.model.norm.weight.exp_avg"
    places = pickle.loads((policy / ".metadata").read_bytes()).storage_data
    (at,) = [at for i, at in places.items() if i.fqn == name and at.relative_path == "__1_0.distcp"]
    path, piece = policy / at.relative_path, slice(at.offset, at.offset + at.length)
    data = bytearray(path.read_bytes())
    moment = torch.load(io.BytesIO(data[piece]), weights_only=True)
    moment[3] += 1.0
    torch.save(moment, changed := io.BytesIO())
    assert len(moment) == 16 and len(changed.getvalue()) == at.length
    data[piece] = changed.getvalue()
    path.write_bytes(data)
    return f"policy: {name}"
