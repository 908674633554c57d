"""The fake GPU enforces what a GPU would: otherwise the other tests here would prove nothing."""

from __future__ import annotations

import pytest
import torch

from dmmlkd_ext.ops import backend
from tests.fake_gpu.device import watching


def test_new_memory_is_not_zero(gpu):
    assert torch.empty(3, device=gpu).isnan().all()
    assert torch.ones(3, device=gpu).new_empty(2, 2).isnan().all()


def test_results_are_those_of_the_cpu_and_gradients_flow(gpu):
    inputs, weight = torch.randn(2, 12, 9), torch.randn(6, 4, 3)
    found = []
    for where in (torch.device("cpu"), gpu):
        leaf = weight.clone().to(where).requires_grad_()
        outputs = torch.nn.functional.conv1d(inputs.to(where), leaf, None, 2, 1, 1, 3)
        outputs.relu().square().sum().backward()
        found.append((outputs.detach().cpu(), leaf.grad.cpu()))
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


REFUSED = {
    "another device": lambda x: x + torch.ones(3, 4),
    "an index of the CPU": lambda x: x[torch.tensor([0])],
    "rows of the CPU": lambda x: x.index_select(0, torch.tensor([0])),
    "an index of the CPU to write": lambda x: x.index_add_(0, torch.tensor([0]), x[:1]),
    "a generator of the CPU": lambda x: x.normal_(generator=torch.Generator()),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_gpu_refuses_is_refused(gpu, what):
    with pytest.raises(RuntimeError, match=r"(on one|the same) device|generator"):
        REFUSED[what](torch.randn(3, 4).to(gpu))


def test_numbers_of_the_cpu_are_accepted(gpu):
    assert (torch.ones(2, device=gpu) * 3 + torch.tensor(1.0)).tolist() == [4.0, 4.0]


@pytest.mark.skipif(backend() == "reference", reason="the native extension is not in use")
def test_operators_without_a_kernel_are_refused(gpu):
    with pytest.raises(NotImplementedError, match="dmmlkd::column_sums has no kernel for this device"):
        torch.ops.dmmlkd.column_sums([torch.ones(2, 2, device=gpu)])


WAITS = {
    "item": lambda x: x.sum().item(),
    "a condition": lambda x: bool((x > 0).any()),
    "to the host": lambda x: x.cpu(),
    "a mask": lambda x: x[x > 0],
    "places": lambda x: x.nonzero(),
    "repeats": lambda x: x.flatten().repeat_interleave((x > 0).flatten().long()),
    "values": lambda x: x.unique(),
    "a check": lambda x: torch.linalg.solve(x[:, :3], x),
}


@pytest.mark.parametrize("what", WAITS)
def test_waits_are_counted_and_can_be_forbidden(gpu, what):
    values = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).to(gpu)
    with watching() as seen:
        WAITS[what](values)
    assert seen.waits.total() >= 1
    with watching(forbid=True), pytest.raises(RuntimeError, match="a wait is forbidden here"):
        WAITS[what](values)


def test_copies_from_the_host_are_counted_and_can_be_forbidden(gpu):
    with watching() as seen:
        torch.tensor([1.0, 2.0], device=gpu)
        torch.ones(2).to(gpu)
    assert (seen.copies.total(), seen.waits.total()) == (2, 0)
    with watching(forbid=True), pytest.raises(RuntimeError, match="a copy is forbidden here"):
        torch.ones(2).to(gpu)


def test_launches_are_counted_without_views_and_lists_are_one(gpu):
    with watching() as seen:
        values = torch.zeros(4, 6, device=gpu)
        values.t()[1:].unsqueeze(0).split(2)
        pair = [values, values[:2]]
        torch._foreach_mul_(pair, 2.0)
    assert seen.launches == {"zero_": 1, "_foreach_mul_": 1}
    assert not seen.waits
    assert not seen.copies
