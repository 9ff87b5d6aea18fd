"""Ranks: what a process owns, and collectives that leave a lonely rank's tensors alone."""

import os
import socket
import subprocess
import sys
from itertools import product

import pytest
import torch

from destruct.engine import topology
from destruct.engine.topology import Topology
from destruct.errors import DestructError
from destruct.exits import Exit

CPU = torch.device("cpu")
ALONE = Topology(0, 1, CPU)


@pytest.mark.parametrize(("items", "world"), [(12, 3), (13, 3), (5, 1), (2, 8), (0, 2)])
def test_the_shares_of_all_ranks_are_each_item_once_and_differ_by_one_at_most(items, world):
    shares = [Topology(rank, world, CPU).share(items).tolist() for rank in range(world)]
    assert sorted(item for share in shares for item in share) == list(range(items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert all(item % world == rank for rank, share in enumerate(shares) for item in share)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_interleave_puts_every_shared_row_back_on_each_rank(world, monkeypatch):
    """torch's gather is stood in for by what the simulated ranks would send."""
    whole = torch.randn(12, 2, 5, generator=torch.Generator().manual_seed(world))
    ranks = [Topology(rank, world, CPU) for rank in range(world)]
    sent = [whole[rank.share(12)] for rank in ranks]

    def all_gather(parts: list[torch.Tensor], mine: torch.Tensor) -> None:
        assert mine.is_contiguous() and any(torch.equal(mine, other) for other in sent)
        for part, other in zip(parts, sent, strict=True):
            part.copy_(other)

    monkeypatch.setattr(topology.dist, "all_gather", all_gather)
    for rank, rows in zip(ranks, sent, strict=True):
        assert torch.equal(rank.interleave(rows.mT.contiguous().mT), whole)


def test_flat_shards_are_joined_in_the_order_of_ranks(monkeypatch):
    shards = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0]), torch.tensor([5.0, 6.0])]

    def all_gather(parts: list[torch.Tensor], mine: torch.Tensor) -> None:
        for part, shard in zip(parts, shards, strict=True):
            part.copy_(shard)

    monkeypatch.setattr(topology.dist, "all_gather", all_gather)
    assert Topology(1, 3, CPU).gather_flat(shards[1]).tolist() == [1, 2, 3, 4, 5, 6]


def test_alone_every_collective_returns_what_it_was_given_and_never_its_memory():
    """No process group exists here, so a collective that asked for one would fail."""
    for dtype, collective in product((torch.float64, torch.int64), (ALONE.sum, ALONE.max, ALONE.gather_flat)):
        x = torch.tensor([4, -3, 7], dtype=dtype)
        result = collective(x)
        assert result.tolist() == [4, -3, 7], collective
        result.zero_()
        assert x.tolist() == [4, -3, 7], collective
    assert torch.equal(ALONE.interleave(x), x)
    assert ALONE.is_first and not Topology(1, 2, CPU).is_first


def test_sums_are_float64_and_counts_are_integers():
    """Integers beyond 2**53 and a float32 sum of 1e-9 beside 1 survive."""
    assert ALONE.sum(torch.tensor([2**53 + 1])).tolist() == [2**53 + 1]
    assert ALONE.sum(torch.tensor([True, False])).tolist() == [1, 0]
    total = ALONE.sum(torch.tensor([1.0]))
    total += 1e-9
    assert total.item() == 1 + 1e-9
    assert ALONE.max(torch.tensor([3, 4])).dtype == torch.int64


def test_alone_all_agree_is_the_one_vote():
    assert ALONE.all_agree(True) is True
    assert ALONE.all_agree(False) is False


def test_the_first_rank_makes_a_thing_once_and_its_exception_comes_through():
    calls = []
    assert ALONE.first_rank_makes(lambda: calls.append(1) or {"made": len(calls)}) == {"made": 1}
    assert calls == [1]

    def fail() -> None:
        raise DestructError("the disk is 3 GiB short", "free 3 GiB")

    with pytest.raises(DestructError, match="3 GiB short") as caught:
        ALONE.first_rank_makes(fail)
    assert caught.value.remedy == "free 3 GiB"


@pytest.mark.parametrize("first", [True, False])
def test_the_first_ranks_exception_is_raised_on_every_rank(first, monkeypatch):
    """torch's broadcast is stood in for by the box that the first rank would send."""
    error = DestructError("nothing here", "look there")

    def broadcast(box: list, src: int) -> None:
        assert src == 0 and (box[0] is None) is not first
        box[0] = (False, error)

    def make() -> None:
        assert first, "the other ranks make nothing"
        raise error

    monkeypatch.setattr(topology.dist, "broadcast_object_list", broadcast)
    with pytest.raises(DestructError, match="nothing here"):
        Topology(int(not first), 2, CPU).first_rank_makes(make)


def test_what_every_rank_makes_for_itself_is_returned_and_a_users_mistake_names_its_rank():
    assert ALONE.together(lambda: {"rank": 0}) == {"rank": 0}

    def fail() -> None:
        raise DestructError("the reward returned 3 numbers for 4 rollouts", "return one each", Exit.ENVIRONMENT)

    with pytest.raises(DestructError, match="^the reward returned 3") as caught:
        ALONE.together(fail)
    assert (caught.value.remedy, caught.value.exit_code) == ("return one each", Exit.ENVIRONMENT)


@pytest.fixture
def alone(monkeypatch):
    """The environment of one process without a launcher, and no process group."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")  # so that what `start` sets is taken back
        monkeypatch.delenv(name)


def test_a_port_that_is_taken_is_a_fault_of_the_environment_in_one_line(alone, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with pytest.raises(DestructError, match=f"cannot meet at 127.0.0.1:{taken.getsockname()[1]}: ") as caught:
            topology.start(timeout_s=5)
    assert caught.value.exit_code == Exit.ENVIRONMENT and "MASTER_PORT" in caught.value.remedy
    assert not torch.distributed.is_initialized()


def test_an_interface_that_is_not_there_is_named_in_one_line(alone, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    with pytest.raises(DestructError, match="cannot meet at .*nowhere0") as caught:
        topology.start(timeout_s=5)
    assert caught.value.exit_code == Exit.ENVIRONMENT and "GLOO_SOCKET_IFNAME" in caught.value.remedy
    assert not torch.distributed.is_initialized()


def test_more_ranks_than_gpus_are_refused_on_every_rank(alone, monkeypatch):
    """The machine is stood in for: torch would count 4 GPUs."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(DestructError, match="8 ranks were started on a machine with 4 GPU") as caught:
        topology.start()
    assert (caught.value.exit_code, caught.value.remedy) == (Exit.ENVIRONMENT, "start 4, one a GPU")


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_mistake_on_one_rank_is_raised_on_all_with_that_ranks_number(rank, monkeypatch):
    """torch's gather is stood in for by what the simulated ranks would send: rank 1 alone failed."""
    error = DestructError("no such column", "name another")

    def all_gather_object(box: list, mine: DestructError | None) -> None:
        assert mine is (error if rank == 1 else None)
        box[:] = [None, error, None]

    def make() -> int:
        if rank == 1:
            raise error
        return rank

    monkeypatch.setattr(topology.dist, "all_gather_object", all_gather_object)
    with pytest.raises(DestructError, match="^rank 1: no such column"):
        Topology(rank, 3, CPU).together(make)


def test_on_a_cpu_products_of_past_shapes_are_forgotten_unless_the_user_says_otherwise():
    """400 shapes, twice: with room for 256 all are compiled again, with room for 1024 none is."""
    code = (
        "import torch; from destruct.engine import topology; topology.start()\n"
        "for _ in range(2):\n"
        "    for rows in range(64, 464): torch.ones(rows, 64).bfloat16() @ torch.ones(64, 64).bfloat16()\n"
    )
    for given, passes in (({}, 2), ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1024", "LRU_CACHE_CAPACITY": "1024"}, 1)):
        environment = {k: v for k, v in os.environ.items() if "CACHE_CAPACITY" not in k} | given
        environment |= {"ONEDNN_VERBOSE": "profile_create", "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        if "avx512_core_bf16" not in done.stdout:
            pytest.skip("oneDNN multiplies bfloat16 on this machine as float32")
        assert done.stdout.count("create:cache_miss") >= 400 * passes
        assert done.stdout.count("create:cache_miss") < 400 * passes + 200
