"""The whole simulation on a GPU: every method, by the same bits as plain torch on the CPU; what it costs the GPU.

The fake GPU computes by the CPU's code, so bits must be equal; a real one rounds differently.
"""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from dmmlkd_ext.model.modules import register_encoder
from dmmlkd_ext.model.network import MultiModalNetwork
from dmmlkd_ext.training.learn import reference
from dmmlkd_ext.training.methods import METHODS
from dmmlkd_ext.training.population import Population
from dmmlkd_ext.wireless.failures import FailureConfig
from tests.fake_gpu.device import Counts, watching
from tests.fake_gpu.twins import TRAINING, assert_same, by_plain_torch, from_the_first_round, simulate
from tests.training.synthetic import MIXED_SHAPES, TINY_SHAPES, UNEVEN_HOLDS, make_dataset

WAITS_A_ROUND = 3
"""For the losses, for the variations, and for the distances from the consensus in the record."""

COPIES_A_ROUND = 17
"""With the links of the round before: the indices of samples, noise and draws, and two for each span of iterations."""

SIX_VECTORS = {f"view {number}": (5 + number,) for number in range(6)}

LAUNCHES = {"local": 166, "dmml": 166, "dmml-kd": 430, "fedgen": 233, "fedproto": 209, "ogm-ge": 309, "mmpareto": 626}
"""The most launches of an iteration with three modalities, one of each kind of encoder, and noise on the inputs."""

LAUNCHES_OF_SIX_VECTORS = {"dmml": 258, "dmml-kd": 531}


@pytest.fixture
def iterations(monkeypatch) -> list[Counts]:
    """What each local iteration does on the GPU; waits for it, and copies to it, raise."""
    counted, iterate = [], reference._iterate

    def watched(*arguments):
        with watching(forbid=True) as counts:
            terms = iterate(*arguments)
        counted.append(counts)
        return terms

    monkeypatch.setattr(reference, "_iterate", watched)
    return counted


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_the_records_of_the_cpu_and_does_not_stop_the_gpu(name, iterations):
    probed = dataclasses.replace(TRAINING, probe=name in LAUNCHES)
    # With two modalities, the last device has none of them.
    shapes = MIXED_SHAPES if name in LAUNCHES else TINY_SHAPES
    holds = UNEVEN_HOLDS[:, : len(shapes)]
    with by_plain_torch():
        there, here = (
            simulate(name, where, training=probed, dataset=make_dataset(shapes, missing=0.3), holds=holds)
            for where in ("gpu", "cpu")
        )
        for _ in range(probed.rounds):
            record, expected = (json.dumps(simulation.run_round()) for simulation in (there, here))
            assert record == expected
        assert_same(there, here)
    assert there.population.torch_device.type == "gpu"
    assert there.local_training == "reference: native code trains on a CPU, not on gpu"
    launches = [counts.launches.total() for counts in iterations]
    assert max(launches) > 0
    if name in LAUNCHES:
        assert 0.9 * LAUNCHES[name] < max(launches) <= LAUNCHES[name]


@pytest.mark.parametrize("name", LAUNCHES_OF_SIX_VECTORS)
def test_launches_of_an_iteration_with_six_modalities(name, iterations):
    holds = np.random.default_rng(0).random((8, 6)) < 0.6
    holds[~holds.any(1), 0] = True
    simulate(name, "gpu", dataset=make_dataset(SIX_VECTORS), holds=holds).run_round()
    most = max(counts.launches.total() for counts in iterations)
    assert 0.95 * LAUNCHES_OF_SIX_VECTORS[name] < most <= LAUNCHES_OF_SIX_VECTORS[name]


@pytest.mark.parametrize("name", ["dmml-kd-tb", "dmml-kd-gaussian", "fedgen", "fedproto", "ogm-ge"])
def test_the_host_waits_at_most_three_times_in_a_round(name, tmp_path):
    schedule = tmp_path / "failures.csv"
    schedule.write_text("round,kind,ids\n1-2,device,2\n")  # so the links change after the first round
    failures = FailureConfig(schedule_path=str(schedule))
    unmeasured = dataclasses.replace(TRAINING, rounds=4, evaluate_every=9)
    simulation = simulate(name, "gpu", training=unmeasured, failures=failures)
    for _ in range(3):
        with watching() as counts:
            simulation.run_round()
        assert counts.waits == {"a copy to the host": WAITS_A_ROUND}
    assert counts.copies.total() <= COPIES_A_ROUND


def test_the_jagged_diagonals_mix_without_waiting_and_the_native_kernel_agrees(gpu):
    simulations = [simulate("dmml-kd", where) for where in ("gpu", "cpu")]
    for _ in range(TRAINING.rounds):
        there, here = (simulation.run_round() for simulation in simulations)
    # Other orders of sums than those of native code.
    for name, block in simulations[0].population.blocks.items():
        torch.testing.assert_close(
            block.start.cpu(), simulations[1].population.blocks[name].start, rtol=1e-5, atol=1e-6
        )
    for term, loss in here["loss"].items():
        assert there["loss"][term] == pytest.approx(loss, rel=1e-5)
    assert there["local_iterations"] == here["local_iterations"]
    assert there["accuracy"] == here["accuracy"]


class Scaled(nn.Module):
    """An encoder with parameters, a constant parameter and a buffer."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.linear = nn.Linear(shape[0], 4)
        self.fixed = nn.Parameter(torch.tensor([0.5]), requires_grad=False)
        self.register_buffer("offset", torch.tensor([0.25]))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.linear(inputs).tanh() * self.fixed + self.offset


def test_an_encoder_of_ones_own_stays_on_the_gpu(gpu):
    register_encoder("scaled", Scaled)
    network = MultiModalNetwork({"only": (5,)}, 3, 4, 8, {"only": "scaled"})
    found = []
    for where in ("cpu", "gpu"):
        population = Population(network, np.ones((2, 1), dtype=bool), seed=0, torch_device=where)
        weights = network.layouts["only"].views(population.blocks["only"].start)
        inputs = torch.ones(2, 6, 5).to(where)
        network.encoders["only"].forward(weights, inputs)  # moves the constants
        with watching(forbid=True):
            found.append(network.encoders["only"].forward(weights, inputs))
    assert torch.equal(found[0], found[1].cpu())


@pytest.mark.parametrize("name", ["dmml-kd", "dmml-kd-gaussian", "fedproto"])
@pytest.mark.parametrize(("before", "after"), [("cpu", "gpu"), ("gpu", "cpu")])
def test_a_checkpoint_goes_on_elsewhere(name, before, after, tmp_path):
    from dmmlkd_ext.training.keep.checkpoints import load_checkpoint, save_checkpoint

    training = dataclasses.replace(TRAINING, rounds=3)
    with by_plain_torch():
        first, second, whole = (
            simulate(from_the_first_round(name), where, training=training) for where in (before, after, before)
        )
        first.run_round()
        first.run_round()
        save_checkpoint(tmp_path / "checkpoint.pt", first.state_dict())
        second.load_state_dict(load_checkpoint(tmp_path / "checkpoint.pt"))
        records = [json.dumps(simulation.run_round()) for simulation in (second, first)]
        for _ in range(3):
            expected = json.dumps(whole.run_round())
    assert records == [expected, expected]
    assert_same(second, whole)
    assert second.population.torch_device.type == after
