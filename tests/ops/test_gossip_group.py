from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import nn

from dmmlkd_ext.ops import GossipGroup, GossipWeights, GroupVariation

PATH = GossipWeights.metropolis([[0, 1], [1, 2]], 3, torch.float64)


def dense(weights: GossipWeights) -> torch.Tensor:
    rows = torch.repeat_interleave(weights.row_pointers.diff())
    size = len(weights.row_pointers) - 1
    return torch.zeros(size, size, dtype=torch.float64).index_put_((rows, weights.columns), weights.values.double())


def make(count: int = 3) -> list[nn.Module]:
    modules = []
    for seed in range(count):
        torch.manual_seed(seed)
        modules.append(nn.Sequential(nn.Linear(4, 20), nn.BatchNorm1d(20), nn.Linear(20, 3)))
        modules[-1][2].double()
    return modules


def train(module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    module[2](module[:2](torch.randn(6, 4)).double()).square().sum().backward()
    optimizer.step()


def stacked(modules: list[nn.Module]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([m.state_dict()[name] for m in modules]).double() for name in modules[0].state_dict()}


@pytest.mark.parametrize("buffers", ["average", "keep"])
def test_modules_are_mixed_and_measured(buffers):
    modules = make()
    optimizers = [torch.optim.Adam(module.parameters()) for module in modules]  # made before the group
    group = GossipGroup(modules, buffers=buffers)
    last = stacked(modules)
    for round_number in range(4):
        for module, optimizer in zip(modules, optimizers, strict=True):
            train(module, optimizer)
        trained, names = stacked(modules), dict(modules[0].named_parameters())
        measured = group.mix(PATH, measure=round_number != 1)
        mixed = stacked(modules)
        for name, rows in trained.items():
            if name in names or (buffers == "average" and "running" in name):
                torch.testing.assert_close(mixed[name], torch.tensordot(dense(PATH), rows, 1), rtol=1e-6, atol=1e-7)
            else:
                assert torch.equal(mixed[name], rows), name
        if round_number == 1:
            assert measured is None
        else:
            assert isinstance(measured, GroupVariation)
            change = sum((trained[name] - last[name]).square().flatten(1).sum(1) for name in names)
            start = sum(last[name].square().flatten(1).sum(1) for name in names)
            torch.testing.assert_close(measured.variation, change, rtol=1e-4, atol=0)
            torch.testing.assert_close(measured.start, start, rtol=1e-6, atol=0)
        last = mixed


def test_parameters_stay_what_they_were():
    modules = make()
    parameters = [list(module.parameters()) for module in modules]
    before = [[p.detach().clone() for p in module.parameters()] for module in modules]
    GossipGroup(modules, buffers="average")
    for module, known, values in zip(modules, parameters, before, strict=True):
        assert all(a is b for a, b in zip(module.parameters(), known, strict=True))
        assert all(torch.equal(a, b) and a.is_leaf and a.requires_grad for a, b in zip(known, values, strict=True))
    file = io.BytesIO()
    torch.save(modules[0].state_dict(), file)
    assert file.tell() < 6000  # one module's row: 1.2 kB, three would be more than the names and all
    modules[1].load_state_dict(modules[0].state_dict())
    assert torch.equal(modules[1][0].weight, modules[0][0].weight)
    twin = copy.deepcopy(modules[0])
    assert torch.equal(twin[0].weight, modules[0][0].weight)
    assert twin[0].weight.data_ptr() != modules[0][0].weight.data_ptr()


def test_mixing_between_forward_and_backward_is_noticed():
    modules = [nn.Linear(2, 2) for _ in range(3)]
    group = GossipGroup(modules)
    loss = modules[0](torch.ones(1, 2, requires_grad=True)).sum()
    group.mix(PATH)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def shared() -> list[nn.Module]:
    modules = [nn.Linear(2, 2) for _ in range(2)]
    modules[1].weight = modules[0].weight
    return modules


@pytest.mark.parametrize(
    ("modules", "options", "words"),
    [
        (list, {}, "at least one module with a parameter"),
        (lambda: [nn.Tanh()], {}, "at least one module with a parameter"),
        (lambda: [nn.Linear(2, 2), 3], {}, "modules must be nn.Module, got int"),
        (lambda: [nn.Linear(2, 2), nn.Linear(2, 2, bias=False)], {}, "the same names; bias is not in 0 and 1 alike"),
        (lambda: [nn.Linear(2, 2), nn.Linear(3, 2)], {}, r"weight of module 1 must be .* of shape \[2, 2\], got"),
        (lambda: [nn.Linear(2, 2), nn.Linear(2, 2).double()], {}, "weight of module 1 must be torch.float32"),
        (lambda: [nn.LazyLinear(2)], {}, "weight of module 0 must be initialized"),
        (shared, {}, "must not share"),
        (make, {"buffers": "refuse"}, "must have no buffers, got 1.running_mean"),
        (make, {"buffers": "mean"}, "buffers must be one of average, keep, refuse"),
        (lambda: nn.Linear(2, 2), {}, "torch.distributed must be initialized"),
    ],
)
def test_what_does_not_fit_is_named(modules, options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        GossipGroup(modules(), **options)


def test_mix_names_what_does_not_fit():
    modules = [nn.Linear(2, 2) for _ in range(3)]
    group = GossipGroup(modules)
    with pytest.raises(TypeError, match="weights must be GossipWeights, got Tensor"):
        group.mix(torch.eye(3))
    with pytest.raises(ValueError, match="one row per module, 3, got 2"):
        group.mix(GossipWeights.from_dense(torch.eye(2)))
    modules[1].double()
    with pytest.raises(ValueError, match="weight of module 1 must keep the memory"):
        group.mix(PATH)
