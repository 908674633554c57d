"""Guidance against its formulas, sample by sample, class by class and device by device."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from dmmlkd_ext.model.network import SHARED, MultiModalNetwork
from dmmlkd_ext.ops import GossipWeights
from dmmlkd_ext.seeding import torch_generator
from dmmlkd_ext.training.guide import GENERATOR, FeatureMoments, GeneratorConfig, Guidance, make_guidance
from dmmlkd_ext.training.guide.base import GuidanceBatch, GuidanceRound
from dmmlkd_ext.training.learn.terms import Batch, loss_terms
from dmmlkd_ext.training.methods import LossWeights
from dmmlkd_ext.training.population import Population
from tests.training.learn.test_terms import draw_batch
from tests.training.synthetic import identity_weights

CLASSES, WIDTH, DEVICES = 3, 2, 4
CONFIG = GeneratorConfig(kind="network", noise_width=3, hidden_width=6, steps=4, pool_per_class=5, samples_per_class=4)


def make(kind: str, **settings: object) -> tuple[Guidance, Population]:
    guidance = make_guidance(dataclasses.replace(CONFIG, kind=kind, **settings), CLASSES, WIDTH, seed=0)
    assert guidance is not None
    network = MultiModalNetwork({"left": (4,)}, CLASSES, WIDTH, 5)
    return guidance, Population(network, np.ones((DEVICES, 1), dtype=bool), 0, {GENERATOR: guidance.layout})


def observed(full: bool = False, seed: int = 0) -> tuple[FeatureMoments, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the moments of drawn features [devices, n, d], with their labels and presence."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (DEVICES, 50), generator=draw)
    features = torch.randn(DEVICES, 50, WIDTH, generator=draw) + 3 * F.one_hot(labels, CLASSES)[..., :WIDTH]
    present = torch.rand(DEVICES, 50, generator=draw) < 0.7
    moments = FeatureMoments(DEVICES, CLASSES, WIDTH, full)
    for half in (slice(0, 25), slice(25, 50)):
        moments.add(torch.arange(DEVICES), features[:, half], labels[:, half], present[:, half])
    return moments, features, labels, present


def test_a_class_that_was_not_seen_has_no_moments():
    moments = FeatureMoments(2, 2, 2)
    moments.add(torch.tensor([1]), torch.ones(1, 3, 2), torch.zeros(1, 3, dtype=torch.int64), torch.ones(1, 3).bool())
    assert moments.count.tolist() == [[0, 0], [3, 0]]
    assert moments.mean()[1].tolist() == [[1, 1], [0, 0]]
    assert not moments.mean()[0].any()
    assert not moments.variance().any()


def numbered_pool() -> torch.Tensor:
    """Return features that tell their device, class and number: [devices, classes, 5, 2]."""
    device, label, number = torch.meshgrid(torch.arange(DEVICES), torch.arange(CLASSES), torch.arange(5), indexing="ij")
    return torch.stack([10.0 * device + label, number.float()], -1)


def test_a_batch_is_guided_by_features_of_its_own_device_and_classes():
    draw = torch.Generator().manual_seed(0)
    draws = torch.stack([torch.randint(limit, (6, 8), generator=draw) for limit in (5, CLASSES, 5)])
    known = torch.rand(DEVICES, CLASSES, generator=draw) < 0.5
    guided = GuidanceRound(numbered_pool(), known, FeatureMoments(DEVICES, CLASSES, WIDTH), 0.5, False, draws)
    devices, labels = torch.tensor([3, 1]), torch.randint(CLASSES, (2, 8), generator=draw)
    batch = guided.batch(4, devices, labels)
    assert batch is not None
    assert torch.equal(batch.target[..., 0], 10.0 * devices[:, None] + labels)
    assert torch.equal(batch.known, torch.stack([known[3][labels[0]], known[1][labels[1]]]))
    assert batch.rehearsal is not None
    assert torch.equal(batch.rehearsal[..., 0], 10.0 * devices[:, None] + batch.rehearsal_labels)
    assert batch.rehearsal_known is not None
    assert torch.equal(batch.rehearsal_known, known[devices][:, batch.rehearsal_labels])
    assert batch.strength == 0.5


def test_guidance_that_is_off_gives_no_batch():
    moments, draws = FeatureMoments(1, CLASSES, WIDTH), torch.zeros(3, 1, 1, dtype=torch.int64)
    guided = GuidanceRound(numbered_pool(), torch.ones(1, CLASSES).bool(), moments, 0.0, False, draws)
    assert guided.batch(0, torch.tensor([0]), torch.tensor([[0]])) is None


def guide(outputs: Batch, by_distance: bool = False) -> GuidanceBatch:
    draw = torch.Generator().manual_seed(9)
    devices, batch = outputs.labels.shape

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    return GuidanceBatch(
        target=normal(devices, batch, 2),
        known=torch.rand(devices, batch, generator=draw) < 0.7,
        rehearsal=None if by_distance else normal(devices, 6, 2),
        rehearsal_labels=torch.randint(4, (6,), generator=draw),
        rehearsal_known=None if by_distance else torch.rand(devices, 6, generator=draw) < 0.7,
        by_distance=by_distance,
        strength=0.4,
    )


WEIGHTS = LossWeights(generator=0.3, rehearsal=0.1)


def test_prototypes_pull_by_distance_and_rehearse_nothing():
    outputs = draw_batch(0)
    batch = guide(outputs, by_distance=True)
    losses = loss_terms(dataclasses.replace(outputs, guidance=batch), WEIGHTS)
    assert "rehearsal" not in losses
    for device in range(3):
        counted, total = outputs.present[device].any(1) & batch.known[device], 0.0
        for sample in counted.nonzero().flatten():
            here = outputs.present[device, sample].nonzero().flatten()
            features = outputs.common[device, sample, here]
            distance = (features - batch.target[device, sample]).square().mean().item()
            total += distance
        assert losses["generator"][device].item() == pytest.approx(0.4 * total / counted.sum().item())


@pytest.mark.parametrize("kind", ["network", "gaussian", "prototypes"])
def test_rounds_of_the_same_seed_are_guided_alike(kind):
    first, second = (make(kind) for _ in range(2))
    rounds = [guidance.begin(population, 30, 2, 8) for guidance, population in (first, second)]
    assert torch.equal(rounds[0].pool, rounds[1].pool)
    labels = torch.zeros(DEVICES, 8, dtype=torch.int64)
    batches = [guided.batch(1, torch.arange(DEVICES), labels) for guided in rounds]
    assert torch.equal(batches[0].target, batches[1].target)
    assert not torch.equal(
        first[0].begin(first[1], 31, 2, 8).batch(1, torch.arange(DEVICES), labels).rehearsal_labels,
        batches[0].rehearsal_labels,
    )


@pytest.mark.parametrize("kind", ["gaussian", "prototypes"])
def test_statistics_become_those_of_the_features_that_were_seen(kind):
    guidance, population = make(kind, update_rate=1.0, pool_per_class=4000)
    block = population.blocks[GENERATOR]
    assert not guidance.generate(block.start, 0)[1].any()  # nothing is known before anything was seen
    moments, features, labels, present = observed(guidance.full_moments)
    for block in population.blocks.values():
        block.begin()
    guidance.before_exchange(population, moments)
    pool, known = guidance.generate(block.local, 0)
    assert known.all()
    torch.testing.assert_close(pool.mean(2), moments.mean(), rtol=0, atol=0.15)
    if kind == "gaussian":
        for device in range(DEVICES):
            own = features[device][(labels[device] == 1) & present[device]]
            spread = torch.cov(pool[device, 1].T)
            torch.testing.assert_close(spread, torch.cov(own.T, correction=0), rtol=0.15, atol=0.1)
    else:
        torch.testing.assert_close(pool[:, :, 0], moments.mean())


def test_new_statistics_replace_a_share_of_the_old():
    guidance, population = make("prototypes", update_rate=0.25)
    views = guidance.layout.views(population.blocks[GENERATOR].local)
    views["weight"].fill_(1.0)
    views["mean"].fill_(8.0)
    moments = FeatureMoments(DEVICES, CLASSES, WIDTH)
    labels = torch.zeros(1, 2, dtype=torch.int64)
    moments.add(torch.tensor([0]), torch.zeros(1, 2, WIDTH), labels, torch.ones(1, 2).bool())
    guidance.before_exchange(population, moments)
    assert views["mean"][0].tolist() == [[6.0] * WIDTH, [8.0] * WIDTH, [8.0] * WIDTH]
    assert (views["mean"][1:] == 8.0).all()


def learn(guidance: Guidance, population: Population, learns: list[bool], number: int = 0, moments=None) -> None:
    for block in population.blocks.values():
        block.start.copy_(block.local)
    everyone = identity_weights(DEVICES)
    guidance.after_exchange(population, moments or observed()[0], everyone, torch.tensor(learns), number)


def test_only_those_learn_who_may():
    guidance, population = make("network")
    block = population.blocks[GENERATOR]
    before = block.start.clone()
    learn(guidance, population, [True, False, True, False])
    changed = (block.start != before).any(1)
    assert changed.tolist() == [True, False, True, False]
    assert not block.momentum[[1, 3]].any()
    learn(guidance, population, [False] * DEVICES)


class _Generator(nn.Module):
    """The generator of one device in torch's own layers, with the losses of METHOD 3."""

    def __init__(self, row: torch.Tensor, guidance: Guidance) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3 + CLASSES, 6), nn.ReLU(), nn.Linear(6, WIDTH))
        views = guidance.layout.views(row.unsqueeze(0))
        vector = torch.cat([value[0].movedim(0, -1).flatten() for value in views.values()])
        nn.utils.vector_to_parameters(vector, self.layers.parameters())

    def loss(
        self, noise: torch.Tensor, heads: list[torch.Tensor], mean: torch.Tensor, variance: torch.Tensor
    ) -> torch.Tensor:
        copies = len(noise) // CLASSES
        labels = torch.arange(CLASSES).repeat_interleave(copies)
        features = self.layers(torch.cat([noise, F.one_hot(labels, CLASSES).float()], 1))
        loss = sum(F.cross_entropy(features @ head, labels) for head in heads) / len(heads)
        by_class, noises = features.view(CLASSES, copies, WIDTH), noise.view(CLASSES, copies, -1)
        made = by_class.var(1, correction=0)
        loss = loss + ((by_class.mean(1) - mean).square() + (made - variance).square()).mean()
        half = copies // 2
        moved = (by_class[:, :half] - by_class[:, half:]).abs().mean(-1)
        asked = (noises[:, :half] - noises[:, half:]).abs().mean(-1)
        return loss + 0.02 / ((moved / asked).mean() + 1e-5)


def test_a_generator_learns_by_adam_from_the_heads_that_its_device_received(monkeypatch):
    """Two rounds on a path of devices equal torch.optim.Adam on each device alone."""
    guidance, population = make("network", learning_rate=1e-2)
    draw = torch.Generator().manual_seed(4)
    population.blocks[SHARED].local.normal_(generator=draw)
    block, moments = population.blocks[GENERATOR], observed()[0]
    block.start.add_(0.1 * torch.randn(block.start.shape, generator=draw))
    adjacent = torch.eye(DEVICES) + torch.diag(torch.ones(DEVICES - 1), 1) + torch.diag(torch.ones(DEVICES - 1), -1)
    twins = [_Generator(row, guidance) for row in block.start]
    optimizers = [torch.optim.Adam(twin.parameters(), 1e-2) for twin in twins]
    heads = population.network.layouts[SHARED].views(population.blocks[SHARED].local)["head"]
    noises = [torch.randn(CLASSES * 4, 3, generator=draw) for _ in range(2 * CONFIG.steps)]
    queue = iter(noises)
    monkeypatch.setattr(torch, "randn", lambda *shape, generator: next(queue))
    for number in range(2):
        weights = GossipWeights.from_dense(adjacent)
        guidance.after_exchange(population, moments, weights, torch.ones(DEVICES, dtype=torch.bool), number)
    for device, (twin, optimizer) in enumerate(zip(twins, optimizers, strict=True)):
        received = [heads[other] for other in adjacent[device].nonzero().flatten()]
        for noise in noises:
            optimizer.zero_grad()
            twin.loss(noise, received, moments.mean()[device], moments.variance()[device]).backward()
            optimizer.step()
        views = guidance.layout.views(block.start[device : device + 1])
        for value, parameter in zip(views.values(), twin.layers.parameters(), strict=True):
            torch.testing.assert_close(value[0].movedim(0, -1), parameter.detach(), rtol=1e-3, atol=1e-4)


def test_heads_may_count_by_what_their_device_saw_of_a_class():
    """Head 1 saw the classes alone that head 0 did not; of class 2 nobody saw any, so that both count alike."""
    guidance, population = make("network", weigh_heads=True, moment_weight=0.0, mode_seeking=0.0, steps=1)
    draw = torch.Generator().manual_seed(5)
    population.blocks[SHARED].local.normal_(generator=draw)
    heads = population.network.layouts[SHARED].views(population.blocks[SHARED].local)["head"]
    moments = FeatureMoments(DEVICES, CLASSES, WIDTH)
    moments.count[:2] = torch.tensor([[6.0, 0.0, 0.0], [2.0, 5.0, 0.0]])
    noise = torch.randn(CLASSES * 4, 3, generator=torch_generator(0, "generator training", 0))
    labels, own = torch.arange(CLASSES).repeat_interleave(4), population.blocks[GENERATOR].start[:1].clone()
    own.requires_grad_()
    features = guidance.generator.forward(guidance.layout.views(own), noise, labels)[0]
    first, second = (F.cross_entropy(features @ heads[device], labels, reduction="none") for device in range(2))
    share = torch.tensor([0.75, 0.0, 0.5])[labels]
    (gradient,) = torch.autograd.grad((share * first + (1 - share) * second).mean(), own)
    pair = torch.zeros(DEVICES, DEVICES)
    pair[:2, :2] = 0.5
    guidance.after_exchange(
        population, moments, GossipWeights.from_dense(pair), torch.tensor([True] + [False] * (DEVICES - 1)), 0
    )
    # Adam's first moment after one step is a tenth of the gradient.
    torch.testing.assert_close(population.blocks[GENERATOR].momentum[:1], 0.1 * gradient, rtol=1e-4, atol=1e-7)


def test_no_guidance_is_none():
    assert make_guidance(GeneratorConfig(), CLASSES, WIDTH, 0) is None


@pytest.mark.parametrize(
    ("field", "bad"),
    [
        *(("kind", "gan"), ("noise_width", 0), ("hidden_width", 0), ("pool_per_class", 0), ("ramp_rounds", 0)),
        *(("steps", -1), ("warmup_rounds", -1), ("moment_weight", float("nan")), ("mode_seeking", float("inf"))),
        *(("learning_rate", -1e-3), ("samples_per_class", 3), ("samples_per_class", 0), ("update_rate", 0.0)),
        ("update_rate", 1.5),
    ],
)
def test_settings_out_of_their_range_are_refused(field, bad):
    with pytest.raises(ValueError, match=f"{field} must be .*got {bad!r}"):
        GeneratorConfig(**{field: bad})
