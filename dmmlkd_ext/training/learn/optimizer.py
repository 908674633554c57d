"""Stochastic gradient descent with clipping and momentum on the rows of all blocks, in one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from dmmlkd_ext.ops import backend


class StepRows(NamedTuple):
    """The rows of one block that take a step."""

    parameters: torch.Tensor
    """[rows, columns], float32 or float64, as in all blocks; rows contiguous; updated in place."""
    momentum: torch.Tensor
    """Likewise."""
    gradient: torch.Tensor
    """Likewise, but only read."""
    position: torch.Tensor
    """int64 [rows]: the device that each row belongs to; no device twice."""


@dataclass(frozen=True)
class StepSettings:
    """How a step is taken."""

    clip_norm: float
    """The most that the norm of a device's gradient may be, over all of its rows."""
    learning_rate: float
    momentum: float
    """What is kept of the momentum."""
    weight_decay: float
    """Weight of the parameters in the gradient."""


def sgd_step(blocks: Sequence[StepRows], devices: int, settings: StepSettings) -> None:
    """Clip each device's gradient by its norm over all of its rows, then update as torch.optim.SGD does.

    Args:
        blocks: the rows of each block.
        devices: how many there are; positions are in [0, devices).
        settings: of the step.

    Raises:
        ValueError: on a CPU, natively: shapes or dtypes do not match, or a position does not fit; nothing has been
            written then.

    Source:
        METHOD 3 [C]: the optimizer of every method; momentum (Polyak 1964) in the form of torch.optim.SGD without
        dampening, clipping (Pascanu et al. 2013) in that of torch.nn.utils.clip_grad_norm_.

    Example:
        >>> parameters, momentum = torch.ones(1, 2), torch.zeros(1, 2)
        >>> rows = StepRows(parameters, momentum, torch.ones(1, 2), torch.tensor([0]))
        >>> sgd_step([rows], 1, StepSettings(clip_norm=10.0, learning_rate=0.5, momentum=0.9, weight_decay=0.0))
        >>> parameters
        tensor([[0.5000, 0.5000]])
    """
    if not blocks:
        return
    if backend() != "native" or any(rows.parameters.device.type != "cpu" for rows in blocks):
        sgd_step_reference(blocks, devices, settings)
        return
    columns = ([rows[field] for rows in blocks] for field in range(4))
    s = settings
    torch.ops.dmmlkd.sgd_step_(*columns, devices, s.clip_norm, s.learning_rate, s.momentum, s.weight_decay)


@torch.no_grad()
def sgd_step_reference(blocks: Sequence[StepRows], devices: int, settings: StepSettings) -> None:
    """Do what `sgd_step` does, by operations of torch.

    Example:
        >>> parameters, momentum = torch.ones(1, 2), torch.ones(1, 2)
        >>> rows = StepRows(parameters, momentum, torch.ones(1, 2), torch.tensor([0]))
        >>> sgd_step_reference([rows], 1, StepSettings(10.0, 0.5, 0.5, 0.0))
        >>> momentum, parameters
        (tensor([[1.5000, 1.5000]]), tensor([[0.2500, 0.2500]]))
    """
    if not blocks:
        return
    squares = blocks[0].gradient.new_zeros(devices)
    for rows in blocks:
        squares.index_add_(0, rows.position, torch.linalg.vector_norm(rows.gradient, dim=1).square())
    scale = (settings.clip_norm / (squares.sqrt() + 1e-6)).clamp_max(1)
    for parameters, momentum, gradient, position in blocks:
        momentum.mul_(settings.momentum).add_(parameters, alpha=settings.weight_decay)
        momentum.addcmul_(gradient, scale[position].unsqueeze(1))
        parameters.add_(momentum, alpha=-settings.learning_rate)
