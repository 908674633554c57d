from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmmlkd_ext.training.guide import GuidanceBatch
from dmmlkd_ext.training.learn.terms import BatchOutputs, device_losses, modality_entropy, predict
from dmmlkd_ext.training.methods import LossWeights
from tests.training.plain_loop import Outputs, Waiting, loss_terms

ALL = LossWeights(classification=0.5, similarity=0.03, difference=0.05)


def draw_outputs(
    seed: int, devices: int = 3, batch: int = 5, modalities: int = 3, keep: float = 0.6, waiting: bool = False
) -> BatchOutputs:
    """Return random outputs of devices that all have all modalities, but not in all samples."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return BatchOutputs(
        labels=torch.randint(4, (devices, batch), generator=generator),
        common_logits=draw(devices, batch, modalities, 4),
        specific_logits=draw(devices, batch, modalities, 4),
        present=torch.rand(devices, batch, modalities, generator=generator) < keep,
        common=[draw(devices, batch, 2) for _ in range(modalities)],
        specific=[draw(devices, batch, 2) for _ in range(modalities)],
        positions=[torch.arange(devices) for _ in range(modalities)],
        waiting_logits=draw(devices, batch, 4) if waiting else None,
        waiting_count=torch.randint(3, (devices, batch), generator=generator) if waiting else None,
    )


def one_sample(common: list[list[float]], specific: list[list[float]], present: list[bool], label: int) -> BatchOutputs:
    """Return outputs of one device and one sample, of two classes, with the features h = (3, 4) and s = (1, 0)."""
    return BatchOutputs(
        torch.tensor([[label]]),
        torch.tensor([[common]]),
        torch.tensor([[specific]]),
        torch.tensor([[present]]),
        [torch.tensor([[[3.0, 4.0]]]) for _ in common],
        [torch.tensor([[[1.0, 0.0]]]) for _ in common],
        [torch.tensor([0]) for _ in common],
    )


LOG3 = math.log(3)


def test_terms_computed_by_hand():
    # Predictions of the common features: (3/4, 1/4) and (1/2, 1/2); of both heads' mean: logits (ln 3, 0).
    outputs = one_sample([[LOG3, 0.0], [0.0, 0.0]], [[LOG3, 0.0], [0.0, 0.0]], [True, True], 0)
    losses = device_losses(outputs, ALL)
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
    outputs = BatchOutputs(
        labels=torch.zeros(2, 3, dtype=torch.int64),
        common_logits=torch.zeros(2, 3, 1, 2),
        specific_logits=torch.zeros(2, 3, 1, 2),
        present=torch.tensor([[True, True, False], [True, False, False]]).unsqueeze(-1),
        common=[common.expand(2, 3, 2)],
        specific=[specific.expand(2, 3, 2)],
        positions=[torch.arange(2)],
    )
    losses = device_losses(outputs, LossWeights(difference=1.0))
    assert losses["difference"].tolist() == pytest.approx([0.5, 1.0])


def test_a_single_modality_has_no_similarity():
    losses = device_losses(one_sample([[LOG3, 0.0]], [[LOG3, 0.0]], [True], 1), ALL)
    assert losses["similarity"].item() == 0
    assert losses["task"].item() == pytest.approx(-math.log(1 / 10))


def test_waiting_modalities_feed_the_prediction_alone():
    outputs = one_sample([[LOG3, 0.0]], [[0.0, 0.0]], [True], 0)
    waiting = BatchOutputs(
        **{**vars(outputs), "waiting_logits": torch.tensor([[[3 * LOG3, 0.0]]]), "waiting_count": torch.tensor([[1]])}
    )
    logits, count = predict(waiting)
    assert count.tolist() == [[2]]
    torch.testing.assert_close(logits, torch.tensor([[[2 * LOG3, 0.0]]]))
    losses, before = device_losses(waiting, ALL), device_losses(outputs, ALL)
    assert losses["task"].item() == pytest.approx(-math.log(9 / 10))
    for term in ("classification", "similarity", "difference"):
        assert losses[term] == before[term]


def test_a_sample_whose_modalities_all_wait_counts_for_the_task_alone():
    # Sample 0 trains with prediction (3/4, 1/4), sample 1 has a waiting modality alone, with (1/4, 3/4).
    outputs = BatchOutputs(
        labels=torch.tensor([[0, 0]]),
        common_logits=torch.tensor([[[[LOG3, 0.0], [0.0, 0.0]], [[9.0, 0.0], [0.0, 9.0]]]]),
        specific_logits=torch.tensor([[[[0.0, 0.0], [LOG3, 0.0]], [[9.0, 0.0], [0.0, 9.0]]]]),
        present=torch.tensor([[[True, True], [False, False]]]),
        common=[torch.ones(1, 2, 2)] * 2,
        specific=[torch.ones(1, 2, 2)] * 2,
        positions=[torch.tensor([0])] * 2,
        waiting_logits=torch.tensor([[[0.0, 0.0], [0.0, LOG3]]]),
        waiting_count=torch.tensor([[0, 1]]),
    )
    target = torch.tensor([[[LOG3, 0.0], [0.0, 5.0]]])  # the first is predicted (3/4, 1/4) by a head of unit rows
    guidance = GuidanceBatch(target, torch.tensor([[True, True]]), None, torch.tensor([0]), None, False, 1.0)
    weights = LossWeights(classification=0.5, similarity=0.03, generator=0.3)
    losses = device_losses(outputs, weights, guidance, torch.eye(2).unsqueeze(0))
    there = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    back = 1 / 2 * math.log(2 / 3) + 1 / 2 * math.log(2)
    assert losses["task"].item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 4)) / 2)
    assert losses["classification"].item() == pytest.approx(-(math.log(3 / 4) + math.log(1 / 2)) / 2)
    assert losses["similarity"].item() == pytest.approx((there + back) / 2)
    assert losses["generator"].item() == pytest.approx((0 + there) / 2)


def test_guidance_is_a_mean_over_the_classes_that_are_known():
    # Two samples, predicted (1/2, 1/2) by their common feature; the target of the first alone is known.
    outputs = BatchOutputs(
        labels=torch.tensor([[0, 1]]),
        common_logits=torch.zeros(1, 2, 1, 2),
        specific_logits=torch.zeros(1, 2, 1, 2),
        present=torch.ones(1, 2, 1, dtype=torch.bool),
        common=[torch.zeros(1, 2, 2)],
        specific=[torch.zeros(1, 2, 2)],
        positions=[torch.tensor([0])],
    )
    features, head = torch.tensor([[[LOG3, 0.0], [0.0, 9.0], [0.0, 9.0]]]), torch.eye(2).unsqueeze(0)
    known, labels = torch.tensor([[True, False, False]]), torch.tensor([0, 1, 0])
    batch = GuidanceBatch(features[:, :2], known[:, :2], features, labels, known, False, 0.5)
    weights = LossWeights(generator=1.0, rehearsal=1.0)
    losses = device_losses(outputs, weights, batch, head)
    divergence = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    assert losses["generator"].item() == pytest.approx(0.5 * divergence)
    assert losses["rehearsal"].item() == pytest.approx(-0.5 * math.log(3 / 4))
    nothing = replace(batch, known=torch.zeros_like(known[:, :2]), rehearsal_known=torch.zeros_like(known))
    losses = device_losses(outputs, weights, nothing, head)
    assert losses["generator"].item() == losses["rehearsal"].item() == 0


def test_terms_without_weight_are_left_out():
    outputs = draw_outputs(0)
    assert list(device_losses(outputs, LossWeights())) == ["task"]
    for term in ("classification", "similarity", "difference"):
        assert list(device_losses(outputs, LossWeights(**{term: 0.1}))) == ["task", term]


def plain_terms(outputs: BatchOutputs, device: int, weights: LossWeights) -> dict[str, torch.Tensor]:
    """Return one device's terms as the plain loop computes them."""
    waiting = None
    if outputs.waiting_logits is not None:
        waiting = Waiting(outputs.waiting_logits[device], outputs.waiting_count[device])
    own = Outputs(
        torch.stack([values[device] for values in outputs.common]),
        torch.stack([values[device] for values in outputs.specific]),
        outputs.common_logits[device].transpose(0, 1),
        outputs.specific_logits[device].transpose(0, 1),
    )
    return loss_terms(own, outputs.labels[device], outputs.present[device].T, weights, waiting)


@given(
    st.integers(0, 1000), st.integers(1, 4), st.integers(1, 7), st.integers(1, 4), st.sampled_from([0.0, 0.3, 0.8, 1.0])
)
@settings(deadline=None)
def test_all_devices_at_once_equal_each_alone(seed, devices, batch, modalities, keep):
    for waiting in (False, True):
        outputs = draw_outputs(seed, devices, batch, modalities, keep, waiting)
        losses = device_losses(outputs, ALL)
        for device in range(devices):
            expected = plain_terms(outputs, device, ALL)
            assert losses.keys() == expected.keys()
            for term, values in losses.items():
                torch.testing.assert_close(values[device], expected[term])


def test_what_is_absent_has_no_influence_and_no_gradient():
    outputs = draw_outputs(0)
    garbage = torch.where(outputs.present.unsqueeze(-1), outputs.common_logits, 1e3).requires_grad_()
    replaced = BatchOutputs(**{**vars(outputs), "common_logits": garbage})
    expected, losses = device_losses(outputs, ALL), device_losses(replaced, ALL)
    for term, values in losses.items():
        torch.testing.assert_close(values, expected[term])
    (gradient,) = torch.autograd.grad(sum(value.sum() for value in losses.values()), garbage)
    assert not gradient[~outputs.present].any()
    assert gradient[outputs.present].any()


def test_a_device_without_any_sample_has_no_loss():
    outputs = draw_outputs(0)
    outputs.present[1] = False
    for values in device_losses(outputs, ALL).values():
        assert values[1] == 0
        assert values[0] > 0


def test_a_modality_that_only_some_devices_have_counts_for_them():
    outputs = draw_outputs(0, devices=3, modalities=2, keep=1.0)
    holders = torch.tensor([0, 2])
    part = BatchOutputs(
        outputs.labels,
        outputs.common_logits,
        outputs.specific_logits,
        outputs.present & torch.tensor([[[True, True]], [[True, False]], [[True, True]]]),
        [outputs.common[0], outputs.common[1][holders]],
        [outputs.specific[0], outputs.specific[1][holders]],
        [torch.arange(3), holders],
    )
    whole, losses = device_losses(outputs, ALL), device_losses(part, ALL)
    for term in whole:
        torch.testing.assert_close(losses[term][holders], whole[term][holders])
    alone = BatchOutputs(
        outputs.labels,
        outputs.common_logits[:, :, :1],
        outputs.specific_logits[:, :, :1],
        outputs.present[:, :, :1],
        outputs.common[:1],
        outputs.specific[:1],
        outputs.positions[:1],
    )
    for term, values in device_losses(alone, ALL).items():
        torch.testing.assert_close(losses[term][1], values[1])


def test_entropy_of_each_modality():
    outputs = one_sample([[LOG3, 0.0], [0.0, 0.0]], [[0.0, 0.0], [LOG3, 0.0]], [True, False], 1)
    assert modality_entropy(outputs).flatten().tolist() == pytest.approx([-math.log(1 / 4), 0.0])
    both = modality_entropy(one_sample([[LOG3, 0.0]], [[LOG3, 0.0]], [True], 1), specific=True)
    assert both.item() == pytest.approx(-math.log(1 / 10))
