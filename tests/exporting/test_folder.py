"""What a folder is made from: checkpoints larger than the memory at hand, and nothing that was not verified."""

import json
import os
import shutil
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
import yaml

from destruct.checkpoint import manifest
from destruct.config.model import PolicyShape
from destruct.errors import DestructError
from destruct.export import main
from destruct.exporting.folder import export as write_folder
from destruct.exporting.source import open_source
from destruct.models.policy import PolicyNetwork, build_copy
from tests.checkpoint.test_comparing import reseal
from tests.exported import named
from tests.test_export import trained

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rounded(tmp_path_factory) -> dict:
    """A run in bfloat16."""
    return trained(tmp_path_factory.mktemp("rounded"))


def set_backend(checkpoint: Path, backend: str, **policy: int) -> None:
    """Let a checkpoint and its run say that another backend wrote it, of a policy of another shape; not sealed yet."""
    facts = json.loads((checkpoint / manifest.NAME).read_text())
    resolved = checkpoint.parents[1] / "resolved.yaml"
    config = yaml.safe_load(resolved.read_text())
    config["model"]["policy"] |= policy
    config["engine"]["backend"] = backend
    resolved.write_text(yaml.safe_dump(config))
    facts |= {f"model.policy.{key}": value for key, value in policy.items()} | {"engine.backend": backend}
    (checkpoint / manifest.NAME).write_text(json.dumps(facts))


class Trap:
    """It makes a folder where it is unpickled."""

    def __reduce__(self):
        return (os.mkdir, ("sprung",))


def test_nothing_is_unpickled_before_its_digest_holds(rounded, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run = Path(shutil.copytree(rounded["run"], tmp_path / "run"))
    checkpoint = run / "checkpoints" / "step-00000002"
    set_backend(checkpoint, "deepspeed")
    (checkpoint / "policy" / "state.pt").unlink()
    path = checkpoint / "policy" / "zero_pp_rank_0_mp_rank_00_optim_states.pt"
    torch.save(Trap(), path)
    trap = path.read_bytes()
    path.write_bytes(bytes(len(trap)))
    reseal(checkpoint)
    path.write_bytes(trap)
    assert main(["run", "--to", "out"]) == 3
    assert "its digest is another one" in capsys.readouterr().err
    assert not Path("sprung").exists()
    reseal(checkpoint)
    with pytest.raises(TypeError):
        main(["run", "--to", "out"])
    assert Path("sprung").exists(), "it is one"
    assert not Path("out").exists()


def test_a_checkpoint_that_its_run_deletes_in_the_midst_is_told_and_leaves_nothing(rounded, tmp_path):
    run = Path(shutil.copytree(rounded["run"], tmp_path / "run"))
    for role in ("policy", "frozen"):
        source = open_source(run, role)
        shutil.rmtree(source.checkpoint / role)
        with pytest.raises(DestructError, match="cannot be read.*\\n.*name a newer checkpoint"):
            write_folder(source, tmp_path / "out", None, "5GB", lambda done, total: None)
        shutil.copytree(rounded["run"], run, dirs_exist_ok=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def anonymous_mib() -> float:
    """Memory of this process that is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


@pytest.mark.parametrize("backend", ["single", "deepspeed"])
def test_memory_is_bounded_by_a_shard_whatever_the_size_of_the_model(rounded, tmp_path, backend):
    """A made-up checkpoint of 24 layers of 4.2 MiB, in shards of 8 MB: a hundred MiB pass through a few."""
    run = Path(shutil.copytree(rounded["run"], tmp_path / "run"))
    checkpoint = run / "checkpoints" / "step-00000002"
    make_large(checkpoint, backend)
    source = open_source(checkpoint)
    seen: list[float] = []
    written = write_folder(source, tmp_path / "out", "float32", "8MB", lambda done, total: seen.append(anonymous_mib()))
    assert written.size > 100e6 and written.files > 10
    assert max(seen) - seen[0] < 30
    model = named(tmp_path / "out")
    assert all(bool((p == index).all()) for index, p in enumerate(model.values()))


SHAPE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 2}


def make_large(checkpoint: Path, backend: str) -> None:
    """Let a checkpoint be of a larger policy, whose parameters are constants: their place."""
    set_backend(checkpoint, backend, **SHAPE)
    shapes = OrderedDict((name, p.shape) for name, p in large_policy().named_parameters())
    masters = [torch.full(shape, float(index)) for index, shape in enumerate(shapes.values())]
    (checkpoint / "policy" / "state.pt").unlink()
    if backend == "single":
        torch.save({"masters": masters, "optimizer": {}}, checkpoint / "policy" / "state.pt")
    else:
        save_in_halves(checkpoint / "policy", shapes, masters)
    reseal(checkpoint)


def large_policy() -> PolicyNetwork:
    with torch.device("meta"):
        return build_copy(PolicyShape(**SHAPE), 300, torch.float32, "chunked")


def save_in_halves(policy: Path, shapes: OrderedDict, masters: list[torch.Tensor]) -> None:
    """As two ranks of ZeRO-3 do."""
    for rank in range(2):
        flat = torch.cat([master.flatten().chunk(2)[rank] for master in masters])
        zero = {"fp32_flat_groups": [flat], "optimizer_state_dict": {"state": {}}, "partition_count": 2}
        torch.save({"optimizer_state_dict": zero}, policy / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")
        torch.save({"param_shapes": [shapes]}, policy / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt")
