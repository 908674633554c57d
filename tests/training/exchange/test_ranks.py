"""What passes between ranks, and what one process alone does instead."""

from __future__ import annotations

import json
import re
from contextlib import nullcontext
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dmmlkd_ext.training.exchange import ranks as ranks_module
from dmmlkd_ext.training.exchange.ranks import Ranks, Slice, alone, joined_ranks, started_by_torchrun
from tests.distributed.processes import start_ranks
from tests.distributed.threads import Numbered


def test_one_process_is_all_there_is() -> None:
    ranks, values = Ranks(), np.ones((3, 2))
    assert (ranks.rank, ranks.size) == (0, 1)
    assert ranks.gather(values, [3]) == [values]
    total = torch.ones(2)
    assert ranks.sum(total) is total
    assert ranks.exchange([], [], tag=0)() is None
    assert ranks.together(lambda: 5) == ranks.first(lambda: 5) == 5
    assert ranks.everyone("x") == ["x"]
    with pytest.raises(ZeroDivisionError):
        ranks.together(lambda: 1 // 0)
    assert (ranks.sent_bytes, ranks.collective_bytes, ranks.seconds) == (0, 0, 0.0)


def test_a_slice_gathers_in_the_order_of_devices() -> None:
    class Two(Numbered):
        def gather(self, values, counts):
            assert counts == [3, 1]
            return [values, np.array([[40.0, 4.0]])]

    part = Slice(Two(0, 2), np.array([0, 1, 0, 0]))
    assert part.devices.tolist() == [0, 2, 3]
    found = part.gather({"a": np.array([10.0, 20.0, 30.0]), "b": np.array([1, 2, 3])})
    assert found["a"].tolist() == [10.0, 40.0, 20.0, 30.0]
    assert found["b"].tolist() == [1.0, 4.0, 2.0, 3.0]
    assert found["b"].dtype == np.float64


def test_each_rank_must_hold_a_device() -> None:
    assert alone(3).devices.tolist() == [0, 1, 2]
    for owner, counts in (([0, 0, 2], r"\[2, 0, 1\]"), ([0, 1, 1], r"\[1, 2, 0\]"), ([0, 1, 2, 3], r"\[1, 1, 1, 1\]")):
        with pytest.raises(ValueError, match=f"owner must give each of 3 ranks a device, got the numbers {counts}"):
            Slice(Numbered(0, 3), np.array(owner))


def test_torchrun_is_known_by_what_it_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert not started_by_torchrun()
    for name, value in names.items():
        assert not started_by_torchrun()
        monkeypatch.setenv(name, value)
    assert started_by_torchrun()
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not started_by_torchrun()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("WORLD_SIZE", "abc", "WORLD_SIZE must be a whole number, as torchrun sets it; got 'abc'"),
        ("WORLD_SIZE", "", "WORLD_SIZE must be a whole number, as torchrun sets it; got ''"),
        ("WORLD_SIZE", "0", "RANK must be from 0 to WORLD_SIZE - 1, got RANK=1 and WORLD_SIZE=0"),
        ("RANK", "-1", "RANK must be a whole number, as torchrun sets it; got '-1'"),
        ("RANK", "2", "RANK must be from 0 to WORLD_SIZE - 1, got RANK=2 and WORLD_SIZE=2"),
        ("MASTER_PORT", "1.5", "MASTER_PORT must be a whole number, as torchrun sets it; got '1.5'"),
        ("MASTER_PORT", "70000", "MASTER_PORT must be at most 65535, got 70000"),
    ],
)
def test_an_environment_that_torchrun_does_not_set_is_refused(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", name: value}
    for variable, text in group.items():
        monkeypatch.setenv(variable, text)
    with pytest.raises(ValueError, match=re.escape(said)):
        started_by_torchrun()


def test_a_torch_without_a_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks_module.dist, "is_nccl_available", lambda: False)
    with pytest.raises(ImportError, match=r"GPUs need torch.distributed with nccl"), joined_ranks(1.0, on_gpus=True):
        pass
    monkeypatch.setattr(ranks_module.dist, "is_gloo_available", lambda: False)
    with pytest.raises(ImportError, match=r"several ranks need torch.distributed with gloo"), joined_ranks(1.0):
        pass


def test_ranks_on_gpus_send_rows_by_nccl_each_from_the_gpu_of_its_local_number(monkeypatch: pytest.MonkeyPatch) -> None:
    class JoinedError(Exception):
        pass

    def join(backend: str, **_: object) -> None:
        raise JoinedError(backend)

    numbers: list[int] = []
    monkeypatch.setenv("LOCAL_RANK", "3")
    monkeypatch.setattr(torch.cuda, "set_device", numbers.append)
    monkeypatch.setattr(ranks_module.dist, "is_nccl_available", lambda: True)
    monkeypatch.setattr(ranks_module.dist, "init_process_group", join)
    monkeypatch.setattr(ranks_module, "Liveness", lambda *_: nullcontext(SimpleNamespace(explaining=nullcontext)))
    rendezvous = import_module("torch.distributed.rendezvous")  # torch.distributed.rendezvous is its function
    monkeypatch.setattr(rendezvous, "rendezvous", lambda *_, **__: iter([(torch.distributed.HashStore(), 0, 1)]))
    with pytest.raises(JoinedError, match=r"^cpu:gloo,cuda:nccl$"), joined_ranks(1.0, on_gpus=True):
        pass
    with pytest.raises(JoinedError, match=r"^gloo$"), joined_ranks(1.0):
        pass
    assert numbers == [3]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """Return what each of three processes got (`operations.py`)."""
    folder = tmp_path_factory.mktemp("operations")
    processes = start_ranks(3, "tests.training.operations", str(folder))
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(3)]


@pytest.mark.distributed
@pytest.mark.xdist_group("ranks")
class TestThreeProcesses:
    def test_numbers_of_all_devices_arrive_everywhere(self, found: list[dict]) -> None:
        assert [own["devices"] for own in found] == [[1, 5], [2], [0, 3, 4]]
        for own in found:
            assert own["slice"]["a"] == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
            assert own["slice"]["b"] == [-device / 3 for device in range(6)]
            assert own["parts"] == [
                [[0.0, 1.0], [2.0, 3.0]],
                [[100.0, 101.0]],
                [[200.0, 201.0], [202.0, 203.0], [204.0, 205.0]],
            ]
            assert own["gathered bytes"] == 3 * 2 * 8  # as many rows as the rank with most

    def test_sums_are_of_all(self, found: list[dict]) -> None:
        assert [own["sum"] for own in found] == [[[3.0, 30.0], [3.0, 30.0], 16]] * 3

    def test_rows_go_where_they_are_sent_though_exchanges_overlap(self, found: list[dict]) -> None:
        for rank, own in enumerate(found):
            following, preceding = (rank + 1) % 3, (rank + 2) % 3
            for tag in range(2):
                row = [10.0 * preceding + 100 * tag + column for column in range(4)]
                assert own["exchange"]["of preceding"][tag] == [row, [value + 0.5 for value in row]]
                row = [10.0 * following + 100 * tag + column for column in range(4)]
                assert own["exchange"]["of following"][tag] == [row]
            assert own["sent bytes"] == 2 * 3 * 4 * 4

    def test_what_fails_on_one_fails_on_all(self, found: list[dict]) -> None:
        everyone = [{"rank": rank} for rank in range(3)]
        for rank, own in enumerate(found):
            assert own["everyone"] == everyone
            done, of_two, of_first = own["together"]
            assert done == f"done by {rank}"
            mine, elsewhere = (
                "ValueError: rank {0} cannot",
                "FailedElsewhereError: rank {0} failed: ValueError: rank {0} cannot",
            )
            assert of_two == (mine if rank == 1 else elsewhere).format(1)
            assert of_first == (mine if rank == 0 else elsewhere).format(0)
            assert own["first"] == ["done by 0", "done by 0", of_first]

    def test_waiting_counts_as_communication(self, found: list[dict]) -> None:
        assert all(own["seconds"] > 0 for own in found)
