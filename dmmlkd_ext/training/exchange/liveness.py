"""Which rank is missing, and since which round, when a collective operation fails.

A backend reports a closed connection or a timeout, seldom the rank that caused it. So a thread of every rank writes a
heartbeat to the store of the process group, twice per second: the round, the number of collective operations entered,
and a count. A rank that fails also writes its error. When an operation fails, a rank reads all heartbeats twice: a rank
whose count stands still was killed, stopped or cut off; one that counts on but lags by operations hangs or is too slow.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType, TracebackType
from typing import Any

BEAT_S = 0.5
LISTEN_S = 2.5
"""Seconds between the two readings: five heartbeats, so that a delayed one is not taken for a lost rank."""


class RankLostError(RuntimeError):
    """The ranks cannot go on: one of them died, hangs or failed, or they received SIGTERM."""


class _ToldToEnd(BaseException):
    """SIGTERM arrived; torchrun sends it to all remaining ranks once one has ended."""


@dataclass(frozen=True)
class _Sign:
    """The last heartbeat of a rank."""

    round: int
    step: int
    beat: int
    left: bool = False
    """Whether the rank has ended on purpose."""
    failure: str | None = None
    """The error that it ended with, unless another rank was lost."""
    because: str | None = None
    """Which ranks it found missing when it ended."""
    told: bool = False
    """Whether it received SIGTERM, which is the cause only if no rank was lost: torchrun then sends it to all."""


class Liveness:
    """A context that writes the heartbeat of one rank of `size`, and explains failures by those of all ranks."""

    def __init__(self, store: Any, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._store = store.clone()  # another connection: the given one may be blocked in a wait
        self._store.set_timeout(timedelta(seconds=5))
        self._round = self._step = self._beat = 0
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._keep_beating, name="liveness", daemon=True)
        self._at_end = self._told = False

    def __enter__(self) -> Liveness:
        self._publish()
        self._thread.start()
        self._handler = signal.signal(signal.SIGTERM, self._told_to_end)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._at_end = True
        try:
            if isinstance(error, _ToldToEnd):
                raise self.explain("it was told to end by SIGTERM", told_to_end=True) from None
            failure = None if error is None or isinstance(error, RankLostError) else f"{kind.__name__}: {error}"  # type: ignore[union-attr]
            self._publish(left=True, failure=failure)
        finally:
            self._stop.set()
            # A thread that uses the store while the interpreter ends would abort the process.
            self._thread.join(timeout=2.0)
            signal.signal(signal.SIGTERM, self._handler)

    def enter_round(self, number: int) -> None:
        """Publish the round, counted from 1."""
        self._round = number
        self._publish()

    def step(self) -> None:
        """Count a collective operation that this rank enters."""
        self._step += 1

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Replace the error that a backend raises in the block by one that names the missing ranks."""
        try:
            yield
        except RuntimeError as error:
            raise self.explain(error) from error

    def explain(self, reason: object, told_to_end: bool = False) -> RankLostError:
        """Return the error that names the missing ranks and the round; takes some seconds."""
        self._at_end = True
        if told_to_end:
            self._told = True
            self._publish()  # at once: other ranks may read it during this rank's two readings
        before, now = self._read(), {}
        if before:
            time.sleep(LISTEN_S)
            now = self._read()
        causes = self._causes(before, now)
        if not (causes or told_to_end):
            causes = self._hanging(now)
        self._publish(left=True, because="; ".join(causes) or None)
        where = f"round {self._round}" if self._round else "before the first round"
        causes = causes or [_first_line(reason)]
        return RankLostError(f"rank {self.rank} of {self.size}, {where}: {'; '.join(causes)}")

    def _causes(self, before: dict[int, _Sign], now: dict[int, _Sign]) -> list[str]:
        if self.rank not in now:
            return ["the store of the process group is gone, with torchrun or with rank 0"]
        peers = {rank: sign for rank, sign in now.items() if rank != self.rank}
        failed = [
            f"rank {rank} failed in round {sign.round}: {sign.failure}" for rank, sign in peers.items() if sign.failure
        ]
        lost = [
            f"rank {rank} is lost: killed, stopped or cut off, last heard in round {sign.round}"
            for rank, sign in peers.items()
            if not sign.left and sign == before.get(rank)
        ]
        silent = [f"rank {rank} never joined" for rank in range(self.size) if rank not in now]
        told = [
            f"rank {rank} was told to end by SIGTERM in round {sign.round}"
            for rank, sign in peers.items()
            if sign.told and not self._told
        ]
        passed_on = sorted({sign.because for sign in peers.values() if sign.because})
        return failed + lost + silent or passed_on or told

    def _hanging(self, now: dict[int, _Sign]) -> list[str]:
        peers = {rank: sign for rank, sign in now.items() if rank != self.rank and not sign.left}
        behind = {rank: sign for rank, sign in peers.items() if sign.step < self._step}
        last = min((sign.step for sign in behind.values()), default=0)
        return [f"rank {rank} hangs in round {sign.round}" for rank, sign in behind.items() if sign.step == last]

    def _read(self) -> dict[int, _Sign]:
        """Return the last heartbeats of all ranks; none if the store is gone."""
        signs = {}
        with suppress(RuntimeError):
            for rank in range(self.size):
                if self._store.check([_key(rank)]):
                    signs[rank] = _Sign(**json.loads(self._store.get(_key(rank))))
        return signs

    def _publish(self, **further: Any) -> None:
        with self._lock, suppress(RuntimeError):  # a store that is gone is reported where an operation fails
            self._beat += 1
            sign = {"round": self._round, "step": self._step, "beat": self._beat, "told": self._told, **further}
            if not self._stop.is_set():
                self._store.set(_key(self.rank), json.dumps(sign))
            if further:
                self._stop.set()  # this was the last heartbeat

    def _keep_beating(self) -> None:
        while not self._stop.wait(BEAT_S):
            self._publish()

    def _told_to_end(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if not self._at_end:
            self._at_end = True
            raise _ToldToEnd


def _key(rank: int) -> str:
    return f"dmmlkd/rank {rank}"


def _first_line(reason: object) -> str:
    return str(reason).strip().partition("\n")[0]
