"""Rivals that act on gradients, against their papers' formulas on any gradients."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dmmlkd_ext.balance import Plan
from dmmlkd_ext.model.layout import BlockLayout, ParameterSpec
from dmmlkd_ext.model.network import SHARED
from dmmlkd_ext.training.learn import LocalTask, reference, tiers, train
from dmmlkd_ext.training.learn.modulation import ogm_coefficients, pareto_gradient
from dmmlkd_ext.training.methods import get_method
from dmmlkd_ext.training.round import Simulation
from tests.training.learn.test_terms import draw_batch
from tests.training.plain_loop import make_devices
from tests.training.synthetic import UNEVEN_HOLDS, make_simulation


@given(st.integers(0, 999), st.integers(1, 4), st.sampled_from([0.3, 0.8, 1.0]), st.floats(0, 3))
@settings(deadline=None)
def test_the_modality_that_is_ahead_is_slowed(seed, modalities, keep, strength):
    outputs = draw_batch(seed, devices=2, modalities=modalities, keep=keep)
    coefficients = ogm_coefficients(outputs, strength)
    logits = outputs.common_logits + outputs.specific_logits
    for device in range(2):
        scores = np.zeros(modalities)
        held = outputs.present[device].any(0)
        for sample, label in enumerate(outputs.labels[device]):
            for modality in range(modalities):
                if outputs.present[device, sample, modality]:
                    scores[modality] += logits[device, sample, modality].softmax(-1)[label]
        scores /= outputs.present[device].sum(0).clamp_min(1).numpy()
        for modality in range(modalities):
            others = [scores[other] for other in range(modalities) if other != modality and held[other]]
            if not others or not held[modality]:
                assert coefficients[device, modality] == 1
                continue
            ratio = scores[modality] / np.mean(others)
            expected = 1 - math.tanh(strength * ratio) if ratio > 1 else 1.0
            assert coefficients[device, modality].item() == pytest.approx(expected, rel=1e-6)


def one_step(simulation: Simulation) -> dict[str, torch.Tensor]:
    """Return the gradient of each block's rows in the first iteration: what SGD begins its momentum with."""
    simulation.config = dataclasses.replace(simulation.config, clip_norm=1e6, weight_decay=0.0)
    plan = Plan(simulation.population.holds.astype(np.int64), np.zeros(simulation.population.holds.shape, np.int64))
    population, batches = simulation.population, simulation.sampler.draw(0, 1)
    train(LocalTask(population, batches, plan, simulation.method, simulation.config, 0.1))
    return {name: block.momentum for name, block in population.blocks.items()}


def test_modulation_scales_every_parameter_of_every_encoder_by_its_own_coefficient(monkeypatch):
    coefficients = torch.tensor(
        [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9], [0.11, 0.12, 0.13], [0.5, 0.4, 0.3]]
    )
    monkeypatch.setattr(tiers, "why_reference", lambda *_: "this is about the reference")
    plain = one_step(make_simulation(method="dmml"))
    monkeypatch.setattr(reference, "ogm_coefficients", lambda *_: coefficients)
    monkeypatch.setattr(torch.Tensor, "std", lambda self, *_, **__: self.new_zeros(len(self), 1))  # no noise
    simulation = make_simulation(method=get_method("ogm-ge"))
    modulated, population = one_step(simulation), simulation.population
    assert torch.equal(modulated[SHARED], plain[SHARED])
    for column, name in enumerate(population.network.modalities):
        layout, devices = population.network.layouts[name], population.blocks[name].devices
        factor = torch.where(torch.from_numpy(UNEVEN_HOLDS.sum(1) > 1), coefficients[:, column], 1.0)[devices]
        for key, values in layout.views(plain[name]).items():
            assert values.any(), f"{name}.{key}"
            expected = values if key == "head" else values * factor.view(-1, *[1] * (values.dim() - 1))
            torch.testing.assert_close(layout.views(modulated[name])[key], expected, rtol=1e-4, atol=1e-7)


def test_mmpareto_takes_the_gradients_of_the_joint_and_of_each_modalitys_loss():
    """One step against each device alone in torch's own layers; the encoder's merged gradient has the sum's length."""
    simulation = make_simulation(method=get_method("mmpareto"))
    population, network = simulation.population, simulation.population.network
    devices, batches = make_devices(population), simulation.sampler.draw(0, 1)
    modulated = one_step(simulation)
    for number, device in enumerate(devices):
        index = torch.tensor([number])
        held = [name for name, has in zip(network.modalities, UNEVEN_HOLDS[number], strict=True) if has]
        outputs = device({name: batches.features(0, name, index)[0] for name in held})
        logits, labels = outputs.common_logits + outputs.specific_logits, batches.labels(0, index)[0]
        loss = F.cross_entropy(logits.mean(0), labels)
        if len(held) > 1:
            loss = loss + sum(F.cross_entropy(own, labels) for own in logits)
        loss.backward()
        shared = modulated[SHARED][number].view(network.feature_width, -1)
        torch.testing.assert_close(shared, device.shared.weight.grad.T, rtol=1e-4, atol=1e-6)
        for name in held:
            row = list(population.blocks[name].devices).index(number)
            views = network.layouts[name].views(modulated[name][row : row + 1])
            block = device.modalities[name]
            torch.testing.assert_close(views["head"][0], block.head.weight.grad.T, rtol=1e-4, atol=1e-6)
            length = block.projection.weight.grad.norm() * (1.5 if len(held) > 1 else 1.0)
            assert views["projection"].norm() >= 0.999 * length
            if len(held) == 1:
                torch.testing.assert_close(views["projection"].norm(), length, rtol=1e-4, atol=1e-6)


@given(st.integers(0, 999), st.floats(0.5, 2))
@settings(deadline=None)
def test_gradients_in_conflict_give_a_direction_that_lowers_both_losses(seed, magnitude):
    """With one parameter tensor: with several, each has a length of its own."""
    draw = torch.Generator().manual_seed(seed)
    joint, alone = torch.randn(2, 50, 3, generator=draw, dtype=torch.float64)
    layout, everyone = BlockLayout({"weight": ParameterSpec((3,), 0.0)}), torch.ones(50, dtype=torch.bool)
    merged = pareto_gradient(layout, joint, alone, everyone, magnitude)
    conflict = (joint * alone).sum(1) < 0
    torch.testing.assert_close(merged[~conflict], magnitude * (joint + alone)[~conflict])
    assert ((merged * joint).sum(1)[conflict] >= -1e-9).all()
    assert ((merged * alone).sum(1)[conflict] >= -1e-9).all()
    torch.testing.assert_close(merged.norm(dim=1)[conflict], magnitude * (joint + alone).norm(dim=1)[conflict])
    # The shortest vector between two is as long along the one as along the other, and lies in their plane.
    torch.testing.assert_close((merged * joint).sum(1)[conflict], (merged * alone).sum(1)[conflict])
    volume = (torch.linalg.cross(joint, alone, dim=1) * merged).sum(1)[conflict]
    torch.testing.assert_close(volume, torch.zeros_like(volume))
