"""Ranks of one process: some that nobody is beside, and some that are threads and exchange rows by a letter box."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from threading import Lock
from typing import Any

from dmmlkd_ext.training.exchange.ranks import Message, Ranks

WAIT_S = 10


class Numbered(Ranks):
    """One of several ranks, alone; what it does together with others it does for itself."""

    def __init__(self, rank: int, size: int) -> None:
        super().__init__()
        self.rank, self.size = rank, size


class _Letters:
    """Queues, made as they are named."""

    def __init__(self) -> None:
        self._queues: defaultdict[tuple[int, int, int], Queue] = defaultdict(Queue)
        self._lock = Lock()

    def between(self, sender: int, receiver: int, tag: int) -> Queue:
        with self._lock:
            return self._queues[sender, receiver, tag]


class ThreadRanks(Numbered):
    """A rank that exchanges rows with those of other threads; they arrive when they are waited for, not before."""

    def __init__(self, rank: int, size: int, letters: _Letters) -> None:
        super().__init__(rank, size)
        self._letters = letters
        self._under_way: set[int] = set()

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message], tag: int) -> Callable[[], None]:
        assert tag not in self._under_way, tag
        self._under_way.add(tag)
        for peer, rows in sends:
            assert rows.is_contiguous()
            self._letters.between(self.rank, peer, tag).put(rows)

        def wait() -> None:
            for peer, rows in receives:
                assert rows.is_contiguous()
                arrived = self._letters.between(peer, self.rank, tag).get(timeout=WAIT_S)
                assert arrived.shape == rows.shape
                rows.copy_(arrived)
            self._under_way.remove(tag)

        return wait


def on_threads(size: int, action: Callable[[Ranks], Any]) -> list[Any]:
    """Return what an action returns on each of some ranks."""
    letters = _Letters()
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(action, [ThreadRanks(rank, size, letters) for rank in range(size)]))
