"""Parts that the derivatives of the two losses share: precision, saved gradients, other transforms of the call."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.autograd import forward_ad


def widened(tensor: torch.Tensor) -> torch.Tensor:
    """Convert half precisions to float32; return other tensors unchanged.

    Example:
        >>> widened(torch.zeros(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def autocasts(tensor: torch.Tensor) -> bool:
    """Return whether torch.autocast is on for the device of `tensor`."""
    return tensor.device.type != "meta" and torch.is_autocast_enabled(tensor.device.type)


def full_precision(tensor: torch.Tensor) -> AbstractContextManager[object]:
    """Return a context in which torch.autocast does not round the products of `tensor`'s device.

    Example:
        >>> with torch.autocast("cpu"), full_precision(torch.zeros(1)):
        ...     (torch.eye(2) @ torch.eye(2)).dtype
        torch.float32
    """
    return torch.autocast(tensor.device.type, enabled=False) if autocasts(tensor) else nullcontext()


def loss_dtype(tensor: torch.Tensor) -> torch.dtype:
    """Return the dtype of a loss of `tensor`: the tensor's, but float32 for half precisions under torch.autocast."""
    return torch.float32 if tensor.dtype != torch.float64 and autocasts(tensor) else tensor.dtype


def needs_formula() -> bool:
    """Return whether torch.func or forward mode is active, which cannot differentiate a native call."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def differentiated_again() -> bool:
    """Return, in a backward pass, whether it must be differentiable (create_graph)."""
    return torch.is_grad_enabled() and not torch.compiler.is_compiling()


def scaled(gradient: torch.Tensor, upstream: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return a saved gradient [..., a, b] times the gradient of its loss, [] or [...], in `dtype`.

    Example:
        >>> scaled(torch.ones(2, 1, 1), torch.tensor([1.0, 2.0]), torch.float32).flatten()
        tensor([1., 2.])
    """
    if not is_one(upstream):
        gradient = gradient * (upstream[..., None, None] if upstream.dim() else upstream)
    return gradient if gradient.dtype is dtype else gradient.to(dtype)


def is_one(upstream: torch.Tensor) -> bool:
    """Return whether a pass over memory can be saved; False where reading the value costs time or is impossible."""
    if type(upstream) is not torch.Tensor or upstream.dim() or not upstream.is_cpu or torch.compiler.is_compiling():
        return False
    return not torch._C._are_functorch_transforms_active() and upstream.item() == 1
