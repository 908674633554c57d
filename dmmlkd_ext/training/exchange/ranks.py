"""The processes that share a simulation, and what passes between them.

A rank holds the rows of some devices (`Slice`). What is one number a device (links, plans, energies, speeds, losses) is
known to every rank: each computes it from the seed and from what all gathered. So the round is one code path, and
one process is the case in which nobody else is there: `Ranks` itself, which does nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from typing_extensions import override

from dmmlkd_ext.training.exchange.liveness import Liveness, RankLostError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Result = TypeVar("Result")
Message = tuple[int, torch.Tensor]
"""The other rank, and the rows that go there or come from there."""


class FailedElsewhereError(RuntimeError):
    """Another rank failed at a step that all take together, and has said why."""


class UnlikeRanksError(ValueError):
    """This rank was started otherwise than the first one."""


def _nothing() -> None:
    """Wait for nothing."""


class Ranks:
    """One process alone; the base of those that share a simulation.

    Attributes:
        rank: the number of this process.
        size: the number of processes.
        sent_bytes: bytes of rows that this process sent.
        collective_bytes: bytes that this process contributed to sums and gatherings.
        seconds: wall time that this process spent in communication, waiting for others included.
    """

    rank, size = 0, 1

    def __init__(self) -> None:
        self.sent_bytes, self.collective_bytes, self.seconds = 0, 0, 0.0

    def enter_round(self, number: int) -> None:
        """Note the round, counted from 1, so that others can say in which one this rank was lost."""

    def gather(self, values: FloatArray, counts: Sequence[int]) -> list[FloatArray]:  # noqa: ARG002
        """Return the values [rows, columns] of every rank, of which rank i has `counts[i]` rows."""
        return [values]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Return the sum over all ranks, in place."""
        return values

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message], tag: int) -> Callable[[], None]:  # noqa: ARG002
        """Begin to send rows to other ranks and to receive into rows, and return what waits for it.

        Args:
            sends: contiguous rows, left alone until they are waited for.
            receives: contiguous rows, which are written.
            tag: tells exchanges that are under way at once from each other.
        """
        return _nothing

    def together(self, action: Callable[[], Result]) -> Result:
        """Do something on every rank and return this rank's result; where it fails on one, it fails on all.

        Raises:
            FailedElsewhereError: it failed on a rank of a lower number, or on another one alone.
        """
        return action()

    def first(self, action: Callable[[], Result]) -> Result:
        """Do something on rank 0 alone and return its result, a plain value, on every rank; fail as `together` does."""
        return action()

    def everyone(self, value: Result) -> list[Result]:
        """Return the plain values of all ranks."""
        return [value]


class ProcessRanks(Ranks):
    """The processes of a torch.distributed process group.

    Args:
        liveness: tells which rank is missing when an operation fails.
    """

    def __init__(self, liveness: Liveness) -> None:
        super().__init__()
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._liveness = liveness

    @override
    def enter_round(self, number: int) -> None:
        self._liveness.enter_round(number)

    @contextmanager
    def _communicating(self) -> Iterator[None]:
        self._liveness.step()
        begin = time.perf_counter()
        try:
            yield
        except RuntimeError as error:  # all that backends raise are: closed connections, timeouts
            raise self._liveness.explain(error) from error
        finally:
            self.seconds += time.perf_counter() - begin

    @override
    def gather(self, values: FloatArray, counts: Sequence[int]) -> list[FloatArray]:
        padded = torch.zeros(max(counts), values.shape[1], dtype=torch.float64)
        padded[: len(values)] = torch.from_numpy(values)
        parts = [torch.empty_like(padded) for _ in counts]
        self.collective_bytes += padded.nbytes
        with self._communicating():
            dist.all_gather(parts, padded)
        return [part[:count].numpy() for part, count in zip(parts, counts, strict=True)]

    @override
    def sum(self, values: torch.Tensor) -> torch.Tensor:
        self.collective_bytes += values.nbytes
        with self._communicating():
            dist.all_reduce(values)
        return values

    @override
    def exchange(self, sends: Sequence[Message], receives: Sequence[Message], tag: int) -> Callable[[], None]:
        operations = [dist.P2POp(dist.isend, rows, peer, tag=tag) for peer, rows in sends]
        operations += [dist.P2POp(dist.irecv, rows, peer, tag=tag) for peer, rows in receives]
        self.sent_bytes += sum(rows.nbytes for _, rows in sends)
        with self._communicating():
            works = dist.batch_isend_irecv(operations) if operations else []

        def wait() -> None:
            with self._communicating():
                for work in works:
                    work.wait()
            operations.clear()  # until now they kept what is sent

        return wait

    @override
    def together(self, action: Callable[[], Result]) -> Result:
        result: Result | None = None
        failure: Exception | None = None
        try:
            result = action()
        except RankLostError:
            raise
        except Exception as error:
            failure = error
        messages = self.everyone(None if failure is None else f"{type(failure).__name__}: {failure}")
        failed = [rank for rank, message in enumerate(messages) if message is not None]
        if not failed:
            return result  # type: ignore[return-value]  # the action's own, which may be None
        if failure is not None and failed[0] == self.rank:
            raise failure
        raise FailedElsewhereError(f"rank {failed[0]} failed: {messages[failed[0]]}")

    @override
    def first(self, action: Callable[[], Result]) -> Result:
        result = self.together(action if self.rank == 0 else _nothing)
        return self.everyone(result)[0]  # type: ignore[return-value]

    @override
    def everyone(self, value: Result) -> list[Result]:
        values: list[Any] = [None] * self.size
        with self._communicating():
            dist.all_gather_object(values, value)
        return values


class Slice:
    """The devices of one rank among all.

    Args:
        ranks: the processes.
        owner: int64 [devices], the rank that holds each device.

    Raises:
        ValueError: a rank would hold no device.

    Example:
        >>> part = Slice(Ranks(), np.zeros(3, dtype=np.int64))
        >>> part.devices.tolist(), part.gather({"loss": np.array([0.5, 0.25, 0.0])})["loss"].tolist()
        ([0, 1, 2], [0.5, 0.25, 0.0])
    """

    def __init__(self, ranks: Ranks, owner: IntArray) -> None:
        self.counts = np.bincount(owner, minlength=ranks.size).tolist()
        if len(self.counts) != ranks.size or 0 in self.counts:
            raise ValueError(f"owner must give each of {ranks.size} ranks a device, got the numbers {self.counts}")
        self.ranks, self.owner = ranks, owner
        self.devices = np.flatnonzero(owner == ranks.rank)
        # Where each rank's rows lie when they are put one rank behind the other.
        self._order = np.argsort(owner, kind="stable")

    def gather(self, values: Mapping[str, npt.NDArray[Any]]) -> dict[str, FloatArray]:
        """Return, of values float64 [own devices], those of all devices [devices]; in one operation."""
        mine = np.stack([np.asarray(column, dtype=np.float64) for column in values.values()], axis=1)
        everyone = np.empty((len(self.owner), mine.shape[1]))
        everyone[self._order] = np.concatenate(self.ranks.gather(mine, self.counts))
        return {name: everyone[:, column].copy() for column, name in enumerate(values)}


def alone(num_devices: int) -> Slice:
    """Return the slice of a process that holds all devices."""
    return Slice(Ranks(), np.zeros(num_devices, dtype=np.int64))


def started_by_torchrun() -> bool:
    """Return whether the environment names this process one of several of a group, as torchrun sets it.

    Raises:
        ValueError: it names one, but not as torchrun does.
    """
    if not all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")):
        return False
    rank, size, port = (_whole_number(name) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    if size < 1 or not 0 <= rank < size:
        raise ValueError(f"RANK must be from 0 to WORLD_SIZE - 1, got RANK={rank} and WORLD_SIZE={size}")
    if port > 65535:
        raise ValueError(f"MASTER_PORT must be at most 65535, got {port}")
    return size > 1


def _whole_number(name: str, default: str = "") -> int:
    """Read a number that torchrun sets.

    Raises:
        ValueError: the variable of the environment is no whole number of at least 0.
    """
    text = os.environ.get(name, default)
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{name} must be a whole number, as torchrun sets it; got {text!r}")
    return int(text)


@contextmanager
def joined_ranks(timeout_s: float) -> Iterator[Ranks]:
    """Join the processes that torchrun started, and leave them at the end of the block.

    Numbers a device pass through gloo; rows pass through the backend of the device that they lie on, gloo for a CPU and
    nccl for a GPU, of which each rank takes the one of its local number.

    Args:
        timeout_s: seconds that a rank waits for the others before it takes them for lost. It has to be longer than the
            ranks' rounds, or the writing of their checkpoints, may differ.

    Raises:
        ImportError: this torch has no gloo, or finds a GPU and has no nccl.
        RankLostError: another rank died, hangs or failed, or this one was told to end.
    """
    backend = "gloo"
    if not (dist.is_available() and dist.is_gloo_available()):
        raise ImportError("several ranks need torch.distributed with gloo, which this torch was built without")
    if torch.cuda.is_available() and not dist.is_nccl_available():
        raise ImportError("several ranks on GPUs need torch.distributed with nccl, which this torch was built without")
    if torch.cuda.is_available():
        torch.cuda.set_device(_whole_number("LOCAL_RANK", "0"))
        backend = "cpu:gloo,cuda:nccl"
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
    # What the processes of an earlier attempt left in the store must not be taken for their successors'.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"attempt {attempt}", store)  # type: ignore[attr-defined]
    with Liveness(store, rank, size) as liveness:
        with liveness.explaining():
            dist.init_process_group(
                backend, store=store, rank=rank, world_size=size, timeout=timedelta(seconds=timeout_s)
            )
        try:
            yield ProcessRanks(liveness)
            with liveness.explaining():
                dist.barrier()
        except RankLostError:
            raise  # between ranks of which one is missing, leaving may wait for it
        except Exception:
            dist.destroy_process_group()  # a group that is left to the end of the process may abort it
            raise
        dist.destroy_process_group()
