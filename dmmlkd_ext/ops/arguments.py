"""Checks that the operators share; their messages name the argument, what it got and what it needs."""

from __future__ import annotations

import torch

REDUCTIONS = {"none": 0, "mean": 1, "sum": 2}


def check_floating(operator: str, name: str, tensor: torch.Tensor) -> None:
    """Raise TypeError unless `tensor` is a tensor, ValueError unless it is dense and of a supported dtype."""
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{operator}: {name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.layout is not torch.strided:
        raise ValueError(f"{operator}: {name} must be a dense tensor (torch.strided), got {tensor.layout}")
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ValueError(f"{operator}: {name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}")


def check_mask(operator: str, mask: torch.Tensor, shape: torch.Size, device: torch.device) -> None:
    """Raise unless `mask` is bool, on `device` and broadcasts to `shape`."""
    if not isinstance(mask, torch.Tensor):
        raise TypeError(f"{operator}: mask must be a torch.Tensor or None, got {type(mask).__name__}")
    if mask.dtype != torch.bool:
        raise ValueError(f"{operator}: mask must be bool, got {mask.dtype}")
    trailing = shape[len(shape) - mask.dim() :]
    if mask.dim() > len(shape) or any(a not in (1, b) for a, b in zip(mask.shape, trailing, strict=True)):
        raise ValueError(f"{operator}: mask must broadcast to {list(shape)}, got {list(mask.shape)}")
    if mask.device != device:
        raise ValueError(f"{operator}: mask must be on {device}, got {mask.device}")


def reduction_code(operator: str, reduction: str) -> int:
    """Return the number of a reduction in native code; raise ValueError for an unknown one."""
    code = REDUCTIONS.get(reduction) if isinstance(reduction, str) else None
    if code is None:
        raise ValueError(f"{operator}: reduction must be one of {', '.join(REDUCTIONS)}; got {reduction!r}")
    return code


def reduce(values: torch.Tensor, reduction: str) -> torch.Tensor:
    """Reduce a loss over all its elements; the mean of no elements is 0, not NaN."""
    if reduction == "none" or values.dim() == 0:
        return values
    return values.mean() if reduction == "mean" and values.numel() else values.sum()
