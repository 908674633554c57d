"""Stochastic gradient descent with momentum on the rows of a block, in one pass over memory."""

from __future__ import annotations

import torch

from dmmlkd_ext.ops import backend


@torch.no_grad()
def sgd_step(
    parameters: torch.Tensor,
    momentum: torch.Tensor,
    gradient: torch.Tensor,
    scale: torch.Tensor,
    learning_rate: float,
    momentum_factor: float,
    weight_decay: float,
) -> None:
    """Update `parameters` and `momentum` in place, as torch.optim.SGD does without dampening.

    Args:
        parameters: [rows, columns], float32 or float64; rows contiguous.
        momentum: likewise.
        gradient: likewise.
        scale: [rows], a factor on each row's gradient.
        learning_rate: step size.
        momentum_factor: what is kept of the momentum.
        weight_decay: weight of the parameters in the gradient.

    Raises:
        ValueError: the shapes or dtypes do not match; nothing has been written then.

    Source:
        METHOD 3 [C]: the optimizer of every method; momentum (Polyak 1964) in the form of torch.optim.SGD.

    Example:
        >>> parameters, momentum = torch.ones(1, 2), torch.zeros(1, 2)
        >>> sgd_step(parameters, momentum, torch.ones(1, 2), torch.ones(1), 0.5, 0.9, 0.0)
        >>> parameters
        tensor([[0.5000, 0.5000]])
    """
    native = backend() == "native" and parameters.device.type == "cpu"
    step = torch.ops.dmmlkd.sgd_step_ if native else sgd_step_reference
    step(parameters, momentum, gradient, scale, learning_rate, momentum_factor, weight_decay)


@torch.no_grad()
def sgd_step_reference(
    parameters: torch.Tensor,
    momentum: torch.Tensor,
    gradient: torch.Tensor,
    scale: torch.Tensor,
    learning_rate: float,
    momentum_factor: float,
    weight_decay: float,
) -> None:
    """Do what `sgd_step` does, by operations of torch.

    Example:
        >>> parameters, momentum = torch.ones(1, 2), torch.ones(1, 2)
        >>> sgd_step_reference(parameters, momentum, torch.ones(1, 2), torch.ones(1), 0.5, 0.5, 0.0)
        >>> momentum, parameters
        (tensor([[1.5000, 1.5000]]), tensor([[0.2500, 0.2500]]))
    """
    momentum.mul_(momentum_factor).add_(parameters, alpha=weight_decay)
    momentum.addcmul_(gradient, scale.unsqueeze(1))
    parameters.add_(momentum, alpha=-learning_rate)
