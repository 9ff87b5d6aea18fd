"""What a forward keeps and the loss holds, against the tensors that autograd saves and the loss's own choices."""

import json

import pytest
import torch

from destruct.config.model import PolicyShape
from destruct.models import attention
from destruct.models.policy import build_policy
from destruct.ops import chunked
from destruct.planning.activations import (
    DENSE_COLUMNS,
    attention_of,
    chunk_rows,
    kept,
    kept_per_token,
    kv_cache,
    loss_chunk,
    sampling,
)
from destruct.planning.job import MIB
from destruct.planning.networks import from_shape
from tests.planning.planned import ROOT, job

WINDOW, ROWS = 64, 2


def saved_bytes(
    layers: int,
    dtype: torch.dtype,
    kv_heads: int,
    checkpointing: bool = False,
    kind: str = "sdpa",
    rows: torch.Tensor | None = None,
) -> int:
    """Bytes of all tensors but weights that autograd keeps of a forward over rows that begin with padding.

    Args:
        rows: whose states are asked for; None: all.
    """
    shape = shape_of(layers, kv_heads)
    body = build_policy(shape, 128, dtype, 0, "chunked", kind, checkpointing).body
    weights = {p.untyped_storage().data_ptr() for p in body.parameters()}
    kept_ones: dict[int, torch.Tensor] = {}  # held, or an address could be used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept_ones[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    positions = (torch.arange(WINDOW) - 3).clamp(min=0).expand(ROWS, WINDOW)
    asked = {} if rows is None else {"rows": rows}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        body(input_ids=torch.zeros(ROWS, WINDOW, dtype=torch.int64), position_ids=positions, use_cache=False, **asked)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept_ones.values())


def shape_of(layers: int, kv_heads: int) -> PolicyShape:
    return PolicyShape(
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=kv_heads,
    )


@pytest.mark.parametrize("kv_heads", [8, 2])
@pytest.mark.parametrize(("dtype", "b"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_a_layer_keeps_what_autograd_saves(dtype, b, kv_heads):
    layer = saved_bytes(3, dtype, kv_heads) - saved_bytes(2, dtype, kv_heads)
    planned = kept_per_token(from_shape(shape_of(2, kv_heads), 128), b, WINDOW, "dense") * ROWS * WINDOW
    assert planned == pytest.approx(layer, rel=0.01)


@pytest.mark.parametrize("kv_heads", [8, 2])
@pytest.mark.parametrize(("dtype", "b"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_so_it_does_with_torchs_own_attention(dtype, b, kv_heads, monkeypatch):
    """On a GPU, and in rows too long to keep their probabilities."""
    monkeypatch.setattr(attention, "LONGEST", WINDOW - 1)
    layer = saved_bytes(3, dtype, kv_heads) - saved_bytes(2, dtype, kv_heads)
    planned = kept_per_token(from_shape(shape_of(2, kv_heads), 128), b, WINDOW) * ROWS * WINDOW
    assert planned == pytest.approx(layer, rel=0.01)


def test_rows_are_planned_dense_where_the_models_compute_them_so():
    assert DENSE_COLUMNS == attention.LONGEST
    assert attention_of(job(hardware="cpu")) == "dense" and attention_of(job()) == "sdpa"
    long = ["rollout.prompt_tokens=512", "model.policy.max_position_embeddings=1024",
            "model.value.max_position_embeddings=1024"]  # fmt: skip
    assert attention_of(job(*long, hardware="cpu")) == "sdpa"
    assert attention_of(job("model.attention=eager", hardware="cpu")) == "eager"


@pytest.mark.parametrize(("dtype", "b"), [(torch.bfloat16, 2), (torch.float32, 4)])
def test_eager_attention_keeps_the_probabilities_besides(dtype, b):
    layer = saved_bytes(3, dtype, 8, kind="eager") - saved_bytes(2, dtype, 8, kind="eager")
    planned = kept_per_token(from_shape(shape_of(2, 8), 128), b, WINDOW, "eager") * ROWS * WINDOW
    assert planned == pytest.approx(layer, rel=0.05)


def test_with_checkpointing_the_borders_are_kept_and_one_layer_besides():
    """The latter only in the backward, so that autograd's own part is the rest."""
    planned = job("model.activation_checkpointing=true", "engine.backend=fsdp")
    net, tokens = from_shape(shape_of(12, 8), 128), ROWS * WINDOW
    inside = kept_per_token(net, 2, planned.window, attention_of(planned)) * tokens
    saved = saved_bytes(12, torch.bfloat16, 8, checkpointing=True)
    assert kept(net, planned, tokens, tokens) - inside == pytest.approx(saved, rel=0.1)


@pytest.mark.parametrize(("dtype", "bf16"), [(torch.bfloat16, True), (torch.float32, False)])
def test_of_rows_that_are_not_asked_for_less_is_kept(dtype, bf16, tmp_path):
    """States of a third of the tokens against those of all."""
    json_ = json.loads((ROOT / "ds_configs" / "zero3.json").read_text()) | {"bf16": {"enabled": bf16}}
    (tmp_path / "training.json").write_text(json.dumps(json_))
    frozen = json.loads((ROOT / "ds_configs" / "frozen_cpu_offload.json").read_text()) | {"bf16": {"enabled": bf16}}
    (tmp_path / "frozen.json").write_text(json.dumps(frozen))
    sizes = ["rollout.prompt_tokens=32", "rollout.response_tokens=32", f"engine.frozen={tmp_path / 'frozen.json'}"]
    planned = job(f"engine.deepspeed={tmp_path / 'training.json'}", *sizes, hardware="cpu")
    assert planned.window == WINDOW
    net, tokens = from_shape(shape_of(3, 2), 128), ROWS * WINDOW
    rows = torch.arange(0, tokens, 3)
    whole, some = saved_bytes(3, dtype, 2), saved_bytes(3, dtype, 2, rows=rows)
    spared = kept(net, planned, tokens, tokens) - kept(net, planned, tokens, len(rows))
    assert spared == pytest.approx(whole - some, rel=0.05)


@pytest.mark.parametrize("vocab", [64, 1000, 128256, 10_000_000])
@pytest.mark.parametrize("mib", [None, 1, 300])
def test_rows_of_a_chunk_are_those_of_the_implementations(vocab, mib):
    triton = pytest.importorskip("destruct.ops.fused_triton")
    change = "engine.loss_chunk_mib=null" if mib is None else f"engine.loss_chunk_mib={mib}"
    net = from_shape(PolicyShape(), vocab)
    for name, module in (("chunked", chunked), ("triton", triton)):
        planned = job(change, f"engine.loss={name}")
        assert chunk_rows(net, planned) == module.rows_per_chunk(vocab, torch.bfloat16, mib)


def test_a_chunk_of_the_loss_worked_by_hand():
    """16 rows of 1024 logits in bfloat16, and three blocks of 4 MiB; in Triton float32 beside bfloat16."""
    net = from_shape(PolicyShape(), 1024)
    assert loss_chunk(net, job("engine.loss=chunked"), 16, trains=True) == 16 * 1024 * 2 + 12 * MIB
    assert loss_chunk(net, job("engine.loss=triton"), 16, trains=True) == 16 * 1024 * 6
    assert loss_chunk(net, job("engine.loss=triton"), 16, trains=False) == 0
    exact = job("engine.loss=chunked", "kl.in_loss=exact", "kl.in_reward=false")
    assert loss_chunk(net, exact, 16, trains=True) == 2 * (16 * 1024 * 2 + 12 * MIB)


def test_keys_and_values_worked_by_hand():
    """8 rollouts of 64 tokens, 4 layers, keys and values 128 wide in bfloat16."""
    planned = job()
    assert planned.rollouts_per_rank == 8 and planned.window == 64
    assert kv_cache(planned.policy, planned) == 8 * 64 * 4 * 2 * 128 * 2


def test_a_large_vocabulary_makes_the_distribution_the_widest_moment_of_sampling():
    planned = job("data.tokenizer.vocab_size=200000")
    least = planned.rollouts_per_rank * 200_000 * 16  # two tensors in float64
    assert least < sampling(planned.policy, planned) < 1.3 * least
