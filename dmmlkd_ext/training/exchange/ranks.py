"""The processes that share a simulation, and their communication.

A rank holds the parameters of some devices (`Slice`). Every rank knows all quantities that are one number per device
(links, plans, energies, speeds, losses): it computes them from the seed and from gathered values. So a round is the
same code on one process, where `Ranks` does nothing.
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
"""Another rank, and the rows sent to it or received from it."""


class FailedElsewhereError(RuntimeError):
    """Another rank failed at a step that all take together, and has reported the reason."""


class UnlikeRanksError(ValueError):
    """This rank was started with other settings than the first rank."""


def _nothing() -> None:
    """Wait for nothing."""


class Ranks:
    """One process alone; the base of `ProcessRanks`.

    Attributes:
        rank: the number of this process.
        size: the number of processes.
        sent_bytes: bytes of rows that this process sent.
        collective_bytes: bytes that this process contributed to sums and gathers.
        seconds: wall time that this process spent in communication, waiting included.
    """

    rank, size = 0, 1

    def __init__(self) -> None:
        self.sent_bytes, self.collective_bytes, self.seconds = 0, 0, 0.0

    def enter_round(self, number: int) -> None:
        """Publish the round, counted from 1, for the message if this rank is lost."""

    def gather(self, values: FloatArray, counts: Sequence[int]) -> list[FloatArray]:  # noqa: ARG002
        """Return the values [counts[i], columns] of every rank i."""
        return [values]

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks, in place."""
        return values

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message], tag: int) -> Callable[[], None]:  # noqa: ARG002
        """Start to send and receive rows, and return a function that waits until it is done.

        Args:
            sends: contiguous rows, which must not be changed before.
            receives: contiguous rows, which are written.
            tag: distinguishes simultaneous exchanges.
        """
        return _nothing

    def together(self, action: Callable[[], Result]) -> Result:
        """Call `action` on every rank and return this rank's result; if it raises on one rank, all raise.

        Raises:
            FailedElsewhereError: it raised on a rank of a lower number, or not on this rank.
        """
        return action()

    def first(self, action: Callable[[], Result]) -> Result:
        """Call `action` on rank 0 and return its result, a plain value, on every rank; raise as `together` does."""
        return action()

    def everyone(self, value: Result) -> list[Result]:
        """Return the plain values of all ranks."""
        return [value]


class ProcessRanks(Ranks):
    """The processes of a torch.distributed process group; `liveness` finds out which rank is missing."""

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
        except RuntimeError as error:  # what backends raise for closed connections and timeouts
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
            operations.clear()  # they kept the sent tensors alive

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
            return result  # type: ignore[return-value]  # the action's result, which may be None
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
        # The devices in the order of their ranks.
        self._order = np.argsort(owner, kind="stable")

    def gather(self, values: Mapping[str, npt.NDArray[Any]]) -> dict[str, FloatArray]:
        """Gather values float64 [devices of this rank] into those of all devices [devices], in one operation."""
        mine = np.stack([np.asarray(column, dtype=np.float64) for column in values.values()], axis=1)
        everyone = np.empty((len(self.owner), mine.shape[1]))
        everyone[self._order] = np.concatenate(self.ranks.gather(mine, self.counts))
        return {name: everyone[:, column].copy() for column, name in enumerate(values)}


def alone(num_devices: int) -> Slice:
    """Return the slice of a process that holds all devices."""
    return Slice(Ranks(), np.zeros(num_devices, dtype=np.int64))


def started_by_torchrun() -> bool:
    """Return whether the environment variables of torchrun say that this process is one of several.

    Raises:
        ValueError: some of them are missing or invalid.
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
    """Read an environment variable; raise ValueError unless it is a whole number of at least 0."""
    text = os.environ.get(name, default)
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{name} must be a whole number, as torchrun sets it; got {text!r}")
    return int(text)


def local_rank() -> int:
    """Return the number of this process among those that torchrun started on this machine, of which it is the GPU's."""
    return _whole_number("LOCAL_RANK", "0")


@contextmanager
def joined_ranks(timeout_s: float, on_gpus: bool = False) -> Iterator[Ranks]:
    """Join the processes that torchrun started, and leave them at the end of the block.

    Values per device pass through gloo; rows pass through gloo from a CPU and through nccl from a GPU, of which each
    rank takes the one of its local number.

    Args:
        timeout_s: seconds that a rank waits for another before it reports it as lost; more than the durations of the
            ranks' rounds and checkpoints differ.
        on_gpus: whether the parameters are on GPUs.

    Raises:
        ImportError: this torch has no gloo, or no nccl for GPUs.
        RankLostError: another rank died, hangs or failed, or this one received SIGTERM.
    """
    backend = "gloo"
    if not (dist.is_available() and dist.is_gloo_available()):
        raise ImportError("several ranks need torch.distributed with gloo, which this torch was built without")
    if on_gpus and not dist.is_nccl_available():
        raise ImportError("several ranks on GPUs need torch.distributed with nccl, which this torch was built without")
    if on_gpus:
        torch.cuda.set_device(local_rank())
        backend = "cpu:gloo,cuda:nccl"
    from torch.distributed.rendezvous import rendezvous

    store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=timeout_s)))
    # Entries that processes of an earlier attempt left in the store must not be read.
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
            raise  # destroying the group may wait for the missing rank
        except Exception:
            dist.destroy_process_group()  # otherwise the group may abort the process at its end
            raise
        dist.destroy_process_group()
