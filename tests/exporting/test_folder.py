"""What a folder is made from: checkpoints larger than the memory at hand, and nothing that was not verified."""

import ctypes
import gc
import json
import os
import shutil
import threading
from collections import OrderedDict
from itertools import accumulate
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DeepseekV3Config, DeepseekV3ForCausalLM, HrmTextConfig

from destruct.checkpoint import manifest
from destruct.config.model import PolicyShape
from destruct.errors import DestructError
from destruct.export import main
from destruct.exporting.folder import Weights
from destruct.exporting.folder import export as write_folder
from destruct.exporting.network import PREFIX, empty_model
from destruct.exporting.source import open_source
from destruct.exporting.speaker import of_checkpoint
from destruct.models.policy import PolicyNetwork, build_copy
from destruct.progress import tell_nobody
from tests.checkpoint.test_comparing import reseal
from tests.exported import named
from tests.pretrained import write_tokenizer
from tests.test_pretrained_run import started

pytestmark = pytest.mark.slow


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
            write_folder(source, tmp_path / "out", None, "5GB", tell_nobody)
        shutil.copytree(rounded["run"], run, dirs_exist_ok=True)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def anonymous_mib() -> float:
    """Memory of this process that is no file's."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024


class Peak:
    """The most of it while a block lasts, over that before, in MiB: a thread looks on, also between two parameters."""

    def __enter__(self) -> "Peak":
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # or what was freed before would be used again, and not be seen
        self.before = self.most = anonymous_mib()
        self.done = threading.Event()
        self.thread = threading.Thread(target=self._look)
        self.thread.start()
        return self

    def _look(self) -> None:
        while not self.done.wait(0.001):
            self.most = max(self.most, anonymous_mib())

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()
        self.mib = self.most - self.before


@pytest.mark.parametrize("backend", ["single", "deepspeed", "fsdp"])
def test_memory_is_bounded_by_a_shard_whatever_the_size_of_the_model(rounded, tmp_path, backend):
    """A made-up checkpoint of 24 layers of 4.2 MiB, in shards of 8 MB: a hundred MiB pass through a few."""
    run = Path(shutil.copytree(rounded["run"], tmp_path / "run"))
    checkpoint = run / "checkpoints" / "step-00000002"
    make_large(checkpoint, backend)
    source = open_source(checkpoint)
    with Peak() as peak:
        written = write_folder(source, tmp_path / "out", "float32", "8MB", tell_nobody)
    assert written.size > 100e6 and written.files > 10
    assert peak.mib < 40
    model = named(tmp_path / "out")
    assert all(bool((p == index).all()) for index, p in enumerate(model.values()))


SHAPE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 2}


def make_large(checkpoint: Path, backend: str) -> None:
    """Let a checkpoint be of a larger policy, whose parameters are constants: their place."""
    set_backend(checkpoint, backend, **SHAPE)
    shapes = OrderedDict((name, p.shape) for name, p in large_policy().named_parameters())
    masters = [torch.full(shape, float(index)) for index, shape in enumerate(shapes.values())]
    (checkpoint / "policy" / "state.pt").unlink()
    if backend == "fsdp":
        weights = {f"weights.{name}": master for name, master in zip(shapes, masters, strict=True)}
        dcp.save(weights, checkpoint_id=checkpoint / "policy", no_dist=True)
    elif backend == "single":
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


def deepseek(folder: Path, **sizes: int) -> tuple[Path, DeepseekV3ForCausalLM]:
    """A run of a model whose experts transformers joins as it loads them, and the model."""
    shape = {"hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16, "first_k_dense_replace": 0}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8}
    ranks = {"v_head_dim": 8, "q_lora_rank": 8, "kv_lora_rank": 8, "num_hidden_layers": 1, "n_shared_experts": 1}
    experts = {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1}
    vocab = write_tokenizer(folder / "deepseek") + 24
    every = {"vocab_size": vocab, "max_position_embeddings": 64, **shape, **heads, **ranks, **experts, **sizes}
    lm = DeepseekV3ForCausalLM(DeepseekV3Config(**every))
    with torch.no_grad():
        lm.model.layers[0].mlp.gate.e_score_correction_bias.copy_(torch.arange(8) / 10)
    lm.save_pretrained(folder / "deepseek")
    run = started(folder, {"policy": {"path": str(folder / "deepseek")}, "value": {"num_hidden_layers": 1}})
    run.save()
    run.close()
    return run.folder, lm


def test_experts_and_their_biases_are_saved_as_their_family_does_and_spoken_with(tmp_path):
    """The biases are buffers, which no checkpoint holds."""
    run, lm = deepseek(tmp_path)
    to = tmp_path / "out"
    assert main([str(run), "--to", str(to), "--dtype", "float32"]) == 0
    with safe_open(to / "model.safetensors", "pt") as a, safe_open(tmp_path / "deepseek/model.safetensors", "pt") as b:
        assert set(a.keys()) == set(b.keys())
        for name in a.keys():  # noqa: SIM118
            assert torch.equal(a.get_tensor(name), b.get_tensor(name).bfloat16().float()) or "bias" in name, name
        name = next(name for name in a.keys() if name.endswith("e_score_correction_bias"))  # noqa: SIM118
        bias = lm.model.layers[0].mlp.gate.e_score_correction_bias
        assert torch.equal(a.get_tensor(name), bias)
    speaker = of_checkpoint(open_source(run), tell_nobody)
    torch.testing.assert_close(
        speaker.model.model.layers[0].mlp.gate.e_score_correction_bias.float(), bias, atol=2e-3, rtol=0
    )


def test_joined_experts_are_taken_apart_one_tensor_at_a_time(tmp_path):
    """A single file of 6 layers with 14 MiB of experts each: beside its content there is one tensor of them twice."""
    run, _ = deepseek(tmp_path, num_hidden_layers=6, hidden_size=256, moe_intermediate_size=600)
    source = open_source(run)
    with torch.profiler.profile(profile_memory=True) as allocations:
        written = write_folder(source, tmp_path / "out", "float32", "5GB", tell_nobody)
    joined = 8 * (2 * 600) * 256 * 4  # bytes of gate_proj and up_proj of a layer's eight experts
    most = most_allocated(allocations, written.size, tmp_path / "trace.json")
    assert written.size > 80e6 and written.size <= most < written.size + 2 * joined


def most_allocated(allocations: torch.profiler.profile, mapped: int, trace: Path) -> int:
    """The most bytes that torch had allocated at once; the checkpoint, mapped as a whole, is none of them."""
    allocations.export_chrome_trace(str(trace))
    events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    changes = [event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])]
    return max(accumulate(change for change in changes if abs(change) < mapped))


def test_tensors_that_are_saved_as_one_are_refused_where_they_came_to_lie_in_two_files(rounded, tmp_path):
    """HRM saves gate_proj and up_proj joined.  The weights come from the model, as no checkpoint is of this family."""
    shape = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    config = HrmTextConfig(num_attention_heads=2, num_key_value_heads=2, **shape)
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    lm.save_pretrained(tmp_path / "theirs")
    weights = {f"{PREFIX}{name}": p.detach() for name, p in lm.named_parameters()}
    source, empty = open_source(rounded["run"]), empty_model(config, torch.float32)
    with pytest.raises(DestructError, match="joins weights as it is saved, and they came to lie in two files"):
        Weights(empty, weights.__getitem__, "5KB", source)
    Weights(empty, weights.__getitem__, "5GB", source).write(tmp_path, tell_nobody)
    ours, theirs = (load_file(path / "model.safetensors") for path in (tmp_path, tmp_path / "theirs"))
    assert ours.keys() == theirs.keys() != {name.removeprefix(PREFIX) for name in weights}
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_index_says_how_large_the_model_is_and_where_each_tensor_lies(rounded, tmp_path):
    assert main([str(rounded["run"]), "--to", str(tmp_path / "out"), "--max-shard", "20KB"]) == 0
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    count = sum(p.numel() for p in named(tmp_path / "out").values())
    assert index["metadata"] == {"total_parameters": count, "total_size": 2 * count}
    for name, file in index["weight_map"].items():
        with safe_open(tmp_path / "out" / file, "pt") as tensors:
            assert tensors.metadata() == {"format": "pt"} and tensors.get_slice(name).get_dtype() == "BF16"
