from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dmmlkd_ext.model.layers import linear


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
