from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from dmmlkd_ext.model.layout import BlockLayout, ParameterSpec
from dmmlkd_ext.training.learn import LocalTask, reference, tiers, train
from dmmlkd_ext.training.learn.modulation import (
    competing,
    ogm_coefficients,
    ogm_gradient,
    pareto_gradient,
    unimodal_loss,
)
from dmmlkd_ext.training.learn.terms import Batch
from dmmlkd_ext.training.methods import get_method
from tests.training.synthetic import make_simulation


def batch_of(labels: torch.Tensor, present: torch.Tensor, logits: torch.Tensor) -> Batch:
    none = torch.zeros_like(logits)
    return Batch(labels, present, none, none, logits, none, none)


def outputs_with(scores: list[float]) -> Batch:
    """One device, one sample of class 0, with these logits for the true class in each modality."""
    logits = torch.zeros(1, 1, len(scores), 2)
    logits[0, 0, :, 0] = torch.tensor(scores)
    present = torch.ones(1, 1, len(scores), dtype=torch.bool)
    return batch_of(torch.tensor([[0]]), present, logits)


def test_only_the_modality_that_is_ahead_is_slowed():
    coefficients = ogm_coefficients(outputs_with([3.0, 0.0]), strength=0.5)
    assert coefficients[0, 0] < 1
    assert coefficients[0, 1] == 1
    assert (ogm_coefficients(outputs_with([3.0]), strength=0.5) == 1).all()
    assert (ogm_coefficients(outputs_with([3.0, 0.0]), strength=0.0) == 1).all()


LAYOUT = BlockLayout(
    {
        "weight": ParameterSpec((100, 200), 0.0),
        "projection": ParameterSpec((30000,), 0.0),
        "head": ParameterSpec((9,), 0.0),
    }
)


def test_noise_has_the_deviation_of_the_unscaled_gradient_of_each_parameter_tensor():
    gradient = torch.randn(3, LAYOUT.size, generator=torch.Generator().manual_seed(0))
    gradient[:, 20000:] *= 5
    coefficient, competes = torch.tensor([1.0, 0.5, 0.5]), torch.tensor([True, True, False])
    noisy = ogm_gradient(LAYOUT, gradient, coefficient, competes, torch.randn(gradient.shape))
    before, after = LAYOUT.views(gradient), LAYOUT.views(noisy)
    for name in ("weight", "projection"):
        noise = (after[name].flatten(1) - coefficient.unsqueeze(1) * before[name].flatten(1))[:2]
        torch.testing.assert_close(noise.std(1), before[name].flatten(1)[:2].std(1), rtol=0.03, atol=0)
        assert abs(float((noise[1] * before[name][1].flatten()).mean())) < 0.02 * float(noise[1].std()) ** 2
    assert torch.equal(after["head"], before["head"])
    assert torch.equal(noisy[2], gradient[2])  # a single modality competes with nothing


def test_a_modality_that_samples_lack_is_not_slow_for_that():
    outputs = outputs_with([1.0, 1.0])
    logits = outputs.common_logits.expand(1, 3, 2, 2)
    present = torch.tensor([[[True, True], [True, False], [True, False]]])
    part = batch_of(torch.zeros(1, 3, dtype=torch.int64), present, logits)
    assert ogm_coefficients(part, strength=0.5).tolist() == [[1.0, 1.0]]


def test_ogm_acts_on_every_parameter_of_an_encoder(monkeypatch):
    """The published code skips all gradients that are not four-dimensional, and so does nothing on such networks."""
    seen = {}

    def record(layout, gradient, coefficient, competes, draw):
        seen[gradient.shape[1]] = (gradient.clone(), coefficient)
        return gradient * 0

    monkeypatch.setattr(reference, "ogm_gradient", record)
    monkeypatch.setattr(tiers, "why_reference", lambda *_: "this is about the reference")
    method = dataclasses.replace(get_method("ogm-ge"), modulation_strength=1.0)
    simulation = make_simulation(method=method)
    before = {name: block.start.clone() for name, block in simulation.population.blocks.items()}
    plan = simulation._plan(
        simulation.world.draw(0), torch.full(simulation.population.holds.shape, float("nan")).numpy()
    )
    config = dataclasses.replace(simulation.config, weight_decay=0.0)
    batches = simulation.sampler.draw(0, plan.num_iterations)
    train(LocalTask(simulation.population, batches, plan, method, config, 0.1))
    names = simulation.population.network.modalities
    sizes = {simulation.population.blocks[name].num_parameters for name in names}
    assert set(seen) == sizes  # each modality's whole block, vector, wave and image alike
    for name in names:
        assert torch.equal(simulation.population.blocks[name].local, before[name])
    assert not torch.equal(simulation.population.blocks["shared"].local, before["shared"])


TENSORS = BlockLayout({name: ParameterSpec((2,), 0.0) for name in ("weight", "projection", "head")})


def merge(joint: list[float], alone: list[float], competes: bool = True) -> list[float]:
    rows = (torch.tensor([values]) for values in (joint, alone))
    return pareto_gradient(TENSORS, *rows, torch.tensor([competes]), magnitude=1.5)[0].tolist()


def test_gradients_that_agree_are_added_and_lengthened():
    merged = merge([1.0, 2.0, 0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 3.0, -5.0, 2.0])
    assert merged == pytest.approx([3.0, 3.0, 0.0, 6.0, -4.0, 3.0])  # heads are no part of it


def test_a_conflict_computed_by_hand():
    # Over the encoder, joint = (2, 0, 0, 0), alone = (-1, 1, 1, 0): their product is -2, their squares 4 and 3, so that
    # the shortest vector between them is 5/11 joint + 6/11 alone, twice which is (8, 12, 12, 0) / 11. The sum is
    # (1, 1, 1, 0): the first tensor, of length sqrt(208) / 11, grows to sqrt(2), the second is longer than 1 already.
    merged = merge([2.0, 0.0, 0.0, 0.0, 1.0, 0.0], [-1.0, 1.0, 1.0, 0.0, -4.0, 0.0])
    growth = math.sqrt(2) / (math.sqrt(208) / 11)
    expected = [growth * 8 / 11, growth * 12 / 11, 12 / 11, 0.0]
    assert merged == pytest.approx([*(1.5 * value for value in expected), -3.0, 0.0])


def test_a_device_with_one_modality_keeps_its_joint_gradient():
    assert merge([1.0, 2.0, 0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 3.0, -5.0, 2.0], competes=False) == [1, 2, 0, 1, 1, 1]


def test_a_modalitys_own_loss_is_a_mean_over_the_samples_that_have_it():
    logits = torch.zeros(2, 4, 2, 2)
    logits[..., 0] = torch.tensor([math.log(3), 0.0])
    present = torch.tensor([[[True, True], [True, False], [False, False], [True, False]], [[True, False]] * 4])
    labels = torch.zeros(2, 4, dtype=torch.int64)
    outputs = batch_of(labels, present, logits)
    assert competing(outputs).tolist() == [True, False]
    assert unimodal_loss(outputs).item() == pytest.approx(-math.log(3 / 4) - math.log(1 / 2))


def test_the_proximal_term_holds_parameters_at_the_start():
    moved = []
    for weight in (0.0, 5.0):
        method = dataclasses.replace(get_method("fedprox"), proximal=weight)
        simulation = make_simulation(method=method)
        start = {name: block.start.clone() for name, block in simulation.population.blocks.items()}
        simulation.run_round()
        blocks = simulation.population.blocks.items()
        moved.append(sum(float((block.local - start[name]).norm()) for name, block in blocks))
    assert moved[1] < 0.9 * moved[0]


@pytest.mark.parametrize("name", ["ogm-ge", "mmpareto", "fedprox"])
def test_rivals_learn_and_repeat_to_the_bit(name):
    runs = []
    for _ in range(2):
        simulation = make_simulation(method=get_method(name))
        records = [simulation.run_round() for _ in range(4)]
        assert records[-1]["loss"]["task"] < records[0]["loss"]["task"]
        runs.append({key: block.start.clone() for key, block in simulation.population.blocks.items()})
    for key, value in runs[0].items():
        assert torch.equal(value, runs[1][key])
