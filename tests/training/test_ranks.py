"""What ranks share, from one process alone and from a group of one."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.distributed as dist

from dmmlkd_ext.training.liveness import Liveness, RankLostError
from dmmlkd_ext.training.ranks import ProcessRanks, Ranks, Slice, alone, started_by_torchrun
from tests.training.stand_in import StandIn

OWNER = np.array([1, 0, 1, 1, 0])


def test_what_is_gathered_lies_in_the_order_of_the_devices():
    everyone = np.arange(10.0).reshape(5, 2)
    for rank in range(2):
        other = everyone[rank != OWNER]
        part = Slice(StandIn(rank, 2, [other]), OWNER)
        assert part.devices.tolist() == np.flatnonzero(rank == OWNER).tolist()
        assert part.counts == [2, 3]
        own = everyone[part.devices]
        found = part.gather({"first": own[:, 0], "second": own[:, 1]})
        assert found["first"].tolist() == everyone[:, 0].tolist()
        assert found["second"].tolist() == everyone[:, 1].tolist()


def test_flags_pass_as_numbers():
    assert alone(3).gather({"known": np.array([True, False, True])})["known"].tolist() == [1.0, 0.0, 1.0]


@pytest.mark.parametrize("owner", [[0, 0, 0], [0, 1, 2]])
def test_a_rank_without_a_device_is_refused(owner):
    with pytest.raises(ValueError, match="owner must give each of 2 ranks a device, got the numbers"):
        Slice(StandIn(0, 2), np.array(owner))


def test_torchrun_is_known_by_its_environment(monkeypatch):
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "x"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    assert started_by_torchrun()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not started_by_torchrun()
    monkeypatch.delenv("WORLD_SIZE")
    assert not started_by_torchrun()


def refuse() -> None:
    raise OSError("the disk is full")


def check_one_alone(ranks: Ranks) -> None:
    values = np.array([[1.0, 2.0]])
    assert ranks.gather(values, [1])[0].tolist() == values.tolist()
    assert ranks.sum(torch.tensor([2.0, 3.0])).tolist() == [2.0, 3.0]
    assert ranks.everyone("it") == ["it"]
    assert ranks.together(lambda: 3) == 3
    assert ranks.first(lambda: "done") == "done"
    ranks.exchange([], [], tag=0)()
    for way in (ranks.together, ranks.first):
        with pytest.raises(OSError, match="the disk is full"):
            way(refuse)


def test_one_process_alone():
    ranks = Ranks()
    check_one_alone(ranks)
    assert (ranks.sent_bytes, ranks.collective_bytes, ranks.seconds) == (0, 0, 0.0)


@pytest.fixture
def group() -> Iterator[ProcessRanks]:
    store = dist.HashStore()
    with Liveness(store, 0, 1) as liveness:
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            yield ProcessRanks(liveness)
        finally:
            dist.destroy_process_group()


def test_a_group_of_one_does_as_a_process_alone_and_counts(group):
    check_one_alone(group)
    assert (group.rank, group.size) == (0, 1)
    assert group.collective_bytes == 2 * 8 + 2 * 4  # one gathering of float64, one sum of float32
    assert group.sent_bytes == 0
    assert group.seconds > 0


def test_what_a_backend_raises_is_explained(group, monkeypatch):
    monkeypatch.setattr("dmmlkd_ext.training.liveness.LISTEN_S", 0.0)

    def fail(*_: object) -> None:
        raise RuntimeError("Connection closed by peer\nat line 7")

    monkeypatch.setattr(dist, "all_reduce", fail)
    group.enter_round(4)
    with pytest.raises(RankLostError, match=r"^rank 0 of 1, round 4: Connection closed by peer$"):
        group.sum(torch.zeros(1))
