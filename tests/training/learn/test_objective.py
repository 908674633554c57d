"""The objective in one pass, against automatic differentiation of its terms."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from dmmlkd_ext.training.guide.base import FeatureMoments, GuidanceBatch
from dmmlkd_ext.training.guide.heads import ReceivedHeads
from dmmlkd_ext.training.learn.objective import BatchFeatures, HeadGradients, objective, objective_reference
from dmmlkd_ext.training.learn.terms import TERMS
from dmmlkd_ext.training.methods import LossWeights

ALL = LossWeights(classification=0.5, similarity=0.3, difference=0.7, generator=0.4, rehearsal=0.2)
TOLERANCES = {torch.float32: {"rtol": 1e-3, "atol": 1e-5}, torch.float64: {"rtol": 1e-10, "atol": 1e-12}}
DEVICES = 4


class Case:
    """A random batch: device 0 has all modalities, the last one only the last; a sample may have none."""

    def __init__(
        self, samples: int, width: int, classes: int, dtype: torch.dtype, modalities: int = 3, scale: float = 1.0
    ) -> None:
        self.generator, self.dtype = torch.Generator().manual_seed(samples + width + classes), dtype
        self.shape = (samples, width, classes)
        self.positions = [torch.arange(max(1, DEVICES - m)) for m in range(modalities - 1)]
        self.positions.append(torch.tensor([3, 0, 2]))
        present = torch.rand(DEVICES, samples, modalities, generator=self.generator) < 0.7
        for m, position in enumerate(self.positions):
            absent = torch.ones(DEVICES, dtype=torch.bool)
            absent[position] = False
            present[absent, :, m] = False
        self.batch = BatchFeatures(
            labels=torch.randint(classes, (DEVICES, samples), generator=self.generator),
            present=present,
            features=[scale * self.draw(len(position), samples, 2 * width) for position in self.positions],
            heads=[self.draw(len(position), width, classes) for position in self.positions],
            positions=self.positions,
            shared_head=self.draw(DEVICES, width, classes),
        )

    def draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(self.dtype)

    def waiting(self) -> BatchFeatures:
        samples, _, classes = self.shape
        count = torch.randint(3, (DEVICES, samples), generator=self.generator)
        return dataclasses.replace(self.batch, waiting_logits=self.draw(DEVICES, samples, classes), waiting_count=count)

    def guidance(self, by_distance: bool) -> GuidanceBatch:
        samples, width, classes = self.shape
        return GuidanceBatch(
            target=self.draw(DEVICES, samples, width),
            known=torch.rand(DEVICES, samples, generator=self.generator) < 0.8,
            rehearsal=None if by_distance else self.draw(DEVICES, 5, width),
            rehearsal_labels=torch.randint(classes, (5,), generator=self.generator),
            rehearsal_known=None if by_distance else torch.rand(DEVICES, 5, generator=self.generator) < 0.8,
            by_distance=by_distance,
            strength=0.6,
        )


def gradients_of(batch: BatchFeatures, weights: LossWeights, guidance: GuidanceBatch | None, function) -> list:
    into = HeadGradients([torch.full_like(head, 9.0) for head in batch.heads], torch.full_like(batch.shared_head, 9.0))
    losses, features = function(batch, weights, guidance, into)
    return [losses, *features, *into.own, into.shared]


def compare(batch: BatchFeatures, weights: LossWeights, guidance: GuidanceBatch | None = None) -> None:
    found = gradients_of(batch, weights, guidance, objective)
    expected = gradients_of(batch, weights, guidance, objective_reference)
    for own, other in zip(found, expected, strict=True):
        torch.testing.assert_close(own, other, **TOLERANCES[batch.shared_head.dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    ("samples", "width", "classes"), [(32, 32, 10), (5, 3, 2), (1, 1, 1), (6, 33, 17), (3, 24, 130)]
)
@pytest.mark.parametrize("guided", ["not", "by its prediction", "by distance"])
def test_equals_automatic_differentiation(samples, width, classes, guided, dtype):
    case = Case(samples, width, classes, dtype)
    compare(case.batch, ALL, None if guided == "not" else case.guidance(guided == "by distance"))


@pytest.mark.parametrize("term", TERMS[1:])
def test_terms_of_weight_zero_are_left_out(term):
    case = Case(8, 4, 3, torch.float64)
    alone = LossWeights(**{term: 0.5})
    compare(case.batch, alone, case.guidance(by_distance=False))
    losses = gradients_of(case.batch, alone, case.guidance(by_distance=False), objective)[0]
    assert [name for name, values in zip(TERMS, losses, strict=True) if values.any()] == ["task", term]


def test_modalities_that_only_run_forward_join_the_prediction():
    compare(Case(8, 4, 3, torch.float64).waiting(), ALL)


def test_a_batch_without_any_modality_has_no_loss():
    case = Case(8, 4, 3, torch.float64)
    empty = dataclasses.replace(case.batch, present=torch.zeros_like(case.batch.present))
    assert not any(value.any() for value in gradients_of(empty, LossWeights(classification=1.0), None, objective))
    compare(empty, ALL)


def test_extreme_features_neither_overflow_nor_vanish():
    for scale in (1e-20, 1e10):
        compare(Case(8, 4, 3, torch.float64, scale=scale).batch, LossWeights(difference=1.0))


def test_labels_outside_of_the_classes_are_refused():
    batch = Case(4, 2, 3, torch.float32).batch
    wrong = dataclasses.replace(batch, labels=torch.full_like(batch.labels, 3))
    with pytest.raises((ValueError, IndexError), match=r"labels must be in \[0, 3\)|out of bounds"):
        gradients_of(wrong, ALL, None, objective)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_received_heads_equal_automatic_differentiation(dtype):
    case = Case(1, 5, 3, dtype)
    pointers, rows = torch.tensor([0, 2, 2, 5]), torch.tensor([1, 0, 3, 2, 2])
    heads = ReceivedHeads(case.draw(4, 5 * 3 + 2)[:, : 5 * 3].unflatten(1, (5, 3)), pointers, rows)
    features, labels = case.draw(3, 18, 5), torch.arange(18) % 3
    for own, other in zip(heads.entropy(features, labels), heads.entropy_reference(features, labels), strict=True):
        torch.testing.assert_close(own, other, **TOLERANCES[dtype])


@pytest.mark.parametrize("full", [False, True])
def test_moments_equal_their_reference(full):
    case, both = Case(6, 4, 3, torch.float32), [FeatureMoments(DEVICES, 3, 4, full) for _ in range(2)]
    devices, features = torch.tensor([2, 0]), case.draw(2, 6, 8)[..., :4]
    labels, present = case.batch.labels[devices], case.batch.present[devices, :, 1]
    for _ in range(2):
        both[0].add(devices, features, labels, present)
        both[1].add_reference(devices, features, labels, present)
    for name in ("count", "sum", "product"):
        torch.testing.assert_close(getattr(both[0], name), getattr(both[1], name))
