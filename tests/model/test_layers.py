from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dmmlkd_ext.model.layers import convolve, linear


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("with_bias", [True, False])
def test_each_device_has_its_own_linear_map(with_bias):
    inputs, weight = draw(3, 5, 4), draw(3, 4, 2)
    bias = draw(3, 2) if with_bias else None
    outputs = linear(inputs, weight, bias)
    for device in range(3):
        expected = F.linear(inputs[device], weight[device].T, None if bias is None else bias[device])
        torch.testing.assert_close(outputs[device], expected)


@pytest.mark.parametrize("space", [(9,), (7, 6), (1,), (2, 1)])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (5, 2), (3, 2), (5, 3)])
def test_each_device_has_its_own_convolution(space, kernel, stride):
    inputs, bias = draw(2, 4, *space, 3), draw(2, 5)
    weight = draw(2, 3 * kernel ** len(space), 5)
    reference = F.conv1d if len(space) == 1 else F.conv2d
    for rectify in (False, True):
        outputs = convolve(inputs, weight, bias, kernel, stride, rectify)
        for device in range(2):
            windows = weight[device].view(*(kernel,) * len(space), 3, 5).permute(-1, -2, *range(len(space)))
            expected = reference(inputs[device].movedim(-1, 1), windows, bias[device], stride, kernel // 2)
            expected = (expected.relu() if rectify else expected).movedim(1, -1)
            torch.testing.assert_close(outputs[device], expected)


@pytest.mark.parametrize("empty", [(0, 3), (2, 0)])
def test_no_samples_and_no_devices(empty):
    devices, samples = empty
    leaves = [draw(devices, samples, 6, 5, 2), draw(devices, 18, 4), draw(devices, 4)]
    for leaf in leaves:
        leaf.requires_grad_()
    outputs = convolve(*leaves, 3, 2, True)
    assert outputs.shape == (devices, samples, 3, 3, 4)
    for gradient in torch.autograd.grad(outputs.sum(), leaves):
        assert not gradient.any()
