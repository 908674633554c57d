"""What one rank measures; `tests.benchmarks.distributed.scaling` starts it: `... .rank FILE OPTIONS`.

Rank 0 writes to FILE what all ranks found.
"""

from __future__ import annotations

import json
import resource
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
import torch

import dmmlkd_ext.training.round as round_module
from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.exchange import mix as exchange
from dmmlkd_ext.training.exchange.ranks import Message, Ranks, joined_ranks, started_by_torchrun
from dmmlkd_ext.training.exchange.slices import links_cut
from dmmlkd_ext.training.exchange.weights import BlockMixing
from dmmlkd_ext.training.round import Simulation
from tests.benchmarks.population.workloads import WORKLOADS, Workload, build

FLOAT_BYTES, DOUBLE_BYTES = 4, 8
TIMEOUT_S = 120.0
STAGES = ("training", "mixing", "replicated")
"""Of a round, communication left out: what grows with a rank's devices, twice, and what grows with all devices."""

_NARROW = Workload({"first": (1,), "second": (1,)}, 2, TrainingConfig(feature_width=2, hidden_width=2))
_WORKLOADS = {**WORKLOADS, "narrow": _NARROW}
_REPLICATED = ("_plan", "_account")


def boundary_rows(
    edges: npt.NDArray[np.int64], owner: npt.NDArray[np.int64], holders: npt.NDArray[np.bool_] | None = None
) -> npt.NDArray[np.int64]:
    """Return what has to pass between ranks: pairs of a device and a rank that holds neighbours of it, each once.

    Args:
        edges: int64 [links, 2].
        owner: int64 [devices], the rank that holds each device.
        holders: which devices have the block, bool [devices]; None is all.

    Example:
        >>> boundary_rows(np.array([[0, 1], [0, 2], [0, 3]]), np.array([0, 1, 1, 1])).tolist()
        [[0, 1], [1, 0], [2, 0], [3, 0]]
    """
    ends = np.concatenate([edges, edges[:, ::-1]])
    if holders is not None:
        ends = ends[holders[ends].all(axis=1)]
    crossing = ends[owner[ends[:, 0]] != owner[ends[:, 1]]]
    return np.unique(np.c_[crossing[:, 0], owner[crossing[:, 1]]], axis=0)


def least_bytes(
    edges: npt.NDArray[np.int64],
    owner: npt.NDArray[np.int64],
    blocks: Iterable[tuple[npt.NDArray[np.bool_], int]],
) -> int:
    """Return the fewest bytes that an exchange can take, over all ranks; a block is its holders and its parameters.

    Example:
        >>> least_bytes(np.array([[0, 1], [0, 2]]), np.array([0, 1, 1]), [(np.array([True, True, False]), 10)])
        80
    """
    return sum(FLOAT_BYTES * size * len(boundary_rows(edges, owner, holders)) for holders, size in blocks)


class Stopwatch:
    """Seconds by stage, without those spent in communication."""

    def __init__(self, ranks: Ranks) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._ranks = ranks

    def around(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, its time added to a stage."""

        def timed(*arguments: Any, **further: Any) -> Any:
            begin, communicated = time.perf_counter(), self._ranks.seconds
            try:
                return function(*arguments, **further)
            finally:
                self.seconds[stage] += time.perf_counter() - begin - (self._ranks.seconds - communicated)

        return timed

    @contextmanager
    def watching(self, simulation: Simulation) -> Iterator[None]:
        """Time the stages of the rounds that are run in the block."""
        watched = [("training", round_module, "train"), ("mixing", exchange, "mix")]
        watched += [("replicated", round_module, "make_record"), ("replicated", simulation.world, "draw")]
        watched += [("replicated", simulation, name) for name in _REPLICATED]
        watched += [("replicated", simulation.weights, "of")]
        watched += [("shared", simulation, "consensus_distance")]  # a record asks for it, but each rank does its part
        with ExitStack() as patches:
            for stage, owner, name in watched:
                patches.enter_context(mock.patch.object(owner, name, self.around(stage, getattr(owner, name))))
            yield

    def take(self) -> dict[str, float]:
        """Return the seconds since the last time, a stage."""
        found = {stage: self.seconds[stage] for stage in STAGES}
        found["replicated"] -= self.seconds["shared"]
        self.seconds.clear()
        return found


class InTurn(Ranks):
    """Ranks that finish an exchange before anything else happens."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.rank, self.size, self._ranks = ranks.rank, ranks.size, ranks

    def exchange(self, sends: Sequence[Message], receives: Sequence[Message], tag: int) -> Callable[[], None]:
        self._ranks.exchange(sends, receives, tag)()
        return lambda: None


def measure(
    ranks: Ranks, workload: str, losses: str, devices: int, rounds: int, iterations: int, pairs: int
) -> dict[str, Any]:
    """Run some rounds on all ranks and return what was found, alike on each.

    Returns:
        Lists of one entry a round: `seconds` of the slowest rank, `communication` in the mean over ranks, waiting
        included, and `stages` of the slowest rank. Sums over all ranks a round: `bytes_sent`, `collective_bytes`. And
        `least_bytes`, the size of the problem, the peak of memory of the largest rank and `overlap` as of
        `overlap_ratios`.
    """
    simulation, _ = build(_WORKLOADS[workload], losses, devices, ranks, local_iterations=iterations)
    routes = simulation.weights.of(simulation.world.topology.edges)
    simulation.run_round()
    stopwatch = Stopwatch(ranks)
    bytes_before = np.array([ranks.sent_bytes, ranks.collective_bytes])
    with stopwatch.watching(simulation):
        own = [_time_round(simulation, stopwatch) for _ in range(rounds)]
    sent = np.array([ranks.sent_bytes, ranks.collective_bytes]) - bytes_before
    everyone = ranks.everyone(own)
    rows, collective = (np.sum(ranks.everyone(sent.tolist()), axis=0) / rounds).tolist()
    slowest = {
        key: [max(of_rank[index][key] for of_rank in everyone) for index in range(rounds)] for key in ("wall", *STAGES)
    }
    network, population, part = simulation.world, simulation.population, simulation.part
    sizes = {name: block.num_parameters for name, block in population.blocks.items()}
    edges = network.topology.edges
    summed = sum(size + 1 for size in sizes.values())  # of the mean parameters, in float64
    return {
        "seconds": slowest["wall"],
        "communication": [
            statistics.fmean(of_rank[index]["communication"] for of_rank in everyone) for index in range(rounds)
        ],
        "stages": {stage: slowest[stage] for stage in STAGES},
        "bytes_sent": rows,
        "least_bytes": least_bytes(edges, part.owner, [(network.holds(name), size) for name, size in sizes.items()]),
        "collective_bytes": collective,
        "gathered_numbers": (collective / ranks.size / DOUBLE_BYTES - summed) / max(part.counts) if collective else 0.0,
        "summed_numbers": summed,
        "links": len(edges),
        "links_cut": links_cut(edges, part.owner),
        "parameters": sum(int(network.holds(name).sum()) * size for name, size in sizes.items()) / devices,
        "peak_bytes": max(ranks.everyone(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)),
        "overlap": overlap_ratios(simulation, routes, pairs) if ranks.size > 1 else [],
    }


def _time_round(simulation: Simulation, stopwatch: Stopwatch) -> dict[str, float]:
    ranks = simulation.part.ranks
    begin, communicated = time.perf_counter(), ranks.seconds
    simulation.run_round()
    wall = time.perf_counter() - begin
    return {"wall": wall, "communication": ranks.seconds - communicated, **stopwatch.take()}


def overlap_ratios(simulation: Simulation, divided: Mapping[str, BlockMixing], pairs: int) -> list[float]:
    """Return seconds of an exchange block after block over those of one that overlaps with mixing, a pair of runs."""
    ranks, weights = simulation.part.ranks, {name: mixing.mixer for name, mixing in divided.items()}
    routes = {name: mixing.route for name, mixing in divided.items()}

    def seconds(of: Ranks) -> float:
        ranks.everyone(None)
        begin = time.perf_counter()
        exchange.mix(simulation.population, weights, routes, of)
        return max(ranks.everyone(time.perf_counter() - begin))

    ratios = []
    for number in range(pairs):
        kinds = (InTurn(ranks), ranks) if number % 2 else (ranks, InTurn(ranks))
        took = {kind is ranks: seconds(kind) for kind in kinds}
        ratios.append(took[False] / took[True])
    return ratios


def main(path: Path, options: dict[str, Any]) -> None:
    """Measure on the ranks that there are."""
    torch.set_num_threads(1)
    with joined_ranks(TIMEOUT_S) if started_by_torchrun() else nullcontext(Ranks()) as ranks:
        found = measure(ranks, **options)
        if ranks.rank == 0:
            path.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
