"""Trains a small network per rank with gossip in between, or as many in one process, and writes the parameters."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from dmmlkd_ext.ops import GossipGroup, GossipWeights

MODULES = 4
GRAPHS = [[[0, 1], [1, 2], [2, 3]], [[0, 1], [0, 2], [0, 3]], [[2, 3]]]  # one per round: any graph, and a node alone
ROUNDS = 6


def make(number: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a network with parameters of its own, of two dtypes, and its optimizer."""
    torch.manual_seed(number)
    module = nn.Sequential(nn.Linear(5, 33), nn.BatchNorm1d(33), nn.Tanh(), nn.Linear(33, 3))
    module[3].double()
    return module, torch.optim.Adam(module.parameters(), lr=0.01)


def train(module: nn.Module, optimizer: torch.optim.Optimizer, number: int, round_number: int) -> None:
    """Train a few steps on data of this module and round."""
    generator = torch.Generator().manual_seed(100 * number + round_number)
    for _ in range(3):
        inputs = torch.randn(16, 5, generator=generator)
        optimizer.zero_grad()
        hidden = module[:3](inputs)
        nn.functional.cross_entropy(module[3](hidden.double()), inputs.argmax(1) % 3).backward()
        optimizer.step()


def run(numbers: list[int], one_per_rank: bool) -> list[dict[str, torch.Tensor]]:
    """Return the states of some modules, and what each round measured, after training with gossip."""
    made = [make(number) for number in numbers]
    modules = [module for module, _ in made]
    group = GossipGroup(modules[0] if one_per_rank else modules, buffers="average")
    moved = []
    for round_number in range(ROUNDS):
        for number, (module, optimizer) in zip(numbers, made, strict=True):
            train(module, optimizer, number, round_number)
        weights = GossipWeights.metropolis(GRAPHS[round_number % len(GRAPHS)], MODULES, torch.float64)
        measured = group.mix(weights, measure=round_number % 2 == 0)
        moved += [] if measured is None else [torch.stack(measured)]
    norms = torch.stack(moved)  # [rounds, 2, modules]
    return [module.state_dict() | {"norms": norms[..., i]} for i, module in enumerate(modules)]


if __name__ == "__main__":
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    torch.save(run([rank], one_per_rank=True)[0], Path(sys.argv[1]) / f"{rank}.pt")
    dist.destroy_process_group()
