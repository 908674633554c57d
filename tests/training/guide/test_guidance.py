from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from dmmlkd_ext.model.network import SHARED
from dmmlkd_ext.ops import GossipWeights
from dmmlkd_ext.training.guide import GENERATOR, FeatureMoments, GeneratorConfig, make_guidance
from dmmlkd_ext.training.learn.terms import Batch, loss_terms
from dmmlkd_ext.training.measure.evaluation import evaluate
from dmmlkd_ext.training.methods import LossWeights, MethodConfig
from dmmlkd_ext.training.population import Population
from tests.training.synthetic import (
    SMALL_TRAINING,
    TINY_SHAPES,
    UNEVEN_HOLDS,
    divide,
    make_dataset,
)

KINDS = ["network", "gaussian", "prototypes"]
EAGER = {"warmup_rounds": 0, "ramp_rounds": 1}


def guided_simulation(kind: str, rounds: int = 4, **settings: object):
    """A simulation with guidance from its first round on."""
    from dmmlkd_ext.model.network import MultiModalNetwork
    from dmmlkd_ext.seeding import numpy_generator
    from dmmlkd_ext.training.round import Simulation
    from dmmlkd_ext.wireless.channel import ChannelConfig
    from dmmlkd_ext.wireless.energy import EnergyConfig
    from dmmlkd_ext.wireless.failures import FailureConfig
    from dmmlkd_ext.wireless.topology import build_topology
    from dmmlkd_ext.wireless.world import WirelessWorld

    dataset, training = make_dataset(), dataclasses.replace(SMALL_TRAINING, rounds=rounds)
    losses = LossWeights(classification=0.5, generator=0.3, rehearsal=0.1)
    method = MethodConfig("guided", losses=losses, generator=GeneratorConfig(kind=kind, **{**EAGER, **settings}))
    model = MultiModalNetwork(dataset.shapes, dataset.num_classes, training.feature_width, training.hidden_width)
    guidance = make_guidance(method.generator, dataset.num_classes, training.feature_width, seed=0)
    population = Population(model, UNEVEN_HOLDS, 0, {GENERATOR: guidance.layout})
    network = WirelessWorld(
        build_topology("ring", len(UNEVEN_HOLDS), numpy_generator(0, "topology")),
        {name: np.isin(np.arange(len(UNEVEN_HOLDS)), block.devices) for name, block in population.blocks.items()},
        {name: block.num_parameters for name, block in population.blocks.items()},
        EnergyConfig(),
        ChannelConfig(),
        FailureConfig(),
        0,
    )
    samples = divide(len(dataset.train), len(UNEVEN_HOLDS))
    return Simulation(dataset, samples, population, network, method, training, 0, guidance)


def test_the_strength_warms_up_then_ramps_up():
    config = GeneratorConfig(kind="network", warmup_rounds=5, ramp_rounds=5)
    strengths = [config.strength(index) for index in range(12)]
    assert strengths == pytest.approx([0, 0, 0, 0, 0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1])


@pytest.mark.parametrize("full", [False, True])
def test_moments_are_those_of_all_features_seen(full):
    generator = torch.Generator().manual_seed(0)
    moments = FeatureMoments(3, 2, 4, full)
    seen = {(device, label): [] for device in range(3) for label in range(2)}
    for _ in range(5):
        devices = torch.tensor([0, 2])
        features = torch.randn(2, 7, 4, generator=generator)
        labels = torch.randint(2, (2, 7), generator=generator)
        present = torch.rand(2, 7, generator=generator) < 0.7
        moments.add(devices, features, labels, present)
        for row, device in enumerate([0, 2]):
            for sample in present[row].nonzero().flatten().tolist():
                seen[device, int(labels[row, sample])].append(features[row, sample])
    for (device, label), values in seen.items():
        assert moments.count[device, label] == len(values)
        if not values:
            assert (moments.mean()[device, label] == 0).all()
            continue
        stacked = torch.stack(values)
        torch.testing.assert_close(moments.mean()[device, label], stacked.mean(0), rtol=1e-5, atol=1e-5)
        expected = torch.cov(stacked.T, correction=0) if full else stacked.var(0, correction=0)
        torch.testing.assert_close(moments.variance()[device, label], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_two_runs_and_a_resumed_one_give_the_same_bits(kind):
    whole, again = guided_simulation(kind), guided_simulation(kind)
    whole.run()
    again.run_round()
    again.run_round()
    resumed = guided_simulation(kind)
    resumed.load_state_dict(again.state_dict())
    resumed.run()
    for name, block in whole.population.blocks.items():
        assert torch.equal(block.start, resumed.population.blocks[name].start), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_block_is_exchanged(kind):
    simulation = guided_simulation(kind, steps=0)
    before = simulation.population.blocks[GENERATOR].start.clone()
    generator = torch.Generator().manual_seed(1)
    simulation.population.blocks[GENERATOR].start += torch.randn(before.shape, generator=generator)
    spread = simulation.population.consensus_distance()[GENERATOR]
    if kind != "network":
        simulation.guidance.before_exchange = lambda *arguments: None
    mean = simulation.population.blocks[GENERATOR].start.mean(0)
    simulation.run_round()
    assert simulation.population.consensus_distance()[GENERATOR] < 0.8 * spread
    torch.testing.assert_close(simulation.population.blocks[GENERATOR].start.mean(0), mean)


def test_guidance_is_off_during_the_warm_up():
    on, off = guided_simulation("network"), guided_simulation("network", warmup_rounds=50)
    first, silent = on.run_round(), off.run_round()
    assert first["loss"]["generator"] > 0
    assert first["loss"]["rehearsal"] > 0
    assert silent["loss"]["generator"] == 0
    assert silent["loss"]["rehearsal"] == 0


def make_outputs(devices=2, batch=6, modalities=2, classes=3, width=4):
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(devices, batch, modalities, width, generator=generator, requires_grad=True)
    head = torch.randn(devices, width, classes, generator=generator, requires_grad=True)
    return Batch(
        labels=torch.randint(classes, (devices, batch), generator=generator),
        present=torch.rand(devices, batch, modalities, generator=generator) < 0.7,
        common=common,
        specific=common,
        common_logits=common @ head.unsqueeze(1),
        specific_logits=torch.randn(devices, batch, modalities, classes, generator=generator),
        shared_head=head,
    )


def test_the_generator_loss_is_the_divergence_from_the_generated_prediction():
    from dmmlkd_ext.training.guide import GuidanceBatch

    outputs = make_outputs()
    head = outputs.shared_head
    target = torch.randn(2, 6, 4, requires_grad=True)
    known = torch.ones(2, 6, dtype=torch.bool)
    known[0, 0] = False
    rehearsed = torch.tensor([[True] * 6, [True] * 5 + [False]])
    batch = GuidanceBatch(target, known, target, outputs.labels[0], rehearsed, by_distance=False, strength=0.5)
    losses = loss_terms(dataclasses.replace(outputs, guidance=batch), LossWeights(generator=1.0, rehearsal=1.0))
    expected = torch.zeros(2)
    for device in range(2):
        for sample in range(6):
            modalities = outputs.present[device, sample].nonzero().flatten().tolist()
            if not modalities or not known[device, sample]:
                continue
            teacher = (target[device, sample] @ head[device]).softmax(-1)
            for m in modalities:
                student = outputs.common_logits[device, sample, m].log_softmax(-1)
                divergence = (teacher * (teacher.log() - student)).sum()
                expected[device] += 0.5 * divergence.detach() / len(modalities)
    samples = (outputs.present.any(2) & known).sum(1)
    torch.testing.assert_close(losses["generator"].detach(), expected / samples, rtol=1e-5, atol=1e-6)
    entropy = torch.nn.functional.cross_entropy
    for device in range(2):
        here = rehearsed[device]
        value = 0.5 * entropy(target[device][here] @ head[device], outputs.labels[0][here])
        torch.testing.assert_close(losses["rehearsal"][device], value)


def test_the_teacher_carries_no_gradient_but_the_head_and_the_features_do():
    from dmmlkd_ext.training.guide import GuidanceBatch

    outputs = make_outputs()
    head = outputs.shared_head
    target = torch.randn(2, 6, 4, requires_grad=True)
    known = torch.ones(2, 6, dtype=torch.bool)
    batch = GuidanceBatch(target.detach(), known, None, outputs.labels[0], None, by_distance=False, strength=1.0)
    losses = loss_terms(dataclasses.replace(outputs, guidance=batch), LossWeights(generator=1.0))
    losses["generator"].sum().backward()
    assert head.grad.abs().sum() > 0
    assert (outputs.common.grad.abs().sum((0, 1, 3)) > 0).all()
    assert target.grad is None


def separated_population(devices=3, classes=4, width=5):
    """Devices whose heads tell classes apart along different directions of a shared feature space."""
    from dmmlkd_ext.model.network import MultiModalNetwork

    model = MultiModalNetwork(TINY_SHAPES, classes, width, 7)
    guidance = make_guidance(GeneratorConfig(kind="network", samples_per_class=16, **EAGER), classes, width, seed=0)
    holds = np.ones((devices, 2), dtype=bool)
    population = Population(model, holds, 0, {GENERATOR: guidance.layout})
    head = torch.zeros(width, classes)
    head[range(classes), range(classes)] = 3.0
    population.blocks[SHARED].local[:] = head.flatten()
    return population, guidance


def test_the_generator_learns_what_the_received_heads_call_each_class():
    population, guidance = separated_population()
    weights = GossipWeights.from_dense(torch.full((3, 3), 1 / 3))
    moments = FeatureMoments(3, 4, 5)  # nothing seen: the heads alone teach
    learns = torch.tensor([True, True, False])
    untouched = population.blocks[GENERATOR].start[2].clone()
    for index in range(30):
        guidance.after_exchange(population, moments, weights, learns, index)
    pool, _ = guidance.generate(population.blocks[GENERATOR].start, 0)
    said = (
        pool[:2] @ population.network.layouts[SHARED].views(population.blocks[SHARED].local)["head"][:2, None]
    ).argmax(-1)
    labels = torch.arange(4).view(1, 4, 1).expand_as(said)
    assert (said == labels).float().mean() > 0.99
    assert torch.equal(population.blocks[GENERATOR].start[2], untouched)


def test_the_generator_moves_to_the_moments_of_the_device():
    population, guidance = separated_population()
    generator = torch.Generator().manual_seed(0)
    moments = FeatureMoments(3, 4, 5)
    labels = torch.arange(4).repeat_interleave(50).expand(3, 200)
    features = torch.randn(3, 200, 5, generator=generator) * 0.7
    features[..., :4] += 2 * torch.eye(4)[labels]
    moments.add(torch.arange(3), features, labels, torch.ones(3, 200, dtype=torch.bool))
    weights, learns = GossipWeights.from_dense(torch.eye(3)), torch.ones(3, dtype=torch.bool)
    for index in range(60):
        guidance.after_exchange(population, moments, weights, learns, index)
    pool, known = guidance.generate(population.blocks[GENERATOR].start, 0)
    assert known.all()
    assert (pool.mean(2) - moments.mean()).abs().mean() < 0.25
    ratio = pool.var(2).mean(-1).sqrt() / moments.variance().mean(-1).sqrt()
    assert 0.6 < ratio.mean() < 1.4


@pytest.mark.parametrize("kind", ["gaussian", "prototypes"])
def test_statistics_spread_without_being_diluted_by_who_saw_nothing(kind):
    guidance = make_guidance(GeneratorConfig(kind=kind, update_rate=1.0, **EAGER), 3, 4, seed=0)
    from dmmlkd_ext.model.network import MultiModalNetwork

    population = Population(
        MultiModalNetwork(TINY_SHAPES, 3, 4, 5), np.ones((2, 2), dtype=bool), 0, {GENERATOR: guidance.layout}
    )
    moments = FeatureMoments(2, 3, 4, full=kind == "gaussian")
    features = torch.full((1, 6, 4), 5.0) + torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0)) * 0.1
    labels = torch.zeros(1, 6, dtype=torch.int64)
    moments.add(torch.tensor([0]), features, labels, torch.ones(1, 6, dtype=torch.bool))
    guidance.before_exchange(population, moments)
    block = population.blocks[GENERATOR]
    pool, known = guidance.generate(block.local.mean(0).expand_as(block.local), 0)  # an exchange of two
    assert known.tolist() == [[True, False, False]] * 2
    torch.testing.assert_close(pool[:, 0].mean(1), features[0].mean(0).expand(2, 4), rtol=0, atol=0.15)


def test_a_perfect_generator_is_judged_so():
    simulation = guided_simulation("network")
    population, split = simulation.population, simulation.dataset.test
    with torch.no_grad():
        head = population.network.layouts[SHARED].views(population.blocks[SHARED].start)["head"]
        real = torch.zeros(len(UNEVEN_HOLDS), 4, 30, 5)
        for name, block in population.blocks.items():
            if name not in split.features:
                continue
            views = population.network.layouts[name].views(block.start)
            inputs = split.features[name].expand(len(block.devices), *split.features[name].shape)
            common = population.network.forward(name, views, head[torch.from_numpy(block.devices)], inputs).common
            for label in range(4):
                mean = common[:, split.labels == label].mean(1, keepdim=True)
                real[torch.from_numpy(block.devices), label] = mean.expand(-1, 30, -1)
    alone = 4  # this device has a single modality, so that its class means are what was put into the pool
    quality = evaluate(population, split, pool=real).generator
    shifted = evaluate(population, split, pool=real.roll(1, dims=1)).generator
    assert quality is not None
    assert shifted is not None
    assert quality.nearest_mean[alone] > shifted.nearest_mean[alone]
    assert quality.spread == pytest.approx(np.zeros(len(UNEVEN_HOLDS)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "oracle"}, "kind must be one of"),
        ({"samples_per_class": 3}, "samples_per_class must be even"),
        ({"ramp_rounds": 0}, "ramp_rounds must be at least 1"),
        ({"learning_rate": -1.0}, "learning_rate must be finite"),
        ({"update_rate": 0.0}, "update_rate must be above 0"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        GeneratorConfig(**settings)
