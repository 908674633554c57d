from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmmlkd_ext.training.guide import GuidanceBatch
from dmmlkd_ext.training.learn.terms import Batch, loss_terms, predict, register_term, total
from dmmlkd_ext.training.methods import LossWeights
from tests.training import plain_loop

ALL = LossWeights(classification=0.5, similarity=0.03, difference=0.05)


def draw_batch(seed: int, devices: int = 3, samples: int = 5, modalities: int = 3, keep: float = 0.6) -> Batch:
    """Return a random batch of devices that all have all modalities, but not in all samples."""
    generator = torch.Generator().manual_seed(seed)

    def draw(width: int) -> torch.Tensor:
        return torch.randn(devices, samples, modalities, width, generator=generator, dtype=torch.float64)

    return Batch(
        labels=torch.randint(4, (devices, samples), generator=generator),
        present=torch.rand(devices, samples, modalities, generator=generator) < keep,
        common=draw(2),
        specific=draw(2),
        common_logits=draw(4),
        specific_logits=draw(4),
        shared_head=draw(4)[:, 0, :2].contiguous(),
    )


def one_sample(common: list[list[float]], specific: list[list[float]], present: list[bool], label: int) -> Batch:
    """Return a batch of one device and one sample, of two classes, with the features h = (3, 4) and s = (1, 0)."""
    return Batch(
        labels=torch.tensor([[label]]),
        present=torch.tensor([[present]]),
        common=torch.tensor([3.0, 4.0]).expand(1, 1, len(common), 2),
        specific=torch.tensor([1.0, 0.0]).expand(1, 1, len(common), 2),
        common_logits=torch.tensor([[common]]),
        specific_logits=torch.tensor([[specific]]),
        shared_head=torch.eye(2).unsqueeze(0),
    )


LOG3 = math.log(3)


def test_terms_computed_by_hand():
    # Predictions of the common features: (3/4, 1/4) and (1/2, 1/2); of both heads' mean: logits (ln 3, 0).
    outputs = one_sample([[LOG3, 0.0], [0.0, 0.0]], [[LOG3, 0.0], [0.0, 0.0]], [True, True], 0)
    losses = loss_terms(outputs, ALL)
    assert list(losses) == ["task", "classification", "similarity", "difference"]
    assert losses["task"].item() == pytest.approx(-math.log(3 / 4))
    assert losses["classification"].item() == pytest.approx((-math.log(3 / 4) - math.log(1 / 2)) / 2)
    there = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    back = 1 / 2 * math.log(2 / 3) + 1 / 2 * math.log(2)
    assert losses["similarity"].item() == pytest.approx((there + back) / 2)
    assert losses["difference"].item() == pytest.approx(2.0)  # unit rows: 1 of each modality, whatever their angle


def test_the_difference_computed_by_hand():
    # Rows of unit length: H = (1, 0), (0, 1) and S = (1, 0), (1, 0), so that H^T S = (1, 0), (1, 0): 2 / 2^2. The third
    # sample is absent; with the first alone, H^T S = (1, 0), (0, 0): 1 / 1^2.
    common = torch.tensor([[3.0, 0.0], [0.0, 0.2], [9.0, 9.0]])
    specific = torch.tensor([[2.0, 0.0], [5.0, 0.0], [9.0, 9.0]])
    outputs = Batch(
        labels=torch.zeros(2, 3, dtype=torch.int64),
        present=torch.tensor([[True, True, False], [True, False, False]]).unsqueeze(-1),
        common=common.expand(2, 3, 2).unsqueeze(2),
        specific=specific.expand(2, 3, 2).unsqueeze(2),
        common_logits=torch.zeros(2, 3, 1, 2),
        specific_logits=torch.zeros(2, 3, 1, 2),
        shared_head=torch.zeros(2, 2, 2),
    )
    losses = loss_terms(outputs, LossWeights(difference=1.0))
    assert losses["difference"].tolist() == pytest.approx([0.5, 1.0])


def test_a_single_modality_has_no_similarity():
    losses = loss_terms(one_sample([[LOG3, 0.0]], [[LOG3, 0.0]], [True], 1), ALL)
    assert losses["similarity"].item() == 0
    assert losses["task"].item() == pytest.approx(-math.log(1 / 10))


def test_guidance_is_a_mean_over_the_classes_that_are_known():
    # Two samples, predicted (1/2, 1/2) by their common feature; the target of the first alone is known.
    features = torch.tensor([[[LOG3, 0.0], [0.0, 9.0], [0.0, 9.0]]])
    zeros = torch.zeros(1, 2, 1, 2)
    outputs = Batch(
        torch.tensor([[0, 1]]), torch.ones(1, 2, 1, dtype=torch.bool), zeros, zeros, zeros, zeros, torch.eye(2)[None]
    )
    known, labels = torch.tensor([[True, False, False]]), torch.tensor([0, 1, 0])
    batch = GuidanceBatch(features[:, :2], known[:, :2], features, labels, known, False, 0.5)
    weights = LossWeights(generator=1.0, rehearsal=1.0)
    losses = loss_terms(replace(outputs, guidance=batch), weights)
    divergence = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    assert losses["generator"].item() == pytest.approx(0.5 * divergence)
    assert losses["rehearsal"].item() == pytest.approx(-0.5 * math.log(3 / 4))
    nothing = replace(batch, known=torch.zeros_like(known[:, :2]), rehearsal_known=torch.zeros_like(known))
    losses = loss_terms(replace(outputs, guidance=nothing), weights)
    assert losses["generator"].item() == losses["rehearsal"].item() == 0


def test_terms_without_weight_are_left_out():
    outputs = draw_batch(0)
    assert list(loss_terms(outputs, LossWeights())) == ["task"]
    for term in ("classification", "similarity", "difference"):
        assert list(loss_terms(outputs, LossWeights(**{term: 0.1}))) == ["task", term]


def plain_terms(outputs: Batch, device: int, weights: LossWeights) -> dict[str, torch.Tensor]:
    """Return one device's terms as the plain loop computes them."""
    parts = (outputs.common, outputs.specific, outputs.common_logits, outputs.specific_logits)
    own = plain_loop.Outputs(*(values[device].transpose(0, 1) for values in parts))
    return plain_loop.loss_terms(own, outputs.labels[device], outputs.present[device].T, weights)


@given(
    st.integers(0, 1000), st.integers(1, 4), st.integers(1, 7), st.integers(1, 4), st.sampled_from([0.0, 0.3, 0.8, 1.0])
)
@settings(deadline=None)
def test_all_devices_at_once_equal_each_alone(seed, devices, samples, modalities, keep):
    outputs = draw_batch(seed, devices, samples, modalities, keep)
    losses = loss_terms(outputs, ALL)
    for device in range(devices):
        expected = plain_terms(outputs, device, ALL)
        assert losses.keys() == expected.keys()
        for term, values in losses.items():
            torch.testing.assert_close(values[device], expected[term])


def test_what_is_absent_has_no_influence_and_no_gradient():
    outputs = draw_batch(0)
    garbage = torch.where(outputs.present.unsqueeze(-1), outputs.common_logits, 1e3).requires_grad_()
    replaced = replace(outputs, common_logits=garbage)
    expected, losses = loss_terms(outputs, ALL), loss_terms(replaced, ALL)
    for term, values in losses.items():
        torch.testing.assert_close(values, expected[term])
    (gradient,) = torch.autograd.grad(sum(value.sum() for value in losses.values()), garbage)
    assert not gradient[~outputs.present].any()
    assert gradient[outputs.present].any()


def test_a_device_without_any_sample_has_no_loss():
    outputs = draw_batch(0)
    outputs.present[1] = False
    for values in loss_terms(outputs, ALL).values():
        assert values[1] == 0
        assert values[0] > 0


def test_the_prediction_is_the_mean_over_the_modalities_present():
    outputs = one_sample([[1.0, 0.0], [3.0, 0.0]], [[0.0, 2.0], [0.0, 4.0]], [True, True], 1)
    assert predict(outputs).tolist() == [[[2.0, 3.0]]]
    first = one_sample([[1.0, 0.0], [3.0, 0.0]], [[0.0, 2.0], [0.0, 4.0]], [True, False], 1)
    assert predict(first).tolist() == [[[1.0, 2.0]]]


def test_an_absent_modality_changes_no_bit():
    outputs = draw_batch(0, modalities=2, keep=1.0)
    absent = replace(outputs, present=outputs.present & torch.tensor([True, False]))
    fields = ("present", "common", "specific", "common_logits", "specific_logits")
    alone = replace(outputs, **{name: getattr(outputs, name)[:, :, :1] for name in fields})
    for term, values in loss_terms(alone, ALL).items():
        assert torch.equal(loss_terms(absent, ALL)[term], values), term


def test_a_term_of_ones_own_counts_with_its_weight():
    register_term("feature-norm", lambda batch: batch.common.square().sum((1, 2, 3)))
    outputs, weights = one_sample([[LOG3, 0.0]], [[LOG3, 0.0]], [True], 1), LossWeights(further={"feature-norm": 0.5})
    terms = loss_terms(outputs, weights)
    assert list(terms) == ["task", "feature-norm"]
    assert total(terms, weights).item() == pytest.approx(-math.log(1 / 10) + 0.5 * 25)


@pytest.mark.parametrize(
    ("name", "words"),
    [("task", "must not be one of the package's"), ("two words", "must be a word"), ("", "must be a word")],
)
def test_a_term_has_a_name_of_its_own(name, words):
    with pytest.raises(ValueError, match=words):
        register_term(name, lambda batch: batch.labels)


def test_a_term_that_is_not_known_or_has_another_shape_is_named():
    outputs = one_sample([[LOG3, 0.0]], [[LOG3, 0.0]], [True], 1)
    with pytest.raises(ValueError, match=r"loss term must be one of .* got 'taks'; did you mean 'task'"):
        loss_terms(outputs, LossWeights(further={"taks": 1.0}))
    register_term("scalar", lambda batch: batch.common.sum())
    with pytest.raises(ValueError, match=r"loss term scalar must return \[1\] values, got \[\]"):
        loss_terms(outputs, LossWeights(further={"scalar": 1.0}))
