"""Guidance within training and the round, against objectives written by hand for each device."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from dmmlkd_ext.balance import Plan
from dmmlkd_ext.model.network import SHARED
from dmmlkd_ext.training.guide import GENERATOR
from dmmlkd_ext.training.guide.base import GuidanceRound
from dmmlkd_ext.training.learn import LocalTask, train
from dmmlkd_ext.training.methods import get_method
from dmmlkd_ext.training.round import Simulation
from dmmlkd_ext.wireless.mixing import metropolis_hastings
from tests.training.plain_loop import make_devices, module_columns
from tests.training.synthetic import UNEVEN_HOLDS, make_dataset, make_simulation

WEIGHTS = dataclasses.replace(get_method("dmml-kd").losses, generator=0.7, rehearsal=0.4)


def guided(kind: str) -> Simulation:
    """Return a simulation with guidance at once; features of some classes are known where they are statistics."""
    method = get_method("dmml-kd")
    generator = dataclasses.replace(
        method.generator, kind=kind, warmup_rounds=0, ramp_rounds=2, hidden_width=8, steps=1, update_rate=0.25
    )
    simulation = make_simulation(
        make_dataset(missing=0.3), method=dataclasses.replace(method, losses=WEIGHTS, generator=generator)
    )
    block = simulation.population.blocks[GENERATOR]
    if kind != "network":
        views = simulation.guidance.layout.views(block.start)
        views["weight"][:, :3] = 1.0  # the fourth class is not known
        views["mean"].normal_(generator=torch.Generator().manual_seed(0))
    return simulation


def train_once(simulation: Simulation, rate: float) -> GuidanceRound:
    """Train one iteration of everything, by plain gradient descent."""
    simulation.config = dataclasses.replace(simulation.config, clip_norm=1e6, weight_decay=0.0, momentum=0.0)
    population, holds = simulation.population, simulation.population.holds
    for block in population.blocks.values():
        block.begin()
    plan = Plan(holds.astype(np.int64), np.zeros(holds.shape, np.int64))
    guidance = simulation.guidance.begin(population, 0, 1, simulation.config.batch_size)
    batches = simulation.sampler.draw(0, 1)
    train(LocalTask(population, batches, plan, simulation.method, simulation.config, rate, guidance))
    return guidance


@pytest.mark.parametrize("kind", ["network", "gaussian", "prototypes"])
def test_a_guided_step_descends_the_objective_of_each_device(kind):
    simulation = guided(kind)
    population, names = simulation.population, simulation.population.network.modalities
    devices, batches, rate = make_devices(population), simulation.sampler.draw(0, 1), 0.1
    guidance = train_once(simulation, rate)
    assert guidance.known.all() == (kind == "network")
    for number, device in enumerate(devices):
        index = torch.tensor([number])
        held = [name for name, has in zip(names, UNEVEN_HOLDS[number], strict=True) if has]
        labels = batches.labels(0, index)[0]
        present = batches.present(0, index)[0][:, torch.from_numpy(UNEVEN_HOLDS[number])].T
        outputs = device({name: batches.features(0, name, index)[0] for name in held})
        batch = guidance.batch(0, index, labels.unsqueeze(0))
        assert batch.strength == 0.5
        loss = _objective(device, outputs, labels, present, batch)
        loss.backward()
        for name in (SHARED, *held):
            row = list(population.blocks[name].devices).index(number)
            moved = population.blocks[name].start[row] - population.blocks[name].local[row]
            expected = torch.cat([parameter.grad.flatten() for parameter in device.block(name).parameters()])
            columns = module_columns(population.network, name)
            torch.testing.assert_close(moved[columns] / rate, expected, rtol=1e-3, atol=2e-5)


def _objective(device, outputs, labels, present, batch) -> torch.Tensor:
    """METHOD 3, sample by sample; terms that are not guidance as in test_population_equals_loop.py."""
    from tests.training.plain_loop import loss_terms

    terms = loss_terms(outputs, labels, present, WEIGHTS)
    total = terms["task"] + sum(getattr(WEIGHTS, name) * value for name, value in terms.items() if name != "task")
    pulls = []
    for sample in range(len(labels)):
        here = present[:, sample].nonzero().flatten().tolist()
        if not here or not batch.known[0, sample]:
            continue
        target = batch.target[0, sample]
        if batch.by_distance:
            pulls.append(sum((outputs.common[m, sample] - target).square().mean() for m in here) / len(here))
            continue
        teacher = device.shared(target).detach().softmax(-1)
        students = [outputs.common_logits[m, sample].log_softmax(-1) for m in here]
        pulls.append(sum((teacher * (teacher.log() - student)).sum() for student in students) / len(here))
    if pulls:
        total = total + WEIGHTS.generator * batch.strength * torch.stack(pulls).mean()
    if not batch.by_distance:
        known = batch.rehearsal_known[0]
        rehearsal = F.cross_entropy(device.shared(batch.rehearsal[0][known]), batch.rehearsal_labels[known])
        total = total + WEIGHTS.rehearsal * batch.strength * rehearsal
    return total


def test_training_puts_down_the_common_features_that_it_saw():
    simulation = guided("network")
    population, names = simulation.population, simulation.population.network.modalities
    devices, batches = make_devices(population), simulation.sampler.draw(0, 1)
    moments = train_once(simulation, 0.1).moments
    for number, device in enumerate(devices):
        index = torch.tensor([number])
        labels, present = batches.labels(0, index)[0], batches.present(0, index)[0]
        features, classes = [], []
        for column, name in enumerate(names):
            if UNEVEN_HOLDS[number, column]:
                here = present[:, column]
                features.append(device({name: batches.features(0, name, index)[0][here]}).common[0].detach())
                classes.append(labels[here])
        seen, label = torch.cat(features), torch.cat(classes)
        for number_of_class in range(4):
            own = seen[label == number_of_class]
            assert moments.count[number, number_of_class] == len(own)
            torch.testing.assert_close(moments.sum[number, number_of_class], own.sum(0), rtol=1e-4, atol=1e-5)


def test_what_a_device_saw_enters_its_statistics_before_they_are_mixed():
    simulation = guided("prototypes")
    population, block = simulation.population, simulation.population.blocks[GENERATOR]
    before, rounds = block.start.clone(), []
    begin = simulation.guidance.begin
    simulation.guidance.begin = lambda *arguments: rounds.append(begin(*arguments)) or rounds[-1]
    edges = simulation.world.draw(0).edges
    simulation.run_round()
    layout, moments = simulation.guidance.layout, rounds[0].moments
    views, rate = layout.views(before), 0.25 * (moments.count > 0).unsqueeze(-1)
    views["weight"] += rate * (1 - views["weight"])
    views["mean"] += rate * (moments.mean() - views["mean"])
    matrix = torch.from_numpy(metropolis_hastings(edges, len(UNEVEN_HOLDS)).toarray()).float()
    assert moments.count.any()
    torch.testing.assert_close(block.start, matrix @ before, rtol=1e-4, atol=1e-6)
    assert population.blocks[GENERATOR] is block


def test_a_generator_learns_from_the_heads_of_the_links_that_work():
    simulation, received = guided("network"), []
    simulation.guidance.after_exchange = lambda *arguments: received.append(arguments)
    links = simulation.world.draw(0)
    simulation.run_round()
    population, _, heads, learns, number = received[0]
    expected = metropolis_hastings(links.edges, len(UNEVEN_HOLDS))
    assert population is simulation.population
    assert heads.columns.tolist() == expected.indices.tolist()
    assert heads.row_pointers.tolist() == expected.indptr.tolist()
    assert learns.all()
    assert number == 0
