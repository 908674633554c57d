"""Whom a rank names when the others cannot go on."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import torch.distributed as dist

import dmmlkd_ext.training.exchange.liveness as liveness_module
from dmmlkd_ext.training.exchange.liveness import Liveness, RankLostError


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness_module, "BEAT_S", 0.01)
    monkeypatch.setattr(liveness_module, "LISTEN_S", 0.3)


@pytest.fixture
def store() -> dist.Store:
    return dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def join(stack: ExitStack, store: dist.Store, size: int, rounds: list[int]) -> list[Liveness]:
    """Let ranks beat, each in a round."""
    ranks = [stack.enter_context(Liveness(store, rank, size)) for rank in range(len(rounds))]
    for rank, number in zip(ranks, rounds, strict=True):
        rank.enter_round(number)
    return ranks


def fall_silent(rank: Liveness) -> None:
    """Let a rank beat no more, as one that was killed, stopped or cut off."""
    rank._stop.set()
    rank._thread.join()


def test_a_rank_that_beats_no_more_is_named_and_its_round(store, stack) -> None:
    ranks = join(stack, store, 3, [5, 4, 5])
    fall_silent(ranks[1])
    error = ranks[0].explain("Connection closed by peer")
    assert isinstance(error, RankLostError)
    assert str(error) == "rank 0 of 3, round 5: rank 1 is lost: killed, stopped or cut off, last heard in round 4"


def test_a_rank_that_beats_and_is_behind_hangs(store, stack) -> None:
    ranks = join(stack, store, 3, [2, 2, 1])
    for rank, steps in zip(ranks, (7, 6, 3), strict=True):
        for _ in range(steps):
            rank.step()
    # Rank 1 is behind, too, but it waits for rank 2.
    assert str(ranks[0].explain("timeout")) == "rank 0 of 3, round 2: rank 2 hangs in round 1"


def test_a_rank_that_failed_says_why(store, stack) -> None:
    ranks = join(stack, store, 2, [3])
    failing = Liveness(store, 1, 2)
    failing.enter_round(2)
    with pytest.raises(MemoryError), failing:
        raise MemoryError("no memory left")
    assert str(ranks[0].explain("x")) == "rank 0 of 2, round 3: rank 1 failed in round 2: MemoryError: no memory left"


def test_a_rank_that_never_came_is_named_before_the_first_round(store, stack) -> None:
    ranks = join(stack, store, 3, [0, 0])
    assert str(ranks[0].explain("x")) == "rank 0 of 3, before the first round: rank 2 never joined"


def test_a_rank_that_left_because_of_another_passes_the_name_on(store, stack) -> None:
    (own,) = join(stack, store, 3, [4])
    first, second = (Liveness(store, rank, 3) for rank in (1, 2))
    with second:
        second.enter_round(4)
        for rank in (own, first):
            rank.step()
        with pytest.raises(RankLostError, match="rank 2 hangs in round 4"), first:
            raise first.explain("x")
    # By now rank 2 has ended in order: that it hung is known from rank 1 alone.
    assert str(own.explain("x")) == "rank 0 of 3, round 4: rank 2 hangs in round 4"


def test_where_nobody_is_missing_the_first_line_of_the_reason_is_told(store, stack) -> None:
    ranks = join(stack, store, 2, [1, 1])
    assert str(ranks[1].explain(" address in use\n  at 0x12")) == "rank 1 of 2, round 1: address in use"


def test_a_store_that_is_gone_is_told(store, stack) -> None:
    (own,) = join(stack, store, 1, [1])

    class Gone:
        def set(self, key: str, value: str) -> None:
            raise RuntimeError("Broken pipe")

        def check(self, keys: list[str]) -> bool:
            raise RuntimeError("Broken pipe")

    own._store = Gone()
    begin = time.monotonic()
    message = str(own.explain("Broken pipe"))
    assert message == "rank 0 of 1, round 1: the store of the process group is gone, with torchrun or with rank 0"
    assert time.monotonic() - begin < liveness_module.LISTEN_S
    own.enter_round(2)  # nor does a beat fail


def test_errors_of_a_backend_are_explained_and_others_are_not(store, stack) -> None:
    (own,) = join(stack, store, 1, [1])
    with pytest.raises(RankLostError, match="round 1: closed") as caught, own.explaining():
        raise RuntimeError("closed")
    assert str(caught.value.__cause__) == "closed"
    with pytest.raises(ValueError, match="mine"), own.explaining():
        raise ValueError("mine")


def test_sigterm_ends_the_block_and_names_the_cause(store) -> None:
    before = signal.getsignal(signal.SIGTERM)
    own = Liveness(store, 0, 1)
    own.enter_round(3)
    told = "rank 0 of 1, round 3: it was told to end by SIGTERM"
    with pytest.raises(RankLostError, match=told), own:
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_rank_that_was_told_to_end_is_named_by_the_others(store, stack) -> None:
    (own,) = join(stack, store, 2, [4])
    told = Liveness(store, 1, 2)
    told.enter_round(3)
    with pytest.raises(RankLostError, match="rank 1 of 2, round 3: it was told to end by SIGTERM"), told:
        os.kill(os.getpid(), signal.SIGTERM)
    message = "rank 0 of 2, round 4: rank 1 was told to end by SIGTERM in round 3"
    assert str(own.explain("Connection closed by peer")) == message


def test_where_all_are_told_to_end_because_one_was_lost_that_one_is_named(store, stack) -> None:
    ranks = join(stack, store, 3, [4, 4, 4])
    fall_silent(ranks[1])
    told = "it was told to end by SIGTERM"
    lost = "round 4: rank 1 is lost: killed, stopped or cut off, last heard in round 4"
    assert lost in str(ranks[2].explain(told, told_to_end=True))
    assert lost in str(ranks[0].explain(told, told_to_end=True))


def test_sigterm_does_not_cut_an_explanation_short(store) -> None:
    with Liveness(store, 0, 1) as own:
        own.enter_round(1)
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert "closed" in str(own.explain("closed"))


def test_a_rank_that_left_beats_no_more(store, stack) -> None:
    (own,) = join(stack, store, 2, [1])
    with Liveness(store, 1, 2) as other:
        pass
    other.enter_round(9)
    assert not other._thread.join(timeout=5)
    assert own._read()[1].left
    assert own._read()[1].round == 0
    # It ended on purpose: it is not lost, and not behind.
    own.step()
    assert str(own.explain("closed")) == "rank 0 of 2, round 1: closed"


def test_a_rank_is_never_behind_itself(store, stack, monkeypatch) -> None:
    monkeypatch.setattr(liveness_module, "BEAT_S", 60.0)  # so that its sign is from before the step
    ranks = join(stack, store, 1, [4])
    ranks[0].step()
    assert (
        str(ranks[0].explain("Connection closed by peer\nat line 7"))
        == "rank 0 of 1, round 4: Connection closed by peer"
    )
