"""A life from each of 20 updates makes the next one as the whole run did; and lives of 2, 1, 4 and 2 ranks."""

import json
import shutil
from functools import cache
from pathlib import Path

import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from tests.distributed.launching import ROOT
from tests.faults import digests
from tests.faults.lives import LM, VALUE, Life, command
from tests.faults.trials import Outcome, Trials

BACKENDS = ("zero3", "fsdp")
UPDATES = 20
HOW = ["run.checkpoint_every=1", "run.keep_checkpoints=100"]
RANKS = (2, 1, 4, 2)
"""Of one life after the other, two updates each."""

TOLERANCE = 1e-4
"""Of the last validation loss, relative, in float32: another number of ranks adds in another order."""


def finished(folder: Path, *overrides: str, ranks: int = 2, backend: str) -> Path:
    """The checkpoints of a life that has to end well."""
    folder.mkdir(exist_ok=True)
    life = Life(command(folder, *HOW, *overrides, ranks=ranks, backend=backend), folder)
    if life.end() != 0:
        raise RuntimeError(f"{folder} failed: {life.err}")
    return folder / "tiny" / "checkpoints"


@cache
def whole(folder: Path, backend: str) -> Path:
    """Of 20 updates by two ranks, each of them an epoch."""
    return finished(folder, "run.updates_per_epoch=1", f"run.num_epochs={UPDATES}", backend=backend)


def step(update: int) -> str:
    return f"step-{update:08d}" if update else f"warmup-{LM + VALUE:08d}"


def one_update(folder: Path, backend: str, update: int) -> Outcome:
    """A life that goes on after some update, and makes one more."""
    before = whole(folder / f"whole-{backend}", backend)
    place = folder / f"{backend}-{update}"
    plan = ["run.updates_per_epoch=1", f"run.num_epochs={update + 1}", f"run.resume={before / step(update)}"]
    after = finished(place, *plan, backend=backend)
    differs = digests.of_checkpoint(after / step(update + 1)) != digests.of_checkpoint(before / step(update + 1))
    shutil.rmtree(place)
    return _outcome([f"{backend}: update {update + 1} is another one after a resume"] * differs)


def weights_in(checkpoint: Path, backend: str) -> dict[str, torch.Tensor]:
    """The policy's, put together by the backend's own tool."""
    if backend == "zero3":
        return get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag="policy")
    whole = checkpoint.with_name("whole.pt")
    dcp_to_torch_save(checkpoint / "policy", whole)
    return torch.load(whole, weights_only=False)["weights"]


def state_in(checkpoint: Path) -> dict:
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


def drawn_by(checkpoint: Path) -> list:
    """How far each source was read, and how many batches that were."""
    mixture = state_in(checkpoint)["mixture"]
    return [mixture["cursors"], mixture["draws"], mixture["samples"]]


def other_ranks(folder: Path, backend: str) -> Outcome:
    """Lives of 2, 1, 4 and 2 ranks against one of 2, all in float32."""
    folder.mkdir()
    zero3 = json.loads((ROOT / "ds_configs" / "zero3.json").read_text()) | {"bf16": {"enabled": False}}
    (folder / "float32.json").write_text(json.dumps(zero3))
    plan = [f"engine.deepspeed={folder / 'float32.json'}", "run.updates_per_epoch=2"]
    steady = finished(folder / "steady", *plan, f"run.num_epochs={len(RANKS)}", backend=backend)
    wrong = []
    for life, ranks in enumerate(RANKS, 1):
        changing = [*plan, f"run.num_epochs={life}", "run.resume=auto"]
        after = finished(folder / "changing", *changing, ranks=ranks, backend=backend)
        last, first = after / step(2 * life - 2), after / step(2 * life - 1)
        if life > 1:  # its first round copied the policy as it was loaded
            before, loaded = weights_in(last, backend), load_file(first / "frozen/model.safetensors")
            unequal = [name for name, tensor in loaded.items() if not torch.equal(tensor, before[name])]
            wrong += [f"{backend}, {ranks} ranks: other weights in {unequal}"] * bool(unequal)
        same = drawn_by(after / step(2 * life)) == drawn_by(steady / step(2 * life))
        wrong += [f"{backend}, {ranks} ranks: other data were drawn"] * (not same)
    losses = [state_in(each / step(2 * len(RANKS)))["validation"]["after"]["mean"] for each in (after, steady)]
    off = abs(losses[0] / losses[1] - 1)
    wrong += [f"{backend}: the last loss is off by {off:.1e}"] * (off > TOLERANCE)
    if not wrong:
        shutil.rmtree(folder)
    return _outcome(wrong) | {"off": off}


def _outcome(wrong: list[str]) -> Outcome:
    return {"digest_mismatches": len(wrong), "wrong": wrong}


def resume(trials: Trials) -> None:
    """Each update of each backend, then other numbers of ranks."""
    place = trials.folder / "resume"
    place.mkdir(exist_ok=True)
    for backend in BACKENDS:
        for update in range(UPDATES):
            trials.make("resume", f"{backend}, update {update}", lambda: one_update(place, backend, update))  # noqa: B023
        trials.make("resume", f"{backend}, ranks", lambda: other_ranks(place / f"ranks-{backend}", backend))  # noqa: B023
