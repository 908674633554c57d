"""A rank that is missing is named, with the round, by the beats of a store that all share."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress

import pytest
import torch.distributed as dist

from dmmlkd_ext.training import liveness
from dmmlkd_ext.training.liveness import Liveness, RankLostError


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(liveness, "BEAT_S", 0.02)
    monkeypatch.setattr(liveness, "LISTEN_S", 0.3)


def explain(ours: Liveness, reason: str = "timed out") -> str:
    return str(ours.explain(RuntimeError(reason)))


def test_a_rank_that_does_not_beat_is_lost():
    store = dist.HashStore()
    with Liveness(store, 0, 2) as ours, Liveness(store, 1, 2) as theirs:
        ours.enter_round(5)
        theirs.enter_round(4)
        theirs._stop.set()  # as a process that is killed
        assert explain(ours) == "rank 0 of 2, round 5: rank 1 is lost: killed or stopped, last heard in round 4"


def test_a_rank_that_beats_but_is_behind_hangs():
    store = dist.HashStore()
    with Liveness(store, 0, 3) as ours, Liveness(store, 1, 3) as second, Liveness(store, 2, 3) as third:
        for rank in (ours, second, third):
            rank.enter_round(2)
            rank.step()
        ours.step()
        third.step()
        assert explain(ours) == "rank 0 of 3, round 2: rank 1 hangs in round 2"


def test_a_rank_that_failed_says_why():
    store = dist.HashStore()
    with Liveness(store, 0, 2) as ours:
        with suppress(ValueError), Liveness(store, 1, 2) as theirs:
            theirs.enter_round(3)
            raise ValueError("no such sample")
        assert explain(ours).endswith("before the first round: rank 1 failed in round 3: ValueError: no such sample")


def test_who_left_because_of_another_is_not_taken_for_the_cause():
    store = dist.HashStore()
    with Liveness(store, 0, 3) as ours, Liveness(store, 1, 3) as second:
        third = Liveness(store, 2, 3)
        third._publish()  # and never again
        assert "rank 2 is lost" in explain(second)
        assert explain(ours).endswith(": rank 2 is lost: killed or stopped, last heard in round 0")


def test_a_rank_that_never_came_is_named():
    with Liveness(dist.HashStore(), 0, 2) as ours:
        assert explain(ours).endswith("rank 1 never joined")


def test_where_nobody_is_missing_the_backend_is_quoted():
    store = dist.HashStore()
    with Liveness(store, 0, 2) as ours, Liveness(store, 1, 2):
        assert explain(ours, "Address in use\nbacktrace") == "rank 0 of 2, before the first round: Address in use"


def test_to_be_told_to_end_is_explained_and_the_handler_put_back():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RankLostError, match="rank 0 of 1, round 7: it was told to end by SIGTERM"):  # noqa: PT012, SIM117
        with Liveness(dist.HashStore(), 0, 1) as ours:
            ours.enter_round(7)
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_another_rank_found_is_passed_on():
    store = dist.HashStore()
    with Liveness(store, 0, 3) as ours, Liveness(store, 1, 3) as second, Liveness(store, 2, 3):
        second._publish(left=True, because="rank 2 hangs in round 1")
        assert explain(ours, "Connection closed").endswith(": rank 2 hangs in round 1")
